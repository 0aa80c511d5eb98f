"""Turns a step's chunks into tensors: rows, slots, and who attends to what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .attention import AttentionPlan, Bucket, SharedGroup
from .pages import PAGE_SIZE
from .scheduler import Chunk

MIN_SHARED_SAVING = 64
"""Keys that must be saved before a shared part is worth its own attention call."""
MAX_BUCKET_SCORES = 1 << 23
"""Upper bound of batch * queries * keys in one padded bucket."""

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Batch:
    """One step's input. tokens, positions, slots: int64 [rows]; `first_row[i]` is where chunk i begins."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    first_row: list[int]
    attention: AttentionPlan


@dataclass(slots=True)
class _Part:
    """A chunk with its first row and the pages (indices into its block table) still to be attended privately."""

    chunk: Chunk
    row: int
    private: list[int]


def build_batch(chunks: list[Chunk]) -> Batch:
    """Lay out `chunks` as rows and plan their attention."""
    tokens: list[int] = []
    positions: list[Ints] = []
    slots: list[Ints] = []
    parts: list[_Part] = []
    for chunk in chunks:
        sequence = chunk.sequence
        where = np.arange(chunk.start, chunk.stop, dtype=np.int64)
        parts.append(_Part(chunk, len(tokens), list(range(-(-chunk.stop // PAGE_SIZE)))))
        tokens.extend(sequence.tokens[chunk.start : chunk.stop])
        positions.append(where)
        slots.append(_slots(chunk, where))
    groups = list(_shared_groups(parts, 0))
    return Batch(
        torch.tensor(tokens, dtype=torch.int64),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(slots)),
        [part.row for part in parts],
        AttentionPlan(list(_buckets(parts)), groups),
    )


def _slots(chunk: Chunk, positions: Ints) -> Ints:
    pages = np.array([page.index for page in chunk.sequence.pages], dtype=np.int64)
    return pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE


def _shared_groups(parts: list[_Part], depth: int) -> Iterator[SharedGroup]:
    """Walk the tree of block tables; yield a group for each node that enough chunks share.

    A node is a run of pages that all `parts` have in common from page `depth` on, computed before each chunk's rows.
    """
    branches: dict[int, list[_Part]] = {}
    for part in parts:
        if part.chunk.start // PAGE_SIZE > depth:
            branches.setdefault(part.chunk.sequence.pages[depth].index, []).append(part)
    for members in branches.values():
        if len(members) < 2:
            continue
        end = _common_end(members, depth)
        if (len(members) - 1) * (end - depth) * PAGE_SIZE >= MIN_SHARED_SAVING:
            yield _group(members, depth, end)
        yield from _shared_groups(members, end)


def _common_end(members: list[_Part], depth: int) -> int:
    limit = min(part.chunk.start // PAGE_SIZE for part in members)
    first = members[0].chunk.sequence.pages
    end = depth
    while end < limit and all(part.chunk.sequence.pages[end] is first[end] for part in members):
        end += 1
    return end


def _group(members: list[_Part], begin: int, end: int) -> SharedGroup:
    taken = set(range(begin, end))
    rows: list[Ints] = []
    for part in members:
        part.private = [page for page in part.private if page not in taken]
        rows.append(np.arange(part.row, part.row + part.chunk.stop - part.chunk.start, dtype=np.int64))
    keys = np.arange(begin * PAGE_SIZE, end * PAGE_SIZE, dtype=np.int64)
    return SharedGroup(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(_slots(members[0].chunk, keys)))


def _private_keys(part: _Part) -> Ints:
    """Positions of the keys a part attends to by itself. Never empty: the page of its first row is always private."""
    blocks = [np.arange(p * PAGE_SIZE, min((p + 1) * PAGE_SIZE, part.chunk.stop)) for p in part.private]
    return np.concatenate(blocks).astype(np.int64)


def _buckets(parts: list[_Part]) -> Iterator[Bucket]:
    """Pad chunks of like size together: sizes within a power of two of each other, bounded in area."""
    sized = [(part, _private_keys(part)) for part in parts]
    sized.sort(key=lambda item: (item[0].chunk.stop - item[0].chunk.start, len(item[1])))
    bucket: list[tuple[_Part, Ints]] = []
    for part, keys in sized:
        rows = part.chunk.stop - part.chunk.start
        if bucket and not _fits(bucket, rows, len(keys)):
            yield _bucket(bucket)
            bucket = []
        bucket.append((part, keys))
    if bucket:
        yield _bucket(bucket)


def _fits(bucket: list[tuple[_Part, Ints]], rows: int, keys: int) -> bool:
    first = bucket[0][0].chunk
    least_rows, least_keys = first.stop - first.start, min(len(k) for _, k in bucket)
    most_keys = max(keys, *(len(k) for _, k in bucket))
    if rows > 2 * least_rows or most_keys > 2 * min(least_keys, keys) + 64:
        return False
    return (len(bucket) + 1) * rows * most_keys <= MAX_BUCKET_SCORES


def _bucket(items: list[tuple[_Part, Ints]]) -> Bucket:
    queries = max(part.chunk.stop - part.chunk.start for part, _ in items)
    width = max(len(keys) for _, keys in items)
    rows = np.empty((len(items), queries), dtype=np.int64)
    real = np.zeros((len(items), queries), dtype=bool)
    slots = np.empty((len(items), width), dtype=np.int64)
    # Padded queries see everything (their result is dropped), padded keys are hidden and point to a slot with content.
    mask = np.zeros((len(items), queries, width), dtype=np.float32)
    for i, (part, keys) in enumerate(items):
        count = part.chunk.stop - part.chunk.start
        rows[i, :count] = np.arange(part.row, part.row + count)
        rows[i, count:] = part.row
        real[i, :count] = True
        own = _slots(part.chunk, keys)
        slots[i, : len(keys)], slots[i, len(keys) :] = own, own[0]
        mask[i, :, len(keys) :] = -np.inf
        hidden = keys[None, :] > np.arange(part.chunk.start, part.chunk.stop)[:, None]
        mask[i, :count, : len(keys)][hidden] = -np.inf
    valid = np.flatnonzero(real.reshape(-1))
    return Bucket(torch.from_numpy(rows), torch.from_numpy(valid), torch.from_numpy(slots), torch.from_numpy(mask))
