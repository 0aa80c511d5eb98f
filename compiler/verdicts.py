"""What judges said, kept in the ledger: a judge is not asked again for what it has answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..backends.meter import LMCall, count_call
from .call_log import requests
from .ledger import Ledger, VerdictRow
from .metric import Score


class Verdicts:
    """The answers of judges in one ledger, read when a judge first asks for one. Thread-safe."""

    def __init__(self, ledger: Ledger, run_id: str) -> None:
        self._ledger, self._run_id = ledger, run_id
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, VerdictRow]] = {}

    def find(self, judge: str, key: str) -> Score | None:
        """The answer of the judge with this name to a question, or None. What it cost counts as it did at first."""
        with self._lock:
            if judge not in self._known:
                self._known[judge] = {row.verdict_id: row for row in self._ledger.verdicts(judge)}
            row = self._known[judge].get(key)
        if row is None:
            return None
        for model, prompt, decoded in row.calls:
            count_call(model, prompt, prompt, decoded)
        return Score(row.score, row.feedback)

    def keep(self, judge: str, key: str, score: Score, calls: list[LMCall]) -> None:
        """Write an answer, and the requests that it took."""
        spent = requests(calls)
        row = VerdictRow(
            verdict_id=key, judge=judge, score=score.value, feedback=score.feedback, calls=spent, run_id=self._run_id
        )
        self._ledger.record(row)
        with self._lock:
            if judge in self._known:  # else it is read with all others when the judge first asks
                self._known[judge].setdefault(key, row)


_CURRENT: ContextVar[Verdicts | None] = ContextVar("still_verdicts", default=None)


@contextmanager
def kept_in(verdicts: Verdicts) -> Iterator[None]:
    """Judges that are asked in the block, by this thread, keep their answers here."""
    token = _CURRENT.set(verdicts)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_verdicts() -> Verdicts | None:
    """Where a judge that is asked now keeps its answers."""
    return _CURRENT.get()
