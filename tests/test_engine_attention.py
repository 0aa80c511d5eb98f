"""Paged, shared and batched attention against plain dense attention."""

from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.engine.attention import attend, plan_attention
from still.backends.engine.batch import build_batch
from still.backends.engine.pages import PAGE_SIZE, Page
from still.backends.engine.scheduler import Chunk

KV, GROUP, DIM = 2, 3, 8


def dense(q, k, v, start):
    """q [rows, kv, group, dim] at positions start…; k, v [keys, kv, dim]."""
    keys = torch.arange(k.shape[0])
    rows = torch.arange(start, start + q.shape[0])
    scores = torch.einsum("rhgd,khd->rhgk", q, k) * DIM**-0.5
    scores = scores.masked_fill((keys[None] > rows[:, None])[:, None, None], float("-inf"))
    return torch.einsum("rhgk,khd->rhgd", scores.softmax(-1), v)


def sequence(tokens, pages):
    return SimpleNamespace(tokens=tokens, pages=pages, future=Future())


@given(
    shared=st.integers(0, 6),
    branches=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    lengths=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_paged_attention_equals_dense(shared, branches, lengths, seed):
    """A tree of prefixes: `shared` pages for all, then a branch's own; each sequence has own computed tokens and rows."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    needed = shared + sum(branches) + sum(-(-(own + new) // PAGE_SIZE) for _, own, new in lengths)
    free = list(rng.permutation(needed))

    def take(count):
        return [Page(int(free.pop())) for _ in range(count)]

    root = take(shared)
    prefixes = [root + take(count) for count in branches]
    keys, values = torch.randn(2, needed * PAGE_SIZE, KV, DIM)
    chunks = []
    for which, own, new in lengths:
        prefix = prefixes[which % len(prefixes)]
        start = len(prefix) * PAGE_SIZE + own
        pages = prefix + take(-(-(own + new) // PAGE_SIZE))
        chunks.append(Chunk(sequence(list(range(start + new)), pages), start, start + new))
    batch = build_batch(chunks)
    q = torch.randn(len(batch.tokens), KV, GROUP, DIM)
    found = attend(q, keys, values, plan_attention(batch), DIM**-0.5)
    for chunk, row in zip(chunks, [part.row for part in batch.parts], strict=True):
        slots = [p.index * PAGE_SIZE + i for p in chunk.sequence.pages for i in range(PAGE_SIZE)][: chunk.stop]
        expected = dense(q[row : row + chunk.stop - chunk.start], keys[slots], values[slots], chunk.start)
        torch.testing.assert_close(found[row : row + chunk.stop - chunk.start], expected, atol=1e-5, rtol=1e-4)


def test_long_shared_prefix_is_attended_once():
    prefix = [Page(i) for i in range(12)]
    chunks = [
        Chunk(sequence(list(range(202)), [*prefix, Page(20 + i)]), 195, 202) for i in range(4)
    ]
    plan = plan_attention(build_batch(chunks))
    assert len(plan.groups) == 1
    assert len(plan.groups[0].slots) == 12 * PAGE_SIZE
    assert plan.groups[0].rows.tolist() == list(range(28))
    assert sum(bucket.slots.numel() for bucket in plan.buckets) < 4 * 2 * PAGE_SIZE


def test_two_prefixes_with_a_common_beginning_form_a_tree():
    root = [Page(i) for i in range(4)]
    left, right = ([Page(10 + 4 * side + i) for i in range(4)] for side in range(2))
    chunks = [Chunk(sequence(list(range(140)), [*root, *side, Page(30 + n)]), 130, 140)
              for n, side in enumerate((left, left, right, right))]  # fmt: skip
    sizes = sorted((len(g.rows), len(g.slots)) for g in plan_attention(build_batch(chunks)).groups)
    assert sizes == [(20, 64), (20, 64), (40, 64)]


@pytest.mark.parametrize("start", [0, 16, 17])
def test_a_prompt_in_its_first_chunk_shares_nothing(start):
    chunk = Chunk(sequence(list(range(40)), [Page(i) for i in range(3)]), start, 40)
    assert build_batch([chunk]).runs == []
