"""The bare candidate: a program with nothing said to it that weights can carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..signatures.bridge import Module
from ..signatures.knob import named_knobs
from .candidate import Candidate, PredictorState


def bare_candidate(program: Module, baseline: Candidate, only: str | None = None) -> Candidate:
    """What the student is asked: no demonstrations, no instructions, outputs not described, no reasoning; nor a calibration
    that the program came with, which was fitted for another prompt.

    only: the one predictor that is asked so, while the others stay as they are in `baseline`.
    """
    states, asked = dict(baseline.states), []
    for name, predictor in program.named_predictors():
        if only not in (None, name):
            continue
        outputs = predictor.signature.output_fields
        fields: dict[str, dict[str, Any]] = {output: {"describe": False} for output in outputs}
        for output, field in outputs.items():
            if (field.json_schema_extra or {}).get("calibration"):
                fields[output]["calibration"] = {}  # what a state leaves out stays as the program has it
        if "reasoning" in outputs and len(outputs) > 1:
            fields["reasoning"]["written"] = False
        states[name] = PredictorState(instructions="", fields=fields)
        asked.append(predictor)
    longer = _writing_more(program, asked)
    knobs = {path: value for path, value in baseline.knobs.items() if path not in longer}
    return Candidate("bare", "distil", states, knobs)


def _writing_more(program: Module, predictors: Sequence[Module]) -> set[str]:
    """Paths of the knobs of these predictors, and of modules around them, by which an answer gets longer."""
    wanted = {id(predictor) for predictor in predictors}
    return {
        path
        for path, module, knob in named_knobs(program)
        if knob.name in ("reasoning", "samples") and any(id(inner) in wanted for inner in module.predictors())
    }
