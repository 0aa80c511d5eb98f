"""Copies in memory of what a corpus file holds, read anew when the file has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ...errors import RetrievalError
from .corpus import Corpus

T = TypeVar("T")
Stamp = tuple[int, int, int]


def file_stamp(corpus: Corpus) -> Stamp:
    """What changes when the file does: its time of modification in nanoseconds, size, and inode."""
    try:
        status = corpus.path.stat()
    except OSError as error:
        raise RetrievalError(f"{corpus.path}: cannot be read: {error.strerror or error}; add the documents again") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


class Held(Generic[T]):
    """One copy of something per corpus file, made by `read`; threads that ask at once wait for one reading."""

    def __init__(self, read: Callable[[Corpus], T]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._copies: dict[str, tuple[Stamp, T]] = {}

    def get(self, corpus: Corpus) -> T:
        """The copy that belongs to the file as it is now."""
        path = str(corpus.path.resolve())
        with self._lock:
            stamp = file_stamp(corpus)
            held = self._copies.get(path)
            if held is None or held[0] != stamp:
                self._copies.pop(path, None)  # the old copy goes before the new one comes
                held = self._copies[path] = stamp, self._read(corpus)
            return held[1]
