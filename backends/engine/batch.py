"""A step's chunks as rows, and the tree of prefixes they share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..models import Adapter
from .pages import PAGE_SIZE
from .scheduler import Chunk

BLOCK_PAGES = 4
"""Attention takes keys in blocks of this many pages at fixed positions; shared runs begin and end on block borders, so
that a row's sums are formed in the same order whether its prefix is shared or not."""
MIN_SHARED_SAVING = 64
"""Keys that must be saved before a shared run is worth its own attention call."""

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Part:
    """A chunk, its first row, and how many pages of its block table shared runs cover (from the front)."""

    chunk: Chunk
    row: int
    covered: int = 0

    @property
    def rows(self) -> int:
        """Rows of this chunk."""
        return self.chunk.stop - self.chunk.start

    @property
    def num_pages(self) -> int:
        """Pages that hold this chunk's keys, from the sequence's beginning to its last row."""
        return -(-self.chunk.stop // PAGE_SIZE)


@dataclass(slots=True)
class SharedRun:
    """Pages `begin` … `end` - 1 of the block tables of `parts`, the same for all of them and computed before their rows.
    Runs of a part follow each other without a gap, from page 0 on; `depth` counts them."""

    parts: list[Part]
    begin: int
    end: int
    depth: int


@dataclass(slots=True)
class Batch:
    """One step's input. tokens, positions, slots: int64 [rows], slot = page * PAGE_SIZE + offset."""

    tokens: Ints
    positions: Ints
    slots: Ints
    parts: list[Part]
    runs: list[SharedRun]

    def adapted(self) -> dict[Adapter, Ints]:
        """Rows of the sequences that use an adapter, by adapter."""
        found: dict[Adapter, list[Ints]] = {}
        for part in self.parts:
            if part.chunk.sequence.adapter is not None:
                found.setdefault(part.chunk.sequence.adapter, []).append(np.arange(part.row, part.row + part.rows))
        return {adapter: np.concatenate(rows) for adapter, rows in found.items()}


def build_batch(chunks: list[Chunk]) -> Batch:
    """Lay out `chunks` as rows, in order, and find what they share."""
    tokens: list[int] = []
    positions: list[Ints] = []
    slots: list[Ints] = []
    parts: list[Part] = []
    for chunk in chunks:
        where = np.arange(chunk.start, chunk.stop, dtype=np.int64)
        parts.append(Part(chunk, len(tokens)))
        tokens.extend(chunk.sequence.tokens[chunk.start : chunk.stop])
        positions.append(where)
        slots.append(slots_of(chunk, where))
    runs = list(_shared_runs(parts, 0, 0, 0))
    return Batch(np.array(tokens, dtype=np.int64), np.concatenate(positions), np.concatenate(slots), parts, runs)


def slots_of(chunk: Chunk, positions: Ints) -> Ints:
    """Where the keys at these positions of the chunk's sequence are in the pool."""
    pages = np.array([page.index for page in chunk.sequence.pages], dtype=np.int64)
    return pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE


def _shared_runs(parts: list[Part], begin: int, level: int, depth: int) -> Iterator[SharedRun]:
    """Walk the tree of block tables, yielding a run for each node that enough parts share.

    `parts` agree on all pages before `level`, of which those from `begin` on are not covered by a run yet.
    """
    branches: dict[int, list[Part]] = {}
    for part in parts:
        if part.chunk.start // PAGE_SIZE >= level + BLOCK_PAGES:
            branches.setdefault(part.chunk.sequence.pages[level].index, []).append(part)
    for members in branches.values():
        if len(members) < 2:
            continue
        end = _common_end(members, level)
        if end == level:
            continue
        if (len(members) - 1) * (end - begin) * PAGE_SIZE >= MIN_SHARED_SAVING:
            for part in members:
                part.covered = end
            yield SharedRun(members, begin, end, depth)
            yield from _shared_runs(members, end, end, depth + 1)
        else:
            yield from _shared_runs(members, begin, end, depth)


def _common_end(members: list[Part], level: int) -> int:
    """The last block border up to which all members have the same pages, computed before their rows."""
    limit = min(part.chunk.start // PAGE_SIZE for part in members)
    first = members[0].chunk.sequence.pages
    end = level
    while end < limit and all(part.chunk.sequence.pages[end] is first[end] for part in members):
        end += 1
    return end // BLOCK_PAGES * BLOCK_PAGES
