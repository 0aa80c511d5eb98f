"""Gemma 3 as transformers and as llama.cpp write it: weights, spec, and what a plain decoder computes with both."""

import json

import numpy as np
import pytest
import torch
import transformers
from plain_decoder import check_logits
from safetensors.torch import load_file, save_file
from still.backends.models import load_model
from still.backends.models.convert import open_checkpoint
from still.backends.models.gguf_file import GGUFFile
from still.backends.models.source import ModelSource
from still.errors import ModelError
from test_models_safetensors import edit, write_tokenizer
from tiny_checkpoints import ARRAY, BOOL, FLOAT, INT, SIZES, TEXT, gemma3, random_model, write_gemma3_gguf

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    **{part: f"self_attn.{part}_proj" for part in "qkvo"},
    **{part: f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(model, folder):
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def spec_of(folder):
    return open_checkpoint(ModelSource("m", "folder", folder)).spec


def test_every_tensor_of_a_folder(tmp_path):
    state = save(gemma3(), tmp_path).state_dict()
    checkpoint = open_checkpoint(ModelSource("m", "folder", tmp_path))
    for layer in range(SIZES["num_hidden_layers"]):
        assert {part.split(".", 2)[2] for part in checkpoint.spec.part_shapes(layer)} == set(HF_NAMES)
        for part, name in HF_NAMES.items():
            tensor = state[f"model.layers.{layer}.{name}.weight"]
            wanted = tensor + 1 if "norm" in part else tensor
            assert torch.equal(checkpoint.read(f"layers.{layer}.{part}"), wanted), part
    assert torch.equal(checkpoint.read("embed"), state["model.embed_tokens.weight"])
    assert torch.equal(checkpoint.read("norm"), state["model.norm.weight"] + 1)


def test_spec_of_a_folder(tmp_path):
    save(gemma3(), tmp_path)
    spec = spec_of(tmp_path)
    assert (spec.architecture, spec.activation, spec.post_norms, spec.qk_norm) == ("gemma3", "gelu_tanh", True, True)
    assert (spec.sliding_window, spec.full_attention_every, spec.tie_embeddings) == (8, 6, True)
    assert (spec.rope_theta, spec.local_rope_theta, spec.rope_scaling) == (1e6, 1e4, None)
    assert (spec.embed_scale, spec.attention_scale) == (48**0.5, 24**-0.5)
    assert [spec.window(i) for i in range(7)] == [8, 8, 8, 8, 8, None, 8]


def images_too():
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=gemma3().config,
        vision_config=transformers.SiglipVisionConfig(**vision, image_size=28, patch_size=14),
        mm_tokens_per_image=4,
        image_token_index=299,
    )
    return random_model(transformers.Gemma3ForConditionalGeneration, config)


@pytest.mark.parametrize("renamed", [False, True])
def test_the_text_model_of_one_that_takes_images_too(tmp_path, renamed):
    model = save(images_too(), tmp_path)
    if renamed:  # as transformers 4.52 and later name them in memory, and some tools save them
        file = tmp_path / "model.safetensors"
        tensors = {name.replace("language_model.model.", "model.language_model."): t for name, t in load_file(file).items()}
        save_file({name: t.clone() for name, t in tensors.items()}, file, metadata={"format": "pt"})
    edit(tmp_path, vocab_size=7)  # the outer configuration is not the text model's
    check_logits(model, tmp_path)
    assert spec_of(tmp_path).tie_embeddings


def test_a_file_of_llama_cpp_gives_what_the_folder_gives(tmp_path):
    model = save(gemma3(query_pre_attn_scalar=16, rms_norm_eps=2**-20), tmp_path / "hf")
    write_gemma3_gguf(tmp_path / "m.gguf", model)
    folder, file = load_model(str(tmp_path / "hf"), "fp32"), load_model(str(tmp_path / "m.gguf"), "fp32")
    assert file.spec == folder.spec
    assert file.weights.keys() == folder.weights.keys()
    for name, tensor in folder.weights.items():
        assert torch.equal(file.weights[name], tensor), name
    assert (file.tokenizer.bos_id, file.tokenizer.add_bos, file.tokenizer.eos_ids) == (2, True, {1, 7})


LINEAR = {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_types": ["full_attention"] * 7},
        {"layer_types": ["sliding_attention"] * 7},
        {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]},
        {
            "rope_parameters": {
                "full_attention": {**LINEAR, "rope_theta": 2e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        },
    ],
    ids=["plain", "full", "sliding", "alternating", "rope"],
)
def test_logits_are_those_of_transformers(tmp_path, changes):
    check_logits(save(gemma3(**changes), tmp_path), tmp_path)


def test_logits_of_a_gguf_file_are_those_of_transformers(tmp_path):
    model = gemma3(query_pre_attn_scalar=16)
    write_gemma3_gguf(tmp_path / "m.gguf", model)
    check_logits(model, tmp_path / "m.gguf")


YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("model_class", "config_class", "changes"),
    [
        (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 8}),
        (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {}),
        (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"rope_parameters": {**YARN, "beta_slow": 2.0}}),
        (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"rope_parameters": YARN}),
    ],
    ids=["mistral-window", "qwen2", "qwen3-yarn", "llama-yarn"],
)
def test_logits_of_the_other_families(tmp_path, model_class, config_class, changes):
    sizes = SIZES if config_class is not transformers.Qwen2Config else {**SIZES, "hidden_size": 96, "head_dim": 16}
    model = random_model(model_class, config_class(**{**sizes, "num_hidden_layers": 2, **changes}))
    check_logits(save(model, tmp_path), tmp_path)


def test_rope_in_the_spelling_of_transformers_4_and_5(tmp_path):
    full = {**LINEAR, "rope_theta": 5e5}
    nested = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}
    save(gemma3(rope_parameters=nested), tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    new = spec_of(tmp_path)
    flat = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": LINEAR}
    edit(tmp_path, rope_parameters=..., **flat)
    assert spec_of(tmp_path) == new
    assert (new.rope_theta, new.local_rope_theta, new.rope_scaling) == (5e5, 2e4, LINEAR)
    edit(tmp_path, rope_scaling=None, rope_theta=..., rope_local_base_freq=...)
    assert (spec_of(tmp_path).rope_theta, spec_of(tmp_path).local_rope_theta) == (1e6, 1e4)


def test_defaults_are_those_of_transformers(tmp_path):
    save(gemma3(), tmp_path)
    reference = transformers.Gemma3TextConfig()
    left_out = dict.fromkeys(("query_pre_attn_scalar", "sliding_window", "layer_types", "max_position_embeddings"), ...)
    edit(tmp_path, **left_out)
    spec = spec_of(tmp_path)
    assert spec.attention_scale == reference.query_pre_attn_scalar**-0.5
    assert (spec.sliding_window, spec.max_position) == (reference.sliding_window, reference.max_position_embeddings)
    assert spec.full_attention_every == reference.layer_types.index("full_attention") + 1
    edit(tmp_path, sliding_window_pattern=3)
    assert spec_of(tmp_path).full_attention_every == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "text_config = None"),
        ({"model_type": "gemma2"}, "model_type = 'gemma2': supported: llama, mistral, qwen2, qwen3, gemma3_text"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        ({"layer_types": ["full_attention"] + ["sliding_attention"] * 6}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 6}, "layer_types.*7 layers"),
        ({"layer_types": 5}, "layer_types"),
        ({"sliding_window": None}, "sliding_window = None"),
        ({"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters.*full_attention"),
        ({"rope_parameters": {"full_attention": 5}}, "rope_parameters"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "windowed layers"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}}, "dynamic"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    save(gemma3(), tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ModelError, match=f"config.json: .*{message}"):
        load_model(str(tmp_path))


def write_and_read(path, layers=2, **changes):
    model = gemma3(num_hidden_layers=layers)
    write_gemma3_gguf(path, model, **changes)
    return GGUFFile(path).spec


def test_metadata_of_a_file(tmp_path):
    path = tmp_path / "m.gguf"
    scaling = {"rope__scaling__type": ("linear", TEXT), "rope__scaling__factor": (8.0, FLOAT)}
    spec = write_and_read(path, rope__freq_base_swa=(5e3, FLOAT), attention__sliding_window_pattern=(2, INT), **scaling)
    assert (spec.local_rope_theta, spec.full_attention_every, spec.rope_scaling) == (5e3, 2, LINEAR)
    windowed = [True, False] * 3 + [True]
    assert write_and_read(path, 7, attention__sliding_window_pattern=(windowed, ARRAY)).full_attention_every == 2
    assert write_and_read(path, attention__sliding_window_pattern=([True, True], ARRAY)).full_attention_every == 0
    plain = write_and_read(path, attention__sliding_window=None)
    assert (plain.sliding_window, plain.full_attention_every, plain.local_rope_theta) == (None, 0, None)


def test_scores_of_the_largest_model_are_scaled_by_hidden_size_over_heads(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 8, "head_dim": 16, "num_attention_heads": 2}
    model = gemma3(num_hidden_layers=62, **sizes)
    write_gemma3_gguf(tmp_path / "m.gguf", model)
    assert GGUFFile(tmp_path / "m.gguf").spec.attention_scale == pytest.approx(8**-0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_logit_softcapping": (30.0, FLOAT)}, "final_logit_softcapping = 30.0"),
        ({"attention__sliding_window_pattern": ([False, True], ARRAY)}, "sliding_window_pattern"),
        ({"attention__sliding_window_pattern": ([True], ARRAY)}, "sliding_window_pattern"),
        ({"attention__value_length": (8, INT)}, "values"),
        ({"attention__sliding_window": (True, BOOL)}, "sliding_window = True"),
    ],
)
def test_metadata_that_is_not_supported_is_named(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        write_and_read(tmp_path / "m.gguf", **changes)


def test_norms_of_a_file_are_not_raised_again(tmp_path):
    model = gemma3(num_hidden_layers=1)
    write_gemma3_gguf(tmp_path / "m.gguf", model)
    read = GGUFFile(tmp_path / "m.gguf").read("norm").numpy()
    np.testing.assert_array_equal(read, model.state_dict()["model.norm.weight"].numpy() + 1)
