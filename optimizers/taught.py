"""What labels teach predictors that other steps feed: a reader behind a retrieval step, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .candidate import Demonstration
from .context import EvaluationContext, Rollout


class Lesson(NamedTuple):
    """A call of a predictor as it should have been: what it was given in a run, and the example's labels as its outputs."""

    predictor: str
    values: Demonstration


def lessons(rollouts: Iterable[Rollout], signatures: Mapping[str, Any], context: EvaluationContext) -> Iterator[Lesson]:
    """The calls in these runs, whatever they scored, whose outputs the data knows.

    A predictor counts if all its outputs are labels (columns that are no inputs) and a run calls it once: where it is called
    several times, the labels need not be for each call. That a label is meant for an inner predictor is taken from its name
    alone, so what is learned from it must prove itself on dev.
    """
    for rollout in rollouts:
        labels = {name: value for name, value in rollout.example.items() if name not in context.input_fields}
        called = [step.predictor for step in rollout.trace]
        for step in rollout.trace:
            signature = signatures.get(step.predictor)
            if signature is None or called.count(step.predictor) > 1 or not step.inputs:
                continue
            outputs = {name: labels.get(name) for name in signature.output_fields}
            if all(value is not None for value in outputs.values()):
                inputs = {name: step.inputs.get(name) for name in signature.input_fields}
                yield Lesson(step.predictor, {**inputs, **outputs})
