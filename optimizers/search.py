"""Joint search: instructions, demonstrations, decisions and knobs together, proposals guided by a model of what works."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from ..signatures.bridge import Module
from ..signatures.knob import Knob, named_knobs
from .candidate import Candidate, PredictorState, current_state
from .context import PERFECT, EvaluationContext, Forecast, PassResult, Standing, is_perfect
from .credit import called
from .racing import race
from .work import total_work, work

TRIALS = 24
"""Combinations that are tried at most."""
PATIENCE = 8
"""Trials without a better candidate after which the search ends."""
SHARE = 0.5
"""Of the work of all passes before it, what the search may do without finding a better candidate."""
KEPT = 6
"""Alternatives per predictor and kind that are combined: the best of what earlier passes measured."""

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Space:
    """What may be combined. parts: by dimension ("PREDICTOR demonstrations", "PREDICTOR instructions", "PREDICTOR fields"),
    what a predictor may be given, by the name of the candidate that had it; the first is what the starting candidate has.
    knobs: by path.
    """

    start: Candidate
    parts: Mapping[str, Mapping[str, Any]]
    knobs: Mapping[str, Knob[Any]]
    knob_start: Values

    def candidate(self, values: Values, name: str) -> Candidate:
        """The candidate with these values."""
        states: dict[str, PredictorState] = dict(self.start.states)
        for dimension, options in self.parts.items():
            predictor, kind = dimension.rsplit(" ", 1)
            states[predictor] = _replaced(states[predictor], kind, options[values[dimension]])
        turned = {path: values[path] for path in self.knobs if values[path] != self.knob_start[path]}
        kept = {path: value for path, value in self.start.knobs.items() if values.get(path, value) == value}
        return Candidate(name, "search", states, {**kept, **turned})

    @property
    def first(self) -> Values:
        """The values of the starting candidate."""
        return {**{dimension: next(iter(options)) for dimension, options in self.parts.items()}, **self.knob_start}

    @property
    def size(self) -> float:
        """Number of combinations; infinite with a knob over numbers that are not whole."""
        size = 1.0
        for options in self.parts.values():
            size *= len(options)
        for knob in self.knobs.values():
            size *= len(knob.choices) if knob.choices is not None else _count(knob.range)
        return size


class Search:
    """Combine what earlier passes found, predictor by predictor, with the knobs of the program.

    Proposals come from a tree-structured Parzen estimator (Bergstra et al., 2011; through optuna), which models which values
    go with good scores; each is raced against the best so far, so that a bad one costs a block of examples.
    """

    name = "search"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Try up to `TRIALS` combinations; stop early when `PATIENCE` of them in a row bring nothing, or when those that
        brought nothing since the last gain come to `SHARE` of the work of the passes before."""
        space = make_space(program, baseline, context.history)
        if space.size < 2:
            return PassResult(baseline, (), ("nothing to combine: one state per predictor, and no knobs",))
        study = _study(context.seed)
        # The starting point by its own name: combined anew it would be another candidate with the same content.
        best = race(program, [baseline], context)[0]
        if is_perfect(best.outcomes):
            return PassResult(baseline, (best,), (f"search: {PERFECT}",))
        study.enqueue_trial(space.first)
        measured: dict[str, Standing] = {space.candidate(space.first, "").digest: best}
        since, wasted, affordable = 0, 0, SHARE * total_work(context.history) or math.inf
        context.expect(TRIALS * len(context.dev))
        for number in range(TRIALS):
            trial = study.ask()
            values = _suggest(trial, space)
            candidate = space.candidate(values, f"search {number}: {_difference(space, values)}")
            standing = measured.get(candidate.digest)
            if standing is None:
                standings = race(program, [best.candidate, candidate], context)
                standing = next(s for s in standings if s.candidate is candidate)
                measured[candidate.digest] = standing
                wasted += work(standing)
                if standings[0].candidate is candidate:
                    best, since, wasted = standing, -1, 0
            study.tell(trial, standing.mean)
            since += 1
            if since > PATIENCE or wasted > affordable:
                break
        found = sorted(measured.values(), key=lambda s: (s is not best, s.dropped is not None, -s.mean))
        return PassResult(best.candidate, tuple(found))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """As many combinations as are tried at most: the start, each with one knob turned to another of its values."""
        space = make_space(program, baseline, context.history)
        turned = [
            space.candidate({**space.first, path: value}, f"{path}={value}")
            for path, knob in space.knobs.items()
            for value in (knob.choices if knob.choices is not None else knob.range or ())
            if value != space.knob_start[path]
        ]
        trials = int(min(space.size, TRIALS)) if space.size >= 2 else 0
        return Forecast((baseline,), tuple(islice(cycle([baseline, *turned]), max(0, trials - 1))))


