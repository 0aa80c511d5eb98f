"""The metrics there are, and `as_metric`, which finds one by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable
from decimal import Decimal
from typing import Any

from ..errors import DatasetError, MetricError
from .callable_metric import CallableMetric
from .comparisons import identity, item_f1, plain_value, reading, same, same_text, squad_normalize, token_f1
from .leaves import leaf_share, read_nested
from .metric import FieldMetric, Metric, Score
from .quantity import is_close, read_quantity
from .spans import fold_text, read_spans, span_scores

__all__ = [
    "CallableMetric",
    "FieldMetric",
    "Metric",
    "Score",
    "as_metric",
    "close",
    "exact",
    "f1",
    "json_fields",
    "normalized",
    "set_f1",
    "span_f1",
    "squad_normalize",
]


def exact(*fields: str) -> Metric:
    """1 where values are equal, else 0; the mean over `fields`, or all labels. Enum members equal their values."""
    return FieldMetric("exact", same, fields)


def normalized(*fields: str) -> Metric:
    """As `exact`, with text compared after `squad_normalize`, also inside lists and dicts."""
    return FieldMetric("normalized", same_text, fields)


def f1(*fields: str) -> Metric:
    """F1 of the bags of tokens of label and prediction after `squad_normalize`; two empty texts count 1.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions", section 6.1; empty answers as in SQuAD 2.0 (2018).
    """
    return FieldMetric("f1", token_f1, fields)


def set_f1(*fields: str, normalize: bool = False) -> Metric:
    """F1 of lists or sets of values, whatever their order; the mean over `fields`, or all labels.

    normalize: compare texts without case, quotes, end punctuation and leading article. A value that stands twice has to be
    found twice. None is an empty list; two empty ones count 1. A prediction that is no list counts 0, a label that is none
    is a MetricError.

    Source: van Rijsbergen, Information Retrieval (1979), chapter 7: the harmonic mean of precision and recall, which for
    sets is Dice's coefficient (1945); for each item as often as it occurs.
    """

    def score(expected: list[Any], given: list[Any]) -> Score:
        return item_f1(_keyed(expected, normalize), _keyed(given, normalize))

    return FieldMetric("set_f1", reading(_read_list, score), fields, "normalize=True" if normalize else "")


def span_f1(*fields: str) -> Metric:
    """Micro F1 over the items of one example, such as slots or entities; the mean over `fields`, or all labels.

    An item is {name (or type, label, slot): ..., value (or text): ...}, with start and end or span=[start, end] if they are
    known; or the field holds a dict from names to a value or a list of values. An item counts where name and value are those
    of the label, text without case, extra spaces, quotes, end punctuation and leading article; places count where every
    item on both sides has one. A value of None is no item, None in place of a list no items; nothing expected and nothing
    found is 1. A prediction of another form counts 0, such a label is a MetricError. The mean over examples is not the micro
    F1 of all their items.

    Source: Tjong Kim Sang and De Meulder, CoNLL-2003 (exact match of span and type), with values where there are no places.
    """
    return FieldMetric("span_f1", reading(read_spans, span_scores), fields)


def close(*fields: str, rel: float = 1e-6, abs: float = 0.0) -> Metric:
    """1 where two numbers differ by at most `abs`, or by `rel` of the larger; the mean over `fields`, or all labels.

    Numbers are ints, floats, Decimals, Fractions, and text such as "1,200", "-$3.50", "2e3" or "50%" (which is 0.5); commas
    group thousands, currencies are not compared. None equals None only, an infinity only itself. A prediction that is no
    number (NaN, a bool, "about 3") counts 0, such a label is a MetricError.

    Source: PEP 485 (`math.isclose`); computed in decimals, so that 1.1 is within 0.1 of 1.0.
    """
    tolerances = [_tolerance("rel", rel), _tolerance("abs", abs)]

    def score(expected: Decimal | None, given: Decimal | None) -> float:
        return is_close(expected, given, *tolerances)

    return FieldMetric("close", reading(read_quantity, score), fields, f"rel={rel!r}, abs={abs!r}")


def json_fields(*fields: str) -> Metric:
    """Share of the leaves of nested values that are equal; the mean over `fields`, or all labels.

    Dicts are compared by key, lists by position. A part that is missing or too much counts as wrong with all its leaves;
    where one side has a leaf and the other a branch, the branch's leaves do. An empty list or dict is a leaf. Leaves are
    equal as for `exact`. Text that holds a JSON object or list is read. The feedback names the paths
    (`items[0].sku: expected ...`). A prediction without JSON form counts 0, such a label is a MetricError.

    Source: our own definition; it is Jaccard's index of the (path, leaf) pairs, but for a changed leaf, which counts once.
    """
    return FieldMetric("json_fields", reading(read_nested, leaf_share), fields)


NAMED: dict[str, Callable[..., Metric]] = {
    function.__name__: function for function in (exact, normalized, f1, set_f1, span_f1, close, json_fields)
}
"""Metrics that need no argument."""


def as_metric(metric: Metric | str | Callable[..., Any]) -> Metric:
    """A Metric from a Metric, a name ("exact", "f1", "set_f1", ...: over all labels) or a function.

    A function takes (example, prediction) or (example, prediction, trace) and returns a bool, a number from 0 to 1, a
    Score, or a dspy.Prediction with `score` and perhaps `feedback`.

    Raises:
        MetricError: an unknown name, not a callable, or a callable with other parameters.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return _by_name(metric)
    if metric in NAMED.values():  # `exact` for `exact()`
        return NAMED[metric.__name__]()
    if not callable(metric):
        raise MetricError(
            f"metric {metric!r:.80} is not callable; give a function (example, prediction, trace=None) or a name"
        )
    return CallableMetric(metric)


def _by_name(name: str) -> Metric:
    if name in NAMED:
        return NAMED[name]()
    if name in ("judge", "weighted"):
        raise MetricError(f"metric {name!r} needs arguments; give metric=still.{name}(...)")
    near = difflib.get_close_matches(name, NAMED, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise MetricError(f"metric {name!r} is unknown; {meant}There are {', '.join(NAMED)}")


def _read_list(value: Any) -> list[Any]:
    plain = plain_value(value)
    if plain is None or isinstance(plain, list):
        return plain or []
    raise DatasetError("is not a list or set")


def _keyed(items: list[Any], normalize: bool) -> list[tuple[Hashable, str]]:
    folded = [fold_text(item) if normalize and isinstance(item, str) else item for item in items]
    return [(identity(key), f"{item!r:.80}") for key, item in zip(folded, items, strict=True)]


def _tolerance(name: str, value: Any) -> Decimal:
    try:
        read = read_quantity(value)
    except DatasetError as error:
        raise MetricError(f"close: {name}={value!r} {error}") from error
    if read is None or isinstance(value, str) or read < 0 or read.is_infinite():
        raise MetricError(f"close: {name}={value!r} is not a tolerance; give a number from 0 up")
    return read
