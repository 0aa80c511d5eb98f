"""What a search may combine: parts of candidates that were measured, and knobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..signatures.bridge import Module
from ..signatures.knob import Knob, named_knobs
from ..signatures.predict import Predict
from .candidate import Candidate, PredictorState, current_state, is_scored
from .context import Standing
from .credit import called
from .neighbours import WORDS

VOTES = "samples"
"""The knob of `Predict` that has it vote."""
KEPT = 6
"""Alternatives per predictor and kind that are combined: the best of what earlier passes measured."""

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Space:
    """What may be combined. parts: by dimension ("PREDICTOR demonstrations", "PREDICTOR instructions", "PREDICTOR fields"),
    what a predictor may be given, by the name of the candidate that had it; the first is what the starting candidate has.
    others: of a dimension, the options that nothing has measured yet. knobs: by path.
    """

    program: Module
    start: Candidate
    own: Mapping[str, PredictorState]
    """The predictors as the program has them."""
    parts: Mapping[str, Mapping[str, Any]]
    others: Mapping[str, tuple[str, ...]]
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

    def settled(self, values: Values) -> Values:
        """These values without votes where nothing is drawn: of outputs that are all scored the most probable value is taken
        anyway, which is what votes come to in the end."""
        votes = [path for path, knob in self.knobs.items() if knob.name == VOTES and values[path] != self.knob_start[path]]
        if not votes:
            return values
        variant = self.candidate(values, "").apply(self.program)
        idle = {path for path, module, _ in named_knobs(variant) if isinstance(module, Predict) and is_scored(module)}
        return {**values, **{path: self.knob_start[path] for path in votes if path in idle}}

    def values(self, candidate: Candidate) -> Values | None:
        """The inverse of `candidate`: the values that a candidate has, None where it has one that is not in the space."""
        values: Values = {}
        for path, now in self.knob_start.items():
            if path in self.start.knobs and path not in candidate.knobs:
                return None  # the program's own value, which the start has turned
            values[path] = candidate.knobs.get(path, now)
        for dimension, options in self.parts.items():
            predictor, kind = dimension.rsplit(" ", 1)
            own = self.own[predictor]
            wanted = repr(_part(_whole(candidate.states.get(predictor, own), own), kind))
            name = next((name for name, option in options.items() if repr(option) == wanted), None)
            if name is None:
                return None
            values[dimension] = name
        return values

    @property
    def first(self) -> Values:
        """The values of the starting candidate."""
        return {**{dimension: next(iter(options)) for dimension, options in self.parts.items()}, **self.knob_start}

    def turned(self) -> Iterator[tuple[str, Values]]:
        """The starting values with one knob turned, to each of its other choices or the ends of its range, or one dimension
        to what has not been measured; with its path."""
        for path, knob in self.knobs.items():
            for value in knob.choices if knob.choices is not None else knob.range or ():
                values = self.settled({**self.first, path: value})
                if values != self.first:
                    yield path, values
        for dimension, names in self.others.items():
            for name in names:
                yield dimension, {**self.first, dimension: name}

    @property
    def size(self) -> float:
        """Number of combinations; infinite with a knob over numbers that are not whole."""
        size = 1.0
        for options in self.parts.values():
            size *= len(options)
        for knob in self.knobs.values():
            size *= len(knob.choices) if knob.choices is not None else _count(knob.range)
        return size


def make_space(program: Module, start: Candidate, history: Sequence[Standing]) -> Space:
    """The dimensions in which there is anything to choose."""
    variant = start.apply(program)
    own = {name: replace(current_state(p), fields={}) for name, p in program.named_predictors()}
    states = {
        name: _whole(start.states.get(name, current_state(p)), own[name]) for name, p in variant.named_predictors()
    }
    ranked = sorted(history, key=lambda s: (s.dropped is not None, -s.mean))
    parts: dict[str, Mapping[str, Any]] = {}
    others: dict[str, tuple[str, ...]] = {}
    used = called([outcome for standing in history for outcome in standing.outcomes])
    for name, state in states.items():
        if used and name not in used:
            continue  # a predictor that no run calls
        measured = [(s.candidate.name, s.candidate.states[name]) for s in ranked if name in s.candidate.states]
        seen = [(candidate, _whole(given, own[name])) for candidate, given in measured]
        plain = PredictorState(instructions=state.instructions)
        for kind in ("demonstrations", "instructions", "fields"):
            options = _distinct([("as it was", state), ("none", plain), *seen], kind)
            if kind == "demonstrations":
                new = _distinct(_neighbourhoods(state), kind, [*options.values()])
                options, others[f"{name} {kind}"] = {**options, **new}, tuple(new)
            if len(options) > 1:
                parts[f"{name} {kind}"] = options
    idle = {id(predictor) for name, predictor in variant.named_predictors() if used and name not in used}
    knobs = {p: knob for p, module, knob in named_knobs(variant) if id(module) not in idle and _is_open(module, knob)}
    now = {path: getattr(module, knob.name) for path, module, knob in named_knobs(variant) if path in knobs}
    return Space(program, replace(start, states=states), own, parts, others, knobs, now)


def _neighbourhoods(state: PredictorState) -> Iterator[tuple[str, PredictorState]]:
    """Other ways to choose demonstrations for each input, where they are chosen so."""
    if not state.nearest:
        return
    neighbours = state.neighbours
    if neighbours.embedder is not None:
        yield "neighbours by words", replace(state, neighbours=replace(WORDS, balanced=neighbours.balanced))
    if not neighbours.balanced:
        yield "balanced neighbours", replace(state, neighbours=replace(neighbours, balanced=True))
    if state.nearest > 2:
        yield f"{state.nearest // 2} neighbours", replace(state, nearest=state.nearest // 2)


def _is_open(module: Any, knob: Knob[Any]) -> bool:
    if knob.choices is not None and len(knob.choices) < 2:
        return False
    # A predictor that reasons anyway needs no second reasoning field.
    signature = getattr(module, "signature", None)
    reasons = signature is not None and "reasoning" in signature.output_fields
    return not (knob.name == "reasoning" and reasons)


def _whole(state: PredictorState, own: PredictorState) -> PredictorState:
    """A state that leaves instructions as they are, with those of the program."""
    return state if state.instructions is not None else replace(state, instructions=own.instructions)


def _part(state: PredictorState, kind: str) -> Any:
    if kind == "demonstrations":
        return (state.demonstrations, state.nearest, state.neighbours)
    return state.instructions if kind == "instructions" else dict(state.fields)


def _replaced(state: PredictorState, kind: str, part: Any) -> PredictorState:
    if kind == "demonstrations":
        return replace(state, demonstrations=part[0], nearest=part[1], neighbours=part[2])
    return replace(state, instructions=part) if kind == "instructions" else replace(state, fields=part)


def _distinct(states: Iterable[tuple[str, PredictorState]], kind: str, known: Sequence[Any] = ()) -> dict[str, Any]:
    """The first `KEPT` different parts of a kind, by name, that are not known."""
    found: dict[str, Any] = {}
    for name, state in states:
        part = _part(state, kind)
        if repr(part) not in {repr(one) for one in (*known, *found.values())} and len(found) < KEPT:
            found[name] = part
    return found


def distributions(space: Space) -> dict[str, Any]:
    """The dimensions as optuna has them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {name: CategoricalDistribution(list(options)) for name, options in space.parts.items()}
    for path, knob in space.knobs.items():
        if knob.choices is not None:
            found[path] = CategoricalDistribution(list(knob.choices))
            continue
        low, high = knob.range if knob.range is not None else (0, 0)
        whole = isinstance(low, int) and isinstance(high, int)
        found[path] = IntDistribution(low, high) if whole else FloatDistribution(low, high)
    return found


def difference(space: Space, values: Values) -> str:
    """What a combination changes, for its name."""
    first = space.first
    changed = [key for key in values if values[key] != first[key]]
    shown = [f"{key}={values[key]}" if key in space.knobs else f"{key} of {values[key]}" for key in changed]
    return "; ".join(shown).replace("self ", "") or "as it was"


def _count(bounds: tuple[Any, Any] | None) -> float:
    low, high = bounds if bounds is not None else (0, 0)
    return high - low + 1 if isinstance(low, int) and isinstance(high, int) else float("inf")
