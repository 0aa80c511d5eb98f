"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import ArtifactError

_MARGIN = 16 << 20
"""Bytes of a disk that are left alone, for what else is written meanwhile."""


@contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` when the block ends well, and is removed otherwise.

    needed: bytes that will be written; refused before any work where the disk has no room for them. An empty folder may
    stand at `target`. Raises ArtifactError for anything else there, for a full disk, and for a place that is not writable.
    """
    check_free(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < needed + _MARGIN:
            raise ArtifactError(
                f"{target}: {needed / 1e6:.0f} MB are to be written, and its disk has {free / 1e6:.0f} MB left: "
                "make room, choose another path, or a smaller precision"
            )
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    from safetensors import SafetensorError

    try:
        yield work
        _finish(work, target)
    except SafetensorError as error:  # its way to say that a file cannot be written: sources are read with errors of ours
        raise ArtifactError(f"cannot write {target}: {error}") from error
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)  # nothing, where it was renamed


def check_free(target: Path) -> None:
    """Raise ArtifactError unless nothing, or an empty folder, stands at `target`."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise ArtifactError(f"{target} exists: choose another path or remove it")


def _finish(work: Path, target: Path) -> None:
    for file in work.iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    work.chmod(0o755)  # mkdtemp makes it private
    os.replace(work, target)  # an empty folder is replaced; one that was filled meanwhile is an error


def _cannot_write(target: Path, error: OSError) -> ArtifactError:
    if error.errno == errno.ENOSPC:
        return ArtifactError(f"cannot write {target}: the disk is full; make room, or choose another path")
    return ArtifactError(f"cannot write {target}: {error.strerror or error}")
