"""Rotary scalings: what a checkpoint says, complete, gives transformers the frequencies the checkpoint meant."""

import json

import pytest
import torch
import transformers
from still.backends.models.gguf_file import GGUFFile
from still.backends.models.hf_config import read_spec
from still.backends.models.rope import complete_scaling
from still.errors import ModelError
from test_models_gguf import FLOAT, INT, TEXT, write
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SIZES = {
    "vocab_size": 300,
    "hidden_size": 256,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def computed(**config):
    parameters = config.pop("rope_parameters")
    made = transformers.LlamaConfig(**{**SIZES, **config}, rope_parameters=dict(parameters))
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](made)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.5},
        YARN,
        {**YARN, "beta_fast": 20, "beta_slow": 3.0},
        {**YARN, "attention_factor": 0.7},
        {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
        {**YARN, "mscale": 0.707},
        {**YARN, "mscale": 0.707, "mscale_all_dim": 0.3, "attention_factor": 1.25},
        {**YARN, "truncate": False},
        {**YARN, "factor": None},
        {**YARN, "factor": 0.5},
        {"rope_type": "yarn", "factor": 4.0},
        {**LLAMA3, "original_max_position_embeddings": 512},
        LLAMA3,
    ],
    ids=lambda scaling: ",".join(f"{key}={value}" for key, value in scaling.items() if key != "factor"),
)
@pytest.mark.parametrize("spelling", [4, 5])
def test_frequencies_of_a_folder_are_those_of_transformers(tmp_path, scaling, spelling):
    wanted, wanted_factor = computed(rope_parameters={**scaling, "rope_theta": 5e5})
    where = {"rope_parameters": {**scaling, "rope_theta": 5e5}}
    if spelling == 4:
        where = {"rope_scaling": {"type" if k == "rope_type" else k: v for k, v in scaling.items()}, "rope_theta": 5e5}
    spec = read_spec(tmp_path, {**SIZES, "model_type": "llama", **where}, False)
    complete = spec.rope_scaling
    got, factor = computed(rope_parameters={**complete, "rope_theta": spec.rope_theta})
    assert torch.equal(got, wanted)
    assert factor == pytest.approx(wanted_factor, rel=1e-12)
    if scaling["rope_type"] == "yarn":
        assert complete["attention_factor"] == pytest.approx(wanted_factor, rel=1e-12)
    # Nothing depends on what the reader's defaults are, or on the model's length.
    assert None not in complete.values()
    assert complete_scaling("x", complete, 77) == complete
    assert json.loads(json.dumps(complete)) == complete


def test_an_original_length_beside_the_others_wins(tmp_path):
    config = {**SIZES, "model_type": "llama", "original_max_position_embeddings": 512}
    spec = read_spec(tmp_path, {**config, "rope_parameters": {**YARN, "rope_theta": 1e4}}, False)
    assert spec.rope_scaling["original_max_position_embeddings"] == 512


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported; supported: linear, llama3, yarn"),
        ({"rope_type": "longrope", "long_factor": [1.0]}, "'longrope' is not supported"),
        ({"rope_type": ["yarn"]}, "is not supported"),
        ({"rope_type": "linear"}, "factor = None"),
        ({"rope_type": "linear", "factor": -1}, "factor = -1"),
        ({"rope_type": "linear", "factor": True}, "factor = True"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor = nan"),
        ({**YARN, "beta_fast": "32"}, "beta_fast = '32'"),
        ({**YARN, "mscale": "1", "mscale_all_dim": 1.0}, "mscale = '1'"),
        ({**YARN, "attention_factor": 0}, "attention_factor = 0"),
        ({**YARN, "original_max_position_embeddings": 10**400}, "original_max_position_embeddings = 1000"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "high_freq_factor = 4.0 must be above"),
    ],
)
def test_impossible_scalings_are_named(tmp_path, scaling, message):
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
        read_spec(tmp_path, {**SIZES, "model_type": "llama", "rope_parameters": scaling}, False)


def scaling_of(path, **values):
    kinds = {str: TEXT, float: FLOAT, int: INT}
    write(path, metadata={f"llama.rope.scaling.{key}": (value, kinds[type(value)]) for key, value in values.items()})
    return GGUFFile(path).spec.rope_scaling


GGUF_YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
COMPLETE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "attention_factor": pytest.approx(1.1386294), "truncate": True}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, {}),
        ({"yarn_beta_fast": 20.0, "yarn_beta_slow": 3.0}, {"beta_fast": 20.0, "beta_slow": 3.0}),
        ({"yarn_attn_factor": 0.5}, {"attention_factor": 0.5}),
        ({"attn_factor": 0.5}, {"attention_factor": pytest.approx(1.1386294 / 2)}),
        ({"yarn_attn_factor": 3.0, "attn_factor": 0.5}, {"attention_factor": 1.5}),
        ({"yarn_log_multiplier": 1.0}, {"attention_factor": 1.0}),
        ({"yarn_ext_factor": 1.0}, {}),
    ],
)
def test_yarn_of_a_gguf_file(tmp_path, values, wanted):
    assert scaling_of(tmp_path / "m.gguf", **GGUF_YARN, **values) == COMPLETE | wanted


def test_a_factor_without_a_type_is_linear(tmp_path):
    assert scaling_of(tmp_path / "m.gguf", factor=2.0) == {"rope_type": "linear", "factor": 2.0}
    assert scaling_of(tmp_path / "m.gguf", factor=1.0) is None
    assert scaling_of(tmp_path / "m.gguf", type="none", factor=2.0) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "longrope"}, "longrope"),
        ({"type": "linear", "factor": -2.0}, "factor = -2.0"),
        ({**GGUF_YARN, "yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({**GGUF_YARN, "attn_factor": "x"}, "attn_factor"),
        ({**GGUF_YARN, "original_context_length": 0}, "original_max_position_embeddings = 0"),
    ],
)
def test_impossible_scalings_of_a_file_are_named(tmp_path, values, message):
    with pytest.raises(ModelError, match=message):
        scaling_of(tmp_path / "m.gguf", **values)
