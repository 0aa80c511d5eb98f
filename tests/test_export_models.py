"""Merged models in other programs: transformers with PEFT, llama.cpp and our engine write the same."""

import itertools
import math
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from export_models import (
    ALL,
    KINDS,
    TOKENS,
    LlamaCpp,
    byte_tokenizer,
    engine_greedy,
    greedy,
    logits,
    network_of,
    write_adapter,
    write_base,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from still.backends.export import export_model
from still.backends.export.config_json import config_json
from still.backends.export.hf_folder import write_folder
from still.backends.models import load_model, resolve
from still.backends.models.convert import open_checkpoint
from still.backends.models.gguf_header import read_header
from still.backends.models.hf_config import read_spec
from tiny_checkpoints import gemma3, write_gemma3_gguf
from tokenizers import Tokenizer, models


@pytest.fixture(autouse=True)
def cache(request, tmp_path_factory, monkeypatch):
    if "real_adapter" not in request.fixturenames:
        monkeypatch.setenv("STILL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module", params=KINDS)
def tuned(request, tmp_path_factory):
    """Kind, folder of the base, folder of an adapter, and the network with the adapter as PEFT computes it."""
    folder = tmp_path_factory.mktemp(request.param)
    write_base(folder / "base", request.param)
    network = write_adapter(folder / "adapter", network_of(folder / "base"), lora_alpha=8)
    return request.param, folder / "base", folder / "adapter", network


def test_merged_folders_write_what_peft_does(tuned, tmp_path):
    kind, base, adapter, network = tuned
    written = export_model(str(base), tmp_path / "merged", "hf", adapter=adapter)
    merged = network_of(tmp_path / "merged")
    assert type(merged) is KINDS[kind][0]
    torch.testing.assert_close(logits(merged), logits(network), atol=5e-5, rtol=1e-4)
    expected = greedy(network, TOKENS, 10)
    assert greedy(merged, TOKENS, 10) == expected != greedy(network_of(base), TOKENS, 10)
    assert engine_greedy(tmp_path / "merged", [TOKENS], 10) == [expected]
    assert engine_greedy(base, [TOKENS], 10, adapter) == [expected]
    names = {file.name for file in written.files}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert ("lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")) != merged.config.tie_word_embeddings
    both = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "merged")]
    texts = [t.apply_chat_template([{"role": "user", "content": "don't 12"}], tokenize=False) for t in both]
    assert texts[0] == texts[1] and both[0](texts[0]).input_ids == both[1](texts[0]).input_ids


def test_gguf_files_write_what_peft_does(tuned, tmp_path):
    _, base, adapter, network = tuned
    pytest.importorskip("xllamacpp")
    export_model(str(base), tmp_path / "gguf", "gguf", adapter=adapter, precision="f32")
    file = tmp_path / "gguf" / "model.gguf"
    expected = greedy(network, TOKENS, 10)
    assert engine_greedy(file, [TOKENS], 10) == [expected]
    other = LlamaCpp(file)
    assert other.greedy(TOKENS, 10) == expected
    text = "Don't write\n\n 1234 times, or émigré 日本!"
    assert other.tokenize(text) == transformers.AutoTokenizer.from_pretrained(base)(text).input_ids


