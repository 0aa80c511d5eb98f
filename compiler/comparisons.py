"""Comparisons of a label with a predicted value, each from 0 to 1 and 1 for equal values."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from ..errors import DatasetError, MetricError
from .canonical import to_jsonable
from .metric import Comparison, Score, shown

T = TypeVar("T")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LISTED = 5
"""Things named in a feedback; a teacher reads no more."""


def squad_normalize(text: str) -> str:
    """Text without case, ASCII punctuation, English articles and extra white space.

    Source: the official SQuAD evaluation (Rajpurkar et al. 2016, section 6.1), with `casefold` for `lower`, so that "ß"
    equals "SS".
    """
    return " ".join(_ARTICLES.sub(" ", text.casefold().translate(_PUNCTUATION)).split())


def identity(value: Any) -> Hashable:
    """A key that two values share if they are the same: 1 and 1.0 are, 1 and True are not, nor are "1" and 1."""
    plain = to_jsonable(value)
    if isinstance(plain, bool):  # in Python True == 1
        return bool, plain
    if isinstance(plain, list):
        return list, tuple(map(identity, plain))
    if isinstance(plain, dict):
        return dict, frozenset((key, identity(item)) for key, item in plain.items())
    key: Hashable = plain
    return key


def same(label: Any, predicted: Any) -> float:
    """1 for the same value."""
    return float(identity(label) == identity(predicted))


def same_text(label: Any, predicted: Any) -> float:
    """1 for the same value, texts in it compared after `squad_normalize`."""
    return float(identity(_fold(label)) == identity(_fold(predicted)))


def token_f1(label: Any, predicted: Any) -> float:
    """F1 of the bags of tokens."""
    expected, given = _tokens(label), _tokens(predicted)
    if not expected or not given:
        return float(expected == given)
    return _f1(Counter(expected), Counter(given))


def item_f1(expected: Iterable[tuple[Hashable, str]], given: Iterable[tuple[Hashable, str]]) -> Score:
    """F1 of two bags of (key, how to show it), which says what is missing and what is too much; 1 for two empty ones.

    As a bag has its items once for each time they occur, this is 2 TP / (2 TP + FP + FN): the micro F1 over the items.
    """
    expected, given = list(expected), list(given)
    wanted, found = Counter(key for key, _ in expected), Counter(key for key, _ in given)
    if not wanted and not found:
        return Score(1.0)
    names = dict([*given, *expected])
    parts = (_listed("missing", wanted - found, names), _listed("too much", found - wanted, names))
    return Score(_f1(wanted, found), "; ".join(filter(None, parts)))


def reading(read: Callable[[Any], T], compare: Callable[[T, T], Score | float]) -> Comparison:
    """Read both values, then compare. A predicted value that cannot be read is 0; such a label is a MetricError."""

    def compared(label: Any, predicted: Any) -> Score | float:
        try:
            expected = read(label)
        except DatasetError as error:
            raise MetricError(f"label {shown(label)} {error}; correct the label") from error
        try:
            return compare(expected, read(predicted))
        except DatasetError as error:
            return Score(0.0, f"expected {shown(label)}, got {shown(predicted)}, which {error}")

    return compared


def plain_value(value: Any) -> Any:
    """`to_jsonable`, with a message that goes on from the value."""
    try:
        return to_jsonable(value)
    except Exception as error:  # also what a value's own serializer raises, and nesting without end
        raise DatasetError(f"has no JSON form (it is of type {type(value).__name__})") from error


def listed(notes: list[str], separator: str = ", ") -> str:
    """The first notes, and how many more there are."""
    more = [f"and {len(notes) - _LISTED} more"] if len(notes) > _LISTED else []
    return separator.join([*notes[:_LISTED], *more])


def _f1(expected: Counter[Any], given: Counter[Any]) -> float:
    # 2PR / (P + R) with P = shared / given and R = shared / expected
    return 2 * (expected & given).total() / (expected.total() + given.total())


def _listed(what: str, bag: Counter[Hashable], names: Mapping[Hashable, str]) -> str:
    return f"{what} {listed([names[key] for key in bag.elements()])}" if bag else ""


def _fold(value: Any) -> Any:
    plain = to_jsonable(value)
    if isinstance(plain, str):
        return squad_normalize(plain)
    if isinstance(plain, list):
        return [_fold(item) for item in plain]
    if isinstance(plain, dict):
        return {key: _fold(item) for key, item in plain.items()}
    return plain


def _tokens(value: Any) -> list[str]:
    plain = to_jsonable(value)
    if isinstance(plain, list):
        return [token for item in plain for token in _tokens(item)]
    return [] if plain is None else squad_normalize(str(plain)).split()
