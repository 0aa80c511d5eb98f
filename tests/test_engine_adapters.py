"""LoRA in the engine: the compiled decoder against torch, rows with different adapters in one step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from still.backends.engine.batch import build_batch
from still.backends.engine.decoder import TorchDecoder
from still.backends.engine.native import NativeDecoder, native_level
from still.backends.engine.pages import PAGE_SIZE, Page
from still.backends.engine.scheduler import Chunk
from still.backends.models import Adapter, LowRank

native = pytest.mark.skipif(native_level() == 0, reason="the compiled decoder does not run on this machine")


def random_adapter(spec, seed, matrices=("qkv", "o", "gate_up", "down"), rank=5):
    generator = torch.Generator().manual_seed(seed)
    hidden, inter, heads = spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim
    kv = spec.num_kv_heads * spec.head_dim
    shapes = {"qkv": (heads + 2 * kv, hidden), "o": (hidden, heads), "gate_up": (2 * inter, hidden), "down": (hidden, inter)}
    cuts = {"qkv": (0, heads, heads + kv, heads + 2 * kv), "gate_up": (0, inter, 2 * inter)}

    def update(name):
        out, width = shapes[name]
        borders = cuts.get(name, (0, out))
        begin = np.repeat(borders[:-1], rank)
        end = np.repeat(borders[1:], rank)
        b = torch.randn(len(begin), out, generator=generator) * 0.3
        for i in range(len(begin)):
            b[i, : begin[i]], b[i, end[i] :] = 0, 0
        a = torch.randn(len(begin), width, generator=generator) * width**-0.5
        return LowRank(a, b, tuple(map(int, begin)), tuple(map(int, end)))

    layers = tuple({name: update(name) for name in matrices} for _ in range(spec.num_layers))
    return Adapter(f"random-{seed}", f"{seed:064x}", layers)


def mixed_batch(adapters, lengths):
    """A chunk for each adapter, over pages of its own."""
    chunks, page = [], 0
    for i, (adapter, length) in enumerate(zip(adapters, lengths, strict=True)):
        pages = [Page(page + p) for p in range(-(-length // PAGE_SIZE))]
        page += len(pages)
        tokens = np.random.default_rng(i).integers(10, 40000, length).tolist()
        chunks.append(Chunk(SimpleNamespace(tokens=tokens, pages=pages, adapter=adapter), 0, length))
    return chunks


@native
@pytest.mark.parametrize("level", range(1, native_level() + 1))
def test_compiled_adapters_agree_with_torch(tiny_quantized, level):
    spec = tiny_quantized.spec
    adapters = [random_adapter(spec, 1), None, random_adapter(spec, 2, ("qkv", "down"))]
    batch = build_batch(mixed_batch(adapters, (20, 7, 33)))
    compiled, reference = NativeDecoder(tiny_quantized, 8, 256), TorchDecoder(tiny_quantized, 8, 256)
    compiled._level = level
    with torch.inference_mode():
        ours, theirs = compiled.forward(batch), reference.forward(batch)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99
    assert (ours - theirs).abs().mean() < 0.05


@native
@pytest.mark.parametrize("level", range(1, native_level() + 1))
def test_adapters_in_one_step_change_no_bit(tiny_quantized, level):
    spec = tiny_quantized.spec
    adapters = [random_adapter(spec, 1), None, random_adapter(spec, 2), None]
    chunks = mixed_batch(adapters, (20, 7, 33, 1))
    compiled = NativeDecoder(tiny_quantized, 8, 256)
    compiled._level = level
    together = compiled.forward(build_batch(chunks))
    row = 0
    outputs = []
    for chunk in chunks:
        alone = compiled.forward(build_batch([chunk]))
        assert torch.equal(together[row : row + chunk.stop], alone)
        outputs.append(alone)
        row += chunk.stop
    plain = compiled.forward(build_batch([Chunk(SimpleNamespace(**{**vars(chunks[0].sequence), "adapter": None}), 0, 20)]))
    assert (plain - outputs[0]).abs().max() > 0.1, "the adapter does something"


def test_torch_adapters_are_dense_updates(tiny_model):
    """W x + B A x, by merging the update into the weights."""
    adapter = random_adapter(tiny_model.spec, 3)
    merged = dict(tiny_model.weights)
    for i, layer in enumerate(adapter.layers):
        for name, update in layer.items():
            merged[f"layers.{i}.{name}"] = merged[f"layers.{i}.{name}"] + update.b.t() @ update.a
    tiny = SimpleNamespace(**{**vars(tiny_model), "weights": merged})
    (chunk,) = mixed_batch([adapter], (40,))
    (bare,) = mixed_batch([None], (40,))
    with torch.inference_mode():
        ours = TorchDecoder(tiny_model, 4, 256).forward(build_batch([chunk]))
        theirs = TorchDecoder(tiny, 4, 256).forward(build_batch([bare]))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
