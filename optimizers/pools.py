"""Pools of demonstrations: what a predictor can be shown, from labels and from runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..signatures.bridge import Example, Module
from ..signatures.layout import is_complete
from .candidate import Demonstration, asked_signature
from .context import EvaluationContext, Rollout
from .taught import lessons


def labelled_pools(program: Module, context: EvaluationContext) -> dict[str, list[Demonstration]]:
    """Training examples per predictor, for predictors whose inputs and outputs are all columns of the dataset."""
    pools: dict[str, list[Demonstration]] = {}
    for name, predictor in program.named_predictors():
        signature = predictor.signature
        needed = [*signature.input_fields, *signature.output_fields]
        if not set(signature.input_fields) <= context.input_fields:
            continue  # fed by another predictor: a column of the same name would not be what it sees
        pool = [_pick(example, needed) for example in context.train if all(f in example for f in needed)]
        if pool:
            pools[name] = pool
    return pools


def taught_pools(
    program: Module,
    rollouts: Sequence[Rollout],
    shown: Sequence[Rollout],
    labelled: Iterable[str],
    context: EvaluationContext,
) -> dict[str, list[Demonstration]]:
    """Demonstrations from all traces, with labels for answers, for predictors whose inputs are no columns; the others get
    those of the runs that are shown."""
    signatures = {name: signature for name, signature in _signatures(program).items() if name not in labelled}
    pools = _pools(lessons(rollouts, signatures, context), signatures)
    return {**traced_pools(program, shown), **pools} if pools else {}


def may_be_taught(program: Module, labelled: Iterable[str], context: EvaluationContext) -> bool:
    """Whether a run may show what the labels teach a predictor whose inputs are no columns."""
    labels = set(context.train[0].keys() if context.train else ()) - context.input_fields
    return any(
        name not in labelled and set(signature.output_fields) <= labels
        for name, signature in _signatures(program).items()
    )


def _signatures(program: Module) -> dict[str, Any]:
    return {name: asked_signature(predictor) for name, predictor in program.named_predictors()}


def traced_pools(program: Module, rollouts: Iterable[Rollout]) -> dict[str, list[Demonstration]]:
    """The calls in these runs, by predictor."""
    signatures = _signatures(program)
    steps = (step for rollout in rollouts for step in rollout.trace if step.predictor in signatures)
    return _pools(((step.predictor, {**step.inputs, **step.outputs}) for step in steps), signatures)


def _pools(calls: Iterable[tuple[str, Demonstration]], signatures: dict[str, Any]) -> dict[str, list[Demonstration]]:
    """Demonstrations of these calls, by predictor; a call that was made twice (in a loop, say) once.

    Of a call's values those of the predictor's fields are kept, and a call without a value for each of them is left out: a
    prompt would leave it out. So is one with a value that has no JSON form, which ledger and artifact could not keep.
    """
    pools: dict[str, dict[str, Demonstration]] = {}
    for name, values in calls:
        demonstration = {field: values.get(field) for field in signatures[name].fields}
        if is_complete(signatures[name], values) and _is_plain(demonstration):
            pools.setdefault(name, {}).setdefault(repr(demonstration), demonstration)
    return {name: list(pool.values()) for name, pool in pools.items()}


def _is_plain(values: Demonstration) -> bool:
    try:
        to_jsonable_python(values)
    except PydanticSerializationError:
        return False
    return True


def _pick(example: Example, names: Iterable[str]) -> Demonstration:
    return {name: example[name] for name in names}
