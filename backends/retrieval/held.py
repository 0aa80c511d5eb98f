"""Copies in memory of what a corpus file holds, read anew when the file has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from ...errors import RetrievalError
from .index import Index

T = TypeVar("T")
Stamp = tuple[int, int, int]
COPIES = 8


def file_stamp(path: Path) -> Stamp:
    """What changes when the file does: its time of modification in nanoseconds, size, and inode."""
    try:
        status = path.stat()
    except OSError as error:
        raise RetrievalError(f"{path}: cannot be read: {error.strerror or error}; add the documents again") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


class Held(Generic[T]):
    """One copy of something per index, made by `read`; threads that ask at once wait for one reading.

    Of the indexes of one file (a compile may try many ways of cutting), the `COPIES` used last are held.
    """

    def __init__(self, read: Callable[[Index], T]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._copies: dict[str, OrderedDict[str, tuple[Stamp, T]]] = {}

    def get(self, index: Index) -> T:
        """The copy that belongs to the file as it is now."""
        index.refresh()
        with self._lock:
            copies = self._copies.setdefault(str(index.path.resolve()), OrderedDict())
            stamp = file_stamp(index.path)
            held = copies.pop(index.schema, None)
            if held is None or held[0] != stamp:
                held = None  # the old copy goes before the new one comes
                held = stamp, self._read(index)
            copies[index.schema] = held
            while len(copies) > COPIES:
                copies.popitem(last=False)
            return held[1]
