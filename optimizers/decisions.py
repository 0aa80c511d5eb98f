"""Decode or score: for every closed set of options, whichever answers better, and probabilities that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConstraintError
from ..signatures.bridge import Example, Module
from ..signatures.fieldset import constraints, special_fields
from ..signatures.json_members import ClosedSet, closed_sets
from . import calibration
from .candidate import Candidate, PredictorState, current_state
from .context import CalibrationFit, EvaluationContext, Forecast, Outcome, PassResult
from .racing import race

MIN_LABELS = 10
"""Labelled examples that a calibration needs."""


class Decisions:
    """Try scoring the options of every output that is a closed set, as the model has them and calibrated; then those inside
    objects too.

    The prior correction takes the label frequencies of train and the inputs of dev; the temperature, which changes no
    answer, is fitted on dev's labels, and its error reported by cross-fitting.
    """

    name = "decisions"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Race decoding, scoring and calibrated scoring on dev."""
        variant = baseline.apply(program)
        groups = _groups(variant)
        if not groups:
            return PassResult(baseline, ())
        context.expect(2 * len(groups) * len(context.dev))
        candidates, fits = [baseline], dict[str, tuple[CalibrationFit, ...]]()
        for kind, closed in groups:
            scored = baseline
            if not _scores(variant, closed):
                scored = _with_fields(program, baseline, f"scored{kind}", _settings(closed, {}))
                candidates.append(scored)
            outcomes = context.evaluate(program, scored, range(len(context.dev)))
            fitted = {key: fit for key, each in closed.items() if (fit := _fit(key[0], each, outcomes, context))}
            if fitted:
                made = {key: calibration for key, (calibration, _) in fitted.items()}
                candidates.append(_with_fields(program, baseline, f"calibrated{kind}", _settings(closed, made)))
                fits[candidates[-1].name] = tuple(summary for _, summary in fitted.values())
        standings = race(program, candidates, context)
        winner = standings[0].candidate
        return PassResult(winner, tuple(standings), calibrations=fits.get(winner.name, ()))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """Scoring, with and without calibration."""
        variant = baseline.apply(program)
        sure, possible = [], []
        for kind, closed in _groups(variant):
            scored = _with_fields(program, baseline, f"scored{kind}", _settings(closed, {}))
            possible.append(scored)
            if not _scores(variant, closed):
                sure.append(scored)
        return Forecast(tuple(sure), tuple(possible))


Key = tuple[str, str]
"""A predictor's name and an output's, or that of a closed set inside an output."""
Closed = dict[Key, ClosedSet]


def _groups(program: Module) -> list[tuple[str, Closed]]:
    """The outputs that are closed sets; if there are closed sets inside others, all of them too."""
    every = {
        (name, closed.name): closed
        for name, predictor in program.named_predictors()
        if not special_fields(predictor.signature)
        for closed in closed_sets(constraints(predictor.signature))
    }
    plain = {key: closed for key, closed in every.items() if not closed.path}
    groups = [("", plain), (" inside", every)]
    return [(kind, closed) for kind, closed in groups if closed and (not kind or len(every) > len(plain))]


def _scores(program: Module, closed: Closed) -> bool:
    """Whether the program scores all these already, without a calibration."""
    predictors = dict(program.named_predictors())
    outputs = {(name, each.output) for (name, _), each in closed.items()}
    settings = [predictors[name].signature.output_fields[output].json_schema_extra or {} for name, output in outputs]
    return all(given.get("decide") == "score" and not given.get("calibration") for given in settings)


def _settings(closed: Closed, fitted: Mapping[Key, calibration.Calibration]) -> dict[Key, dict[str, Any]]:
    """By predictor and output."""
    given: dict[Key, dict[str, Any]] = {}
    for key, each in closed.items():
        settings = given.setdefault((key[0], each.output), {"decide": "score"})
        if key in fitted and each.path:
            settings.setdefault("calibration", {})[each.name] = fitted[key].to_json()
        elif key in fitted:
            settings["calibration"] = fitted[key].to_json()
    return given


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
    predictor: str, closed: ClosedSet, outcomes: Sequence[Outcome], context: EvaluationContext
) -> tuple[calibration.Calibration, CalibrationFit] | None:
    """Fit one closed set on the examples that have its label; None where they are too few."""
    scores: list[dict[str, float]] = []
    labels: list[str] = []
    for outcome, example in zip(outcomes, context.dev, strict=True):
        found, label = outcome.option_scores.get(predictor, {}).get(closed.name), _label(example, closed)
        if found and label is not None:
            scores.append(found)
            labels.append(label)
    if len(labels) < MIN_LABELS:
        return None
    options = list(scores[0])
    known = [label for example in context.train if (label := _label(example, closed)) is not None]
    prior = calibration.smoothed_prior(known, options)
    fitted = calibration.fit(scores, labels, prior)
    correct = [options.index(label) for label in labels]
    before, after = calibration.probabilities(scores), calibration.cross_fitted(scores, labels, prior)
    summary = CalibrationFit(
        predictor=predictor,
        field=closed.name,
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


def _label(example: Example, closed: ClosedSet) -> str | None:
    """The option's text of an example's label, where it has one."""
    if closed.output not in example:
        return None
    try:
        return closed.label(example[closed.output])
    except ConstraintError:
        return None
