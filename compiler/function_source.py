"""What tells a function from others: its source, and the values that the source does not show."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CellType
from typing import Any

from ..errors import DatasetError
from .canonical import to_jsonable


def source_of(code: type | Callable[..., Any]) -> str:
    """Source of a class or function, of another callable that of its class; its name where the source cannot be read."""
    of = code if inspect.isclass(code) or inspect.isroutine(code) else type(code)
    try:
        return inspect.getsource(of)
    except (OSError, TypeError):
        return f"{of.__module__}.{getattr(of, '__qualname__', type(of).__qualname__)}"


def described(function: Any, depth: int = 2) -> list[Any]:
    """A function as plain data: its source, and the values that the source does not show. depth: how far functions that it
    holds are looked into (one may hold itself)."""
    if isinstance(function, functools.partial):
        given = {name: _plain(value, depth) for name, value in function.keywords.items()}
        return [described(function.func, depth), [_plain(value, depth) for value in function.args], given]
    held = [
        *(_content(cell) for cell in getattr(function, "__closure__", None) or ()),
        *(getattr(function, "__defaults__", None) or ()),
        *(getattr(function, "__kwdefaults__", None) or {}).values(),
        getattr(function, "__wrapped__", None),
    ]
    # Of an object that is called its texts and numbers: its lists and dicts may be what it remembers.
    own = {} if inspect.isroutine(function) else getattr(function, "__dict__", {})
    settings = {name: value for name, value in own.items() if value is None or isinstance(value, str | int | float)}
    return [source_of(function), [_plain(value, depth) for value in held], settings]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is assigned yet
        return None


def _plain(value: Any, depth: int) -> Any:
    """A value as JSON; what has none counts by its source or type, as the repr of an object may have its address in it."""
    if isinstance(named := getattr(value, "identity", None), str):  # a metric, say
        return named
    if (inspect.isroutine(value) or isinstance(value, functools.partial)) and depth:
        return described(value, depth - 1)
    if not isinstance(value, Iterator):  # which reading would use up
        with suppress(DatasetError, RecursionError):
            return to_jsonable(value.item() if hasattr(value, "item") and getattr(value, "size", 2) == 1 else value)
    return source_of(value if inspect.isroutine(value) or inspect.isclass(value) else type(value))
