"""Attention over pages, computed once for a prefix that many sequences share (cascade attention).

A step's rows attend in two parts, each giving an output and the log-sum-exp of its scores, merged exactly
(Ye et al., FlashInfer, 2024; Juravsky et al., Hydragen, 2024):

- *shared*: all rows of a group, against the keys of the pages all its sequences have in common;
- *private*: each sequence's remaining keys, in padded buckets of sequences of like size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: AttentionPlan, scale: float
) -> torch.Tensor:
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
