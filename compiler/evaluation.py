"""Running a program over examples: one thread an example, every result in the ledger."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..backends.lm import LM
from ..backends.meter import LMCall, Meter, metered
from ..backends.recall import Recall, recalling
from ..errors import MetricError, StillError
from ..optimizers.budget import Spending
from ..optimizers.candidate import Candidate
from ..optimizers.context import Outcome, Rollout
from ..optimizers.own_copy import own_copy
from ..signatures.adapter import PlanAdapter
from ..signatures.bridge import Example, Module, Prediction, context
from .call_log import call_rows
from .canonical import example_digest
from .example_run import Run, RunFormat
from .identity import model_digest
from .invocation import Trace, call, is_unreached, name_predictors
from .ledger import CandidateRow, EvaluationRow, Ledger, ScoreRow, evaluation_key
from .metrics import Metric
from .verdicts import Verdicts, kept_in

BATCH = 64
"""Examples between two looks at the budget."""
WORKERS = 64
"""Examples in flight. They wait on the engine, which batches them; more threads would only wait longer."""


class Watcher(Protocol):
    """Told of every finished example; the progress bar is one."""

    def advance(self, outcome: Outcome) -> None:
        """One more example is done."""


@dataclass(frozen=True, slots=True)
class Ran:
    """An example that was run. asked: requests to language models, by what they were for. reached: whether the LM was; what
    a network that is down makes of an example says nothing, and is not kept."""

    outcome: Outcome
    run: Run
    asked: dict[str, list[LMCall]]
    reached: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A candidate on an example, by their digests, and the key of what comes of it."""

    key: str
    candidate_id: str
    example_id: str
    example: Example


