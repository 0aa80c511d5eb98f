"""The engine without its thread: requests in, one step after the other, futures resolved."""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from dataclasses import replace
from itertools import count

from ...errors import EngineError
from ..models import Adapter, Model
from .branch import Branch, branch
from .cache_size import default_cache_tokens
from .grammar import GrammarCompiler
from .options import Growth, option_tree
from .pages import PAGE_SIZE, PagePool
from .request import END, Choose, Decode, Forced, Request, Usage
from .runner import Computed, Runner, answerable
from .scheduler import Plan, Scheduler
from .sequence import Feed, Sequence, Vocabulary
from .stats import Stats


class EngineCore:
    """Scheduler and runner of one model. `prepare` may be called from any thread, the rest from one at a time.

    Arguments as for `Engine`.
    """

    def __init__(
        self, model: Model, cache_tokens: int | None, max_context: int | None, max_rows: int, max_running: int
    ) -> None:
        self.model = model
        if cache_tokens is None:
            cache_tokens = default_cache_tokens(model)
        num_pages = max(1, cache_tokens // PAGE_SIZE)
        # A sequence longer than the pool would wait for room for ever.
        longest = model.spec.max_position
        self.max_context = min(max_context or longest, longest, num_pages * PAGE_SIZE)
        tokenizer = model.tokenizer
        grammars = GrammarCompiler(tokenizer.json, model.spec.vocab_size, tokenizer.eos_ids)
        self._vocabulary = Vocabulary(tokenizer, grammars)
        self.scheduler = Scheduler(PagePool(num_pages), max_rows, max_running)
        self.runner = Runner(model, num_pages, self.max_context)
        self.adapters: dict[str, Adapter] = {}
        self._stats = Stats(pages_total=num_pages)
        self._slots = self._wasted_slots = 0
        self._ids = count()

    def prepare(self, request: Request, seeds: SequenceOf[int] | None = None, feed: Feed | None = None) -> list[Sequence]:
        """Turn a request into sequences, one for each seed (by default its own). The first leads, the others follow it
        until the first draw: `add` the first, unless it is finished already; then `answer` it.

        Raises `EngineError` if the request is impossible.
        """
        self._check(request)
        adapter = self._adapter(request.adapter)
        requests = [request]
        if seeds is not None:
            requests = [replace(request, sampling=replace(request.sampling, seed=seed)) for seed in seeds]
        sequences = [Sequence(next(self._ids), each, self._vocabulary, Future(), adapter) for each in requests]
        leader, leader.followers, leader.feed = sequences[0], sequences[1:], feed
        leader.begin()
        return sequences

    def add(self, sequence: Sequence) -> None:
        """Queue an unfinished sequence that `prepare` made, with its followers."""
        self._stats.requests += 1 + len(sequence.followers)
        self.scheduler.add(sequence)

    def step(self) -> None:
        """Drop what was cancelled, compute one batch, and answer what is finished by it."""
        scheduler = self.scheduler
        for sequence in scheduler.sequences:
            if sequence.future.cancelled() and sequence.unwanted:
                scheduler.remove(sequence)
                sequence.dismiss()
        plan = scheduler.plan()
        if not plan.chunks and not plan.copies:
            return
        began = time.perf_counter()
        self._count_slots()
        computed = self.runner.compute(plan)
        rows = sum(isinstance(sequence.step, Decode) for sequence, _ in computed.drawing)
        self._fork(computed)
        self.runner.draw(computed)
        drawn = sum(sequence.growth is None for sequence, _ in computed.drawing)
        self._count(plan, rows, drawn, time.perf_counter() - began)
        for sequence, _ in computed.drawing:
            if sequence.growth is not None:
                self._branch(sequence, sequence.growth)
            self._tell(sequence)
        # A finished branch may finish what it is a branch of.
        while finished := [sequence for sequence in scheduler.sequences if sequence.finished]:
            for sequence in finished:
                self._finish(sequence)
        self._fail_broken()

    def fail_all(self, error: Exception) -> None:
        """Fail every request and start over with an empty cache: a step that broke may have left it half written."""
        scheduler = self.scheduler
        for sequence in scheduler.sequences:
            scheduler.remove(sequence)
            self.fail(sequence, error)
        scheduler.pool.clear()

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """Answer a sequence and its followers with `error`."""
        if isinstance(sequence, Branch):
            return
        for member in (sequence, *sequence.followers):
            if member.future.set_running_or_notify_cancel():
                member.future.set_exception(error)

    @property
    def stats(self) -> Stats:
        """A copy of the counters, with the state of the cache as it is now (or was a moment ago: nothing is locked)."""
        pool = self.scheduler.pool
        wasted = self._wasted_slots / self._slots if self._slots else 0.0
        return replace(self._stats, pages_used=pool.num_used, pages_cached=pool.num_cached, wasted_fraction=wasted)

    def _fork(self, computed: Computed) -> None:
        """Let the followers of sequences that are about to draw for the first time draw from the same row."""
        parted: list[tuple[Sequence, int]] = []
        for sequence, row in computed.drawing:
            # A choice is one for all followers: they part when it is made.
            if sequence.followers and sequence.node is None:
                children = sequence.part()
                self.scheduler.fork(sequence, children)
                parted.extend((child, row) for child in children)
        computed.drawing.extend(parted)

    def _branch(self, sequence: Sequence, growth: Growth) -> None:
        """Follow the options that go on from where a sequence is, each in a branch."""
        sequence.growth = None
        branches = [branch(next(self._ids), sequence, node, logprob) for node, logprob in growth.children]
        self.scheduler.fork(sequence, [made for made in branches if made is not None])
        if isinstance(sequence, Branch):
            sequence.finished = True
        else:
            self.scheduler.park(sequence)
            self._choose_if_known(sequence)

    def _choose_if_known(self, sequence: Sequence) -> None:
        """Let a parked sequence, and all that follow it, take an option once every one is scored."""
        if sequence.tally is None or sequence.tally.under_way:
            return
        for member in [*reversed(sequence.part()), sequence]:
            self.scheduler.resume(member)
            with answerable(member):
                member.choose()
            self._tell(member)

    def _tell(self, sequence: Sequence) -> None:
        if sequence.feed is not None:
            sequence.feed.update(sequence)

    def _finish(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        if isinstance(sequence, Branch):
            assert sequence.root is not None and sequence.tally is not None
            sequence.tally.under_way -= 1
            self._choose_if_known(sequence.root)
            return
        for usage in answer(sequence):
            self._stats.reused_tokens += usage.cached_tokens
            self._stats.jumped_tokens += usage.jumped_tokens

    def _fail_broken(self) -> None:
        """Answer the sequences that cannot go on, which is no reason why the others should not."""
        for sequence in self.scheduler.sequences:
            if sequence.error is not None:
                self.scheduler.remove(sequence)
                self.fail(sequence, sequence.error)

    def _count(self, plan: Plan, rows_drawn_from: int, drawn: int, seconds: float) -> None:
        stats = self._stats
        stats.steps += 1
        stats.decoded_tokens += drawn
        stats.prefilled_tokens += sum(chunk.stop - chunk.start for chunk in plan.chunks) - rows_drawn_from
        stats.busy_seconds += seconds
        stats.preemptions = self.scheduler.preemptions

    def _count_slots(self) -> None:
        wasted, slots = self.scheduler.open_slots, self.scheduler.pool.num_used * PAGE_SIZE
        self._wasted_slots += wasted
        self._slots += slots
        self._stats.wasted_now = wasted / slots if slots else 0.0

    def _adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        adapter = self.adapters.get(name)
        if adapter is None:
            known = ", ".join(sorted(self.adapters)) or "none"
            raise EngineError(f"adapter {name!r} is not loaded (loaded: {known}): load it first, or leave adapter out")
        return adapter

    def _check(self, request: Request) -> None:
        vocabulary = self.model.spec.vocab_size
        forced = [step.tokens for step in request.steps if isinstance(step, Forced)]
        chosen = [option for step in request.steps if isinstance(step, Choose) for option in step.options]
        ended = [[token for token in option if token != END] for option in chosen]
        for token in (t for tokens in (request.prompt, *forced, *ended) for t in tokens):
            if not 0 <= token < vocabulary:
                raise EngineError(f"token id {token} is not in the vocabulary of {vocabulary} of {self.model.name}")
        for step in request.steps:
            if isinstance(step, Choose):
                option_tree(step.options)
        if not request.prompt:
            raise EngineError("empty prompt: give at least one token (the beginning-of-sequence token will do)")
        longest = len(request.prompt) + sum(map(len, forced))
        longest += sum(step.longest for step in request.steps if not isinstance(step, Forced))
        if longest > self.max_context:
            raise EngineError(
                f"request of up to {longest} tokens (prompt {len(request.prompt)}) does not fit into a context of "
                f"{self.max_context}: shorten the prompt, lower max_tokens, or raise max_context or cache_tokens"
            )


def answer(sequence: Sequence) -> list[Usage]:
    """Resolve a finished sequence, and its followers, of whom there are some left if nothing was drawn at all."""
    members = (sequence, *sequence.part())
    for member in members:
        if member.future.set_running_or_notify_cancel():
            member.future.set_result(member.result())
    return [member.usage() for member in members]
