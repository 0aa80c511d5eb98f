"""Decode or score: for every closed set of options, whichever answers better, and probabilities that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError
from ..signatures.bridge import Module
from ..signatures.fieldset import constraints, special_fields
from ..signatures.json_members import ClosedSet, closed_sets
from . import calibration
from .budget import OutOfBudget
from .candidate import Candidate, PredictorState, current_state, is_scored
from .context import CalibrationFit, EvaluationContext, Forecast, Outcome, PassResult, Standing
from .nearest import NearestDemonstrations
from .neighbours import Neighbours
from .pools import labelled_pools
from .racing import measure, ranked

MIN_LABELS = 10
"""Labelled examples that a calibration needs."""


class Decisions:
    """Try scoring the options of every output that is a closed set, as the model has them and calibrated, also by how near
    an input is to the examples of each option; then those inside objects too.

    The prior correction takes the label frequencies of train and the inputs of dev; the temperature, which changes no
    answer, is fitted on dev's labels, and its error reported by cross-fitting. How far the correction goes, and what
    nearness counts, are one number each, of a few, chosen by held-out labels of dev. Nearness is asked for where
    demonstrations are chosen per input by an embedder, which runs anyway, or where there are none: then the program keeps
    the labelled examples without showing them.
    """

    name = "decisions"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Compare decoding, scoring and calibrated scoring on all of dev: once the scores are known, the rest asks next to
        nothing, and a race would only lose what it gives up."""
        variant = baseline.apply(program)
        groups = _groups(variant)
        if not groups or baseline.origin == self.name:  # or they were decided for just this prompt
            return PassResult(baseline, ())
        if not _tells_scores(context):
            return PassResult(baseline, (), (f"decisions: {context.lm.model} does not tell how likely each option is",))
        pools = _pools(variant, context)
        nearness: Nearness = {}
        context.expect((3 if pools else 2) * len(groups) * len(context.dev))
        candidates, fits = [baseline], dict[str, tuple[CalibrationFit, ...]]()
        for kind, closed in groups:
            scored = baseline
            if not _scores(variant, closed):
                scored = _with_fields(program, baseline, f"scored{kind}", _settings(closed, {}))
                candidates.append(scored)
            outcomes = context.evaluate(program, scored, range(len(context.dev)))
            if not nearness and any(outcome.option_scores for outcome in outcomes):
                nearness = _nearness(variant, pools, context)
            seen = {
                key: found
                for key, each in closed.items()
                if (found := _scored(key[0], each, nearness.get(key[0]), outcomes, context))
            }
            for name, fitted in _fitted(seen):
                made = _settings(closed, {key: calibration for key, (calibration, _) in fitted.items()})
                candidates.append(_with_pools(_with_fields(program, baseline, f"{name}{kind}", made), pools))
                fits[candidates[-1].name] = tuple(summary for _, summary in fitted.values())
        standings = ranked(_measured(program, candidates, context))
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


def may_lean(program: Module, baseline: Candidate, context: EvaluationContext) -> bool:
    """Whether all that a program says may be decided by the examples that its inputs are near to, none of which is shown:
    every output is options, or made of options."""
    variant = baseline.apply(program)
    groups, predictors = _groups(variant), dict(variant.named_predictors())
    if not groups or any(p.demos or special_fields(p.signature) for p in predictors.values()):
        return False
    scored = _with_fields(program, baseline, "scored", _settings(groups[-1][1], {})).apply(program)
    known = len(_pools(variant, context)) == len(predictors) and _tells_scores(context)
    return known and all(is_scored(p) for _, p in scored.named_predictors())


def _tells_scores(context: EvaluationContext) -> bool:
    """Whether the LM tells how likely each option is; servers do not."""
    return getattr(context.lm, "local", None) is not None


def _measured(program: Module, candidates: Sequence[Candidate], context: EvaluationContext) -> list[Standing]:
    """Those for which there is budget, and the first, without which nothing can be compared."""
    first, *others = candidates
    found = [measure(program, first, context)]
    with suppress(OutOfBudget):
        found.extend(measure(program, candidate, context) for candidate in others)  # keeps what came before
    return found


Key = tuple[str, str]
"""A predictor's name and an output's, or that of a closed set inside an output."""
Closed = dict[Key, ClosedSet]
Nearness = dict[str, list[dict[str, tuple[float, ...]]]]
"""By predictor, of each dev example, by closed set: how near it is to each option's examples."""


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


@dataclass(frozen=True, slots=True)
class _Scored:
    """A closed set as the model scored it on the examples that have its label. nearness: of each of their inputs to each
    option's examples; None where that is not known. prior: of the options, by train."""

    predictor: str
    field: str
    scores: list[Mapping[str, float]]
    labels: list[str]
    prior: Mapping[str, float]
    nearness: list[Mapping[str, float]] | None

    def settle(self, near: bool) -> tuple[float, float]:
        """The ridge of the prior correction, and what nearness counts."""
        return calibration.settle(self.scores, self.labels, self.prior, self.nearness if near else None)


