"""A run's row in the ledger: what makes two runs the same, and how one ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..signatures.bridge import Module
from .canonical import digest
from .dataset import Dataset
from .identity import model_digest
from .ledger import Ledger, RunRow
from .ledger_rows import now
from .lms import lm_name
from .metric import Metric


def run_row(
    program: Module, program_id: str, level: str, metric: Metric, lm: Any, seed: int, data: Mapping[str, Dataset], *more: Any
) -> RunRow:
    """The row as a run begins. The same run has the same id, so that it is resumed when it is run again.

    program_id: `program_digest(program)`. data: by role ("train", "dev", ...). more: what else makes it another run, as
    plain data.
    """
    digests = {role: dataset.digest for role, dataset in data.items()}
    parts = [program_id, level, metric.identity, model_digest(lm), seed, digests, *more]
    return RunRow(
        run_id=digest(parts)[:16],
        program=f"{type(program).__name__} {program_id[:12]}",
        level=level,
        model=lm_name(lm),
        model_digest=model_digest(lm),
        seed=seed,
        config={"metric": metric.name, **{role: len(dataset) for role, dataset in data.items()}},
    )


@contextmanager
def noted(ledger: Ledger, row: RunRow) -> Iterator[dict[str, Any]]:
    """The run is in the ledger from here on, in the end with how it ended and, if well, with what the yielded dict holds."""
    ledger.record(row)
    result: dict[str, Any] = {}
    try:
        yield result
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        ledger.record(replace(row, status=status, finished_at=now()))
        raise
    ledger.record(replace(row, status="finished", finished_at=now(), result=result))
