"""The cache folder, and digests of files remembered by size and time so that a warm start need not hash again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from ...errors import ModelError


def cache_folder() -> Path:
    """`$STILL_CACHE`, else the platform's cache folder for `still`; created when missing."""
    configured = os.environ.get("STILL_CACHE")
    if configured:
        folder = Path(configured).expanduser()
    else:
        from platformdirs import user_cache_dir

        folder = Path(user_cache_dir("still", appauthor=False))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cache folder {folder} cannot be created ({error}); set STILL_CACHE to a writable one") from error
    return folder


def file_digest(path: Path) -> str:
    """sha256 of a file, hex. Remembered in the cache folder until the file's size or modification time changes.

    Raises ModelError when the file cannot be read.
    """
    try:
        digest = remembered_digest(path)
        if digest is None:
            digest = hash_file(path)
            remember_digest(path, digest)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return digest


def hash_file(path: Path) -> str:
    """sha256 of a file, hex, always computed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_digest(path: Path) -> str | None:
    """The digest noted for this file, if the file has not changed since; OSError when it does not exist."""
    stamp = _stamp(path)
    try:
        note = json.loads(_note_path(path).read_text(encoding="utf-8"))
        digest = note.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None  # no note, or a damaged one: hash again
    return digest if note == stamp and isinstance(digest, str) and len(digest) == 64 else None


def remember_digest(path: Path, digest: str) -> None:
    """Note that the file, as it stands now, has this digest."""
    write_atomically(_note_path(path), json.dumps({**_stamp(path), "sha256": digest}))


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that readers see the old one or the new one, never a piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _note_path(path: Path) -> Path:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    return cache_folder() / "digests" / f"{key}.json"
