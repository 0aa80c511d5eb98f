"""The ledger's file: short-lived DuckDB connections that wait their turn, and a creation that is whole or not at all.

DuckDB lets one process at a time hold a file that is written, so nobody holds it for longer than one statement batch.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..backends.duck import put_in_place
from ..backends.readers import first_line
from ..errors import LedgerError
from . import ledger_views
from .ledger_rows import SCHEMA, SCHEMA_VERSION

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

T = TypeVar("T")

LOCK_PATIENCE = 30.0  # seconds that an operation waits for other processes
_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.25
_BUSY = (
    "Could not set lock on file",  # POSIX
    "being used by another process",  # Windows
    "different configuration than existing connections",  # a connection that the user opened in this process
)

# One lock per file and process: DuckDB refuses a read-only connection beside a writable one of the same process.
_locks: dict[str, threading.RLock] = {}
_locks_guard = threading.Lock()


class LedgerFile:
    """Opens the file for one operation at a time; creates it, with its tables, on construction where there is none.

    Raises:
        LedgerError: the folder or file cannot be written, or the file is something else; it is then left as it was.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = os.path.realpath(path)
        if not os.path.lexists(self._key):
            self._create()
        self.use(self._check, read_only=True)

    def use(self, operation: Callable[[DuckDBPyConnection], T], *, read_only: bool) -> T:
        """`operation` on a fresh connection, waiting up to LOCK_PATIENCE seconds while another process holds the file.

        `operation` runs once, when the connection is open; a DuckDB error in it is passed on as LedgerError.
        """
        import duckdb

        deadline, wait = time.monotonic() + LOCK_PATIENCE, _FIRST_WAIT
        while True:
            try:
                with self._turn(), self._open(read_only) as connection:
                    return _run(operation, connection, self.path)
            except duckdb.Error as error:
                message = first_line(error)
                if not any(sign in message for sign in _BUSY):
                    raise LedgerError(f"{self.path}: {message}; check the file and its disk") from error
                if time.monotonic() > deadline:
                    raise LedgerError(f"{self.path}: in use for {LOCK_PATIENCE:g} s: {message}; end that process") from error
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with _lock_of(self._key):
            yield

    def _open(self, read_only: bool) -> DuckDBPyConnection:
        import duckdb

        # connect() would make an empty database of a file that someone removed.
        if not os.path.exists(self._key):
            raise LedgerError(f"{self.path}: the ledger was removed or its folder is gone; put it back, or open a new one")
        # Queries come from users: they see this file only, whatever the SQL says.
        closed: dict[str, Any] = {"enable_external_access": False, "lock_configuration": True} if read_only else {}
        return duckdb.connect(self._key, read_only=read_only, config=closed)

    def _create(self) -> None:
        """Made aside, then linked into place: a kill here leaves no half ledger, and no other is overwritten."""
        import duckdb

        parent = Path(self._key).parent
        aside = parent / f".{Path(self._key).name}.{secrets.token_hex(8)}.new"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with duckdb.connect(str(aside)) as connection:
                connection.execute(SCHEMA + ledger_views.SCHEMA)
                connection.execute("INSERT INTO meta VALUES (?)", [SCHEMA_VERSION])
            put_in_place(aside, Path(self._key))
        except (OSError, duckdb.Error) as error:
            raise LedgerError(
                f"{self.path}: cannot be created: {first_line(error)}; choose a folder that can be written"
            ) from error
        finally:
            for leftover in (aside, aside.with_name(aside.name + ".wal")):
                with suppress(OSError):
                    leftover.unlink()

    def _check(self, connection: DuckDBPyConnection) -> None:
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if not {"meta", "runs", "candidates", "evaluations"} <= tables:
            raise LedgerError(
                f"{self.path}: is a DuckDB file but no ledger, with tables {', '.join(sorted(tables)) or 'none'}; "
                "choose another path"
            )
        version: int = connection.execute("SELECT max(schema_version) FROM meta").fetchall()[0][0]
        if version != SCHEMA_VERSION:
            raise LedgerError(
                f"{self.path}: is a ledger of version {version}, this Still writes version {SCHEMA_VERSION}; "
                "move it away, or choose another path"
            )


def _run(operation: Callable[[DuckDBPyConnection], T], connection: DuckDBPyConnection, path: Path) -> T:
    import duckdb

    try:
        return operation(connection)
    except duckdb.Error as error:
        raise LedgerError(f"{path}: {first_line(error)}") from error
    except RuntimeError as error:
        # What Ctrl-C becomes when it meets a running query: DuckDB clears the signal.
        if "interrupted" in str(error):
            raise KeyboardInterrupt from error
        raise


def _lock_of(key: str) -> threading.RLock:
    with _locks_guard:
        return _locks.setdefault(key, threading.RLock())


def _before_fork() -> None:
    """No connection may be open during a fork: the child would inherit a database whose threads do not exist."""
    _locks_guard.acquire()
    for key in sorted(_locks):
        _locks[key].acquire()


def _after_fork_in_parent() -> None:
    for lock in _locks.values():
        lock.release()
    _locks_guard.release()


def _after_fork_in_child() -> None:
    global _locks_guard
    _locks.clear()
    _locks_guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
