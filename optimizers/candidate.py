"""A candidate: what a pass proposes to change in a program, as data."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from ..errors import SignatureError
from ..signatures.bridge import Module
from ..signatures.executor import AdapterFolder
from ..signatures.knob import set_knobs
from ..signatures.layout import lower
from ..signatures.predict import plan_predictors
from ..signatures.signature import with_instructions
from .nearest import NearestDemonstrations
from .neighbours import WORDS, Neighbours
from .own_copy import own_copy

SET = ("decide", "abstain_below", "calibration", "describe", "written", "place")
"""What passes set of a field, in its `json_schema_extra`: of an input its place, of an output the rest too."""

TEMPERATURE = 0.7
"""At which a draw is made where the program sets none."""

Demonstration = dict[str, Any]
"""Input and output values of one predictor, by field name."""


@dataclass(frozen=True, slots=True)
class PredictorState:
    """What one predictor is given: demonstrations, fixed or, with `nearest`, the closest `nearest` of them per input; with 0
    none is shown, and they only tell which options an input is near to.

    neighbours: which are the closest.
    """

    demonstrations: tuple[Demonstration, ...] = ()
    nearest: int | None = None
    instructions: str | None = None
    fields: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """What is set of a field: `decide`, `calibration`, ... (`SET`)."""
    adapter: AdapterFolder | None = None
    """Trained weights that it answers with."""
    neighbours: Neighbours = WORDS

    @property
    def shown(self) -> int:
        """Demonstrations that a call sees."""
        return len(self.demonstrations) if self.nearest is None else self.nearest

    @property
    def leans(self) -> bool:
        """Whether options lean towards those that an input is near to, which takes the pool whether it is shown or not."""
        return any(_leans(given.get("calibration") or {}) for given in self.fields.values())

    def uncalibrated(self) -> PredictorState:
        """Without calibrations, nor a pool that is shown to nobody and was there for them."""
        if not any("calibration" in given for given in self.fields.values()):
            return self
        state = replace(self, demonstrations=(), nearest=None) if self.nearest == 0 else self
        fields = {name: {k: v for k, v in given.items() if k != "calibration"} for name, given in self.fields.items()}
        return replace(state, fields=fields)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ledger, digest and artifact."""
        data: dict[str, Any] = {
            "demonstrations": to_jsonable_python(list(self.demonstrations)),
            "nearest": self.nearest,
            "instructions": self.instructions,
        }
        if self.fields:
            data["fields"] = {name: dict(given) for name, given in self.fields.items()}
        if self.nearest is not None and (neighbours := self.neighbours.to_json()):
            data["neighbours"] = neighbours
        if self.adapter is not None:
            data["adapter"] = self.adapter.digest
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], adapters: Path | None = None) -> PredictorState:
        """Inverse of `to_json`. adapters: the folder in which adapters lie under `adapter_name`."""
        demonstrations = tuple(dict(d) for d in data["demonstrations"])
        digest = data.get("adapter")
        path = "" if digest is None or adapters is None else str(adapters / adapter_name(digest))
        adapter = None if digest is None else AdapterFolder(digest, path)
        neighbours = Neighbours.from_json(data.get("neighbours", {}))
        fields = dict(data.get("fields", {}))
        return cls(demonstrations, data["nearest"], data["instructions"], fields, adapter, neighbours)


def _leans(calibration: Mapping[str, Any]) -> bool:
    # Of an object it is one for each closed set in it.
    inside = (value for key, value in calibration.items() if key != "bias" and isinstance(value, Mapping))
    return bool(calibration.get("nearness")) or any(map(_leans, inside))


