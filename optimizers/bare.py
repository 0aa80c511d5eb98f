"""The bare candidate: a program with nothing said to it that weights can carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..signatures.bridge import Module
from .candidate import Candidate, PredictorState


def bare_candidate(program: Module, baseline: Candidate, only: str | None = None) -> Candidate:
    """What the student is asked: no demonstrations, no instructions, outputs not described, no reasoning.

    only: the one predictor that is asked so, while the others stay as they are in `baseline`.
    """
    states, asked = dict(baseline.states), []
    for name, predictor in program.named_predictors():
        if only not in (None, name):
            continue
        outputs = predictor.signature.output_fields
        fields: dict[str, dict[str, Any]] = {output: {"describe": False} for output in outputs}
        if "reasoning" in outputs and len(outputs) > 1:
            fields["reasoning"]["written"] = False
        states[name] = PredictorState(instructions="", fields=fields)
        asked.append(name)
    knobs = {path: value for path, value in baseline.knobs.items() if not _writes_more(path, asked)}
    return Candidate("bare", "distil", states, knobs)


def _writes_more(path: str, predictors: Sequence[str]) -> bool:
    """Whether it is the knob of one of these predictors, or of a module around it, by which an answer gets longer."""
    owner, _, knob = path.rpartition(".")
    around = any(name.removeprefix("self") == owner or name.startswith(f"{owner}.") for name in predictors)
    return around and knob in ("reasoning", "samples")
