"""Leaner: for `objective="latency"`, what answers sooner than the program that the other passes found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from ..signatures.bridge import Module
from ..signatures.fieldset import constraints, special_fields
from ..signatures.json_members import closed_sets
from ..signatures.knob import named_knobs
from .budget import OutOfBudget
from .candidate import Candidate, PredictorState, current_state, unique
from .context import EvaluationContext, Forecast, PassResult
from .decisions import Decisions
from .neighbours import WORDS
from .racing import joined, race
from .rewrites import rewrites

Change = Callable[[PredictorState, Any], PredictorState]
"""Of a predictor's state and signature."""
DEMONSTRATIONS = "demonstrations"
CHEAPEST = {"reasoning": False, "samples": 1}
"""The values of `Predict`'s knobs that take least time."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to spend less. kind: of several cuts of a kind one is made."""

    name: str
    kind: str
    change: Change


class Lean:
    """Try to take away from every predictor what costs time: demonstrations one half after the other, the embedder that
    chooses them, words of the instructions, descriptions of outputs, reasoning and votes; and closed sets decoded where they
    are scored, and the other way round. What a race does not drop is then cut together. A calibration fits the prompts that
    it was made for: where fewer demonstrations are shown, and in what is cut together, it is made anew (`Decisions`).

    What is leaner takes the place of the winner only if it is better. It is here to be measured: which candidate is returned
    the objective decides, by latencies that are timed at the end.
    """

    name = "lean"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Race all cuts against the winner so far, then the survivors together."""
        single = list(_single(program, baseline))
        context.expect((len(single) + 1) * len(context.dev))
        made = [
            (cut, _calibrated(program, candidate, context) if cut.kind == DEMONSTRATIONS else PassResult(candidate, ()))
            for cut, candidate in single
        ]
        standings = race(program, unique([baseline, *(found.winner for _, found in made)]), context)
        kept = {s.candidate.digest for s in standings if s.dropped is None}
        # The last of a kind goes furthest.
        survivors = {cut.kind: cut for cut, found in made if found.winner.digest in kept}
        together = _calibrated(program, _cut(program, baseline, list(survivors.values())), context)
        if together.winner.digest not in {s.candidate.digest for s in standings}:
            again = race(program, unique([standings[0].candidate, together.winner]), context)
            standings = joined(again, standings)
        results = [*(found for _, found in made), together]
        winner = standings[0].candidate
        for found in results:
            standings = joined(standings, found.standings)
        fits = {found.winner.digest: found.calibrations for found in results}
        return PassResult(winner, tuple(standings), calibrations=fits.get(winner.digest, ()))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """Each cut alone, and one of all together."""
        made = tuple(unique([candidate for _, candidate in _single(program, baseline)]))
        return Forecast((baseline, *made), made[-1:])


def _calibrated(program: Module, candidate: Candidate, context: EvaluationContext) -> PassResult:
    """The candidate with its closed sets decided anew; as it is where it has no calibrations or the budget is spent."""
    bare = candidate.uncalibrated()
    if bare.digest != candidate.digest:
        with suppress(OutOfBudget):
            return Decisions().run(program, bare, context)
    return PassResult(candidate, ())


def _single(program: Module, baseline: Candidate) -> Iterator[tuple[Cut, Candidate]]:
    for cut in _cuts(program, baseline):
        candidate = _cut(program, baseline, [cut])
        if candidate.digest != _cut(program, baseline, []).digest:
            yield cut, candidate


def _cuts(program: Module, baseline: Candidate) -> Iterator[Cut]:
    variant = baseline.apply(program)
    most = max((current_state(p).shown for _, p in variant.named_predictors()), default=0)
    while most > 0:
        most //= 2
        shown = "1 demonstration" if most == 1 else f"{most or 'no'} demonstrations"
        yield Cut(shown, DEMONSTRATIONS, _fewer(most))
    yield Cut("neighbours by words", "neighbours", _by_words)
    for what in ("plain", "bare"):
        yield Cut(what, "instructions", _reworded(what))
    yield Cut("short", "descriptions", _reworded("short"))
    for way in ("score", "decode"):
        yield Cut(f"all {way}d", "decisions", _deciding(way))
    if any(getattr(module, knob.name) != CHEAPEST[knob.name] for _, module, knob in _costly(variant)):
        yield Cut("one direct answer", "knobs", lambda state, signature: state)


def _cut(program: Module, base: Candidate, cuts: Sequence[Cut]) -> Candidate:
    """`base` with these cuts made in every predictor that is run as a plan."""
    variant = base.apply(program)
    states = dict(base.states)
    for name, predictor in variant.named_predictors():
        if not special_fields(predictor.signature):
            state = base.states.get(name, current_state(predictor))
            states[name] = reduce(lambda now, cut: cut.change(now, predictor.signature), cuts, state)
    knobs = dict(base.knobs)
    if any(cut.kind == "knobs" for cut in cuts):
        knobs |= {path: CHEAPEST[knob.name] for path, _, knob in _costly(variant)}
    prefix = "" if base.name == "baseline" else f"{base.name}, "
    return Candidate(f"{prefix}{', '.join(cut.name for cut in cuts)}", "lean", states, knobs)


def _costly(variant: Module) -> list[tuple[str, Any, Any]]:
    """Knobs of predictors that make an answer take longer."""
    predictors = {id(predictor) for _, predictor in variant.named_predictors()}
    return [found for found in named_knobs(variant) if id(found[1]) in predictors and found[2].name in CHEAPEST]


def _fewer(count: int) -> Change:
    def change(state: PredictorState, signature: Any) -> PredictorState:
        if state.shown <= count:
            return state
        if state.nearest and (count or state.leans):
            return replace(state, nearest=count)
        # A draw is balanced from its beginning.
        return replace(state, nearest=None, demonstrations=state.demonstrations[:count])

    return change


def _by_words(state: PredictorState, signature: Any) -> PredictorState:
    return replace(state, neighbours=WORDS) if state.shown else state


def _reworded(what: str) -> Change:
    def change(state: PredictorState, signature: Any) -> PredictorState:
        made = dict(rewrites(signature, ()))[what]
        text = made.get("instructions")
        if text is not None and len(text) < len(state.instructions or signature.instructions):
            state = replace(state, instructions=text)
        return _with_fields(state, made.get("fields", {}))

    return change


def _deciding(way: str) -> Change:
    def change(state: PredictorState, signature: Any) -> PredictorState:
        closed = dict.fromkeys(each.output for each in closed_sets(constraints(signature)))
        given: dict[str, dict[str, Any]] = {}
        for name in closed:
            extra = {**(signature.output_fields[name].json_schema_extra or {}), **state.fields.get(name, {})}
            if extra.get("decide", "decode") != way and extra.get("abstain_below") is None:
                given[name] = {"decide": way}
        return _with_fields(state.uncalibrated() if given else state, given)

    return change


def _with_fields(state: PredictorState, given: dict[str, dict[str, Any]]) -> PredictorState:
    if not given:
        return state
    merged = {name: {**state.fields.get(name, {}), **new} for name, new in given.items()}
    return replace(state, fields={**state.fields, **merged})
