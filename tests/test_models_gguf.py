"""GGUF files: weights written as llama.cpp writes them come back in Hugging Face order, damage is named."""

import random

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.models import load_model
from still.backends.models.gguf_file import GGUFFile
from still.backends.models.gguf_header import read_header
from still.backends.models.rope import llama3_factors
from still.errors import ModelError

HIDDEN, INTER, LAYERS, HEADS, KV, DIM = 64, 96, 2, 4, 2, 16
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_alphabet():
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


TOKENS = [*SPECIAL, *byte_alphabet(), "th", "the", "Ġthe", "<think>"]
MERGES = ["t h", "th e", "Ġ the"]
VOCAB = 270
FLOAT, INT, TEXT = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING
BYTE_LEVEL = {
    "tokenizer.ggml.model": ("gpt2", TEXT),
    "tokenizer.ggml.pre": ("smollm", TEXT),
    "tokenizer.ggml.tokens": (TOKENS, gguf.GGUFValueType.ARRAY),
    "tokenizer.ggml.token_type": ([3] * len(SPECIAL) + [1] * (len(TOKENS) - 4) + [4], gguf.GGUFValueType.ARRAY),
    "tokenizer.ggml.merges": (MERGES, gguf.GGUFValueType.ARRAY),
    "tokenizer.ggml.bos_token_id": (1, INT),
    "tokenizer.ggml.eos_token_id": (2, INT),
    "tokenizer.chat_template": ("{% for m in messages %}{{ m.content }}{% endfor %}", TEXT),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("STILL_CACHE", str(folder))
    return folder


def permuted(weight, heads):
    """What llama.cpp's converter does to q and k, after its `LlamaModel.permute`, in index arithmetic of our own."""
    size = weight.shape[0] // heads
    order = [h * size + half * (size // 2) + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def random_state(architecture, tied):
    generator = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (VOCAB, HIDDEN)
    for i in range(LAYERS):
        blk = f"blk.{i}."
        shapes |= {
            blk + "attn_norm.weight": (HIDDEN,),
            blk + "ffn_norm.weight": (HIDDEN,),
            blk + "attn_q.weight": (HEADS * DIM, HIDDEN),
            blk + "attn_k.weight": (KV * DIM, HIDDEN),
            blk + "attn_v.weight": (KV * DIM, HIDDEN),
            blk + "attn_output.weight": (HIDDEN, HEADS * DIM),
            blk + "ffn_gate.weight": (INTER, HIDDEN),
            blk + "ffn_up.weight": (INTER, HIDDEN),
            blk + "ffn_down.weight": (HIDDEN, INTER),
        }
        if architecture == "qwen2":
            shapes |= {f"{blk}attn_{c}.bias": (n * DIM,) for c, n in (("q", HEADS), ("k", KV), ("v", KV))}
        if architecture == "gemma3":
            shapes |= {blk + "post_attention_norm.weight": (HIDDEN,), blk + "post_ffw_norm.weight": (HIDDEN,)}
        if architecture in ("qwen3", "gemma3"):
            shapes |= {blk + "attn_q_norm.weight": (DIM,), blk + "attn_k_norm.weight": (DIM,)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, architecture="llama", tied=True, kind=Type.F32, tensors=None, metadata=None, tokenizer=None):
    """A tiny model; returns the weights in Hugging Face order, as they are after quantization and back."""
    state = random_state(architecture, tied)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e5)
    for name, value in {**(tokenizer or BYTE_LEVEL), **(metadata or {})}.items():
        writer.add_key_value(name, *value)
    expected = {}
    for name, values in {**state, **(tensors or {})}.items():
        if values is None:
            continue
        heads = {"attn_q": HEADS, "attn_k": KV}.get(name.split(".")[-2], 0) if architecture == "llama" else 0
        stored = permuted(values, heads) if heads else values
        quantized = kind if values.ndim == 2 else Type.F32
        data = gguf.quants.quantize(stored, quantized)
        writer.add_tensor(name, data, raw_dtype=quantized)
        back = gguf.quants.dequantize(data, quantized).reshape(values.shape)
        expected[name] = np.array(back)[np.argsort(permuted(np.arange(len(back)), heads))] if heads else np.array(back)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(values.copy()) for name, values in expected.items()}


def canonical(expected, spec):
    tied = spec.tie_embeddings
    wanted = {"norm": expected["output_norm.weight"], "lm_head": expected["token_embd.weight" if tied else "output.weight"]}
    if not tied:
        wanted["embed"] = expected["token_embd.weight"]
    for i in range(LAYERS):
        blk, new = f"blk.{i}.", f"layers.{i}."
        wanted[new + "attn_norm"] = expected[blk + "attn_norm.weight"]
        wanted[new + "mlp_norm"] = expected[blk + "ffn_norm.weight"]
        wanted[new + "qkv"] = torch.cat([expected[f"{blk}attn_{c}.weight"] for c in "qkv"])
        wanted[new + "o"] = expected[blk + "attn_output.weight"]
        wanted[new + "gate_up"] = torch.cat([expected[f"{blk}ffn_{c}.weight"] for c in ("gate", "up")])
        wanted[new + "down"] = expected[blk + "ffn_down.weight"]
        if spec.attention_bias:
            wanted[new + "qkv.bias"] = torch.cat([expected[f"{blk}attn_{c}.bias"] for c in "qkv"])
        if spec.qk_norm:
            wanted[new + "q_norm"] = expected[blk + "attn_q_norm.weight"]
            wanted[new + "k_norm"] = expected[blk + "attn_k_norm.weight"]
        if spec.post_norms:
            wanted[new + "attn_post_norm"] = expected[blk + "post_attention_norm.weight"]
            wanted[new + "mlp_post_norm"] = expected[blk + "post_ffw_norm.weight"]
    return wanted


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_1])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_weights_come_back_in_hugging_face_order(tmp_path, architecture, kind, tied):
    expected = write(tmp_path / "m.gguf", architecture, tied, kind)
    model = load_model(str(tmp_path / "m.gguf"), "fp32")
    wanted = canonical(expected, model.spec)
    assert model.weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(model.weights[name], tensor), name
    assert model.spec.attention_bias == (architecture == "qwen2")
    assert model.spec.qk_norm == (architecture in ("qwen3", "gemma3"))
    assert model.spec.post_norms == (architecture == "gemma3")


