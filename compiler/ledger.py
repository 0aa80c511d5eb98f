"""`Ledger`: every run, candidate, evaluation, call and artifact in one DuckDB file; what a killed compile resumes from."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..backends.duck import fetch
from ..backends.readers import first_line
from ..errors import LedgerError
from .ledger_file import LedgerFile
from .ledger_rows import (
    AnswerRow,
    ArtifactRow,
    CallRow,
    CandidateRow,
    EvaluationRow,
    LedgerRow,
    RunRow,
    ScoreRow,
    VerdictRow,
    evaluation_key,
)
from .ledger_views import READY_QUERIES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "READY_QUERIES",
    "AnswerRow",
    "ArtifactRow",
    "CallRow",
    "CandidateRow",
    "EvaluationRow",
    "Ledger",
    "RunRow",
    "ScoreRow",
    "VerdictRow",
    "evaluation_key",
    "opened",
]

FLUSH_SECONDS = 1.0
FLUSH_ROWS = 200

R = TypeVar("R", bound=LedgerRow)
Item = tuple[type[LedgerRow], list[Any]]


class Ledger:
    """A ledger file, made with its folder where there is none. Usable from many threads, and by many processes at once.

    `record` queues a row; a background thread writes the queue as one transaction every FLUSH_SECONDS or FLUSH_ROWS
    rows. A row is either wholly in the file or not at all, also after a kill; rows that cannot be written stay
    queued. Every reading method first writes what is queued here.

    Raises:
        LedgerError: the file cannot be made or opened, is no ledger, or is one of another version.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(fspath(path))
        self._file = LedgerFile(self.path)
        self._closed = False
        self._reset()
        atexit.register(self._at_exit)

    def _reset(self) -> None:
        """A fresh queue, no thread: at the start, and in a forked child, as the parent will write the copied rows."""
        self._owner = os.getpid()
        self._queue: list[Item] = []
        self._guard = threading.Lock()  # the queue, the failure, the thread
        self._writing = threading.Lock()  # one transaction at a time, so that rows keep their order
        self._wake = threading.Event()
        self._failure: LedgerError | None = None
        self._thread: threading.Thread | None = None

    def record(self, row: LedgerRow) -> None:
        """Queue a row. Recording a run, score or artifact again updates it, any other row is as it was first recorded.

        Raises:
            LedgerError: the row holds a value that does not fit its column, or the ledger is closed: it is not queued.
                Or writing in the background failed: this row and all earlier ones are queued and will be tried again.
        """
        # Bound values now: a row that cannot be written fails here and not within its neighbours' transaction, and what
        # the caller does to its dicts later changes nothing.
        item = (type(row), row.to_sql())
        self._check_usable()
        with self._guard:
            self._queue.append(item)
            failure, self._failure = self._failure, None
            if self._thread is None:
                self._thread = threading.Thread(target=self._flush_loop, name="still-ledger", daemon=True)
                self._thread.start()
            if len(self._queue) >= FLUSH_ROWS:
                self._wake.set()
        if failure is not None:
            raise failure

    def flush(self) -> None:
        """Return when all recorded rows are on disk. Raises LedgerError if they cannot be written; they stay queued."""
        self._check_usable()
        self._write_queue()
        with self._guard:
            self._failure = None

    def close(self) -> None:
        """Flush and stop; harmless if closed. Raises LedgerError as `flush` does, and stays open then."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        atexit.unregister(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    def lookup(self, evaluation_ids: Iterable[str]) -> dict[str, EvaluationRow]:
        """The evaluations among these ids that are already there, by id. Does not wait for queued rows to be written."""
        wanted = set(evaluation_ids)
        # The queue first: a row that is written meanwhile is found in the file.
        with self._guard:
            bound = [values for kind, values in self._queue if kind is EvaluationRow and values[0] in wanted]
        found = {values[0]: EvaluationRow.from_sql(tuple(values)) for values in bound}
        rows = self._read(EvaluationRow, "evaluation_id IN (SELECT unnest($1::VARCHAR[]))", [list(wanted - found.keys())])
        return {**{row.evaluation_id: row for row in rows}, **found}

    def evaluation_ids(self, model: str) -> frozenset[str]:
        """Ids of all evaluations there are of the model with this digest."""
        self._settle()
        rows = self._fetch(f"SELECT evaluation_id FROM {EvaluationRow.TABLE} WHERE model_digest = $1", [model])
        return frozenset(found for (found,) in rows)

    def evaluations(self, run_id: str | None = None, candidate_id: str | None = None) -> list[EvaluationRow]:
        """Evaluations that this run wrote, of this candidate, oldest first; None means any."""
        where = "run_id = coalesce($1, run_id) AND candidate_id = coalesce($2, candidate_id)"
        return self._select(EvaluationRow, f"{where} ORDER BY created_at, evaluation_id", [run_id, candidate_id])

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        return self._select(RunRow, "true ORDER BY started_at, run_id", [])

    def candidates(self, run_id: str | None = None) -> list[CandidateRow]:
        """Candidates of this run, or of all, oldest first."""
        where = "run_id = coalesce($1, run_id) ORDER BY created_at, candidate_id"
        return self._select(CandidateRow, where, [run_id])

    def calls(self, run_id: str | None = None) -> list[CallRow]:
        """Requests to language models that this run, or any, made, oldest first."""
        return self._select(CallRow, "run_id = coalesce($1, run_id) ORDER BY created_at, call_id", [run_id])

    def verdicts(self, judge: str) -> list[VerdictRow]:
        """What the judge with this name has said, oldest first."""
        return self._select(VerdictRow, "judge = $1 ORDER BY created_at, verdict_id", [judge])

    def answer(self, answer_id: str) -> AnswerRow | None:
        """The answer with this id, if there is one."""
        return next(iter(self._select(AnswerRow, "answer_id = $1", [answer_id])), None)

    def artifacts(self) -> list[ArtifactRow]:
        """All artifacts that were saved, oldest first."""
        return self._select(ArtifactRow, "true ORDER BY created_at, path", [])

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """(column names, rows) of one SELECT over the ledger, or of one of READY_QUERIES by name.

        Raises:
            LedgerError: the SQL fails, is not one SELECT, or would write or reach for other files.
        """
        text = READY_QUERIES[sql][1] if sql in READY_QUERIES else sql
        self._settle()
        return self._file.use(lambda connection: _select_only(connection, text), read_only=True)

    def _select(self, kind: type[R], where: str, values: list[Any]) -> list[R]:
        self._settle()
        return self._read(kind, where, values)

    def _read(self, kind: type[R], where: str, values: list[Any]) -> list[R]:
        statement = f"SELECT {', '.join(kind.columns())} FROM {kind.TABLE} WHERE {where}"
        return [kind.from_sql(row) for row in self._fetch(statement, values)]

    def _fetch(self, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
        return self._file.use(lambda connection: connection.execute(statement, values).fetchall(), read_only=True)

    def _settle(self) -> None:
        """Reading sees what was recorded here; a closed ledger can still be read."""
        if not self._closed:
            self.flush()

    def _check_usable(self) -> None:
        if self._closed:
            raise LedgerError(f"{self.path}: this ledger is closed; open it again")
        if self._owner != os.getpid():
            self._reset()

    def _flush_loop(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            try:
                self._write_queue()
            except Exception as error:  # whatever it is, the next record() must tell it
                with self._guard:
                    self._failure = error if isinstance(error, LedgerError) else LedgerError(f"{self.path}: {error!r}")

    def _write_queue(self) -> None:
        """Write what is queued now, in order and in one transaction; take it off the queue only when that is done."""
        with self._writing:
            with self._guard:
                rows = list(self._queue)
            if not rows:
                return
            self._file.use(lambda connection: _insert(connection, rows), read_only=False)
            with self._guard:
                del self._queue[: len(rows)]

    def _at_exit(self) -> None:
        if self._owner != os.getpid() or self._closed:
            return
        try:
            self.close()
        except LedgerError as error:
            print(f"still: {len(self._queue)} ledger rows are lost: {error}", file=sys.stderr)


@contextmanager
def opened(ledger: str | PathLike[str] | Ledger) -> Iterator[Ledger]:
    """A ledger to write to: one given as a path is closed in the end, another only flushed. Also on Ctrl-C: what was
    computed is on disk before the exception goes on."""
    book = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
    try:
        yield book
    finally:
        book.flush() if book is ledger else book.close()


def _insert(connection: DuckDBPyConnection, rows: list[Item]) -> None:
    """All rows in one transaction, table by table: rows of several come mixed, and none refers to another's by key."""
    connection.begin()
    by_kind: dict[type[LedgerRow], list[list[Any]]] = {}
    for kind, bound in rows:
        by_kind.setdefault(kind, []).append(bound)
    for kind, bounds in by_kind.items():
        columns = kind.columns()
        lists = ", ".join(f"unnest(${i})" for i in range(1, len(columns) + 1))
        statement = f"INSERT INTO {kind.TABLE} ({', '.join(columns)}) SELECT {lists} {kind.CONFLICT}"
        if "UPDATE" in kind.CONFLICT:
            # It may not touch the same row twice in one statement: the last is what counts.
            bounds = list({tuple(values[: kind.KEYS]): values for values in bounds}.values())
        for begin in range(0, len(bounds), FLUSH_ROWS):
            # By column: a statement with a mark per value takes DuckDB longer to read than to run.
            by_column = [list(values) for values in zip(*bounds[begin : begin + FLUSH_ROWS], strict=True)]
            connection.execute(statement, by_column)
    connection.commit()


def _select_only(connection: DuckDBPyConnection, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    import duckdb

    statements = connection.extract_statements(sql)
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        found = ", ".join(kind.name for kind in kinds) or "nothing"
        raise LedgerError(f"query: is {found}, not one SELECT: {sql.strip()!r:.80}; the ledger is read-only here")
    try:
        relation = connection.sql(statements[0].query)
        return ([], []) if relation is None else fetch(relation)
    except duckdb.Error as error:
        raise LedgerError(f"query: {first_line(error)}; in {sql.strip()!r:.80}") from error