def _scored(
    predictor: str,
    closed: ClosedSet,
    nearness: Sequence[Mapping[str, Sequence[float]]] | None,
    outcomes: Sequence[Outcome],
    context: EvaluationContext,
) -> _Scored | None:
    """None where the examples with a label are too few to fit anything."""
    rows = [
        (found, label, index)
        for index, (outcome, example) in enumerate(zip(outcomes, context.dev, strict=True))
        if (found := outcome.option_scores.get(predictor, {}).get(closed.name))
        and (label := closed.label_in(example)) is not None
    ]
    if len(rows) < MIN_LABELS:
        return None
    options = list(rows[0][0])
    known = [label for example in context.train if (label := closed.label_in(example)) is not None]
    near: list[Mapping[str, float]] | None = None
    if nearness is not None:
        texts = closed.constraint.options or ()
        near = [dict(zip(texts, nearness[index][closed.name], strict=True)) for *_, index in rows]
    prior = calibration.smoothed_prior(known, options)
    return _Scored(predictor, closed.name, [row[0] for row in rows], [row[1] for row in rows], prior, near)


def _nearness(
    variant: Module, pools: Mapping[str, NearestDemonstrations], context: EvaluationContext
) -> Nearness:
    """How near the inputs of each dev example are to the demonstrations in these pools."""
    signatures = {name: predictor.signature for name, predictor in variant.named_predictors() if name in pools}
    return {
        name: [
            pools[name].nearness(signature, {n: example[n] for n in signature.input_fields if n in example})
            for example in context.dev
        ]
        for name, signature in signatures.items()
    }


def _pools(variant: Module, context: EvaluationContext) -> dict[str, NearestDemonstrations]:
    """What tells how near an input is to the examples of an option: demonstrations that are chosen per input by an embedder,
    and where a predictor has none at all, the labelled examples."""
    labelled, found = labelled_pools(variant, context), {}
    for name, predictor in variant.named_predictors():
        if name not in labelled:
            continue  # what it is given is not what dev's columns hold
        if isinstance(predictor.demos, NearestDemonstrations) and predictor.demos.neighbours.embedder is not None:
            found[name] = predictor.demos
        elif not predictor.demos and context.embedder is not None:
            with suppress(ModelError):  # that it cannot be had is said with the demonstrations
                found[name] = NearestDemonstrations(labelled[name], 0, Neighbours.by(context.embedder))
    return found


def _with_pools(candidate: Candidate, pools: Mapping[str, NearestDemonstrations]) -> Candidate:
    """The candidate with what its options lean by, if they do."""
    states = {
        name: replace(state, demonstrations=tuple(pool), nearest=pool.count_per_input, neighbours=pool.neighbours)
        if (pool := pools.get(name)) is not None and state.leans
        else state
        for name, state in candidate.states.items()
    }
    return replace(candidate, states=states)


Fitted = tuple[calibration.Calibration, CalibrationFit]


def _fitted(seen: Mapping[Key, _Scored]) -> Iterator[tuple[str, dict[Key, Fitted]]]:
    """The closed sets calibrated, and where it helps any of them, those by examples too; with a name."""
    if plain := {key: _fit(each, *each.settle(near=False)) for key, each in seen.items()}:
        yield "calibrated", plain
    settled = {key: each.settle(near=True) for key, each in seen.items() if each.nearness is not None}
    if near := {key: _fit(seen[key], ridge, weight) for key, (ridge, weight) in settled.items() if weight}:
        yield "calibrated by examples", {**plain, **near}


def _fit(scored: _Scored, ridge: float, weight: float) -> Fitted:
    """Fit one closed set, with what nearness counts."""
    options = list(scored.scores[0])
    scores: calibration.Scores = scored.scores
    if weight:
        scores = calibration.leaning(scores, scored.nearness or [], weight)
    fitted = replace(calibration.fit(scores, scored.labels, scored.prior, ridge), nearness=weight)
    correct = [options.index(label) for label in scored.labels]
    before = calibration.probabilities(scored.scores)
    after = calibration.cross_fitted(scores, scored.labels, scored.prior, ridge)
    summary = CalibrationFit(
        predictor=scored.predictor,
        field=scored.field,
        examples=len(correct),
        accuracy_before=float((before.argmax(axis=1) == correct).mean()),
        accuracy_after=float((after.argmax(axis=1) == correct).mean()),
        error_before=calibration.calibration_error(before, correct),
        error_after=calibration.calibration_error(after, correct),
        temperature=fitted.temperature,
        nearness=weight,
        reliability_before=calibration.reliability(before, correct),
        reliability_after=calibration.reliability(after, correct),
    )
    return fitted, summary
