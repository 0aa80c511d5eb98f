"""Copies of a program that runs may write to."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from types import MethodType
from typing import Any

from ..signatures.bridge import Module

DATA = 1000
"""A collection of more items than this, in an attribute of a module, is taken for data: runs share it."""

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_COLLECTIONS = (list, dict, set, tuple, Counter, OrderedDict, defaultdict, deque, bytearray)


def own_copy(program: Module) -> Module:
    """A copy whose attributes a run may set and append to, without another run in another thread seeing it.

    Copied are the modules, and the lists, dicts, sets and tuples in their attributes, however deep; shared is everything
    else (signatures, LMs, locks, indexes, objects of other classes) and collections of more than `DATA` items.
    """
    copied: Module = _copy(program, {})
    return copied


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in _PLAIN:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Module):
        kind: Any = type(value)
        made = memo[id(value)] = kind.__new__(kind)  # not __init__: it makes predictors
        vars(made).update({name: _copy(item, memo) for name, item in vars(value).items()})
        return made
    if isinstance(value, MethodType) and isinstance(value.__self__, Module):
        return MethodType(value.__func__, _copy(value.__self__, memo))
    return _copy_collection(value, memo)


def _copy_collection(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    # Exactly these classes: a subclass may hold what is to be shared, as a pool of demonstrations holds its index.
    if kind not in _COLLECTIONS or len(value) > DATA:
        return value
    if kind is tuple:
        return tuple(_copy(item, memo) for item in value)
    made = memo[id(value)] = copy.copy(value)
    if kind is list:
        made[:] = [_copy(item, memo) for item in value]
    elif isinstance(value, dict):
        for key, item in value.items():
            made[key] = _copy(item, memo)
    return made
