"""`still.compile`: measure a program, run the passes of its level, keep what wins on dev."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..backends.lm import LM
from ..errors import DatasetError, SignatureError, StillError
from ..optimizers.budget import Budget, OutOfBudget, Spending
from ..optimizers.candidate import Candidate
from ..optimizers.context import Outcome, Pass, PassResult, Standing
from ..optimizers.decisions import Decisions
from ..optimizers.demonstrations import Demonstrations
from ..optimizers.instructions import Instructions
from ..optimizers.racing import race
from ..optimizers.search import Search
from ..optimizers.selection import CONFIDENCE, Selection, select
from ..signatures.bridge import BaseLM, DspyChainOfThought, DspyPredict, Module, settings
from .canonical import digest
from .context import CompileContext
from .dataset import Dataset
from .evaluation import Evaluator
from .identity import model_digest, program_digest, sampling_settings, weights_digest
from .ledger import Ledger, RunRow
from .ledger_rows import now
from .metrics import Metric, as_metric
from .progress import ProgressBar
from .report import Report, Row, make_row
from .result import Result

Level = Literal["O0", "O1", "O2"]

PASSES: dict[str, tuple[Pass, ...]] = {
    "O0": (),
    "O1": (Demonstrations(), Decisions()),
    # Decisions again at the end: a calibration is one for a certain prompt.
    "O2": (Demonstrations(), Decisions(), Instructions(), Search(), Decisions()),
}
"""What each level runs, in order."""

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
    ledger: str | Path | Ledger = DEFAULT_LEDGER,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Make `program` better on the user's data; `program` itself is not changed.

    program: a Still or DSPy module. train: examples to learn from; dev: examples to choose by (default: 40 % of train).
    metric: "exact" (mean over the labelled fields) or a callable (example, prediction, trace) giving 0 to 1.
    level: "O0" measures; "O1" chooses demonstrations and how labels are decided; "O2" also instructions and knobs, and
    combines them all. passes: run these instead of the level's.
    lm: a `still.LM`, any dspy.LM, or the name of a local model (default: the configured LM, else the default model).
    teacher: LM that runs the program for bootstrapping (default: `lm`) and proposes instructions (default: nobody does).
    budget: `still.Budget(seconds=..., calls=..., tokens=...)`; when it is spent, the best so far is the result.

    Every (candidate, example) result goes to the ledger as it is computed: after Ctrl-C or a kill, the same call goes on
    where it stopped. Raises `SignatureError`, `DatasetError` and `MetricError` before any work for what can be checked
    beforehand, and `StillError` if the program fails on every example.
    """
    if level not in get_args(Level):
        raise StillError(f"level={level!r}: use one of {', '.join(get_args(Level))}")
    lm, proposer = _lm(lm), _lm(teacher) if teacher is not None else None
    teacher = proposer or lm
    if dev is None:
        split = train.split(train=0.6, dev=0.4, test=0, seed=seed)
        train, dev = split.train, split.dev
    train, dev = _typed(program, train, "train"), _typed(program, dev, "dev")
    scorer = as_metric(metric)
    owned = not isinstance(ledger, Ledger)
    book = Ledger(ledger) if not isinstance(ledger, Ledger) else ledger
    try:
        with ProgressBar(progress) as bar:
            steps = PASSES[level] if passes is None else tuple(passes)
            spending = Spending(budget or Budget())
            job = _Job(program, train, dev, scorer, level, steps, lm, teacher, proposer, spending, book, seed, bar)
            return job.run()
    finally:
        # Also on Ctrl-C: what was computed is on disk before the exception goes on.
        book.close() if owned else book.flush()


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

    Arguments are those of `compile`.
    """
    lm = _lm(lm)
    dataset = _typed(program, dataset, "dataset")
    owned = not isinstance(ledger, Ledger)
    book = Ledger(ledger) if not isinstance(ledger, Ledger) else ledger
    try:
        with ProgressBar(progress) as bar:
            bar.describe("evaluating")
            bar.expect(len(dataset))
            name = program_digest(program)
            evaluator = Evaluator(program, name, as_metric(metric), lm, book, f"evaluate-{name[:12]}", bar)
            outcomes = evaluator.evaluate(BASELINE, list(dataset), "test")
            _refuse_total_failure(outcomes)
            return make_row(Standing(BASELINE, tuple(outcomes)), "", seed)
    finally:
        book.close() if owned else book.flush()


BASELINE = Candidate("baseline", "baseline")
"""The program as the user wrote it."""


@dataclass(slots=True)
class _Job:
    """One compile."""

    program: Module
    train: Dataset
    dev: Dataset
    metric: Metric
    level: str
    passes: tuple[Pass, ...]
    lm: Any
    teacher: Any
    proposer: Any
    spending: Spending
    ledger: Ledger
    seed: int
    bar: ProgressBar

    def run(self) -> Result:
        started = time.perf_counter()
        program_id = program_digest(self.program)
        run_id = self._run_id(program_id)
        row = self._run_row(run_id, program_id)
        self.ledger.record(row)
        shared = (self.ledger, run_id, self.bar, self.spending)
        evaluator = Evaluator(self.program, program_id, self.metric, self.lm, *shared)
        teacher = Evaluator(self.program, program_id, self.metric, self.teacher, *shared)
        context = CompileContext(self.train, self.dev, self.seed, evaluator, teacher, self.bar, self.proposer)
        self.bar.describe("baseline")
        self.bar.expect(len(self.dev))
        try:
            # First and alone: a program that cannot run at all must fail before any candidate is paid for.
            outcomes = context.evaluate(self.program, BASELINE, range(len(self.dev)))
            _refuse_total_failure(outcomes)
            results = self._passes(context)
        except OutOfBudget as stop:
            self.ledger.record(replace(row, status="failed", finished_at=now()))
            needed = f"measuring the program as it is on {len(self.dev)} dev examples takes more: raise it"
            raise StillError(f"{stop}, and {needed}") from None
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self.ledger.record(replace(row, status=status, finished_at=now()))
            raise
        result = self._conclude(context, results, time.perf_counter() - started)
        self.ledger.record(replace(row, status="finished", finished_at=now(), result=result.report.to_json()))
        return result

    def _passes(self, context: CompileContext) -> list[PassResult]:
        current, results = BASELINE, []
        for step in self.passes:
            try:
                result = step.run(self.program, current, context)
            except OutOfBudget:
                result = PassResult(current, (), (f"{step.name}: broken off",))
            results.append(result)
            context.history.extend(result.standings)
            current = result.winner
        if not results:
            standings = race(self.program, [BASELINE], context)
            results.append(PassResult(BASELINE, tuple(standings)))
        return results

    def _conclude(self, context: CompileContext, results: Sequence[PassResult], seconds: float) -> Result:
        calibrations = next((result.calibrations for result in reversed(results) if result.calibrations), ())
        # A pass starts from the winner of the one before and measures it again.
        found: dict[str, Standing] = {}
        for standing in (s for result in results for s in result.standings):
            known = found.get(standing.candidate.digest)
            if known is None or len(known.outcomes) < len(standing.outcomes):
                found[standing.candidate.digest] = standing
        baseline = Standing(BASELINE, tuple(race(self.program, [BASELINE], context)[0].outcomes))
        standings = [baseline, *(s for key, s in found.items() if key != BASELINE.digest)]
        selection = select(baseline, standings, self.seed)
        winner, notes = self._settle(results[-1].winner, selection)
        # Passes may have come to the same candidate by other names: it goes by that of its row.
        winner = found[winner.digest].candidate if winner.digest in found else winner
        report = Report(
            level=self.level,
            metric=self.metric.name,
            model=_name(self.lm),
            seed=self.seed,
            train_size=len(self.train),
            dev_size=len(self.dev),
            seconds=seconds,
            resumed=self.bar.resumed,
            saved=sum(len(self.dev) - len(s.outcomes) for s in standings),
            winner=winner.name,
            rows=tuple(make_row(s, _verdict(s, winner), self.seed) for s in standings),
            notes=tuple(note for result in results for note in result.notes) + notes + self._leakage(),
            calibrations=calibrations if _is_calibrated(winner) else (),
            selection=selection,
        )
        compiled = winner.apply(self.program)
        compiled.set_lm(self.lm)
        model = {
            "name": _name(self.lm),
            "digest": weights_digest(self.lm),
            "sampling": sampling_settings(self.lm),
            "local": self.lm.local.to_json() if isinstance(self.lm, LM) else None,
        }
        return Result(compiled, report, winner, model, {"train": self.train.digest, "dev": self.dev.digest})

    def _settle(self, best: Candidate, selection: Selection) -> tuple[Candidate, tuple[str, ...]]:
        """Keep the program as it is where the examples cannot tell the best candidate from it."""
        notes: tuple[str, ...] = ()
        if self.spending.stopped:
            notes = (f"stopped when {self.spending.stopped} were spent: the best until then",)
        if best.digest == BASELINE.digest or selection.confidence >= CONFIDENCE:
            return best, notes
        return BASELINE, (
            *notes,
            f"{best.name} looked better, but {len(self.dev)} dev examples cannot tell it from the program as it is: picked "
            f"on a resample, it is ahead on the rest in {selection.confidence:.0%} of resamples ({CONFIDENCE:.0%} wanted)",
        )

    def _leakage(self) -> tuple[str, ...]:
        shared = len(self.train.overlap(self.dev))
        return (f"{shared} dev examples have the inputs of a train example: scores may flatter",) if shared else ()

    def _run_id(self, program_id: str) -> str:
        """The same compile has the same id, so that running it again resumes it."""
        parts = [
            program_id, self.train.digest, self.dev.digest, self.level, self.metric.name,
            model_digest(self.lm), model_digest(self.teacher), self.seed,
        ]  # fmt: skip
        return digest(parts)[:16]

    def _run_row(self, run_id: str, program_id: str) -> RunRow:
        return RunRow(
            run_id=run_id,
            program=f"{type(self.program).__name__} {program_id[:12]}",
            level=self.level,
            model=_name(self.lm),
            model_digest=model_digest(self.lm),
            seed=self.seed,
            config={"metric": self.metric.name, "train": len(self.train), "dev": len(self.dev)},
        )


def _is_calibrated(candidate: Candidate) -> bool:
    settings = (given for state in candidate.states.values() for given in state.fields.values())
    return any("calibration" in given for given in settings)


def _lm(lm: Any) -> Any:
    if lm is None:
        return settings.lm or LM()
    if isinstance(lm, str):
        return LM(lm)
    if not isinstance(lm, BaseLM):
        raise StillError(f"lm={lm!r}: give a still.LM, a dspy.LM, or the name of a local model")
    return lm


def _typed(program: Module, dataset: Dataset, role: str) -> Dataset:
    """Check the dataset against the predictors' fields, and give its columns their types."""
    if not isinstance(dataset, Dataset):
        raise DatasetError(f"{role} is a {type(dataset).__name__}: give a still.Dataset (Dataset(rows, inputs=[...]))")
    if not len(dataset):
        raise DatasetError(f"{role} has no rows")
    predictors = program.named_predictors()
    if not predictors:
        raise SignatureError(f"{type(program).__name__} has no predictors: there is nothing to compile")
    columns = set(dataset.columns)
    fields = {
        name: info.rebuild_annotation()
        for _, predictor in predictors
        for name, info in predictor.signature.fields.items()
        if name in columns
    }
    if isinstance(program, DspyPredict | DspyChainOfThought):  # what a module's predictor is given, the module may make
        for name, info in predictors[0][1].signature.input_fields.items():
            fields.setdefault(name, info.rebuild_annotation())  # check() then says that the column is missing
    return dataset.check(fields)


def _refuse_total_failure(outcomes: Sequence[Outcome]) -> None:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        raise StillError(f"the program failed on every one of {len(outcomes)} examples; the first error: {errors[0]}")


def _verdict(standing: Standing, winner: Candidate) -> str:
    return "winner" if standing.candidate is winner else standing.dropped or ""


def _name(lm: Any) -> str:
    return lm.local.model if isinstance(lm, LM) else str(lm.model)
