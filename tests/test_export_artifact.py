"""`still export` of weights: artifacts with adapters, and everything that must not leave half a folder behind."""

import errno
import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import gguf
import pytest
import still
import torch
from export_models import TOKENS, engine_greedy, greedy, network_of, write_adapter, write_base
from safetensors.torch import load_file, save_file
from still.backends.export import export_model, staging
from still.backends.models import adapter_digest, resolve
from still.cli import app
from still.compiler.artifact import save_artifact
from still.errors import ArtifactError, ModelError
from still.optimizers.nearest import NearestDemonstrations
from still.signatures.executor import AdapterFolder
from typer.testing import CliRunner


class Sort(still.Signature):
    """Is the mood good or bad?"""

    text: str = still.Input()
    mood: Literal["good", "bad"] = still.Output()


class Two(still.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = still.Predict(Sort), still.Predict(Sort)

    def forward(self, text):
        return self.second(text=self.first(text=text).mood)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A base, two adapters for it, and the network with the first."""
    folder = tmp_path_factory.mktemp("parts")
    write_base(folder / "base")
    write_adapter(folder / "other", network_of(folder / "base"), 1, target_modules=["v_proj"])
    return folder, write_adapter(folder / "mood", network_of(folder / "base"))


DEMOS = [{"text": "lovely", "mood": "good"}, {"text": "awful", "mood": "bad"}]


def artifact(parts, path, adapters=("mood",), program=None, base="base"):
    if program is None:
        program = still.Predict(Sort)
        program.demos = DEMOS
    source = resolve(str(parts[0] / base))
    local = {"model": source.name, "quantization": "int8", "cache_tokens": 1024, "max_context": None}
    model = {"name": source.name, "digest": f"{source.digest()}/int8", "local": local, "sampling": {}}
    folders = {name: parts[0] / name for name in adapters}
    return save_artifact(path, program, SimpleNamespace(to_json=dict), model, {}, folders)


def run(*arguments, fails=False):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert (result.exception is not None) == fails, result.output
    return result


@pytest.mark.parametrize("to", ["hf", "gguf", "modelfile"])
def test_the_command_line_writes_what_was_trained(parts, tmp_path, to):
    place = tmp_path / "out"
    run(artifact(parts, tmp_path / "a"), "--to", to, "--precision", "f32", "-o", place)
    assert engine_greedy(place if to == "hf" else place / "model.gguf", [TOKENS], 8) == [greedy(parts[1], TOKENS, 8)]
    files = {file.name for file in place.iterdir()}
    assert files == {"gguf": {"model.gguf"}, "modelfile": {"model.gguf", "Modelfile"}}.get(to, files)
    assert not [file for file in tmp_path.iterdir() if file.name not in ("a", "out")]


def test_the_adapter_travels_bit_for_bit(parts, tmp_path):
    folder = artifact(parts, tmp_path / "a", ["mood", "other"])
    with pytest.raises(ArtifactError, match=r"several adapters \(mood, other\)"):
        still.export_weights(folder, tmp_path / "peft", to="peft")
    with pytest.raises(ArtifactError, match="no adapter 'third'; it has: mood, other"):
        still.export_weights(folder, tmp_path / "peft", to="peft", adapter="third")
    run(folder, tmp_path / "peft", "--to", "peft", "--adapter", "other")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (parts[0] / "other", tmp_path / "peft"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(parts[0] / "base")
    assert config["r"] == 4 and config["target_modules"] == ["v_proj"]


def test_a_programs_own_adapter_is_written(parts, tmp_path):
    program = Two()
    program.set_lm(still.LM(str(parts[0] / "base")))
    trained = {name: AdapterFolder(adapter_digest(parts[0] / name), str(parts[0] / name)) for name in ("mood", "other")}
    program.second.config = {"adapter": trained["mood"]}
    still.export_weights(program, tmp_path / "peft", to="peft")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (parts[0] / "mood", tmp_path / "peft"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    program.first.config = {"adapter": trained["other"]}
    with pytest.raises(ArtifactError, match=r"several adapters \(first: .*other, second: .*mood\): say by adapter="):
        still.export_weights(program, tmp_path / "again", to="peft")
    still.export_weights(program, tmp_path / "again", to="peft", adapter=parts[0] / "other")
    program.first.config, program.second.config = {}, {"adapter": AdapterFolder("0" * 64, str(parts[0] / "mood"))}
    with pytest.raises(ArtifactError, match=r"mood: its sha256 is .*, trained was 000000000000"):
        still.export_weights(program, tmp_path / "changed", to="peft")


def test_without_an_adapter_the_base_is_written(parts, tmp_path):
    folder = artifact(parts, tmp_path / "a", [])
    assert still.export_weights(folder, tmp_path / "hf", to="hf").precision == "f32"
    before, after = (load_file(f / "model.safetensors") for f in (parts[0] / "base", tmp_path / "hf"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ArtifactError, match="without an adapter there is nothing to write"):
        still.export_weights(folder, tmp_path / "peft", to="peft")
    written = still.export_weights(folder, tmp_path / "gguf", to="gguf", adapter=parts[0] / "mood", precision="f32")
    assert engine_greedy(written.files[0], [TOKENS], 8) == [greedy(parts[1], TOKENS, 8)]


def test_the_modelfile_has_the_programs_prompt(parts, tmp_path):
    written = still.export_weights(artifact(parts, tmp_path / "a"), tmp_path / "out", to="modelfile")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert 'SYSTEM """Is the mood good or bad?' in text
    assert 'MESSAGE user """text: lovely"""\nMESSAGE assistant """mood: good"""\n' in text
    assert text.startswith('# Ask with: "text: {text}"\nFROM ./model.gguf\n')
    assert written.lost == ("predictor 'self': its outputs' types are asked for, not enforced",)

    program = still.Predict(Sort)
    program.demos = NearestDemonstrations(DEMOS, 1)
    program.set_lm(still.LM(str(parts[0] / "base")))
    pooled = still.export_weights(program, tmp_path / "pooled", to="modelfile", adapter=parts[0] / "mood")
    assert "MESSAGE" not in (tmp_path / "pooled" / "Modelfile").read_text()
    assert any("chosen per input" in loss for loss in pooled.lost)


def test_programs_of_several_predictors_say_so(parts, tmp_path):
    folder = artifact(parts, tmp_path / "a", program=Two())
    unseen = still.export_weights(folder, tmp_path / "unseen", to="modelfile")
    seen = still.export_weights(folder, tmp_path / "seen", to="modelfile", program=Two())
    assert "no predictor to show" in unseen.lost[0] and "2 predictors" in seen.lost[0]
    assert "SYSTEM" not in (tmp_path / "seen" / "Modelfile").read_text()


def test_another_base_is_refused(parts, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(parts[0] / "base", base)
    folder = artifact((tmp_path, None), tmp_path / "a", [])
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="an adapter fits the weights it was trained on"):
        still.export_weights(folder, tmp_path / "out", to="hf")
    write_base(tmp_path / "wide", hidden_size=96)
    write_base(tmp_path / "short", num_hidden_layers=1)
    for name, message in (("wide", "belongs to another model"), ("short", "a layer that the model of 1 lacks")):
        with pytest.raises(ModelError, match=rf"adapter for .*{name}.*{message}"):
            export_model(str(tmp_path / name), tmp_path / "out", "hf", adapter=parts[0] / "mood")
    assert not (tmp_path / "out").exists()


def test_tampered_adapters_are_refused(parts, tmp_path):
    folder = artifact(parts, tmp_path / "a")
    shutil.copytree(parts[0] / "other", folder / "adapters" / "sneaked")
    with pytest.raises(ArtifactError, match="SHA256SUMS does not list adapters/sneaked"):
        still.export_weights(folder, tmp_path / "out", to="hf")
    file = artifact(parts, tmp_path / "b") / "adapters" / "mood" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="was changed since it was saved"):
        still.export_weights(tmp_path / "b", tmp_path / "out", to="hf")


