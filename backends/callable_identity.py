"""What tells a callable from others: its source, and the values that its source does not show."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from contextlib import suppress
from datetime import date, time, timedelta
from enum import Enum
from numbers import Number
from pathlib import PurePath
from types import CellType
from typing import Any

import numpy as np
from pydantic import BaseModel

from ..signatures.bridge import Example

_DEEPEST = 40
_HELD = ("__self__", "__wrapped__", "__defaults__", "__kwdefaults__", "__closure__")
_UNTOLD = ("batch_size", "caching", "stage", "_compiled")
"""Attributes of dspy's objects that change how answers are made and none of them; `stage` is drawn at random."""
_WRITTEN = (bytes, Number, np.generic, PurePath, date, time, timedelta)
"""What `str` writes in full, and without an address."""


def callable_digest(function: Any) -> tuple[str, str]:
    """(name, digest) of an embedder or reranker: its own `digest`, or one over its name, its source and what it holds; of an
    object with a `model` that is a name, as dspy.Embedder is, the source does not count."""
    model, given = getattr(function, "model", None), getattr(function, "digest", None)
    name = model if isinstance(model, str) else _name(_coded(function))
    if isinstance(given, str):
        return name, given
    source, held = source_of(function), _held(function)
    if isinstance(model, str):
        source, held = "", {key: value for key, value in held.items() if key != "model"}
    # What an embedder has kept in a list or dict is often what it has embedded: that is no other embedder.
    told = [[key, described(value, contents=False)] for key, value in sorted(held.items())]
    parts = [name, source, *([json.dumps(told)] if told else [])]
    return name, hashlib.sha256("\0".join(parts).encode()).hexdigest()


def source_of(code: Any) -> str:
    """Source of a class or function, of another callable that of its class; its name where the source cannot be read."""
    of = _coded(code)
    try:
        return inspect.getsource(getattr(of, "__code__", of))  # of a function that wraps another, its own
    except (OSError, TypeError):
        return _name(of)


def is_function(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, functools.partial)


def described(value: Any, within: tuple[int, ...] = (), contents: bool = True) -> Any:
    """A callable, or a value that one holds, as JSON: the same in every process, so never a repr, which may have an address.

    Two that differ only in what does not count (see `_lasts`) are told apart by a text `digest` or `identity` of their own.
    within: ids of the objects that hold it, as a function may hold itself. contents: whether those of lists, sets and dicts
    count.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    kind = _name(type(value))
    if isinstance(value, _WRITTEN):
        return [kind, str(value)]
    if isinstance(value, re.Pattern):
        return [kind, str(value.pattern), value.flags]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [kind, str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if inspect.isclass(value) or inspect.ismodule(value):
        return source_of(value) if inspect.isclass(value) else value.__name__
    if id(value) in within or len(within) > _DEEPEST:
        return kind
    told = functools.partial(described, within=(*within, id(value)), contents=contents)
    if isinstance(value, CellType):
        with suppress(ValueError):  # nothing is assigned yet
            return told(value.cell_contents)
        return None
    if isinstance(value, tuple):
        return [kind, *map(told, value)]
    if isinstance(value, list | set | dict | Example) and not contents:
        return kind
    if isinstance(value, list):
        return [kind, *map(told, value)]
    if isinstance(value, set | frozenset | dict | Example):
        items = value if isinstance(value, set | frozenset) else dict(value).items()
        return [kind, *sorted(map(told, items), key=json.dumps)]
    for name in ("identity", "digest"):
        if isinstance(given := getattr(value, name, None), str):
            return [kind, given]
    return [source_of(value), [[name, told(held)] for name, held in sorted(_held(value).items())]]


def _held(owner: Any) -> dict[str, Any]:
    """What the source of a function does not show; of an object, the attributes that are not what it remembers."""
    if isinstance(owner, functools.partial):
        return {"func": owner.func, "args": owner.args, "keywords": tuple(sorted(owner.keywords.items()))}
    if inspect.isroutine(owner):
        found = {name: value for name in _HELD if (value := getattr(owner, name, None)) is not None}
        return {name: tuple(sorted(v.items())) if isinstance(v, dict) else v for name, v in found.items()}
    if isinstance(owner, BaseModel):
        return dict(owner)
    own = {} if inspect.isclass(owner) else getattr(owner, "__dict__", {})
    return {name: value for name, value in list(own.items()) if _lasts(value) and name not in _UNTOLD}


def _lasts(value: Any) -> bool:
    """Text, numbers, functions, and tuples of them: lists, dicts and other objects may be what their owner remembers."""
    if isinstance(value, tuple | frozenset):
        return all(item is None or _lasts(item) for item in value)
    return is_function(value) or isinstance(value, (str, int, float, Enum, re.Pattern, *_WRITTEN))


def _coded(value: Any) -> Any:
    """What has a name and a source: a function or class itself, what a partial is of, the class of another object."""
    if isinstance(value, functools.partial):
        return _coded(value.func)
    return value if inspect.isroutine(value) or inspect.isclass(value) else type(value)


def _name(code: Any) -> str:
    return f"{getattr(code, '__module__', None)}.{getattr(code, '__qualname__', type(code).__qualname__)}"
