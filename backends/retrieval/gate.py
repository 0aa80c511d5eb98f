"""`Gate`: many readers of a file, or one writer, within this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Gate:
    """DuckDB refuses to open a file for writing while a connection of the same process reads it, and the reverse.

    A reader does not wait for writers that wait, so that a thread which reads may read once more.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False

    @contextmanager
    def held(self, *, read_only: bool) -> Iterator[None]:
        """Wait for the others, and keep them out during the block. A thread that reads must not ask to write."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and (read_only or not self._readers))
            self._readers += read_only
            self._writing = not read_only
        try:
            yield
        finally:
            with self._changed:
                self._readers -= read_only
                self._writing = False
                self._changed.notify_all()


_gates: dict[str, Gate] = {}
_gates_lock = threading.Lock()


def gate_of(path: Path) -> Gate:
    """The gate of a file, the same for every name of it."""
    with _gates_lock:
        return _gates.setdefault(str(path.resolve()), Gate())
