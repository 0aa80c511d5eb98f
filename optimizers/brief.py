"""`Brief`: what a teacher is told of a program and its data, whichever predictor it writes for."""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from ..signatures.bridge import Example, Module

SOURCE_LIMIT = 4000
"""Characters of source that are shown."""
FEW_VALUES = 20
"""A column with more different values is described by its lengths."""
_OURS = ("dspy.", *(f"{__name__.partition('.')[0]}.{room}." for room in ("signatures", "backends", "optimizers")))


@dataclass(frozen=True, slots=True)
class Brief:
    """program: the source of its own classes, "" where it has none. data: a line per column."""

    program: str
    data: str


def brief(program: Module, train: Sequence[Example], inputs: Collection[str]) -> Brief:
    """inputs: the columns that are no labels."""
    names = dict.fromkeys(name for example in train for name in example.keys())  # noqa: SIM118 - not a dict
    columns = [_column(name, "input" if name in inputs else "label", train) for name in names]
    return Brief(_source(program), "\n".join([f"{len(train)} examples", *columns]))


def _source(program: Module) -> str:
    kinds = dict.fromkeys(type(module) for _, module in program.named_sub_modules())
    texts = []
    for kind in kinds:
        if f"{kind.__module__}.".startswith(_OURS):
            continue
        try:
            texts.append(textwrap.dedent(inspect.getsource(kind)).strip())
        except (OSError, TypeError):  # typed at a prompt
            texts.append(f"class {kind.__qualname__}: (its source is not known)")
    text = "\n\n".join(texts)
    return text if len(text) <= SOURCE_LIMIT else f"{text[:SOURCE_LIMIT]}\n..."


def _column(name: str, role: str, train: Sequence[Example]) -> str:
    values = [example[name] for example in train if name in example and example[name] is not None]
    return f"{name} ({role}): {_described(values, len(train))}"


def _described(values: Sequence[Any], rows: int) -> str:
    missing = f", in {len(values)} of {rows}" if len(values) < rows else ""
    counts = Counter(map(str, values))
    if 0 < len(counts) <= min(FEW_VALUES, len(values) // 2):
        return ", ".join(f"{value!r} {count / len(values):.0%}" for value, count in counts.most_common()) + missing
    if values and all(isinstance(value, int | float) for value in values):
        return f"numbers from {min(values)} to {max(values)}{missing}"
    sizes = sorted(len(str(value).split()) for value in values) or [0]
    return f"texts of {sizes[0]} to {sizes[-1]} words, {median_low(sizes)} in the middle{missing}"
