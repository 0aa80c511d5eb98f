"""Decides which tokens of which sequences go through the model next.

Continuous batching with chunked prefill: every step takes one token of each decoding sequence and fills up with prompt
tokens, first come first served, to `max_rows`. A prompt's full pages are findable from the moment they are handed out,
so requests that arrive together and share a prefix compute it once: whoever came first computes, the others follow in
the same step (all keys of a layer are written before its attention) or wait for the chunk that fills the page.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .pages import PAGE_SIZE, Page, PagePool, page_key
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


class Scheduler:
    """Waiting and running sequences over one page pool. Used by the engine's thread only."""

    def __init__(self, pool: PagePool, max_rows: int, max_running: int) -> None:
        self.pool = pool
        self.max_rows, self.max_running = max_rows, max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """Nothing to do."""
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a finished, failed or cancelled sequence out and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def plan(self) -> list[Chunk]:
        """Choose the next step's chunks. Marks their pages as filled: the caller must then compute them."""
        self._admit()
        chunks: list[Chunk] = []
        budget = self.max_rows
        # Decoding sequences first, so that a long prompt cannot stall them.
        for sequence in sorted(self.running, key=lambda s: s.remaining > 1):
            if budget == 0:
                break
            # An earlier sequence of this loop may have preempted this one.
            if sequence.pages and (chunk := self._chunk(sequence, budget, chunks)):
                chunks.append(chunk)
                budget -= chunk.stop - chunk.start
        return chunks

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            if not self._take_pages(sequence):
                return
            self.waiting.popleft()
            self.running.append(sequence)

    def _take_pages(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its prompt's pages, shared where they exist; False if there is no room now."""
        tokens = sequence.tokens
        total = -(-len(tokens) // PAGE_SIZE)
        shared, keys = self._match(tokens)
        revived = sum(page.references == 0 for page in shared)
        # One page in reserve for each running sequence keeps admission from causing preemption at once.
        if self.pool.num_free < total - len(shared) + revived + len(self.running):
            return False
        for page in shared:
            self.pool.share(page)
        sequence.pages = shared
        sequence.page_keys = keys
        sequence.computed = 0
        if sequence.decoded == 0:
            sequence.cached = len(shared) * PAGE_SIZE
        while len(sequence.pages) < total:
            self._append_page(sequence)
        return True

    def _match(self, tokens: list[int]) -> tuple[list[Page], list[int]]:
        """Find the longest chain of known pages. The last token is never matched: its logits are needed."""
        pages: list[Page] = []
        keys: list[int] = []
        parent = 0
        for begin in range(0, len(tokens) - PAGE_SIZE, PAGE_SIZE):
            block = tokens[begin : begin + PAGE_SIZE]
            key = page_key(parent, block)
            page = self.pool.lookup(key, parent, block)
            if page is None:
                break
            pages.append(page)
            keys.append(key)
            parent = key
        return pages, keys

    def _append_page(self, sequence: Sequence) -> None:
        """Allocate the sequence's next page; register it at once if its tokens are known already."""
        page = self.pool.allocate(sequence.id)
        sequence.pages.append(page)
        self._register_known(sequence)

    def _register_known(self, sequence: Sequence) -> None:
        for index in range(len(sequence.page_keys), len(sequence.tokens) // PAGE_SIZE):
            if index >= len(sequence.pages):
                return
            parent = sequence.page_keys[-1] if sequence.page_keys else 0
            block = sequence.tokens[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            key = page_key(parent, block)
            sequence.page_keys.append(key)
            self.pool.register(sequence.pages[index], key, parent, block)

    def _chunk(self, sequence: Sequence, budget: int, planned: list[Chunk]) -> Chunk | None:
        self._skip_filled(sequence)
        start = sequence.computed
        stop = start
        limit = min(len(sequence.tokens), start + budget)
        while stop < limit:
            index = stop // PAGE_SIZE
            if index == len(sequence.pages) and not self._grow(sequence, planned):
                return None
            page = sequence.pages[index]
            if page.owner not in (None, sequence.id):
                break  # another sequence is computing this shared page
            page.owner = sequence.id
            stop = min(limit, (index + 1) * PAGE_SIZE)
            page.filled = stop - index * PAGE_SIZE
            if page.filled == PAGE_SIZE:
                page.owner = None
        if stop == start:
            return None
        sequence.computed = stop
        self._register_known(sequence)
        return Chunk(sequence, start, stop)

    def _skip_filled(self, sequence: Sequence) -> None:
        """Move past tokens that another sequence has computed."""
        while sequence.computed < len(sequence.tokens) - 1:
            index, offset = divmod(sequence.computed, PAGE_SIZE)
            if index == len(sequence.pages) or sequence.pages[index].filled <= offset:
                return
            sequence.computed = index * PAGE_SIZE + sequence.pages[index].filled

    def _grow(self, sequence: Sequence, planned: list[Chunk]) -> bool:
        """Allocate the next page, preempting the youngest sequences while there is none. False: preempted itself.

        Sequences already planned for this step are spared: others may count on the pages they are about to fill.
        """
        spared = {chunk.sequence.id for chunk in planned}
        while self.pool.num_free == 0:
            victim = next(s for s in reversed(self.running) if s.id not in spared)
            self._preempt(victim)
            if victim is sequence:
                return False
        self._append_page(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give a sequence's pages back; it will be recomputed when there is room (its cached pages often survive)."""
        self.preemptions += 1
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        for page in reversed(sequence.pages):  # tail first: the beginning of a prefix should live longest
            if page.owner == sequence.id:
                page.owner = None
            self.pool.release(page)
        sequence.pages, sequence.page_keys, sequence.computed = [], [], 0
