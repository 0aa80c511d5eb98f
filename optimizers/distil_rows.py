"""What distil trains on: the calls of each predictor as rows, from labels, or from runs that the metric finds right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import ConstraintError, SignatureError, TrainingError
from ..signatures.bridge import Module
from ..signatures.fieldset import special_fields
from ..signatures.layout import lower
from ..signatures.plan import Plan
from .candidate import Candidate, asked_signature
from .context import EvaluationContext
from .taught import lessons
from .tuning import is_plain
from .weights.row import Row
from .weights.rows import RowWriter

PASSING = 1.0
"""Runs below this score teach nothing."""


def labelled(program: Module, context: EvaluationContext) -> bool:
    """Whether the data says what the program's only predictor is given, and what it should answer. What a module gives its
    predictor only a run shows, whatever the columns are called."""
    predictors = program.named_predictors()
    if not is_plain(program) or len(predictors) != 1 or not context.train:
        return False
    signature = asked_signature(predictors[0][1])
    given = set(context.train[0].keys())
    return set(signature.output_fields) <= given - context.input_fields and set(signature.input_fields) <= given


def training_rows(
    program: Module, baseline: Candidate, bare: Candidate, context: EvaluationContext, indices: Sequence[int]
) -> tuple[list[Row], tuple[str, ...]]:  # fmt: skip
    """Rows of all predictors, each with its predictor's name, some perhaps the same, at least one; and what to say of
    examples left out.

    indices: of the train examples that may teach. Raises `TrainingError` for fields that have no plan and where there is
    nothing to train on, `OutOfBudget` where there is nothing because the budget ended the runs.
    """
    variant = bare.apply(program)
    for name, predictor in variant.named_predictors():
        if special := special_fields(asked_signature(predictor)):
            raise TrainingError(f"predictor {name!r}: fields {sorted(special)} are of dspy's own types, which have no plan")
    local = context.lm.local
    writer = RowWriter(local.engine, local.prompter)
    calls = (
        ((variant.named_predictors()[0][0], context.train[i], context.train[i], str(i)) for i in indices)
        if labelled(variant, context)
        else _calls(program, baseline, variant, context, indices)
    )
    plans = {name: lower(asked_signature(predictor)) for name, predictor in variant.named_predictors()}
    rows, long = _written(writer, plans, calls)
    told = f"{long} rows do not fit the context of {local.engine.max_context} tokens" if long else ""
    if not rows:
        context.report("nothing to train on")  # raises where the budget ended the runs
        raise TrainingError(f"there is nothing to train on: {told or _nothing(indices)}")
    notes = _leaks(len(context.train) - len(indices))
    return rows, (*notes, f"distil: {told}, and were not trained on") if told else notes


def _written(
    writer: RowWriter, plans: Mapping[str, Plan], calls: Iterable[tuple[str, Any, Any, str]]
) -> tuple[list[Row], int]:  # fmt: skip
    """The rows of calls (predictor, inputs, outputs, example), and how many of them do not fit the context."""
    rows: list[Row] = []
    long = 0
    for name, inputs, values, key in calls:
        plan = plans[name]
        asked = {field: inputs.get(field) for field in plan.slots}
        try:
            rows.append(writer.write(plan, asked, values, predictor=name, key=key))
        except (ConstraintError, SignatureError, KeyError):
            continue  # an example without a label, or with one that is none of the options
        except TrainingError:
            long += 1
    return rows, long


def _calls(
    program: Module, baseline: Candidate, variant: Module, context: EvaluationContext, indices: Sequence[int]
) -> Iterator[tuple[str, Any, Any, str]]:  # fmt: skip
    """Predictor, inputs and outputs of the calls in runs on train examples: those that labels teach, with the labels, and
    of a run that the metric finds right, the others too."""
    signatures = {name: asked_signature(predictor) for name, predictor in variant.named_predictors()}
    for i, rollout in zip(indices, context.rollouts(program, baseline, indices), strict=False):
        taught = {lesson.predictor: lesson.values for lesson in lessons([rollout], signatures, context)}
        yield from ((name, values, values, str(i)) for name, values in taught.items())
        if rollout.score >= PASSING:
            rest = (step for step in rollout.trace if step.outputs and step.predictor not in taught)
            yield from ((step.predictor, step.inputs, step.outputs, str(i)) for step in rest)


def _leaks(count: int) -> tuple[str, ...]:
    told = f"distil: {count} train examples have the inputs of a dev example or of one held out, and were not trained on"
    return (told,) if count else ()


def _nothing(indices: Sequence[int]) -> str:
    if not indices:
        return "every train example has the inputs of a dev example or of one held out"
    return "no run was right and no label is known"
