"""`still.compile`: measure a program, run the passes of its level, keep what wins on dev."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..backends.retrieval.model_folder import DEFAULT_EMBEDDER
from ..optimizers.budget import Budget, Spending
from ..optimizers.context import Pass, Standing
from ..signatures.bridge import Module
from .conclusion import BASELINE
from .dataset import Dataset
from .evaluation import Evaluator
from .identity import program_digest
from .job import Job, refuse_total_failure
from .ledger import Ledger, opened
from .ledger_run import noted, run_row
from .lms import resolve
from .metrics import as_metric
from .progress import ProgressBar
from .report_table import Row, make_row
from .result import Result
from .task import Level, make_task, typed
from .verdicts import Verdicts

DEFAULT_LEDGER = Path(".still") / "ledger.duckdb"


def compile(
    program: Module,
    train: Dataset,
    dev: Dataset | None = None,
    metric: Any = "exact",
    *,
    level: Level = "O1",
    passes: Sequence[Pass] | None = None,
    lm: Any = None,
    teacher: Any = None,
    budget: Budget | None = None,
    objective: str | Sequence[str] = "quality",
    embedder: str | None = DEFAULT_EMBEDDER,
    ledger: str | Path | Ledger = DEFAULT_LEDGER,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Make `program` better on the user's data; `program` itself is not changed.

    program: a Still or DSPy module. train: examples to learn from; dev: examples to choose by (default: 40 % of train).
    metric: "exact" (mean over the labelled fields) or a callable (example, prediction, trace) giving 0 to 1.
    level: "O0" measures; "O1" chooses demonstrations and how labels are decided; "O2" also instructions and knobs, and
    combines them all; "O3" then trains weights to answer without them. passes: run these instead of the level's.
    lm: a `still.LM`, any dspy.LM, or the name of a local model (default: the configured LM, else the default model).
    teacher: LM that runs the program for bootstrapping (default: `lm`) and proposes instructions (default: nobody does).
    budget: `still.Budget(seconds=..., calls=..., tokens=...)`; when it is spent, the best so far is the result.
    objective: "quality", "latency" (the fastest that scores no lower on dev than the program as it is), or both, of which
    the first decides what is returned; with latency among them `result.front` has every candidate than which none is both
    better and faster.
    embedder: what tells which demonstrations are nearest to an input: "minilm" (fetched once; where it cannot be had, words
    tell), a sentence-transformers folder or hub id, or None for the words they share (BM25).

    Every (candidate, example) result goes to the ledger as it is computed: after Ctrl-C or a kill, the same call goes on
    where it stopped. Raises `SignatureError`, `DatasetError`, `MetricError` and `ModelError` before any work for what can
    be checked beforehand, and `StillError` if the program fails on every example.
    """
    task = make_task(program, train, dev, metric, level, passes, lm, teacher, seed, objective, embedder)
    with opened(ledger) as book, ProgressBar(progress) as bar:
        return Job(task, Spending(budget or Budget()), book, bar).run()


def evaluate(
    program: Module,
    dataset: Dataset,
    metric: Any = "exact",
    *,
    lm: Any = None,
    ledger: str | Path | Ledger = DEFAULT_LEDGER,
    seed: int = 0,
    progress: bool = True,
) -> Row:
    """Score `program` as it is on `dataset`, and return the row a report would have for it.

    Arguments are those of `compile`; raises as it does. In the ledger it is a run of level "evaluate".
    """
    program, lm = resolve(program, lm)
    dataset, judged = typed(program, dataset, "dataset"), as_metric(metric)
    name = program_digest(program)
    run = run_row(program, name, "evaluate", judged, lm, seed, {"test": dataset})
    with opened(ledger) as book, ProgressBar(progress) as bar, noted(book, run) as told:
        bar.describe("evaluating")
        bar.expect(len(dataset))
        evaluator = Evaluator(program, name, judged, lm, book, run.run_id, bar, Verdicts(book, run.run_id))
        outcomes = evaluator.evaluate(BASELINE, list(dataset), "test")
        refuse_total_failure(outcomes)
        row = make_row(Standing(BASELINE, tuple(outcomes)), "", seed)
        told.update(asdict(row))
        return row
