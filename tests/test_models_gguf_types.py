"""Every tensor type the gguf package can turn into numbers comes out of a file as the package turns it."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from still.backends.models import load_model
from still.backends.models.gguf_file import GGUFFile
from still.errors import ModelError
from tiny_checkpoints import FLOAT, INT, finite_blocks, sentencepiece_vocabulary, write_gguf

HIDDEN = 256  # one block of the widest type
SHAPES = {
    "token_embd": (300, HIDDEN),
    "blk.0.attn_q": (HIDDEN, HIDDEN),
    "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HIDDEN),
    "blk.0.ffn_gate": (2 * HIDDEN, HIDDEN),
    "blk.0.ffn_up": (2 * HIDDEN, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, 2 * HIDDEN),
}
PARTS = {
    "token_embd": "embed",
    **{f"blk.0.attn_{c}": f"layers.0.{c}" for c in "qkv"},
    "blk.0.attn_output": "layers.0.o",
    **{f"blk.0.ffn_{c}": f"layers.0.{c}" for c in ("gate", "up", "down")},
}


def readable(kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, HIDDEN // block * size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


READABLE = [kind for kind in gguf.GGML_QUANT_SIZES if readable(kind)]
UNREADABLE = [kind for kind in gguf.GGML_QUANT_SIZES if not readable(kind)]


def write(path, kind, tensors):
    vocabulary = sentencepiece_vocabulary(300)
    sizes = {"context_length": 64, "embedding_length": HIDDEN, "block_count": 1, "feed_forward_length": 2 * HIDDEN}
    metadata = {key: (value, INT) for key, value in sizes.items()}
    metadata |= {"attention.head_count": (4, INT), "attention.head_count_kv": (2, INT)}
    metadata |= {"attention.layer_norm_rms_epsilon": (1e-5, FLOAT), **vocabulary}
    norms = {f"{name}_norm.weight": (np.ones(HIDDEN, np.float32), Type.F32) for name in
             ("output", "blk.0.attn", "blk.0.ffn")}  # fmt: skip
    write_gguf(path, "qwen2", metadata, {f"{n}.weight": (t, kind) for n, t in tensors.items()} | norms)


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_values_are_those_of_the_gguf_package(tmp_path, kind):
    tensors = {name: finite_blocks(kind, *shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    write(tmp_path / "m.gguf", kind, tensors)
    file = GGUFFile(tmp_path / "m.gguf")
    for name, data in tensors.items():
        wanted = gguf.quants.dequantize(data, kind)
        read = file.read(PARTS[name])
        assert read.dtype == torch.float32
        assert wanted.shape == SHAPES[name]
        assert np.array_equal(read.numpy(), wanted), name
        assert len(np.unique(wanted)) > 2


@pytest.mark.parametrize("at_once", [1, 3 * HIDDEN, 7 * HIDDEN + 1])
def test_values_do_not_depend_on_how_many_are_read_at_once(tmp_path, monkeypatch, at_once):
    tensors = {name: finite_blocks(Type.Q6_K, *shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    write(tmp_path / "m.gguf", Type.Q6_K, tensors)
    monkeypatch.setattr("still.backends.models.gguf_file._AT_ONCE", at_once)
    file = GGUFFile(tmp_path / "m.gguf")
    for name, data in tensors.items():
        assert np.array_equal(file.read(PARTS[name]).numpy(), gguf.quants.dequantize(data, Type.Q6_K)), name


def test_the_common_types_are_among_them():
    assert {Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.IQ4_XS} <= set(READABLE)


@pytest.mark.parametrize("kind", UNREADABLE, ids=lambda kind: kind.name)
def test_what_the_package_cannot_read_is_refused_by_name(tmp_path, kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    tensors = {name: np.zeros((rows, columns // block * size), np.uint8) for name, (rows, columns) in SHAPES.items()}
    write(tmp_path / "m.gguf", kind, tensors)
    with pytest.raises(ModelError, match=f"'token_embd.weight' is quantized as {kind.name}"):
        load_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q8_0, Type.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("part", list(SHAPES))
def test_values_that_are_not_finite_are_refused(tmp_path, monkeypatch, kind, part):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path / "cache"))
    tensors = {name: np.ascontiguousarray(finite_blocks(kind, *shape)) for name, shape in SHAPES.items()}
    # All bits set is NaN as a float, and the scale of the last block of either quantized type begins it.
    size = gguf.GGML_QUANT_SIZES[kind][1]
    tensors[part].view(np.uint8).reshape(-1)[-size : -size + 4 if size > 4 else None] = 0xFF
    write(tmp_path / "m.gguf", kind, tensors)
    with pytest.raises(ModelError, match=f"{PARTS[part]}' of the model contains NaN"):
        load_model(str(tmp_path / "m.gguf"))
