"""Damaged models: whatever bytes or values of a folder or of a Gemma's GGUF are wrong, a whole model or a ModelError."""

import json
import random
import shutil
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.models.gguf_file import GGUFFile
from still.backends.models.gguf_header import read_header
from still.backends.models.safetensors_folder import SafetensorsFolder
from still.errors import ModelError
from test_models_safetensors import write_tokenizer
from tiny_checkpoints import ARRAY, FLOAT, INT, TEXT, gemma3, write_gemma3_gguf

VALUES = [None, True, -1, 0, 1, 3, 0.5, 10**9, 10**400, 1e308, float("inf"), float("nan"), "x", "", [], [1], {}, {"a": 1}]
FILES = ["model.safetensors", "config.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    nested = {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 30.0}}
    gemma3(num_hidden_layers=2, rope_parameters=nested).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory, whole):
    return shutil.copytree(whole, tmp_path_factory.mktemp("broken") / "m")


def attempt(path):
    try:
        checkpoint = SafetensorsFolder(path) if path.is_dir() else GGUFFile(path)
        checkpoint.tokenizer()
        for part in {**checkpoint.spec.outer_shapes(), **checkpoint.spec.part_shapes(0)}:
            checkpoint.read(part)
    except ModelError:
        return False
    return True


def header_size(data):
    return 8 + int.from_bytes(data[:8], "little")


def test_whole_models_load(whole, gguf_file):
    assert attempt(whole)
    assert attempt(gguf_file[0])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_load_or_raise_model_error(whole, broken, data):
    name = data.draw(st.sampled_from(FILES))
    original = (whole / name).read_bytes()
    end = header_size(original) if name.endswith("safetensors") else len(original)
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, end - 1))
        changed[at] = data.draw(st.sampled_from([0, 0x20, 0x22, 0x2D, 0x39, 0x7F, 0x80, 0xFF, changed[at] ^ 0x10]))
    (broken / name).write_bytes(changed)
    try:
        attempt(broken)
    finally:
        (broken / name).write_bytes(original)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_odd_values_load_or_raise_model_error(whole, broken, data):
    original = (whole / "config.json").read_text()
    config = json.loads(original)
    for _ in range(data.draw(st.integers(1, 3))):
        place = config
        key = data.draw(st.sampled_from([*sorted(config), "rope_scaling", "sliding_window_pattern", "layer_types"]))
        while isinstance(place.get(key), dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place)))
        place[key] = deepcopy(data.draw(st.sampled_from(VALUES)))  # a later change may go inside it
    config["model_type"] = data.draw(st.sampled_from(["gemma3_text", "llama", "qwen2", "mistral"]))
    (broken / "config.json").write_text(json.dumps(config))
    try:
        attempt(broken)
    finally:
        (broken / "config.json").write_text(original)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    scaling = {"type": ("yarn", TEXT), "factor": (2.0, FLOAT), "original_context_length": (64, INT)}
    scaling |= {"yarn_beta_fast": (30.0, FLOAT), "attn_factor": (0.9, FLOAT)}
    pattern = {"attention__sliding_window_pattern": ([True, False], ARRAY)}
    changes = {f"rope__scaling__{key}": value for key, value in scaling.items()} | pattern
    write_gemma3_gguf(path, gemma3(num_hidden_layers=2), **changes)
    return path, path.read_bytes(), min(info.offset for info in read_header(path).tensors.values())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_of_a_gguf_file_load_or_raise_model_error(gguf_file, data):
    path, original, header = gguf_file
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, header - 1))
        changed[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, changed[at] ^ 0x10]))
    damaged = path.with_name("damaged.gguf")
    damaged.write_bytes(changed)
    attempt(damaged)


def test_every_truncation_is_refused(whole, broken):
    chosen = random.Random(0)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        original = (whole / name).read_bytes()
        end = header_size(original) if name.endswith("safetensors") else len(original.rstrip())
        cuts = {0, 1, 7, 8, 9, end - 1, *(chosen.randrange(end) for _ in range(60))}
        if name.endswith("safetensors"):
            cuts |= {end, len(original) - 1, len(original) // 2}
        for cut in sorted(cuts):
            (broken / name).write_bytes(original[:cut])
            assert not attempt(broken), (name, cut)
        (broken / name).write_bytes(original)
    assert attempt(broken)