def test_places_that_are_taken_are_left_alone(parts, tmp_path):
    base = str(parts[0] / "base")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for name in ("full", "file"):
        with pytest.raises(ArtifactError, match="exists: choose another path or remove it"):
            export_model(base, tmp_path / name, "hf")
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ArtifactError, match="cannot write"):
        export_model(base, tmp_path / "file" / "below", "hf")
    (tmp_path / "empty").mkdir()
    assert export_model(base, tmp_path / "empty", "gguf").files == (tmp_path / "empty" / "model.gguf",)


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_full_disk_leaves_nothing(parts, tmp_path, monkeypatch, to):
    base = str(parts[0] / "base")
    with monkeypatch.context() as patch:
        patch.setattr(staging.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
        with pytest.raises(ArtifactError, match=r"MB are to be written, and its disk has 10 MB left"):
            export_model(base, tmp_path / "out", to)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = (gguf.GGUFWriter, "write_tensor_data") if to == "gguf" else ("safetensors.torch.save_file",)
    monkeypatch.setattr(*where, full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        export_model(base, tmp_path / "out", to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_write_that_fails_leaves_nothing(parts, tmp_path, to):
    """A real failure of the operating system's, met inside the libraries that write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(ArtifactError, match=f"cannot write {tmp_path / 'out'}"):
            export_model(str(parts[0] / "base"), tmp_path / "out", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(parts, tmp_path):
    seen = []

    def progress(done, total):
        seen.append((done, total))
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(str(parts[0] / "base"), tmp_path / "out", "gguf", progress=progress)
    assert list(tmp_path.iterdir()) == []
    assert len(seen) > 3 and seen == sorted(seen)


def test_weights_that_do_not_fit_float16_are_refused(tmp_path):
    base = write_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    for to in ("hf", "gguf"):
        with pytest.raises(ModelError, match=r"layers\.1\.up: a weight of 1e\+05 does not fit f16"):
            export_model(str(base), tmp_path / "out", to, precision="f16")
        export_model(str(base), tmp_path / to, to, precision="bf16")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="'norm' of the model holds NaN"):
        export_model(str(base), tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_what_is_not_supported_is_named(parts, tmp_path):
    base, out = parts[0] / "base", tmp_path / "out"
    for to, options, message in (
        ("onnx", {}, "format 'onnx' is not known: use one of peft, hf, gguf, modelfile"),
        ("hf", {"precision": "q8_0"}, "'q8_0' is not known here: use one of f32, f16, bf16$"),
        ("gguf", {"precision": "q3"}, "use one of f32, f16, bf16, q8_0"),
        ("peft", {"precision": "f16", "adapter": parts[0] / "mood"}, "precision 'f16' has no use"),
    ):
        with pytest.raises(ArtifactError, match=message):
            still.export_weights(still.LM(str(base)), out, to=to, **options)
    shutil.copytree(base, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "mamba"'))
    with pytest.raises(ModelError, match="supported: llama"):
        export_model(str(tmp_path / "base"), out, "gguf")
    with pytest.raises(ArtifactError, match="a dict has no weights"):
        still.export_weights({}, out, to="hf")
    assert "say once where to write" in str(run(artifact(parts, tmp_path / "a"), "--to", "hf", fails=True).exception)
    assert "the formats are dspy, peft" in str(run(tmp_path / "a", out, "--to", "onnx", fails=True).exception)
    assert not out.exists()


def test_the_same_export_twice_is_the_same_bytes(parts, tmp_path):
    for name in ("one", "two"):
        export_model(str(parts[0] / "base"), tmp_path / name, "modelfile", adapter=Path(parts[0] / "mood"), precision="q8_0")
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and one.keys() == {"model.gguf", "Modelfile"}
