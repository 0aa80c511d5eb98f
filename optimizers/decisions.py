"""Decode or score: for every closed set of options, whichever answers better, and probabilities that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConstraintError
from ..signatures.bridge import Example, Module
from ..signatures.constraint import Constraint
from ..signatures.fieldset import constraints, special_fields
from . import calibration
from .candidate import Candidate, PredictorState, current_state
from .context import CalibrationFit, EvaluationContext, Forecast, Outcome, PassResult
from .racing import race

MIN_LABELS = 10
"""Labelled examples that a calibration needs."""


class Decisions:
    """Try scoring the options of every output that is a closed set, as the model has them and calibrated.

    The prior correction takes the label frequencies of train and the inputs of dev; the temperature, which changes no
    answer, is fitted on dev's labels, and its error reported by cross-fitting.
    """

    name = "decisions"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Race decoding, scoring and calibrated scoring on dev."""
        closed = _closed_fields(baseline.apply(program))
        if not closed:
            return PassResult(baseline, ())
        scored = baseline
        if not _scores(baseline.apply(program), closed):
            scored = _with_fields(program, baseline, "scored", {f: {"decide": "score"} for f in closed})
        context.expect(2 * len(context.dev))
        outcomes = context.evaluate(program, scored, range(len(context.dev)))
        fitted = [(key, fit) for key, constraint in closed.items() if (fit := _fit(key, constraint, outcomes, context))]
        candidates = [baseline] if scored is baseline else [baseline, scored]
        if fitted:
            given: dict[Key, dict[str, Any]] = {f: {"decide": "score"} for f in closed}
            given |= {key: {"decide": "score", "calibration": made.to_json()} for key, (made, _) in fitted}
            candidates.append(_with_fields(program, baseline, "calibrated", given))
        standings = race(program, candidates, context)
        winner = standings[0].candidate
        used = tuple(summary for _, (_, summary) in fitted) if winner is candidates[-1] and fitted else ()
        return PassResult(winner, tuple(standings), calibrations=used)

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """Scoring, with and without calibration."""
        closed = _closed_fields(baseline.apply(program))
        if not closed:
            return Forecast()
        scored = _with_fields(program, baseline, "scored", {f: {"decide": "score"} for f in closed})
        return Forecast((scored,) if not _scores(baseline.apply(program), closed) else (), (scored,))


Key = tuple[str, str]
"""A predictor's name and an output's."""


def _closed_fields(program: Module) -> dict[Key, Constraint]:
    return {
        (name, output): constraint
        for name, predictor in program.named_predictors()
        if not special_fields(predictor.signature)
        for output, constraint in constraints(predictor.signature).items()
        if constraint.options is not None and len(constraint.options) > 1
    }


def _scores(program: Module, closed: Mapping[Key, Constraint]) -> bool:
    """Whether the program scores all these fields already, without a calibration."""
    predictors = dict(program.named_predictors())
    settings = [predictors[name].signature.output_fields[output].json_schema_extra or {} for name, output in closed]
    return all(given.get("decide") == "score" and not given.get("calibration") for given in settings)


def _with_fields(program: Module, baseline: Candidate, name: str, given: Mapping[Key, dict[str, Any]]) -> Candidate:
    """`baseline` with these settings of output fields."""
    states: dict[str, PredictorState] = {}
    for predictor_name, predictor in baseline.apply(program).named_predictors():
        state = baseline.states.get(predictor_name, current_state(predictor))
        fields = dict(state.fields)
        for (owner, output), settings in given.items():
            if owner == predictor_name:
                kept = {key: value for key, value in fields.get(output, {}).items() if key != "calibration"}
                fields[output] = {**kept, **settings}
        states[predictor_name] = replace(state, fields=fields)
    prefix = "" if baseline.name == "baseline" else f"{baseline.name}, "
    return Candidate(f"{prefix}{name}", "decisions", states, baseline.knobs)


def _fit(
    key: Key, constraint: Constraint, outcomes: Sequence[Outcome], context: EvaluationContext
) -> tuple[calibration.Calibration, CalibrationFit] | None:
    """Fit one field on the examples that have its label; None where they are too few."""
    predictor, output = key
    scores: list[dict[str, float]] = []
    labels: list[str] = []
    for outcome, example in zip(outcomes, context.dev, strict=True):
        found, label = outcome.option_scores.get(predictor, {}).get(output), _label(example, output, constraint)
        if found and label is not None:
            scores.append(found)
            labels.append(label)
    if len(labels) < MIN_LABELS:
        return None
    options = list(scores[0])
    known = [label for example in context.train if (label := _label(example, output, constraint)) is not None]
    prior = calibration.smoothed_prior(known, options)
    fitted = calibration.fit(scores, labels, prior)
    correct = [options.index(label) for label in labels]
    before, after = calibration.probabilities(scores), calibration.cross_fitted(scores, labels, prior)
    summary = CalibrationFit(
        predictor=predictor,
        field=output,
        examples=len(labels),
        accuracy_before=float((before.argmax(axis=1) == correct).mean()),
        accuracy_after=float((after.argmax(axis=1) == correct).mean()),
        error_before=calibration.calibration_error(before, correct),
        error_after=calibration.calibration_error(after, correct),
        temperature=fitted.temperature,
        reliability_before=calibration.reliability(before, correct),
        reliability_after=calibration.reliability(after, correct),
    )
    return fitted, summary


def _label(example: Example, output: str, constraint: Constraint) -> str | None:
    """The option's text of an example's label, where it has one."""
    if output not in example:
        return None
    try:
        return constraint.render(example[output])
    except ConstraintError:
        return None
