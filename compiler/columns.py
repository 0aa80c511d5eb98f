"""What columns rows have, and which of them are inputs: the checks a dataset makes before it exists."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..backends.readers import Row
from ..errors import DatasetError
from ..signatures.bridge import Example


def as_dict(row: Any, number: int) -> Row:
    """A dict of a dict or example. Raises DatasetError for anything else."""
    if isinstance(row, Example | Mapping) and all(isinstance(key, str) for key in row.keys()):  # noqa: SIM118
        return dict(row.items())
    raise DatasetError(f"rows: row {number} is {row!r:.60}; give dicts with text keys, or Examples")


def carried_inputs(rows: Sequence[Any]) -> list[str]:
    """The input names that every example carries, in the first one's order.

    Raises DatasetError if they carry none or different ones.
    """
    found: list[list[str]] = []
    for row in rows:
        try:
            found.append(list(row.inputs().keys()) if isinstance(row, Example) else [])
        except (ValueError, AttributeError):  # dspy: with_inputs was never called, or a Prediction, which has no inputs
            found.append([])
    if len({frozenset(names) for names in found}) != 1 or not found[0]:
        raise DatasetError("inputs: the rows do not all say which columns are inputs; pass inputs=[...]")
    return found[0]


def checked_inputs(inputs: Sequence[str], columns: Sequence[str], source: str) -> list[str]:
    """`inputs` as a list. Raises DatasetError unless it names one or more columns, each once."""
    if isinstance(inputs, str):
        raise DatasetError(f"inputs: {inputs!r} is one text; write inputs=[{inputs!r}]")
    if not inputs or len(set(inputs)) != len(inputs):
        raise DatasetError(
            f"inputs: {list(inputs)} must name at least one column, each once; there are {', '.join(columns)}"
        )
    for name in inputs:
        if name not in columns:
            raise DatasetError(f"{source}: input {name!r} has no column; {choices(name, columns)}")
    return list(inputs)


def choices(name: str, columns: Sequence[str]) -> str:
    """What an error says about a column that does not exist."""
    close = difflib.get_close_matches(name.casefold(), [column.casefold() for column in columns], n=1, cutoff=0.5)
    meant = next((f"did you mean {column!r}? " for column in columns if [column.casefold()] == close), "")
    split = [mark for mark in (";", "\t", "|") if len(columns) == 1 and mark in columns[0]]
    hint = f" (cells look separated by {split[0]!r}: save with commas)" if split else ""
    return f"{meant}There are {', '.join(columns) or 'none'}{hint}"