def test_permutation_is_that_of_llama_cpp():
    # convert_hf_to_gguf.py: weights.reshape(n_head, 2, rows // n_head // 2, ...).swapaxes(1, 2)
    rows = np.arange(HEADS * DIM)
    assert (permuted(rows, HEADS) == rows.reshape(HEADS, 2, DIM // 2).swapaxes(1, 2).reshape(-1)).all()


def test_spec(tmp_path):
    write(tmp_path / "m.gguf")
    spec = GGUFFile(tmp_path / "m.gguf").spec
    assert (spec.architecture, spec.vocab_size, spec.hidden_size, spec.intermediate_size) == ("llama", VOCAB, 64, 96)
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (2, 4, 2, 16)
    assert (spec.rope_theta, spec.rope_scaling, spec.max_position, spec.sliding_window) == (5e5, None, 128, None)
    assert spec.rms_eps == pytest.approx(1e-5)


def test_header_agrees_with_the_gguf_package(tmp_path):
    write(tmp_path / "m.gguf", kind=Type.Q8_0, metadata={"x.list": ([1, 2, 3], gguf.GGUFValueType.ARRAY)})
    ours, theirs = read_header(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.metadata[name] == field.contents(), name
    assert len(ours.metadata) == len(theirs.fields) - 3
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.offset, info.size, info.type_id) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)


def test_tokenizer(tmp_path):
    write(tmp_path / "m.gguf")
    tokenizer = load_model(str(tmp_path / "m.gguf")).tokenizer
    assert tokenizer.encode("the the") == [TOKENS.index("the"), TOKENS.index("Ġthe")]
    assert tokenizer.decode(tokenizer.encode("über 12 the\n")) == "über 12 the\n"
    assert tokenizer.encode("<|im_end|>", special=True) == [2]
    assert 2 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<think>") == [TOKENS.index("<think>")]  # user defined: a word, not a control token
    assert tokenizer.eos_ids == {0, 2}
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.vocab_size) == (1, False, len(TOKENS))
    assert tokenizer.render([{"role": "user", "content": "x"}], True) == "x"


def test_sentencepiece_tokenizer(tmp_path):
    pieces = ["\u2581", *"the", "th", "the", "\u2581the"]
    tokens = list(dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]))
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    array = gguf.GGUFValueType.ARRAY
    path = tmp_path / "m.gguf"
    write(
        path,
        tokenizer={
            "tokenizer.ggml.model": ("llama", TEXT),
            "tokenizer.ggml.tokens": (tokens, array),
            "tokenizer.ggml.token_type": (types, array),
            "tokenizer.ggml.scores": ([-float(i) for i in range(len(tokens))], array),
            "tokenizer.ggml.bos_token_id": (1, INT),
            "tokenizer.ggml.eos_token_id": (2, INT),
        },
    )
    tokenizer = load_model(str(path)).tokenizer
    assert [tokens[i] for i in tokenizer.encode("the the")] == ["\u2581the", "\u2581the"]
    assert tokenizer.decode(tokenizer.encode("the ü the")) == "the ü the"  # ü falls back to bytes
    assert tokenizer.encode("</s>", special=True) == [2]
    assert 2 not in tokenizer.encode("</s>")
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (1, True, {2})