def adapter_name(digest: str) -> str:
    """What the folder of an adapter is called."""
    return digest[:16]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A named variant of a program: a state per predictor; predictors without one stay as they are."""

    name: str
    origin: str
    """The pass that proposed it."""
    states: Mapping[str, PredictorState] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """Values by path, see `signatures/knob.py`; knobs that are not named stay as they are."""
    draw: int = 0
    """Above 0: answers are drawn at a temperature, others for every number."""

    def to_json(self) -> dict[str, Any]:
        """The states as plain data; the name is not part of it, so equal candidates are equal whatever they are called."""
        states: dict[str, Any] = {name: state.to_json() for name, state in sorted(self.states.items())}
        # A predictor's name has no space.
        turned = {"the knobs": dict(sorted(self.knobs.items()))} if self.knobs else {}
        return {**states, **turned, **({"the draw": self.draw} if self.draw else {})}

    @property
    def digest(self) -> str:
        """sha256 over the states."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def demonstration_count(self) -> int:
        """Demonstrations a call sees, summed over predictors: the measure of how simple a candidate is."""
        return sum(state.shown for state in self.states.values())

    @property
    def per_input(self) -> bool:
        """Whether any demonstrations are chosen per input, so that no two calls share their prompts."""
        return any(state.nearest for state in self.states.values())

    def uncalibrated(self) -> Candidate:
        """Without calibrations: what the model is asked is the same."""
        return replace(self, states={name: state.uncalibrated() for name, state in self.states.items()})

    def apply(self, program: Module) -> Module:
        """Return a copy of `program` in these states, its plain DSPy predictors made Still's; `program` is not changed.

        Raises `SignatureError` if a state names a predictor the program does not have.
        """
        variant = plan_predictors(_copied(program))
        predictors = dict(variant.named_predictors())
        for name, state in self.states.items():
            if name not in predictors:
                raise SignatureError(f"predictor {name!r} is not in the program, which has: {', '.join(predictors)}")
            predictor = predictors[name]
            demonstrations = [dict(d) for d in state.demonstrations]
            predictor.demos = (
                demonstrations
                if state.nearest is None
                else NearestDemonstrations(demonstrations, state.nearest, state.neighbours)
            )
            instructions = predictor.signature.instructions if state.instructions is None else state.instructions
            for field_name, given in state.fields.items():
                predictor.signature = predictor.signature.with_updated_fields(field_name, **given)
            if state.fields or state.instructions is not None:
                predictor.signature = with_instructions(predictor.signature, instructions)
            if state.adapter is not None:
                predictor.config = {**predictor.config, "adapter": state.adapter}
        set_knobs(variant, dict(self.knobs))
        for predictor in predictors.values() if self.draw else ():
            heat = predictor.config.get("temperature") or TEMPERATURE
            predictor.config = {**predictor.config, "temperature": heat, "rollout_id": f"draw {self.draw}"}
        return variant


def unique(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Drop candidates that equal an earlier one."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.digest, candidate)
    return list(first.values())


def _copied(program: Module) -> Module:
    try:
        return copy.deepcopy(program)
    except Exception:  # a lock, a connection, a client: the copy shares it
        return own_copy(program)


def asked_signature(predictor: Any) -> Any:
    """What a call of the predictor runs."""
    return getattr(predictor, "effective_signature", predictor.signature)


def is_scored(predictor: Any) -> bool:
    """Whether a call of the predictor decodes nothing."""
    return all(step.scoring is not None for step in lower(asked_signature(predictor)).decodes)


def current_state(predictor: Any) -> PredictorState:
    """Read the state a predictor is in (`predictor`: a dspy.Predict)."""
    demos = predictor.demos
    near = demos if isinstance(demos, NearestDemonstrations) else None
    fields = {
        name: {key: extra[key] for key in SET if key in extra}
        for name, info in predictor.signature.fields.items()
        if isinstance(extra := info.json_schema_extra, dict) and any(key in extra for key in SET)
    }
    adapter = predictor.config.get("adapter")
    return PredictorState(
        tuple(dict(d) for d in demos),
        near.count_per_input if near is not None else None,
        predictor.signature.instructions,
        fields,
        adapter,
        near.neighbours if near is not None else WORDS,
    )
