"""The engine: one scheduler thread, futures for callers.

    engine = Engine(load_model("smollm2-135m"))
    result = engine.generate("The capital of France is", max_tokens=8)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import Self

from ...errors import CancelledError, EngineError
from ..models import Model
from .grammar import GrammarCompiler
from .pages import PAGE_SIZE, PagePool
from .request import Decode, Forced, Request, Result, Sampling
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Sequence, Vocabulary
from .stats import Stats

GATHER_SECONDS = 0.002
"""How long an idle engine waits for more requests before its first step: threads submit one after the other."""


class Engine:
    """Runs requests on one model, batched together. Thread-safe; results do not depend on which thread asks.

    cache_tokens: size of the KV cache, in tokens, shared by all requests. max_context: longest sequence, in tokens.
    """

    def __init__(
        self,
        model: Model,
        *,
        cache_tokens: int = 32768,
        max_context: int | None = None,
        max_rows: int = 512,
        max_running: int = 256,
    ) -> None:
        self.model = model
        self.max_context = min(max_context or model.spec.max_position, model.spec.max_position, cache_tokens)
        num_pages = max(1, cache_tokens // PAGE_SIZE)
        tokenizer = model.tokenizer
        grammars = GrammarCompiler(tokenizer.json, model.spec.vocab_size, tokenizer.eos_ids)
        self._vocabulary = Vocabulary(tokenizer, grammars, tokenizer.encode("\n"))
        self._scheduler = Scheduler(PagePool(num_pages), max_rows, max_running)
        self._runner = Runner(model, num_pages, self.max_context)
        self._stats = Stats(pages_total=num_pages)
        self._inbox: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._ids = count()
        self._closed = False
        # daemon: a program that ends without close() must not hang on its engine
        self._thread = threading.Thread(target=self._loop, name="still-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Result]:
        """Queue a request. Cancel it with `future.cancel()`.

        Raises `EngineError` at once for a token id out of range, an empty prompt, a malformed grammar, or a request that
        can never fit; `CancelledError` if the engine is closed.
        """
        self._check(request)
        if self._closed:
            raise CancelledError("the engine is closed: make a new one")
        future: Future[Result] = Future()
        sequence = Sequence(next(self._ids), request, self._vocabulary, future)
        sequence.begin()
        if sequence.finished:
            future.set_result(sequence.result())
        else:
            self._inbox.put(sequence)
        return future

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
        pool = self._scheduler.pool
        filled = [page.filled for page in pool.pages if page.references]
        wasted = 1.0 - sum(filled) / (len(filled) * PAGE_SIZE) if filled else 0.0
        return replace(
            self._stats, pages_used=len(filled), pages_cached=pool.num_cached, wasted_fraction=wasted
        )

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

    def _check(self, request: Request) -> None:
        vocabulary = self.model.spec.vocab_size
        forced = [step.tokens for step in request.steps if isinstance(step, Forced)]
        for token in (t for tokens in (request.prompt, *forced) for t in tokens):
            if not 0 <= token < vocabulary:
                raise EngineError(f"token id {token} is not in the vocabulary of {vocabulary} of {self.model.name}")
        if not request.prompt:
            raise EngineError("empty prompt: give at least one token (the beginning-of-sequence token will do)")
        longest = len(request.prompt) + sum(map(len, forced))
        # A decode that runs out of tokens may be closed with a newline.
        closing = len(self._vocabulary.newline)
        longest += sum(step.max_tokens + closing for step in request.steps if isinstance(step, Decode))
        if longest > self.max_context:
            raise EngineError(
                f"request of up to {longest} tokens (prompt {len(request.prompt)}) does not fit into a context of "
                f"{self.max_context}: shorten the prompt, lower max_tokens, or raise max_context or cache_tokens"
            )

    def _loop(self) -> None:
        while self._receive():
            try:
                self._step()
            except Exception as error:
                self._fail_all(error)
        self._fail_all(CancelledError("the engine was closed before the request finished"))

    def _receive(self) -> bool:
        """Take in new requests; block while there is nothing to do. False: closed."""
        if self._scheduler.idle:
            if not self._take(self._inbox.get()):
                return False
            time.sleep(GATHER_SECONDS)
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return True
            if not self._take(item):
                return False

    def _take(self, sequence: Sequence | None) -> bool:
        if sequence is None:
            return False
        self._stats.requests += 1
        self._scheduler.add(sequence)
        return True

    def _step(self) -> None:
        scheduler = self._scheduler
        for sequence in [*scheduler.running, *scheduler.waiting]:
            if sequence.future.cancelled():
                scheduler.remove(sequence)
        chunks = scheduler.plan()
        if not chunks:
            return
        began = time.perf_counter()
        rows = sum(chunk.stop - chunk.start for chunk in chunks)
        drawing = sum(chunk.last and chunk.sequence.draws for chunk in chunks)
        self._runner.step(chunks)
        self._count(rows, drawing, time.perf_counter() - began)
        for chunk in chunks:
            if chunk.sequence.finished:
                self._finish(chunk.sequence)

    def _finish(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        usage = sequence.usage()
        self._stats.reused_tokens += usage.cached_tokens
        self._stats.jumped_tokens += usage.jumped_tokens
        if sequence.future.set_running_or_notify_cancel():
            sequence.future.set_result(sequence.result())

    def _count(self, rows: int, drawing: int, seconds: float) -> None:
        stats = self._stats
        stats.steps += 1
        stats.decoded_tokens += drawing
        stats.prefilled_tokens += rows - drawing
        stats.busy_seconds += seconds
        stats.preemptions = self._scheduler.preemptions

    def _fail_all(self, error: Exception) -> None:
        """Fail every request and start over with an empty cache: a step that broke may have left it half written."""
        scheduler = self._scheduler
        for sequence in [*scheduler.running, *scheduler.waiting]:
            scheduler.remove(sequence)
            if sequence.future.set_running_or_notify_cancel():
                sequence.future.set_exception(error)
        scheduler.pool.clear()
        if self._closed:
            while not self._inbox.empty():
                sequence_or_none = self._inbox.get()
                if sequence_or_none is not None and sequence_or_none.future.set_running_or_notify_cancel():
                    sequence_or_none.future.set_exception(error)