def test_llama3_scaling_is_recognised(tmp_path):
    factors = llama3_factors(8.0, DIM, 5e5).astype(np.float32)
    assert factors.min() == 1
    assert factors.max() == 8
    write(tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    scaling = GGUFFile(tmp_path / "m.gguf").spec.rope_scaling
    assert scaling == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_llama3_factors_are_those_of_transformers():
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    parameters = {**scaling, "rope_theta": 5e5, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(hidden_size=512, num_attention_heads=8, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = 1.0 / 5e5 ** (torch.arange(0, 64, 2).float() / 64)
    np.testing.assert_allclose(llama3_factors(32.0, 64, 5e5), (plain / scaled).numpy(), rtol=1e-4)


def test_linear_scaling(tmp_path):
    linear = {"llama.rope.scaling.type": ("linear", TEXT), "llama.rope.scaling.factor": (4.0, FLOAT)}
    write(tmp_path / "l.gguf", metadata=linear)
    assert GGUFFile(tmp_path / "l.gguf").spec.rope_scaling == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma"}, "'gemma'.*llama, qwen2, qwen3, gemma3"),
        ({"tensors": {"blk.1.ffn_down.weight": None}}, "blk.1.ffn_down.weight.*missing"),
        ({"tensors": {"output_norm.weight": None}}, "output_norm.weight.*missing"),
        ({"tensors": {"token_embd.weight": None}}, "token_embd.weight.*missing"),
        ({"tensors": {"blk.0.attn_output.weight": np.zeros((64, 32), np.float32)}}, r"\[64, 32\], expected \[64, 64\]"),
        ({"tensors": {"blk.0.attn_output.bias": np.zeros(64, np.float32)}}, "attn_output.bias"),
        ({"tensors": {"rope_freqs.weight": np.full(DIM // 2, 3, np.float32)}}, "rope_freqs"),
        ({"tensors": {"output_norm.weight": np.full(HIDDEN, np.nan, np.float32)}}, "norm.*NaN"),
        ({"metadata": {"llama.expert_count": (8, INT)}}, "experts"),
        ({"metadata": {"llama.rope.dimension_count": (8, INT)}}, "rotary"),
        ({"metadata": {"llama.rope.scaling.type": ("longrope", TEXT)}}, "longrope"),
        ({"metadata": {"split.count": (2, INT)}}, "split"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, options, message):
    write(tmp_path / "m.gguf", **options)
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path / "m.gguf"))


def patched(path, old, new, count=1):
    data = path.read_bytes()
    assert data.count(old) >= count
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"smollm", b"smollx", "tokenizer.ggml.pre"),
        (b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0gpt9", "tokenizer.ggml.model"),
        (b"\x04\0\0\0\0\0\0\0th e", b"\x04\0\0\0\0\0\0\0th q", "tokenizer.ggml.merges"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "tokenizer.ggml.tokens"),
        (
            b"tokenizer.ggml.eos_token_id\x04\0\0\0\x02\0",
            b"tokenizer.ggml.eos_token_id\x04\0\0\0\xff\xff",
            "eos_token_id",
        ),
        (b"\x0c\0\0\0\0\0\0\0<|im_start|>", b"\x0c\0\0\0\0\0\0\0<|im_st\xff\xfe|>", "UTF-8"),
        (b"llama.block_count", b"llama.block_cnuot", "block_count"),
        (b"GGUF\x03", b"GGUF\x09", "version"),
        (b"GGUF", b"GGML", "not a GGUF"),
    ],
)
def test_damaged_metadata_is_named(tmp_path, old, new, message):
    path = tmp_path / "m.gguf"
    write(path)
    patched(path, old, new)
    with pytest.raises(ModelError, match=message):
        load_model(str(path))


def attempt(path):
    """Load everything there is in a file: a whole result or a ModelError, nothing else."""
    try:
        checkpoint = GGUFFile(path)
        checkpoint.tokenizer()
        for part in {**checkpoint.spec.outer_shapes(), **checkpoint.spec.part_shapes(0)}:
            checkpoint.read(part)
    except ModelError:
        return False
    return True


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, kind=Type.Q8_0)
    data = path.read_bytes()
    header = min(info.offset for info in read_header(path).tensors.values())
    chosen = random.Random(0)
    cuts = {0, 1, 3, 4, 8, 23, 24, header - 1, header, len(data) // 2, len(data) - 64}
    for cut in sorted(cuts | {chosen.randrange(header) for _ in range(150)}):
        path.write_bytes(data[:cut])
        assert not attempt(path), cut
    path.write_bytes(data)
    assert attempt(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    write(path, kind=Type.Q8_0)
    return path.read_bytes(), min(info.offset for info in read_header(path).tensors.values())


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_flipped_header_bytes_load_or_raise_model_error(tmp_path_factory, whole, data):
    original, header = whole
    broken = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, header - 1))
        broken[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, broken[at] ^ 0x10]))
    path = tmp_path_factory.getbasetemp() / "broken.gguf"
    path.write_bytes(broken)
    attempt(path)


def test_every_length_in_the_header_may_be_huge(tmp_path, whole):
    # The bytes most likely to make a reader loop or allocate without end: each 8-byte length set to its maximum.
    original, header = whole
    path = tmp_path / "m.gguf"
    for at in range(8, min(header, 2000), 8):
        broken = bytearray(original)
        broken[at : at + 8] = b"\xff" * 7 + b"\x7f"
        path.write_bytes(broken)
        attempt(path)
