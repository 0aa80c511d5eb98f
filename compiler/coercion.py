"""Cells turned into the types of a signature's fields, with every misfit told by row, field and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from ..backends.readers import Row
from ..errors import DatasetError

_SHOWN_PROBLEMS = 5


def coerce_rows(rows: Sequence[Row], numbers: Sequence[int | str], fields: Mapping[str, Any], source: str) -> list[Row]:
    """New rows whose `fields` hold values of their types; `numbers` are the row numbers that messages name.

    Raises:
        DatasetError: lists the first 5 misfits and how many there are.
    """
    adapters = {name: _adapter(name, kind) for name, kind in fields.items()}
    problems: list[str] = []
    typed: list[Row] = []
    for number, row in zip(numbers, rows, strict=True):
        new = dict(row)
        for name, adapter in adapters.items():
            try:
                new[name] = _coerce(adapter, row[name])
            except ValidationError as error:
                problems.append(f"row {number}, field {name!r}: {_explain(row[name], fields[name], error)}")
        typed.append(new)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DatasetError(
            f"{source}: values do not fit their fields\n{shown}{more}\nCorrect these rows, or the fields' types."
        )
    return typed


def type_name(kind: Any) -> str:
    """A type as a user writes it: `int`, `Literal['a', 'b']`, `str | None`."""
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return name.replace("typing.", "")


def _adapter(name: str, kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except PydanticUserError as error:
        reason = str(error).split("\n", 1)[0]
        raise DatasetError(
            f"field {name!r}: pydantic cannot check {type_name(kind)}: {reason}; use a pydantic type"
        ) from error


def _coerce(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        # A csv cell may hold JSON for a list or a model; a Literal[1, 2] takes 1 but not "1".
        if not isinstance(value, str):
            raise
        try:
            return adapter.validate_json(value)
        except ValidationError:
            pass
        raise


def _explain(value: Any, kind: Any, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part!r}]" for part in first["loc"])
    if value is None:
        return f"is empty, expected {type_name(kind)} (declare `{type_name(kind)} | None` if it may be)"
    return f"{value!r:.80} is not {type_name(kind)} ({where}{': ' * bool(where)}{first['msg']})"
