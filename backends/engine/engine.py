"""The engine: one scheduler thread, futures for callers.

engine = Engine(load_model("smollm2-135m"))
result = engine.generate("The capital of France is", max_tokens=8)
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from pathlib import Path
from typing import Self
from weakref import WeakSet

from ...errors import CancelledError, EngineError
from ..models import Adapter, Model, load_adapter
from .core import EngineCore, answer
from .kernels import release_team
from .request import Decode, Forced, Request, Result, Sampling
from .sequence import Sequence
from .stats import Stats
from .stream import AsyncStream, Stream

GATHER_SECONDS = 0.002
"""How long an idle engine waits for more requests before its first step: threads submit one after the other."""
REST_SECONDS = 0.1
"""How long it keeps its threads ready for the next request."""


_open: WeakSet[Engine] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Join the threads of engines that were left open: one that is inside C++ when the interpreter goes away aborts it."""
    for engine in list(_open):
        engine.close()


class Engine:
    """Runs requests on one model, batched together. Thread-safe; results do not depend on which thread asks.

    cache_tokens: size of the KV cache, in tokens, shared by all requests; by default what a quarter of the memory holds, of
    which only what is used is taken. max_context: longest sequence, in tokens.
    """

    def __init__(
        self,
        model: Model,
        *,
        cache_tokens: int | None = None,
        max_context: int | None = None,
        max_rows: int = 512,
        max_running: int = 256,
    ) -> None:
        self.model = model
        self._core = EngineCore(model, cache_tokens, max_context, max_rows, max_running)
        self.max_context = self._core.max_context
        self._scheduler, self._runner = self._core.scheduler, self._core.runner
        self._inbox: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._closed = False
        # daemon: a program that ends without close() must not hang on its engine
        self._thread = threading.Thread(target=self._loop, name="still-engine", daemon=True)
        self._thread.start()
        _open.add(self)

    def submit(self, request: Request) -> Future[Result]:
        """Queue a request. Cancel it with `future.cancel()`.

        Raises `EngineError` at once for a token id out of range, an empty prompt, a malformed grammar, or a request that
        can never fit; `CancelledError` if the engine is closed.
        """
        return self._send(self._core.prepare(request))[0]

    def submit_samples(self, request: Request, n: int) -> list[Future[Result]]:
        """Queue `n` samples of a request, with the seeds `seed`, `seed` + 1, … Each future's result is that of a request
        of its own with that seed, and each can be cancelled; what comes before the first draw is computed once.

        Raises as `submit` does.
        """
        if n < 1:
            raise EngineError(f"n={n} samples: give at least 1")
        seed = request.sampling.seed
        return self._send(self._core.prepare(request, range(seed, seed + n)))

    async def submit_async(self, request: Request) -> Result:
        """Await the result of a request. Cancelling the task cancels the request. Raises as `submit` does."""
        return await asyncio.wrap_future(self.submit(request))

    def stream(self, request: Request) -> Stream:
        """Queue a request and iterate over its text while it is decoded: `for piece in engine.stream(request)`.

        Raises as `submit` does.
        """
        stream = Stream(self.model.tokenizer, request)
        (future,) = self._send(self._core.prepare(request, feed=stream.feed))
        return stream.follow(future)

    def stream_async(self, request: Request) -> AsyncStream:
        """`stream` for coroutines: `async for piece in engine.stream_async(request)`. Needs a running event loop."""
        stream = AsyncStream(self.model.tokenizer, request)
        (future,) = self._send(self._core.prepare(request, feed=stream.feed))
        return stream.follow(future)

    def load_adapter(self, name: str, path: Path | str) -> Adapter:
        """Load a LoRA adapter from a PEFT folder, while the engine runs; requests name it in `Request.adapter`.

        Any number may be loaded and mixed in one batch. A name that is in use gets the new adapter: requests that were
        submitted before keep theirs. Raises `ModelError` naming what does not fit.
        """
        adapter = load_adapter(name, path, self.model.spec)
        self._core.adapters[name] = adapter
        return adapter

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that were submitted before keep it. Raises `EngineError` for an unknown name."""
        if self._core.adapters.pop(name, None) is None:
            raise EngineError(f"adapter {name!r} is not loaded (loaded: {', '.join(sorted(self.adapters)) or 'none'})")

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The loaded adapters by name (a copy)."""
        return dict(self._core.adapters)

    def generate(
        self,
        prompt: str | SequenceOf[int],
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: SequenceOf[str] = (),
        grammar: str | None = None,
    ) -> Result:
        """Continue `prompt` (text without control tokens, or token ids) and wait for the result."""
        tokens = self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        decode = Decode(max_tokens, grammar, tuple(stop))
        return self.submit(Request(tuple(tokens), (decode,), sampling or Sampling())).result()

    def score(self, prompt: SequenceOf[int], continuations: SequenceOf[SequenceOf[int]]) -> list[tuple[float, ...]]:
        """Return, for each continuation, the natural log-probability of each of its tokens after `prompt`."""
        futures = [self.submit(Request(tuple(prompt), (Forced(tuple(c), score=True),))) for c in continuations]
        return [future.result().steps[0].logprobs for future in futures]

    @property
    def stats(self) -> Stats:
        """A copy of the counters, with the state of the cache as it is now (or was a moment ago: nothing is locked)."""
        return self._core.stats

    def close(self) -> None:
        """Stop after the current step; unfinished requests fail with `CancelledError`. Idempotent."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, sequences: list[Sequence]) -> list[Future[Result]]:
        if self._closed:
            raise CancelledError("the engine is closed: make a new one")
        leader, futures = sequences[0], [sequence.future for sequence in sequences]
        if leader.finished:
            answer(leader)  # nothing to compute: no reason to wait for a step
        else:
            self._inbox.put(leader)
        return futures

    def _loop(self) -> None:
        while self._receive():
            try:
                self._core.step()
            except Exception as error:
                self._core.fail_all(error)
        closed = CancelledError("the engine was closed before the request finished")
        self._core.fail_all(closed)
        while not self._inbox.empty():
            if (sequence := self._inbox.get()) is not None:
                self._core.fail(sequence, closed)

    def _receive(self) -> bool:
        """Take in new requests; block while there is nothing to do. False: closed."""
        if self._scheduler.idle:
            if not self._take(self._awaited()):
                return False
            time.sleep(GATHER_SECONDS)
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return True
            if not self._take(item):
                return False

    def _awaited(self) -> Sequence | None:
        try:
            return self._inbox.get(timeout=REST_SECONDS)
        except queue.Empty:
            release_team()  # whoever works meanwhile has the cores
            return self._inbox.get()

    def _take(self, sequence: Sequence | None) -> bool:
        if sequence is None:
            return False
        self._core.add(sequence)
        return True
