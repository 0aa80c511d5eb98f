"""Running a program over examples: one thread an example, every result in the ledger."""

from __future__ import annotations

import json
import time
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..backends.meter import LMCall, Meter, metered
from ..backends.recall import Recall, recalling
from ..errors import DatasetError, MetricError, StillError
from ..optimizers.budget import Spending
from ..optimizers.candidate import Candidate
from ..optimizers.context import Outcome, PredictorTrace, Rollout
from ..optimizers.own_copy import own_copy
from ..signatures.adapter import PlanAdapter
from ..signatures.bridge import Example, Module, Prediction, context
from .call_log import call_rows
from .canonical import example_digest, to_jsonable
from .identity import model_digest
from .invocation import Trace, call, name_predictors
from .ledger import CandidateRow, EvaluationRow, Ledger, evaluation_key
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


Asked = dict[str, list[LMCall]]
"""Requests to language models, by what they were for."""


@dataclass(frozen=True, slots=True)
class Run:
    """A program's answer to one example, before it is scored."""

    prediction: Any
    trace: tuple[PredictorTrace, ...]
    error: str | None


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

    _verdicts: Verdicts = field(init=False)

    def __post_init__(self) -> None:
        self._verdicts = Verdicts(self.ledger, self.run_id)
        self._several = len(self.program.named_predictors()) > 1

    def evaluate(self, candidate: Candidate, examples: Sequence[Example], split: str) -> list[Outcome]:
        """Outcomes in the order of `examples`. A program or metric that raises is an outcome with `error`, score 0."""
        self._introduce(candidate)
        return [outcome for outcome, _ in self._run_all(candidate, examples, split)]

    def settled(self, candidate: Candidate, examples: Sequence[Example], split: str) -> list[tuple[Outcome, Run] | None]:
        """What is known by now of a candidate, per example; None where it was not run."""
        return [self._done.get(self._key(candidate, example, split)) for example in examples]

    def rollouts(self, candidate: Candidate, examples: Sequence[Example]) -> list[Rollout]:
        """Runs with their traces."""
        self._introduce(candidate)
        finished = self._run_all(candidate, examples, "rollout")
        return [
            Rollout(example, outcome.score, run.trace) for example, (outcome, run) in zip(examples, finished, strict=True)
        ]

    def timed(self, candidate: Candidate, examples: Sequence[Example]) -> list[float]:
        """Seconds that the program takes for each of these examples, one after the other. Nothing is taken from
        ledger or memory, or written to them. Raises `OutOfBudget` before they begin."""
        self.spending.check()
        variant = name_predictors(candidate.apply(self.program))
        outcomes = [self._run_one(variant, example, None)[0] for example in examples]
        for outcome in outcomes:
            self.spending.add(outcome)
        return [outcome.seconds for outcome in outcomes]

    def _introduce(self, candidate: Candidate) -> None:
        about: dict[str, Any] = {"name": candidate.name, "origin": candidate.origin, "state": candidate.to_json()}
        self.ledger.record(CandidateRow(candidate_id=candidate.digest, run_id=self.run_id, **about))

    def _run_all(self, candidate: Candidate, examples: Sequence[Example], split: str) -> list[tuple[Outcome, Run]]:
        keys = [self._key(candidate, example, split) for example in examples]
        # By key: an example that stands in the data twice is run once.
        unsettled = {key: example for key, example in zip(keys, examples, strict=True) if key not in self._done}
        if not unsettled:
            return [self._done[key] for key in keys]
        if self._there is None:
            self._there = self.ledger.evaluation_ids(model_digest(self.lm))
        known = self.ledger.lookup(found) if (found := self._there & unsettled.keys()) else {}
        variant = name_predictors(candidate.apply(self.program))
        # Without a budget one batch: the engine is then never left with less than it could do.
        size = BATCH if self.spending.limited else max(1, len(unsettled))
        rows = list(unsettled.items())
        for begin in range(0, len(rows), size):
            self.spending.check()
            batch = rows[begin : begin + size]
            for key, example in batch:
                if key in known and (run := self._restore(known[key])) is not None:
                    self._settle(key, self._score(example, run, _costs(known[key])), run)
            self._run_missing(candidate, variant, {k: e for k, e in batch if k not in self._done}, split)
        return [self._done[key] for key in keys]

    def _settle(self, key: str, outcome: Outcome, run: Run) -> None:
        self._done[key] = outcome, run
        self.spending.add(outcome)
        self.watcher.advance(outcome)

    def _run_missing(self, candidate: Candidate, variant: Module, missing: Mapping[str, Example], split: str) -> None:
        if not missing:
            return
        executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="still-example")
        try:
            begun = time.perf_counter()
            pending: dict[Future[tuple[Outcome, Run, Asked]], str] = {
                executor.submit(self._run_one, variant, example, self.recall): key for key, example in missing.items()
            }
            while pending:
                # A timeout lets Ctrl-C through on platforms where waiting on a lock does not.
                done, _ = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    key = pending.pop(future)
                    outcome, run, asked = future.result()
                    # Examples run side by side: each is given the time since the one before it, so that sums are true.
                    ended = time.perf_counter()
                    outcome, begun = replace(outcome, seconds=ended - begun), ended
                    self.ledger.record(self._row(key, candidate, missing[key], split, outcome, run))
                    for purpose, calls in asked.items():
                        for row in call_rows(calls, purpose, self.run_id, key):
                            self.ledger.record(row)
                    self._settle(key, outcome, run)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _run_one(self, variant: Module, example: Example, recall: Recall | None) -> tuple[Outcome, Run, Asked]:
        started = time.perf_counter()
        trace = Trace()
        error: str | None = None
        prediction: Any = None
        # PlanAdapter here, so that an unmodified DSPy program is decoded under constraints too.
        with metered(alone=True) as meter, recalling(recall), context(lm=self.lm, adapter=PlanAdapter(), trace=trace):
            try:
                prediction = call(own_copy(variant), example.inputs())
                if not isinstance(prediction, Prediction):
                    raise StillError(f"the program returned {type(prediction).__name__}: return a dspy.Prediction")
            except (Exception, SystemExit, CancelledError) as raised:
                error = f"{type(raised).__name__}: {raised}"
        run, judged = Run(prediction, tuple(trace.calls), error), Meter()
        outcome = self._score(example, run, _spent(meter, time.perf_counter() - started), judged)
        return outcome, run, {"program": meter.log, "metric": judged.log}

    def _score(self, example: Example, run: Run, spent: Mapping[str, Any], judged: Meter | None = None) -> Outcome:
        """judged: counts the requests that the metric makes."""
        if self._several:
            spent = {**spent, "trace": tuple(s for s in run.trace if s.inputs or s.outputs or not s.scores)}
        if run.error is not None:
            return Outcome(0.0, error=run.error, **spent)
        # Alone: a row from the ledger is scored in the thread of the pass, whose own calls are counted apart.
        with metered(judged, alone=True) as judged, kept_in(self._verdicts):
            try:
                score = self.metric.score(example, run.prediction)
                fields = self.metric.fields(example, run.prediction)
            except MetricError as error:
                return Outcome(0.0, error=f"MetricError: {error}", **spent, **_judged(judged))
        scores = {step.predictor: step.scores for step in run.trace if step.scores}
        return Outcome(score.value, fields, feedback=score.feedback, option_scores=scores, **spent, **_judged(judged))

    def _key(self, candidate: Candidate, example: Example, split: str) -> str:
        return evaluation_key(
            program=self.program_id,
            candidate=candidate.digest,
            example=example_digest(example),
            model=model_digest(self.lm),
            traced=split == "rollout",
        )

    def _row(
        self, key: str, candidate: Candidate, example: Example, split: str, outcome: Outcome, run: Run
    ) -> EvaluationRow:
        stored: dict[str, Any] = {"values": run.prediction.toDict() if run.error is None else None}
        if split == "rollout" or self._several:
            stored["trace"] = [[t.predictor, _as_shown(t.inputs), _as_shown(t.outputs)] for t in run.trace]
        if split != "rollout" and outcome.option_scores:
            stored["scores"] = outcome.option_scores
        return EvaluationRow(
            evaluation_id=key,
            candidate_id=candidate.digest,
            example_id=example_digest(example),
            split=split,
            model_digest=model_digest(self.lm),
            prediction=_storable(stored),
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

    def _restore(self, row: EvaluationRow) -> Run | None:
        """A run from its row, with typed values; None if it has to be run again."""
        stored = row.prediction
        if row.error is not None and not row.error.startswith("MetricError"):
            called = (stored or {}).get("trace", [])
            return Run(None, tuple(PredictorTrace(name, {}, {}) for name, *_ in called), row.error)
        if not stored or stored.get("values") is None:
            return None
        # Two predictors may have an output of the same name and another type; a program mostly returns what its last says.
        kinds = {name: _annotations(predictor.signature) for name, predictor in self.program.named_predictors()}
        outputs = {field: kind for by_field in kinds.values() for field, kind in by_field.items()}
        try:
            values = {name: _typed(value, outputs.get(name)) for name, value in stored["values"].items()}
            trace = tuple(
                PredictorTrace(name, inputs, {k: _typed(v, kinds.get(name, {}).get(k)) for k, v in given.items()})
                for name, inputs, given in stored.get("trace", [])
            ) + tuple(PredictorTrace(name, {}, {}, scores) for name, scores in stored.get("scores", {}).items())
        except ValidationError:
            return None  # the program's types changed since
        return Run(Prediction(**values), trace, None)


def _storable(stored: dict[str, Any]) -> Any:
    try:
        return to_jsonable(stored)
    except DatasetError:  # an object without JSON among them: the row says what it cost, and the example is run again
        return {"values": None}


def _as_shown(values: dict[str, Any]) -> Any:
    """As candidates and prompts have them (by alias), so that a candidate made from the row is the one made before."""
    try:
        return to_jsonable_python(values)
    except PydanticSerializationError:
        return values


def _annotations(signature: Any) -> dict[str, Any]:
    return {field: info.rebuild_annotation() for field, info in signature.output_fields.items()}


def _typed(value: Any, annotation: Any) -> Any:
    if annotation is None:
        return value
    return TypeAdapter(annotation).validate_json(json.dumps(value), by_alias=True, by_name=True)


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
