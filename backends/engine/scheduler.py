"""Decides which tokens of which sequences go through the model next.

Continuous batching with chunked prefill: every step takes one token of each decoding sequence and fills up with prompt
tokens, first come first served, to `max_rows`. A prompt's full pages are findable from the moment they are handed out,
so requests that arrive together and share a prefix compute it once: whoever came first computes, the others follow in
the same step (all keys of a layer are written before its attention) or wait for the chunk that fills the page.

A page whose tokens are settled is written in place, whoever holds it. The open last page of forked sequences is not: who
is about to write into it while others hold it gets a copy. Copies of a step happen in the order in which they were
planned and before anything is computed, so a page may be copied and handed out again within one plan.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .pages import PAGE_SIZE, PagePool
from .prefix import append_page, known_pages, parent_key, register_known
from .sequence import Sequence


@dataclass(slots=True)
class Chunk:
    """Tokens `start` … `stop` - 1 of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def last(self) -> bool:
        """Whether this chunk reaches the sequence's last token."""
        return self.stop == len(self.sequence.tokens)


@dataclass(slots=True)
class Plan:
    """One step: pages to copy (source index, target index), one after the other, and then chunks to compute."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Waiting and running sequences over one page pool. Used by the engine's thread only."""

    def __init__(self, pool: PagePool, max_rows: int, max_running: int) -> None:
        self.pool = pool
        self.max_rows, self.max_running = max_rows, max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.parked: list[Sequence] = []
        """Sequences that wait for their branches, without pages: the branches hold what they need of them."""
        self.preemptions = 0
        self._plan = Plan()

    @property
    def idle(self) -> bool:
        """Nothing to do."""
        return not self.waiting and not self.running

    @property
    def open_slots(self) -> int:
        """Slots in pages of running sequences that none of the tokens known so far will fill."""
        # By page, so that the last page of forks that have not parted yet counts once.
        tails = {s.pages[-1].index: len(s.pages) * PAGE_SIZE - len(s.tokens) for s in self.running}
        return sum(slots for slots in tails.values() if slots > 0)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a finished, failed or cancelled sequence out and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence in self.parked:
            self.parked.remove(sequence)
        self._release(sequence)

    def park(self, sequence: Sequence) -> None:
        """Set a running sequence aside until `resume`. Its pages stay findable while there is room for them."""
        self.running.remove(sequence)
        self._release(sequence)
        self.parked.append(sequence)

    def resume(self, sequence: Sequence) -> None:
        """Let a parked (or new) sequence go on before those that wait already."""
        if sequence in self.parked:
            self.parked.remove(sequence)
        self.waiting.appendleft(sequence)

    @property
    def sequences(self) -> list[Sequence]:
        """All that are not finished."""
        return [*self.running, *self.waiting, *self.parked]

    def fork(self, sequence: Sequence, children: list[Sequence]) -> None:
        """Let `children`, whose tokens begin with those of `sequence`, run on from here over the same pages.

        Only between `plan` calls, and only once all of the sequence's tokens are computed.
        """
        for child in children:
            for page in sequence.pages:
                self.pool.share(page)
            child.admitted = True
            child.pages, child.page_keys = list(sequence.pages), list(sequence.page_keys)
            child.computed = sequence.computed
            sequence.pages[-1].owner = None  # it belongs to whoever writes on last, the others copy
            if len(self.running) < self.max_running:
                self.running.append(child)
            else:
                self.waiting.appendleft(child)

    def plan(self) -> Plan:
        """Choose the next step's copies and chunks. Marks pages as filled: the caller must then carry the plan out."""
        plan = self._plan = Plan()
        chunks = plan.chunks
        self._admit()
        budget = self.max_rows
        # Decoding sequences first, so that a long prompt cannot stall them.
        for sequence in sorted(self.running, key=lambda s: s.remaining > 1):
            if budget == 0:
                break
            # An earlier sequence of this loop may have preempted this one.
            if sequence.pages and (chunk := self._chunk(sequence, budget)):
                chunks.append(chunk)
                budget -= chunk.stop - chunk.start
        return plan

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            if sequence.pages:
                if self.pool.num_free < len(self.running):
                    return
            elif not self._take_pages(sequence):
                return
            self.waiting.popleft()
            self.running.append(sequence)

    def _take_pages(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its prompt's pages, shared where they exist; False if there is no room now."""
        tokens = sequence.tokens
        total = -(-len(tokens) // PAGE_SIZE)
        shared, keys = known_pages(self.pool, sequence)
        revived = sum(page.references == 0 for page in shared)
        # One page in reserve for each running sequence keeps admission from causing preemption at once.
        if self.pool.num_free < total - len(shared) + revived + len(self.running):
            return False
        for page in shared:
            self.pool.share(page)
        sequence.pages = shared
        sequence.page_keys = keys
        sequence.computed = 0
        cached = sum(page.filled if page.owner is None else PAGE_SIZE for page in shared)
        cached += self._copy_beginning(sequence)
        if not sequence.admitted:
            sequence.admitted, sequence.cached = True, cached
        while len(sequence.pages) < total:
            append_page(self.pool, sequence)
        return True

    def _copy_beginning(self, sequence: Sequence) -> int:
        """Start the page after the matched ones with what another page has of it; return the number of tokens."""
        begin = len(sequence.pages) * PAGE_SIZE
        wanted = sequence.tokens[begin : min(begin + PAGE_SIZE, sequence.needed)]
        source, length = self.pool.closest(parent_key(sequence), wanted)
        if source is None:
            return 0
        self.pool.touch(source)
        page = append_page(self.pool, sequence)
        if page is not source:  # the last free page of all may be the source itself: then everything is in place
            self._plan.copies.append((source.index, page.index))
        page.filled = length
        return length

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk | None:
        self._skip_filled(sequence)
        start = sequence.computed
        stop = self._reserve(sequence, min(len(sequence.tokens), start + budget))
        if stop <= start:
            return None
        # Only now, when nothing can fail any more: a page marked as filled is found by others.
        index = start // PAGE_SIZE
        begin = index * PAGE_SIZE
        while begin < stop:
            page = sequence.pages[index]
            filled = stop - begin
            if filled >= PAGE_SIZE:
                page.filled, page.owner = PAGE_SIZE, None
            elif filled > page.filled:
                page.filled, page.owner = filled, sequence.id
            index, begin = index + 1, begin + PAGE_SIZE
        sequence.computed = stop
        if len(sequence.tokens) >= (len(sequence.page_keys) + 1) * PAGE_SIZE:
            register_known(self.pool, sequence)
        return Chunk(sequence, start, stop)

    def _reserve(self, sequence: Sequence, limit: int) -> int:
        """See that the sequence may write the pages of its next tokens; return the position up to which it may.

        0 if it was preempted for lack of pages.
        """
        start = stop = sequence.computed
        index = start // PAGE_SIZE
        while stop < limit:
            if index == len(sequence.pages):
                if not self._make_room(sequence):
                    return 0
                append_page(self.pool, sequence)
            page = sequence.pages[index]
            if page.owner != sequence.id:
                if page.owner is not None:
                    break  # another sequence is computing this shared page
                if page.filled and stop > start and not sequence.pending_scores:
                    break  # known from here on: the next step goes past it
                if page.key is None and not self._make_own(sequence, index):
                    return 0
            index += 1
            stop = index * PAGE_SIZE
        return min(stop, limit)

    def _skip_filled(self, sequence: Sequence) -> None:
        """Move past tokens that another sequence has computed."""
        last = sequence.needed if sequence.pending_scores else len(sequence.tokens) - 1
        while sequence.computed < last:
            index, offset = divmod(sequence.computed, PAGE_SIZE)
            if index == len(sequence.pages) or sequence.pages[index].filled <= offset:
                return
            sequence.computed = min(last, index * PAGE_SIZE + sequence.pages[index].filled)

    def _make_own(self, sequence: Sequence, index: int) -> bool:
        """Take over an open page that forks left to whoever comes; copy it while others hold it too. False: preempted."""
        page = sequence.pages[index]
        if page.references > 1 and not self._make_room(sequence):
            return False
        if page.references > 1:  # still: making room may have preempted the others
            copy = self.pool.allocate(sequence.id)
            self._plan.copies.append((page.index, copy.index))
            copy.filled = page.filled
            sequence.pages[index] = copy
            self.pool.release(page)
            page = copy
        page.owner = sequence.id
        if page.filled < PAGE_SIZE:
            # A fork's own tokens may differ from here on: what is found on the page must be what its writer writes.
            self.pool.follow(page, parent_key(sequence), sequence.tokens, index * PAGE_SIZE)
        return True

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt the youngest sequences while there is no free page, first those that wait. False: preempted itself.

        Sequences already planned for this step are spared: others may count on the pages they are about to fill.
        """
        if self.pool.num_free:
            return True
        spared = {chunk.sequence.id for chunk in self._plan.chunks}
        while self.pool.num_free == 0:
            if holder := next((s for s in reversed(self.waiting) if s.pages), None):
                self._release(holder)
                continue
            victim = next(s for s in reversed(self.running) if s.id not in spared)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give a sequence's pages back; it will be recomputed when there is room (its cached pages often survive)."""
        self.preemptions += 1
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        for index in reversed(range(len(sequence.pages))):  # tail first: the beginning of a prefix should live longest
            page = sequence.pages[index]
            if page.owner == sequence.id:
                page.owner = None
            self.pool.release(page, passing=index * PAGE_SIZE + page.filled > sequence.lasting)
        sequence.pages, sequence.page_keys, sequence.computed = [], [], 0
