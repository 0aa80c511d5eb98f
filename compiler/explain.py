"""What one call of a program costs: each output's text, and how its tokens came about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from ..signatures.adapter import PlanAdapter
from ..signatures.bridge import Module, context
from ..signatures.prediction import Prediction
from .invocation import call

COLUMNS = ("output", "text", "decoded", "forced", "scored", "probability")


def call_tables(program: Module, inputs: Mapping[str, Any], lm: Any) -> Iterator[Table]:
    """Run the program on one input, and describe every call of a predictor, in order.

    decoded: tokens that cost a step of the model each; forced: tokens that the grammar left no choice about, appended with
    the next step; scored: tokens read to score options. Calls that do not run as plans are left out.
    """
    trace: list[Any] = []
    with context(lm=lm, adapter=PlanAdapter(), trace=trace):
        call(program, inputs)
    names = {id(predictor): name for name, predictor in program.named_predictors()}
    for predictor, _, answer in trace:
        if isinstance(answer, Prediction):
            yield _table(names.get(id(predictor), "?"), answer)


def _table(name: str, answer: Prediction) -> Table:
    completion = answer.completion
    usage = completion.usage
    title = (
        f"{name}: prompt and markers {usage.prompt_tokens} tokens, {usage.cached_tokens} of them cached; "
        f"{usage.decoded_tokens} decoded, {usage.forced_tokens} forced, {usage.scored_tokens} scored; {usage.seconds:.2f} s"
    )
    table = Table(*COLUMNS, title=title, title_justify="left", box=None, pad_edge=False)
    for field, cost in completion.costs.items():
        likely = completion.probabilities.get(field)
        table.add_row(
            field,
            completion.texts[field].strip().replace("\n", "\\n"),
            str(cost.decoded_tokens),
            str(cost.forced_tokens),
            str(cost.scored_tokens),
            f"{max(likely.values()):.3f}" if likely else "",  # of the likeliest, which is taken or abstained from
        )
    return table