@dataclass(slots=True)
class Evaluator:
    """Scores candidates of one program with one LM; what the ledger already has is not run again."""

    program: Module
    program_id: str
    """`program_digest(program)`."""
    metric: Metric
    lm: Any
    ledger: Ledger
    run_id: str
    watcher: Watcher
    verdicts: Verdicts
    """What judges said in this run: shared by all who evaluate in it."""
    spending: Spending = field(default_factory=Spending)
    recall: Recall = field(default_factory=Recall)
    """What the LM has answered already: candidates often ask the same."""
    _done: dict[str, tuple[Outcome, Run]] = field(default_factory=dict)
    """What this evaluator has settled already, by key: the baseline is looked at more than once."""
    _there: frozenset[str] | None = None
    """Keys that the ledger had when it was first asked: only for these it is opened again. What another process settles
    meanwhile is run twice, and kept once."""
    _several: bool = field(init=False)
    """Whether it matters which predictor did what."""
    _format: RunFormat = field(init=False)
    _introduced: set[str] = field(default_factory=set)
    """Candidates that the ledger has been told of."""

    def __post_init__(self) -> None:
        self._format = RunFormat(self.program)
        self._several = len(self.program.named_predictors()) > 1

    def evaluate(self, candidate: Candidate, examples: Sequence[Example], split: str) -> list[Outcome]:
        """Outcomes in the order of `examples`. A program or metric that raises is an outcome with `error`, score 0."""
        return [outcome for outcome, _ in self._run_all(candidate, examples, split)]

    def settled(self, candidate: Candidate, examples: Sequence[Example], split: str) -> list[tuple[Outcome, Run] | None]:
        """What is known by now of a candidate, per example; None where it was not run."""
        return [self._done.get(case.key) for case in self._cases(candidate.digest, examples, split)]

    def rollouts(self, candidate: Candidate, examples: Sequence[Example]) -> list[Rollout]:
        """Runs with their traces."""
        finished = self._run_all(candidate, examples, "rollout")
        return [
            Rollout(example, outcome.score, run.trace) for example, (outcome, run) in zip(examples, finished, strict=True)
        ]

    def timed(self, candidate: Candidate, examples: Sequence[Example]) -> list[float]:
        """Seconds that the program takes for each of these examples, one after the other. Nothing is taken from ledger,
        memory or dspy's cache, or written to them. Raises `OutOfBudget` before they begin."""
        self.spending.check()
        variant = name_predictors(candidate.apply(self.program))
        for _, predictor in variant.named_predictors():
            predictor.lm = predictor.lm and _uncached(predictor.lm)
        asked = replace(self, lm=_uncached(self.lm))
        outcomes = [asked._run_one(variant, example, "timed", None).outcome for example in examples]
        for outcome in outcomes:
            self.spending.add(outcome)
        return [outcome.seconds for outcome in outcomes]

    def _introduce(self, candidate: Candidate, digest: str) -> None:
        if digest not in self._introduced:
            about: dict[str, Any] = {"name": candidate.name, "origin": candidate.origin, "state": candidate.to_json()}
            self.ledger.record(CandidateRow(candidate_id=digest, run_id=self.run_id, **about))
            self._introduced.add(digest)

    def _run_all(self, candidate: Candidate, examples: Sequence[Example], split: str) -> list[tuple[Outcome, Run]]:
        digest = candidate.digest
        cases = self._cases(digest, examples, split)
        # By key: an example that stands in the data twice is run once.
        unsettled = {case.key: case for case in cases if case.key not in self._done}
        if not unsettled:
            self._introduce(candidate, digest)
            return [self._done[case.key] for case in cases]
        if self._there is None:
            self._there = self.ledger.evaluation_ids(model_digest(self.lm))
        known = self.ledger.lookup(found) if (found := self._there & unsettled.keys()) else {}
        variant = name_predictors(candidate.apply(self.program))
        # Without a budget one batch: the engine is then never left with less than it could do.
        size = BATCH if self.spending.limited else max(1, len(unsettled))
        rows = list(unsettled.values())
        for begin in range(0, len(rows), size):
            self.spending.check()
            self._introduce(candidate, digest)
            batch = rows[begin : begin + size]
            for case in batch:
                row = known.get(case.key)
                if row is not None and (run := self._format.from_row(row)) is not None:
                    self._settle(case, self._score(case.example, run, split, _costs(row)), run, split)
            self._run_missing(variant, [case for case in batch if case.key not in self._done], split)
        return [self._done[case.key] for case in cases]

    def _settle(self, case: Case, outcome: Outcome, run: Run, split: str) -> None:
        self._done[case.key] = outcome, run
        self.ledger.record(
            ScoreRow(
                run_id=self.run_id, evaluation_id=case.key, candidate_id=case.candidate_id, example_id=case.example_id,
                split=split, score=outcome.score, fields=outcome.fields, error=outcome.error,
            )
        )  # fmt: skip
        self.spending.add(outcome)
        self.watcher.advance(outcome)

    def _run_missing(self, variant: Module, missing: Sequence[Case], split: str) -> None:
        if not missing:
            return
        executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="still-example")
        try:
            begun = time.perf_counter()
            pending: dict[Future[Ran], Case] = {
                executor.submit(self._run_one, variant, case.example, split, self.recall): case for case in missing
            }
            while pending:
                # A timeout lets Ctrl-C through on platforms where waiting on a lock does not.
                done, _ = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    case = pending.pop(future)
                    ran = future.result()
                    outcome, run = ran.outcome, ran.run
                    # Examples run side by side: each is given the time since the one before it, so that sums are true.
                    ended = time.perf_counter()
                    outcome, begun = replace(outcome, seconds=ended - begun), ended
                    if ran.reached:
                        self.ledger.record(self._row(case, split, outcome, run))
                    for purpose, calls in ran.asked.items():
                        for row in call_rows(calls, purpose, self.run_id, case.key):
                            self.ledger.record(row)
                    self._settle(case, outcome, run, split)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _run_one(self, variant: Module, example: Example, split: str, recall: Recall | None) -> Ran:
        started = time.perf_counter()
        trace = Trace()
        error: str | None = None
        prediction: Any = None
        reached = True
        # PlanAdapter here, so that an unmodified DSPy program is decoded under constraints too.
        with metered(alone=True) as meter, recalling(recall), context(lm=self.lm, adapter=PlanAdapter(), trace=trace):
            try:
                prediction = call(own_copy(variant), example.inputs())
                if not isinstance(prediction, Prediction):
                    raise StillError(f"the program returned {type(prediction).__name__}: return a dspy.Prediction")
            except (Exception, SystemExit, CancelledError) as raised:
                error, reached = f"{type(raised).__name__}: {raised}", not is_unreached(raised)
        run, judged = Run(prediction, tuple(trace.calls), error), Meter()
        outcome = self._score(example, run, split, _spent(meter, time.perf_counter() - started), judged)
        return Ran(outcome, run, {"program": meter.log, "metric": judged.log}, reached)

    def _score(
        self, example: Example, run: Run, split: str, spent: Mapping[str, Any], judged: Meter | None = None
    ) -> Outcome:
        """judged: counts the requests that the metric makes."""
        if self._several:
            spent = {**spent, "trace": tuple(s for s in run.trace if s.inputs or s.outputs or not s.scores)}
        if run.error is not None:
            return Outcome(0.0, error=run.error, **spent)
        # Alone: a row from the ledger is scored in the thread of the pass, whose own calls are counted apart.
        with metered(judged, alone=True) as judged, kept_in(self.verdicts):
            # As in DSPy: where it is there the metric decides what is shown as a demonstration.
            traced = [(step.predictor, step.inputs, step.outputs) for step in run.trace] if split == "rollout" else None
            try:
                score = self.metric.score(example, run.prediction, traced)
                fields = self.metric.fields(example, run.prediction)
            except Exception as error:  # of a class of the user's any; the example is named where the metric is ours
                told = error if isinstance(error, MetricError) else f"{self.metric.name}: {type(error).__name__}: {error}"
                return Outcome(0.0, error=f"MetricError: {told}", **spent, **_judged(judged))
        scores = {step.predictor: step.scores for step in run.trace if step.scores}
        return Outcome(score.value, fields, feedback=score.feedback, option_scores=scores, **spent, **_judged(judged))

    def _cases(self, digest: str, examples: Sequence[Example], split: str) -> list[Case]:
        """digest: the candidate's."""
        shared = {"program": self.program_id, "candidate": digest, "model": model_digest(self.lm)}
        return [
            Case(evaluation_key(**shared, example=found, traced=split == "rollout"), digest, found, example)
            for example in examples
            for found in [example_digest(example)]
        ]

    def _row(self, case: Case, split: str, outcome: Outcome, run: Run) -> EvaluationRow:
        rollout = split == "rollout"
        stored = self._format.to_stored(run, rollout or self._several, {} if rollout else outcome.option_scores)
        return EvaluationRow(
            evaluation_id=case.key,
            candidate_id=case.candidate_id,
            example_id=case.example_id,
            split=split,
            model_digest=model_digest(self.lm),
            prediction=stored,
            score=outcome.score,
            scores=outcome.fields,
            error=outcome.error,
            calls=outcome.calls,
            prompt_tokens=outcome.prompt_tokens,
            cached_tokens=outcome.cached_tokens,
            decoded_tokens=outcome.decoded_tokens,
            seconds=outcome.seconds,
            run_id=self.run_id,
        )


def _uncached(lm: Any) -> Any:
    """The LM without dspy's cache of answers; ours has none."""
    return lm if isinstance(lm, LM) else lm.copy(cache=False)


def _spent(meter: Meter, seconds: float) -> dict[str, Any]:
    return {
        "calls": meter.calls,
        "prompt_tokens": meter.prompt_tokens,
        "cached_tokens": meter.cached_tokens,
        "decoded_tokens": meter.decoded_tokens,
        "seconds": seconds,
    }


def _judged(meter: Meter) -> dict[str, Any]:
    return {"metric_calls": meter.calls, "metric_tokens": meter.prompt_tokens + meter.decoded_tokens}


def _costs(row: EvaluationRow) -> dict[str, Any]:
    """What the row cost when it was run; it costs nothing now, which `resumed` says."""
    names = ("calls", "prompt_tokens", "cached_tokens", "decoded_tokens", "seconds")
    return {**{name: getattr(row, name) for name in names}, "resumed": True}
