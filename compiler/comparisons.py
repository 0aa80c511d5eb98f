"""Comparisons of a label with a predicted value, each from 0 to 1 and 1 for equal values."""

from __future__ import annotations

import decimal
import json
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from ..errors import DatasetError, MetricError
from ..signatures.bridge import Example
from .canonical import to_jsonable
from .metric import Comparison, Score, shown

T = TypeVar("T")

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_AROUND = "\"'()[]{},;:!?"
_NUMBER = re.compile(
    r"[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?"  # no exponent overflows
)
_EXACT = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])
"""Rounds nothing."""
_WRITTEN_OUT = 20
"""Powers of ten up to which a number is written without an exponent: 1e999999 in an answer must not be written out."""
_LISTED = 5
"""Things named in a feedback; a teacher reads no more."""


def squad_normalize(text: str) -> str:
    """Text without case, ASCII punctuation, English articles and extra white space.

    Source: the official SQuAD evaluation (Rajpurkar et al. 2016, section 6.1), but for two things that it does not do:
    the text is brought to Unicode's form NFC first, so that "é" equals "e" with a combining accent, and `casefold` stands
    for `lower`, so that "ß" equals "SS".
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(_ARTICLES.sub(" ", folded.translate(_PUNCTUATION)).split())


def identity(value: Any) -> Hashable:
    """A key that two values share if they are the same: 1 and 1.0 are, 1 and True are not, nor are "1" and 1.

    Numbers are compared in all their digits, and floats count as they are written: 0.1 is Decimal("0.1").
    Raises DatasetError for a value without JSON form.
    """
    return _written(plain_value(value))


def equal(one: Any, other: Any) -> bool:
    """Whether two plain values are the same, or are alike in JSON, where a Decimal is text."""
    return identity(one) == identity(other) or _written(_in_json(one)) == _written(_in_json(other))


def same(label: Any, predicted: Any) -> Score | float:
    """1 for the same value."""
    return reading(plain_value, lambda expected, given: float(equal(expected, given)))(label, predicted)


def same_text(label: Any, predicted: Any) -> Score | float:
    """1 for the same value, texts in it compared after `squad_normalize`."""

    def compared(expected: Any, given: Any) -> float:
        return float(equal(expected, given) or identity(_fold(expected)) == identity(_fold(given)))

    return reading(plain_value, compared)(label, predicted)


def token_f1(label: Any, predicted: Any) -> Score | float:
    """F1 of the bags of tokens: the words of texts after `squad_normalize`, and numbers and bools, each of which is one.

    Where either side has a number, a word that is one counts as a number too, with its sign and its point.
    """

    def compared(expected: Any, given: Any) -> float:
        sides = [_parts(side) for side in (expected, given)]
        numeric = any(_is_number(part) for side in sides for part in side)
        wanted, found = ([token for part in side for token in _tokens(part, numeric)] for side in sides)
        return _f1(Counter(wanted), Counter(found)) if wanted and found else float(wanted == found)

    return reading(plain_value, compared)(label, predicted)


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
    """`to_jsonable`, but for numbers, which are compared as such: Decimals stay, NaN and the infinities are floats.

    Of a numpy scalar it is the Python value. Raises DatasetError, with a message that goes on from the value.
    """
    try:
        return _plain(value)
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


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return to_jsonable(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Decimal):
        return Decimal(value) if value.is_finite() else math.nan if value.is_nan() else float(value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Example):
        value = dict(value.items())
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return _in_order(value)
    return _plain(_dumped(value) if (bare := _unwrapped(value)) is value else bare)


def _key(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else _written(plain)


def _unwrapped(value: Any) -> Any:
    """Of a numpy scalar, and of an array or tensor without dimensions, the Python value."""
    if getattr(value, "shape", None) != () or not callable(item := getattr(value, "item", None)):
        return value
    bare = item()
    return value if type(bare) is type(value) else bare  # a long double stays one


def _dumped(value: Any) -> Any:
    """As pydantic writes it in JSON, but with its Decimals."""
    if isinstance(value, BaseModel):
        return _restored(value.model_dump(mode="json"), value.model_dump())
    return _restored(_ANY.dump_python(value, mode="json", by_alias=False), _ANY.dump_python(value, by_alias=False))


def _restored(dumped: Any, original: Any) -> Any:
    """`dumped` with the Decimals of `original`, and with what is a set there in one order.

    Only a text that is the Decimal's own is replaced: a field may be serialized in another way.
    """
    if isinstance(original, Enum):
        original = original.value
    if isinstance(original, Decimal):
        return original if dumped == str(original) else dumped
    if isinstance(original, set | frozenset) and isinstance(dumped, list):
        return _in_order(original if any(isinstance(item, Decimal) for item in original) else dumped)
    if isinstance(original, Mapping) and isinstance(dumped, dict) and len(original) == len(dumped):
        pairs = zip(dumped.items(), original.values(), strict=True)  # keys are text in one of them only
        return {key: _restored(item, other) for (key, item), other in pairs}
    if isinstance(original, Sequence) and isinstance(dumped, list) and len(original) == len(dumped):
        return [_restored(item, other) for item, other in zip(dumped, original, strict=True)]
    return dumped


def _in_order(items: Iterable[Any]) -> list[Any]:
    """Of a set, whose own order is another in every process."""
    return sorted([_plain(item) for item in items], key=_written)


def _written(plain: Any) -> str:
    """JSON with sorted keys, and with every number in one writing."""
    if isinstance(plain, list):
        return "[" + ",".join([_written(item) for item in plain]) + "]"
    if isinstance(plain, dict):
        return "{" + ",".join([f"{json.dumps(key)}:{_written(plain[key])}" for key in sorted(plain)]) + "}"
    if not _is_number(plain):
        return json.dumps(plain)
    number = _number(plain)
    return json.dumps(number) if number.endswith(("nan", "inf")) else number


def _in_json(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_in_json(item) for item in plain]
    if isinstance(plain, dict):
        return {key: _in_json(item) for key, item in plain.items()}
    return str(plain) if isinstance(plain, Decimal) else plain


def _is_number(plain: Any) -> bool:
    return isinstance(plain, int | float | Decimal) and not isinstance(plain, bool)  # in Python True == 1


def _number(number: int | float | Decimal) -> str:
    """All digits, and no zeros at the end: 3.5, 3.50 and 35E-1 are written alike."""
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    exact = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    if not exact:
        return "0"
    exact = exact.normalize(_EXACT)
    return f"{exact:f}" if abs(exact.adjusted()) <= _WRITTEN_OUT else str(exact)


def _fold(plain: Any) -> Any:
    if isinstance(plain, str):
        return squad_normalize(plain)
    if isinstance(plain, list):
        return [_fold(item) for item in plain]
    if isinstance(plain, dict):
        return {key: _fold(item) for key, item in plain.items()}
    return plain


def _parts(plain: Any) -> list[Any]:
    """The texts, numbers and bools in a plain value, keys among them."""
    if isinstance(plain, list):
        return [part for item in plain for part in _parts(item)]
    if isinstance(plain, dict):
        return [part for pair in plain.items() for item in pair for part in _parts(item)]
    return [] if plain is None else [plain]


def _tokens(part: Any, numeric: bool) -> list[str]:
    if _is_number(part):
        return [_number(part)]
    if isinstance(part, bool):
        return [str(part).casefold()]
    if not numeric:
        return squad_normalize(part).split()
    return [token for word in part.split() for token in _word_tokens(word)]


def _word_tokens(word: str) -> list[str]:
    bare = word.lstrip(_AROUND).rstrip(_AROUND + ".")
    return [_number(Decimal(bare.replace(",", "")))] if _NUMBER.fullmatch(bare) else squad_normalize(word).split()