def same(one, other):
    """Equal but for what float32 rounds off."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return math.isclose(one, other, rel_tol=1e-6) if isinstance(one, float) and isinstance(other, float) else one == other


def test_the_spec_survives_both_formats(tuned, tmp_path):
    kind, base, _, _ = tuned
    spec = open_checkpoint(resolve(str(base))).spec
    assert read_spec(tmp_path, config_json(spec, "float32"), not spec.tie_embeddings) == spec
    export_model(str(base), tmp_path / "gguf", "gguf", precision="q8_0")
    read = open_checkpoint(resolve(str(tmp_path / "gguf" / "model.gguf"))).spec.to_json()
    changed = {key for key, value in spec.to_json().items() if not same(value, read[key])}
    # A Mistral is a Llama to llama.cpp, which has no window: so its context ends where the window does.
    assert changed == ({"architecture", "max_position", "sliding_window"} if kind == "mistral" else set())
    assert kind != "mistral" or read["max_position"] == spec.sliding_window


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("llama") / "base")


TARGETS = [list(c) for n in (1, 2) for c in itertools.combinations(ALL, n)] + [ALL]


@settings(max_examples=10, deadline=None)
@given(
    rank=st.sampled_from([1, 2, 3, 8, 64]), alpha=st.integers(1, 64), rslora=st.booleans(), targets=st.sampled_from(TARGETS),
    pattern=st.booleans(),
)  # fmt: skip
def test_any_lora_merges_as_its_formula_says(llama, rank, alpha, rslora, targets, pattern):
    """W + s B A with s = alpha / r, or alpha / sqrt(r), for what is targeted; every other tensor bit for bit."""
    own = {"rank_pattern": {targets[0]: rank + 1}, "alpha_pattern": {targets[0]: alpha + 1}} if pattern else {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_adapter(
            place / "a", network_of(llama), rank, r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=targets, **own
        )
        update = load_file(place / "a" / "adapter_model.safetensors")
        export_model(str(llama), place / "m", "hf", adapter=place / "a")
        before, after = load_file(llama / "model.safetensors"), load_file(place / "m" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        module = "base_model.model." + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" not in update:
            assert name.split(".")[-2] not in targets
            assert torch.equal(weight, after[name])
            continue
        first = pattern and name.split(".")[-2] == targets[0]
        r, a = (rank + 1, alpha + 1) if first else (rank, alpha)
        scale = a / math.sqrt(r) if rslora else a / r
        expected = (
            weight.double() + scale * update[f"{module}.lora_B.weight"].double() @ update[f"{module}.lora_A.weight"].double()
        )
        torch.testing.assert_close(after[name].double(), expected, atol=1e-5, rtol=1e-5)


def worst_error(precision, blocks):
    """What rounding to a grid may cost, for each block of 32: half a step, and what float16 scales add."""
    most, width = blocks.abs().amax(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True) - blocks.amin(dim=1, keepdim=True)
    steps = {
        "f16": most * 2.0**-10, "bf16": most * 2.0**-7, "q8_0": most / 127, "q5_1": width / 31, "q4_1": width / 15,
        # Of 16 (8) steps on either side the last has no counterpart on the other: there it may cost a whole one.
        "q5_0": 2 * most / 16, "q4_0": 2 * most / 8,
    }  # fmt: skip
    return steps[precision] / 2 * 1.01 + most * 2.0**-10


@pytest.mark.parametrize("precision", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_precisions_are_as_close_as_their_bits(llama, tmp_path, precision):
    export_model(str(llama), tmp_path / "gguf", "gguf", precision=precision)
    source, written = open_checkpoint(resolve(str(llama))), open_checkpoint(resolve(str(tmp_path / "gguf" / "model.gguf")))
    for part in ("embed", "layers.0.q", "layers.1.down", "layers.1.mlp_norm", "norm"):
        exact, read = source.read(part), written.read(part)
        if exact.ndim == 1:
            assert torch.equal(exact, read)
            continue
        blocks = exact.view(-1, 32)
        bound = worst_error("q8_0" if part == "embed" and "_" in precision else precision, blocks)
        assert ((read.view(-1, 32) - blocks).abs() <= bound).all()
    tensors = read_header(tmp_path / "gguf" / "model.gguf").tensors.values()
    names = {gguf.GGMLQuantizationType(info.type_id).name for info in tensors if len(info.shape) > 1}
    assert names == {precision.upper()} | ({"Q8_0"} if "_" in precision else set())


def test_rows_that_are_no_whole_blocks_stay_in_f16(tmp_path):
    write_base(tmp_path / "base", hidden_size=80, num_attention_heads=4, head_dim=32)
    export_model(str(tmp_path / "base"), tmp_path / "gguf", "gguf", precision="q4_0")
    tensors = read_header(tmp_path / "gguf" / "model.gguf").tensors
    assert tensors["blk.0.attn_q.weight"].type_id == gguf.GGMLQuantizationType.F16
    assert tensors["blk.0.ffn_down.weight"].type_id == gguf.GGMLQuantizationType.Q4_0


def test_large_models_are_written_in_several_files(llama, tmp_path):
    checkpoint = open_checkpoint(resolve(str(llama)))
    written = []
    write_folder(tmp_path, checkpoint, "bf16", llama, written.append, shard=40_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert sum(written) == sum(p.numel() * 2 for p in network_of(llama).parameters())
    exact = network_of(llama).to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, exact[name]) for name, tensor in network_of(tmp_path).state_dict().items())
    assert load_model(str(tmp_path), "fp32").spec == checkpoint.spec


def test_a_gguf_base_keeps_its_metadata(tmp_path):
    """A Gemma from a GGUF file: what is copied, what is dequantized, and its norms, which transformers holds without 1."""
    network = gemma3(query_pre_attn_scalar=16)  # the head's size: a GGUF file has no words for another
    write_gemma3_gguf(tmp_path / "base.gguf", network)
    tuned = write_adapter(tmp_path / "adapter", network)
    export_model(str(tmp_path / "base.gguf"), tmp_path / "gguf", "gguf", adapter=tmp_path / "adapter", precision="f32")
    export_model(str(tmp_path / "base.gguf"), tmp_path / "hf", "hf", adapter=tmp_path / "adapter")
    before, after = (read_header(tmp_path / name).metadata for name in ("base.gguf", "gguf/model.gguf"))
    assert {key: after[key] for key in before} == before
    expected = logits(tuned)
    torch.testing.assert_close(logits(network_of(tmp_path / "hf")), expected, atol=1e-4, rtol=1e-3)
    answer = greedy(tuned, TOKENS, 8)
    assert engine_greedy(tmp_path / "gguf" / "model.gguf", [TOKENS], 8) == [answer]
    assert engine_greedy(tmp_path / "hf", [TOKENS], 8) == [answer]
    ours = load_model(str(tmp_path / "hf"), "fp32").tokenizer
    base = load_model(str(tmp_path / "base.gguf"), "fp32").tokenizer
    assert (ours.add_bos, ours.bos_id, ours.eos_ids) == (base.add_bos, base.bos_id, base.eos_ids)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("the and\n other").input_ids
    assert ids == [base.bos_id, *base.encode("the and\n other")] and base.add_bos


def test_tokenizers_are_kept_only_where_they_cut_alike(tmp_path):
    from still.backends.export.gguf_vocabulary import vocabulary
    from still.backends.models.checkpoint import TokenizerFiles
    from still.backends.models.gguf_tokenizer import CUTS
    from still.errors import ModelError

    def entries(backend):
        files = TokenizerFiles(backend.to_str(), None, False, (2,), None)
        return {entry.key: entry.value for entry in vocabulary(files, 512)}

    for name in ("gpt-2", "smollm", "qwen2"):
        assert entries(byte_tokenizer(CUTS[name]))["tokenizer.ggml.pre"] == name
    with pytest.raises(ModelError, match="cuts texts in a way that GGUF has no name for"):
        entries(byte_tokenizer((r"\p{L}{1,2}|.",)))
    with pytest.raises(ModelError, match="of type 'WordLevel' cannot be written"):
        entries(Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a")))


@pytest.fixture
def real_adapter(tmp_path):
    """Of SmolLM2, with random weights that change what it says and leave it English."""
    spec = load_model("smollm2-135m", "fp32").spec
    assert spec.tie_embeddings
    config = config_json(spec, "float32") | {"num_hidden_layers": 0}
    with torch.device("meta"):
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | {"num_hidden_layers": spec.num_layers}))
    network = network.to_empty(device="cpu")
    write_adapter(tmp_path / "a", network, r=8, lora_alpha=16, use_rslora=True)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(tensor.shape, generator=generator) * (0.03 if "lora_B" in name else tensor.shape[1] ** -0.5)
        for name, tensor in sorted(weights.items())
    }
    from safetensors.torch import save_file

    save_file(drawn, tmp_path / "a" / "adapter_model.safetensors")
    return tmp_path / "a"


@pytest.mark.model
def test_the_real_model_everywhere(real_adapter, tmp_path):
    """SmolLM2 with an adapter on its four-bit GGUF file: PEFT, transformers, our engine and llama.cpp agree."""
    pytest.importorskip("xllamacpp")
    import peft

    prompts = ["The capital of France is", "def fibonacci(n):"]
    export_model("smollm2-135m", tmp_path / "base", "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    assert ids == [load_model("smollm2-135m", "fp32").tokenizer.encode(prompt) for prompt in prompts]
    ours = engine_greedy("smollm2-135m", ids, 10, real_adapter)
    assert ours != engine_greedy("smollm2-135m", ids, 10)
    export_model("smollm2-135m", tmp_path / "merged", "hf", adapter=real_adapter)
    with_adapter = peft.PeftModel.from_pretrained(network_of(tmp_path / "base"), real_adapter).eval()
    merged = network_of(tmp_path / "merged")
    for prompt, answer in zip(ids, ours, strict=True):
        # One pass over prompt and answer says of every token whether it is the greedy one.
        for network in (with_adapter, merged):
            assert logits(network, prompt + answer)[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
    export_model("smollm2-135m", tmp_path / "gguf", "gguf", adapter=real_adapter)
    other = LlamaCpp(tmp_path / "gguf" / "model.gguf")
    assert [other.greedy(prompt, 10) for prompt in ids] == ours
    text = "Don't cut 12345 \n\n  naïve 日本 texts."
    assert other.tokenize(text) == tokenizer(text).input_ids
    assert np.isclose((tmp_path / "gguf" / "model.gguf").stat().st_size, 2 * 134.5e6, rtol=0.02)
