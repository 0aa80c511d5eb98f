"""Text while it is decoded, in pieces that never have to be taken back."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future

from ...errors import EngineError
from ..models import Tokenizer
from .request import Decode, Request, Result, StepResult
from .sequence import Sequence, cut_at_stop

Event = list[int] | StepResult | None
"""New tokens of the decode step under way; a finished step; or: the future is done."""

INCOMPLETE = "\ufffd"
"""What decoding makes of bytes that are no whole character yet."""


class TokenFeed:
    """Passes on what is new in a sequence. Runs in the scheduler's thread; `put` must not block."""

    def __init__(self, put: Callable[[Event], None]) -> None:
        self._put = put
        self._steps = self._tokens = 0

    def update(self, sequence: Sequence) -> None:
        """Pass on finished steps, and then the tokens of the step under way."""
        for result in sequence.results[self._steps :]:
            self._put(result)
        self._steps = len(sequence.results)
        if isinstance(sequence.step, Decode):
            self._tokens = max(self._tokens, sequence.step_start)
            if new := sequence.tokens[self._tokens :]:
                self._put(new)
                self._tokens = len(sequence.tokens)


class TextPieces:
    """Turns events into text. The pieces joined are the text of the finished decode steps, letter for letter."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self._tokenizer, self._request = tokenizer, request
        self._step = 0
        self._begin()

    def take(self, event: list[int] | StepResult) -> tuple[int, str]:
        """The text that is certain now and was not before, and the index of the step it belongs to."""
        step = self._step
        if isinstance(event, list):
            self._read(event)
            return step, self._give(self._certain())
        self._step += 1
        rest = event.text[self._given :] if event.finish_reason != "forced" else ""
        self._begin()
        return step, rest

    def _begin(self) -> None:
        self._tokens: list[int] = []
        self._text = ""
        self._given = 0
        # Decoding goes on from `_anchor`, up to which `_text` is known: decoding all tokens at each is quadratic. Between
        # `_anchor` and `_read_to` lie tokens that were read, since some decoders treat the first token in a way of its own.
        self._anchor = self._read_to = 0

    def _read(self, tokens: list[int]) -> None:
        self._tokens += tokens
        decode = self._tokenizer.decode
        known = decode(self._tokens[self._anchor : self._read_to])
        text = decode(self._tokens[self._anchor :])
        if len(text) > len(known) and not text.endswith(INCOMPLETE):
            self._text += text[len(known) :]
            self._anchor, self._read_to = self._read_to, len(self._tokens)

    def _certain(self) -> int:
        """Length of the text that no stop string can reach back into."""
        step = self._request.steps[self._step]
        stop = step.stop if isinstance(step, Decode) else ()
        text = cut_at_stop(self._text, stop)
        if len(text) < len(self._text):
            return len(text)
        for length in range(min(max(map(len, stop), default=1) - 1, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in stop):
                return len(text) - length
        return len(text)

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece


class Stream:
    """Pieces of one request's text, once, in order. Leaving the loop early cancels the request, as `close` does.

    The scheduler never waits for the consumer: what is not read yet piles up here.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.feed = TokenFeed(self._events.put)
        self._pieces = TextPieces(tokenizer, request)
        self._future: Future[Result] = Future()

    def follow(self, future: Future[Result]) -> Stream:
        """Attach the request's future."""
        self._future = future
        future.add_done_callback(lambda _: self._events.put(None))
        return self

    @property
    def result(self) -> Result:
        """The finished request; waits for it. Raises what the request failed with."""
        return self._future.result()

    def close(self) -> None:
        """Cancel the request if it is not finished."""
        self._future.cancel()

    def __iter__(self) -> Iterator[str]:
        return (text for _, text in self.by_step())

    def by_step(self) -> Iterator[tuple[int, str]]:
        """The pieces with the index of the request's step that each belongs to."""
        try:
            while (event := self._events.get()) is not None:
                step, piece = self._pieces.take(event)
                if piece:
                    yield step, piece
            self._future.result()  # raises if it failed
        finally:
            self._future.cancel()


class AsyncStream:
    """`Stream` for one event loop, the one it was made in."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.feed = TokenFeed(self._put)
        self._pieces = TextPieces(tokenizer, request)
        self._future: Future[Result] = Future()

    def follow(self, future: Future[Result]) -> AsyncStream:
        """Attach the request's future."""
        self._future = future
        future.add_done_callback(lambda _: self._put(None))
        return self

    @property
    def result(self) -> Result:
        """The finished request. Raises what the request failed with, and `EngineError` while it is unfinished."""
        if not self._future.done():
            raise EngineError("result of an unfinished stream: read the stream to its end first")
        return self._future.result()

    def close(self) -> None:
        """Cancel the request if it is not finished."""
        self._future.cancel()

    async def __aiter__(self) -> AsyncIterator[str]:
        async for _, text in self.by_step():
            yield text

    async def by_step(self) -> AsyncIterator[tuple[int, str]]:
        """The pieces with the index of the request's step that each belongs to."""
        try:
            while (event := await self._events.get()) is not None:
                step, piece = self._pieces.take(event)
                if piece:
                    yield step, piece
            self._future.result()  # raises if it failed
        finally:
            self._future.cancel()

    def _put(self, event: Event) -> None:
        # A loop that was closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