def make_space(program: Module, start: Candidate, history: Sequence[Standing]) -> Space:
    """The dimensions in which there is anything to choose."""
    variant = start.apply(program)
    states = {name: start.states.get(name, current_state(p)) for name, p in variant.named_predictors()}
    ranked = sorted(history, key=lambda s: (s.dropped is not None, -s.mean))
    parts: dict[str, Mapping[str, Any]] = {}
    used = called([outcome for standing in history for outcome in standing.outcomes])
    for name, state in states.items():
        if used and name not in used:
            continue  # a predictor that no run calls
        seen = [(s.candidate.name, s.candidate.states[name]) for s in ranked if name in s.candidate.states]
        plain = PredictorState(instructions=state.instructions)
        for kind in ("demonstrations", "instructions", "fields"):
            options = _distinct([("as it was", state), ("none", plain), *seen], kind)
            if len(options) > 1:
                parts[f"{name} {kind}"] = options
    knobs = {path: knob for path, module, knob in named_knobs(variant) if _is_open(path, module, knob)}
    knobs = {path: knob for path, knob in knobs.items() if not used or _owner(path) not in {*states} - used}
    values = {path: getattr(module, knob.name) for path, module, knob in named_knobs(variant) if path in knobs}
    return Space(replace(start, states=states), parts, knobs, values)


def _is_open(path: str, module: Any, knob: Knob[Any]) -> bool:
    if knob.choices is not None and len(knob.choices) < 2:
        return False
    # A predictor that reasons anyway needs no second reasoning field.
    signature = getattr(module, "signature", None)
    reasons = signature is not None and "reasoning" in signature.output_fields
    return not (knob.name == "reasoning" and reasons)


def _owner(path: str) -> str:
    """The module that has a knob, by the name that its predictor would have."""
    return path.rpartition(".")[0]


def _part(state: PredictorState, kind: str) -> Any:
    if kind == "demonstrations":
        return (state.demonstrations, state.nearest)
    return state.instructions if kind == "instructions" else dict(state.fields)


def _replaced(state: PredictorState, kind: str, part: Any) -> PredictorState:
    if kind == "demonstrations":
        return replace(state, demonstrations=part[0], nearest=part[1])
    return replace(state, instructions=part) if kind == "instructions" else replace(state, fields=part)


def _distinct(states: Sequence[tuple[str, PredictorState]], kind: str) -> dict[str, Any]:
    """The first `KEPT` different parts of a kind, by name."""
    found: dict[str, Any] = {}
    for name, state in states:
        part = _part(state, kind)
        if part is not None and repr(part) not in {repr(known) for known in found.values()} and len(found) < KEPT:
            found[name] = part
    return found


def _suggest(trial: Any, space: Space) -> Values:
    values: Values = {}
    for dimension, options in space.parts.items():
        values[dimension] = trial.suggest_categorical(dimension, list(options))
    for path, knob in space.knobs.items():
        if knob.choices is not None:
            values[path] = trial.suggest_categorical(path, list(knob.choices))
            continue
        low, high = knob.range if knob.range is not None else (0, 0)
        whole = isinstance(low, int) and isinstance(high, int)
        values[path] = trial.suggest_int(path, low, high) if whole else trial.suggest_float(path, low, high)
    return values


def _difference(space: Space, values: Values) -> str:
    """What a combination changes, for its name."""
    first = space.first
    changed = [key for key in values if values[key] != first[key]]
    shown = [f"{key}={values[key]}" if key in space.knobs else f"{key} of {values[key]}" for key in changed]
    return "; ".join(shown).replace("self ", "") or "as it was"


def _count(bounds: tuple[Any, Any] | None) -> float:
    low, high = bounds if bounds is not None else (0, 0)
    return high - low + 1 if isinstance(low, int) and isinstance(high, int) else float("inf")


def _study(seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=6, multivariate=True)
    return optuna.create_study(direction="maximize", sampler=sampler)
