"""The compiled decoder: against the torch one, and bit for bit against itself in every arrangement."""

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.engine import Decode, Engine, Forced, Request, Sampling
from still.backends.engine.batch import build_batch
from still.backends.engine.decoder import TorchDecoder
from still.backends.engine.kernels import native_level, native_levels
from still.backends.engine.native import NativeDecoder, runs_natively
from still.backends.engine.pages import PAGE_SIZE, Page
from still.backends.engine.scheduler import Chunk
from still.errors import EngineError

pytestmark = pytest.mark.skipif(native_level() == 0, reason="the compiled decoder does not run on this machine")
LEVELS = native_levels()
PAGES = 64


def decoder(model, level):
    made = NativeDecoder(model, PAGES, 1024)
    made._level = level
    return made


def tokens_of(seed, count):
    return np.random.default_rng(seed).integers(10, 40000, count).tolist()


def run(decoder, sequence, *cuts):
    """Compute a sequence in chunks that end at `cuts`; return all hidden states."""
    bounds = [0, *cuts, len(sequence.tokens)]
    chunks = [Chunk(sequence, a, b) for a, b in pairwise(bounds) if b > a]
    return torch.cat([decoder.forward(build_batch([chunk])) for chunk in chunks])


def sequence(tokens, pages):
    return SimpleNamespace(tokens=tokens, pages=[Page(i) for i in pages], adapter=None)


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_agrees_with_torch(tiny_quantized, level):
    assert runs_natively(tiny_quantized)
    native, reference = decoder(tiny_quantized, level), TorchDecoder(tiny_quantized, PAGES, 1024)
    for length in (1, 15, 16, 17, 40, 130):
        s = sequence(tokens_of(length, length), np.random.default_rng(length).permutation(PAGES)[:9])
        with torch.inference_mode():
            ours, theirs = run(native, s), run(reference, s)
        # Both have bf16 keys; a rounding flip of one activation shows as a small difference.
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.995
        assert (ours - theirs).abs().mean() < 0.05
        # The first token attends to itself alone: int8 rounds the same, torch's bf16 product rounds its results too.
        atol = 1e-4 if tiny_quantized.quantization == "int8" else 0.06
        torch.testing.assert_close(ours[0], theirs[0], atol=atol, rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_logits_are_exact_products(tiny_int8, level):
    """No attention between: the product itself has to be right to rounding, for every number of rows."""
    native = decoder(tiny_int8, level)
    weight = tiny_int8.weights["lm_head.q"].float() * tiny_int8.weights["lm_head.scale"][:, None]
    for rows in (1, 2, 7, 16, 17, 31, 32, 33, 100):
        hidden = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        # Twice eight bits: off by no more than 1 / (127 * 254) of the largest activation, weighted.
        torch.testing.assert_close(native.logits(hidden), hidden @ weight.t(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("level", LEVELS)
@given(cuts=st.sets(st.integers(1, 149), max_size=6), pages=st.permutations(range(16)))
@settings(max_examples=15, deadline=None)
def test_chunking_and_placement_change_no_bit(tiny_quantized, level, cuts, pages):
    native = decoder(tiny_quantized, level)
    tokens = tokens_of(1, 150)
    whole = run(native, sequence(tokens, range(16, 32)))
    assert torch.equal(run(native, sequence(tokens, pages), *sorted(cuts)), whole)


@pytest.mark.parametrize("level", LEVELS)
@given(
    shared=st.integers(0, 9),
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=9),
)
@settings(max_examples=20, deadline=None)
def test_company_and_sharing_change_no_bit(tiny_quantized, level, shared, lengths):
    """Rows computed beside others over shared pages equal rows computed alone over pages of their own."""
    native = NativeDecoder(tiny_quantized, 160, 1024)
    native._level = level
    prefix = tokens_of(2, shared * PAGE_SIZE)
    own = [tokens_of(100 + i, before + new) for i, (before, new) in enumerate(lengths)]
    common = [Page(i) for i in range(shared)]
    if shared:
        native.forward(build_batch([Chunk(SimpleNamespace(tokens=prefix, pages=common, adapter=None), 0, len(prefix))]))
    free = iter(range(shared, 160))
    chunks = []
    for tokens, (before, _) in zip(own, lengths, strict=True):
        s = SimpleNamespace(
            tokens=prefix + tokens,
            pages=common + [Page(next(free)) for _ in range(-(-len(tokens) // PAGE_SIZE))],
            adapter=None,
        )
        if before:
            native.forward(build_batch([Chunk(s, len(prefix), len(prefix) + before)]))
        chunks.append(Chunk(s, len(prefix) + before, len(prefix) + len(tokens)))
    together = native.forward(build_batch(chunks))
    row = 0
    for chunk in chunks:
        count = chunk.stop - chunk.start
        alone = run(native, sequence(chunk.sequence.tokens, range(100, 120)))
        assert torch.equal(together[row : row + count], alone[-count:])
        row += count


def test_engine_tokens_do_not_depend_on_company_cache_or_chunks(tiny_quantized):
    """Greedy and sampled, with forced text, through the whole engine: batched, alone, warm, and in small chunks."""
    tokenizer = tiny_quantized.tokenizer
    middle = tuple(tokenizer.encode(" and then "))
    requests = [
        Request(
            tuple(tokens_of(i % 3, 90) + tokens_of(50 + i, 1 + 7 * i)),
            (Decode(9, ignore_eos=True), Forced(middle), Decode(5, ignore_eos=True)),
            Sampling(temperature=float(i % 2), seed=i),
        )
        for i in range(10)
    ]

    def answers(engine):
        futures = [engine.submit(r) for r in requests]
        return [[(step.tokens, step.logprobs) for step in f.result().steps] for f in futures]

    with Engine(tiny_quantized, cache_tokens=4096) as engine:
        together = answers(engine)
        warm = answers(engine)
    assert warm == together
    with Engine(tiny_quantized, cache_tokens=4096, max_rows=24) as engine:
        assert answers(engine) == together
    with Engine(tiny_quantized, cache_tokens=640) as engine:
        assert answers(engine) == together
    for request, expected in zip(requests, together, strict=True):
        with Engine(tiny_quantized, cache_tokens=4096) as engine:
            assert [(s.tokens, s.logprobs) for s in engine.submit(request).result().steps] == expected


def test_models_it_does_not_cover_run_on_torch(tiny_model):
    assert not runs_natively(tiny_model), "float32 is the reference path"
    with Engine(tiny_model, cache_tokens=512) as engine:
        assert isinstance(engine._runner.decoder, TorchDecoder)


def test_broken_weights_fail_the_request_and_not_the_engine(tiny_quantized):
    weights = {**tiny_quantized.weights, "norm": tiny_quantized.weights["norm"].clone()}
    with Engine(dataclasses.replace(tiny_quantized, weights=weights), cache_tokens=1024) as engine:
        assert isinstance(engine._runner.decoder, NativeDecoder)
        expected = engine.generate((1, 2, 3), max_tokens=4).steps
        weights["norm"].fill_(float("nan"))  # the compiled decoder reads this very memory
        with pytest.raises(EngineError, match="not numbers"):
            engine.generate((1, 2, 3), max_tokens=4)
        weights["norm"].copy_(tiny_quantized.weights["norm"])
        assert engine.generate((1, 2, 3), max_tokens=4).steps == expected
