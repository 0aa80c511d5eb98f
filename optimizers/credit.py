"""Which predictor of a program with several had a part in what went wrong, by the traces of its runs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..signatures.bridge import Example
from .context import Outcome, PredictorTrace


def called(outcomes: Sequence[Outcome]) -> frozenset[str]:
    """The predictors that were called in these runs; none if no traces are known."""
    return frozenset(step.predictor for outcome in outcomes for step in outcome.trace)


def blame(examples: Sequence[Example], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The score lost, summed over examples, by the predictor that may have lost it.

    What a run lost (1 minus its score) is shared equally by the predictors it called, without those that are known to have
    done well: all they wrote into fields that the example has labels for equals the labels. Where everybody did well, the
    loss is everybody's. Runs without a trace, and predictors that no run called, have no part.
    """
    lost: dict[str, float] = {}
    for example, outcome in zip(examples, outcomes, strict=True):
        names = dict.fromkeys(step.predictor for step in outcome.trace)
        suspects = [name for name in names if not _did_well(name, outcome.trace, example)] or list(names)
        for name in suspects:
            lost[name] = lost.get(name, 0.0) + (1.0 - outcome.score) / len(suspects)
    return lost


def draw_predictor(names: Sequence[str], lost: Mapping[str, float], seed: str) -> str:
    """Draw one of `names` by what it lost; any, where none lost anything."""
    weights = [lost.get(name, 0.0) for name in names]
    return random.Random(seed).choices(list(names), weights if sum(weights) > 0 else None)[0]


def _did_well(name: str, trace: Sequence[PredictorTrace], example: Example) -> bool:
    labels = set(example.keys()) - set(example.inputs().keys())
    last: dict[str, Any] = {}
    for step in trace:
        if step.predictor == name:
            last.update((field, value) for field, value in step.outputs.items() if field in labels)
    return bool(last) and all(value == example[field] for field, value in last.items())
