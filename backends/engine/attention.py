"""Attention over pages in torch, computed once for a prefix that many sequences share (cascade attention).

A step's rows attend in parts, each giving an output and the log-sum-exp of its scores, merged exactly
(Ye et al., FlashInfer, 2024; Juravsky et al., Hydragen, 2024):

- *shared*: all rows of a run, against the keys of the pages all its sequences have in common;
- *private*: each sequence's remaining keys, in padded buckets of sequences of like size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .batch import Batch, Ints, Part, SharedRun, slots_of
from .pages import PAGE_SIZE

MAX_BUCKET_SCORES = 1 << 23
"""Upper bound of batch * queries * keys in one padded bucket."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(slots=True)
class SharedGroup:
    """Rows that all see the same `slots`: rows int64 [rows], slots int64 [keys]."""

    rows: torch.Tensor
    slots: torch.Tensor


@dataclass(slots=True)
class Bucket:
    """Sequences padded to one shape.

    rows: int64 [batch, queries] (padding repeats a row); valid: int64 [n] positions in the flattened [batch * queries]
    that are real; slots: int64 [batch, keys]; mask: float32 [batch, queries, keys], 0 = visible, -inf = hidden.
    """

    rows: torch.Tensor
    valid: torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True)
class AttentionPlan:
    """Who looks at what in one step; built once, used by every layer."""

    buckets: list[Bucket]
    groups: list[SharedGroup]


def plan_attention(batch: Batch, window: int | None = None) -> AttentionPlan:
    """Turn a batch's shared runs and private pages into index tensors.

    With a `window`, each row sees only that many keys, its own included; every part is then attended on its own, since
    rows that share a prefix see different ends of it.
    """
    if window is not None:
        return AttentionPlan(list(_buckets([_visible(part, window) for part in batch.parts], window)), [])
    # Never empty: shared pages were computed before a chunk's rows, so the page of its first row is private.
    private = [(p, np.arange(p.covered * PAGE_SIZE, p.chunk.stop, dtype=np.int64)) for p in batch.parts]
    return AttentionPlan(list(_buckets(private, None)), [_group(run) for run in batch.runs])


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: AttentionPlan, scale: float) -> torch.Tensor:
    """Attention of one layer.

    q: [rows, kv_heads, group, head_dim]; keys, values: this layer's pool [slots, kv_heads, head_dim], same dtype.
    Returns the same shape and dtype as q. Every row must be in exactly one bucket.
    """
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    for bucket in plan.buckets:
        _private(q, keys, values, bucket, scale, out, lse)
    for group in plan.groups:
        _shared(q, keys, values, group, scale, out, lse)
    return out


def _private(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bucket: Bucket, scale: float,
    out: torch.Tensor, lse: torch.Tensor,
) -> None:  # fmt: skip
    batch, queries = bucket.rows.shape
    _, heads, group, dim = q.shape
    # One kv head serves `group` query heads: fold them into the query axis instead of repeating the keys.
    query = q[bucket.rows].permute(0, 2, 1, 3, 4).reshape(batch, heads, queries * group, dim)
    mask = bucket.mask.to(q.dtype).repeat_interleave(group, dim=1)[:, None].expand(-1, heads, -1, -1)
    part, part_lse = _flash(
        query, keys[bucket.slots].transpose(1, 2), values[bucket.slots].transpose(1, 2), attn_mask=mask, scale=scale
    )
    part = part.view(batch, heads, queries, group, dim).transpose(1, 2).reshape(batch * queries, heads, group, dim)
    part_lse = part_lse.view(batch, heads, queries, group).transpose(1, 2).reshape(batch * queries, heads, group)
    rows = bucket.rows.view(-1)[bucket.valid]
    out[rows] = part[bucket.valid]
    lse[rows] = part_lse[bucket.valid]


def _shared(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, shared: SharedGroup, scale: float,
    out: torch.Tensor, lse: torch.Tensor,
) -> None:  # fmt: skip
    rows, (_, heads, group, dim) = shared.rows, q.shape
    query = q[rows].transpose(0, 1).reshape(1, heads, len(rows) * group, dim)
    part, part_lse = _flash(
        query, keys[shared.slots].transpose(0, 1)[None], values[shared.slots].transpose(0, 1)[None], scale=scale
    )
    part = part.view(heads, len(rows), group, dim).transpose(0, 1)
    part_lse = part_lse.view(heads, len(rows), group).transpose(0, 1)
    # softmax over the union = the parts weighted by their share of the total mass
    before = lse[rows]
    share = torch.sigmoid(part_lse - before)[..., None].to(q.dtype)
    out[rows] = torch.lerp(out[rows], part, share)
    lse[rows] = torch.logaddexp(before, part_lse)  # a row may be in several groups, one per node of its prefix


def _group(run: SharedRun) -> SharedGroup:
    rows = [np.arange(part.row, part.row + part.rows, dtype=np.int64) for part in run.parts]
    keys = np.arange(run.begin * PAGE_SIZE, run.end * PAGE_SIZE, dtype=np.int64)
    slots = slots_of(run.parts[0].chunk, keys)
    return SharedGroup(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(slots))


def _visible(part: Part, window: int) -> tuple[Part, Ints]:
    return part, np.arange(max(0, part.chunk.start - window + 1), part.chunk.stop, dtype=np.int64)


def _buckets(sized: list[tuple[Part, Ints]], window: int | None) -> Iterator[Bucket]:
    """Pad chunks of like size together: sizes within a power of two of each other, bounded in area."""
    bucket: list[tuple[Part, Ints]] = []
    for part, keys in sorted(sized, key=lambda item: (item[0].rows, len(item[1]))):
        if bucket and not _fits(bucket, part.rows, len(keys)):
            yield _bucket(bucket, window)
            bucket = []
        bucket.append((part, keys))
    if bucket:
        yield _bucket(bucket, window)


def _fits(bucket: list[tuple[Part, Ints]], rows: int, keys: int) -> bool:
    least = min(len(k) for _, k in bucket)
    most = max(keys, *(len(k) for _, k in bucket))
    if rows > 2 * bucket[0][0].rows or most > 2 * min(least, keys) + 64:
        return False
    return (len(bucket) + 1) * rows * most <= MAX_BUCKET_SCORES


def _bucket(items: list[tuple[Part, Ints]], window: int | None) -> Bucket:
    queries = max(part.rows for part, _ in items)
    width = max(len(keys) for _, keys in items)
    rows = np.empty((len(items), queries), dtype=np.int64)
    real = np.zeros((len(items), queries), dtype=bool)
    slots = np.empty((len(items), width), dtype=np.int64)
    # Padded queries see everything (their result is dropped), padded keys are hidden and point to a slot with content.
    mask = np.zeros((len(items), queries, width), dtype=np.float32)
    for i, (part, keys) in enumerate(items):
        count = part.rows
        rows[i, :count] = np.arange(part.row, part.row + count)
        rows[i, count:] = part.row
        real[i, :count] = True
        own = slots_of(part.chunk, keys)
        slots[i, : len(keys)], slots[i, len(keys) :] = own, own[0]
        mask[i, :, len(keys) :] = -np.inf
        position = np.arange(part.chunk.start, part.chunk.stop)[:, None]
        hidden = keys[None, :] > position
        if window is not None:
            hidden |= keys[None, :] <= position - window
        mask[i, :count, : len(keys)][hidden] = -np.inf
    valid = np.flatnonzero(real.reshape(-1))
    return Bucket(torch.from_numpy(rows), torch.from_numpy(valid), torch.from_numpy(slots), torch.from_numpy(mask))
