"""Metrics: how well a prediction answers an example, as a number from 0 to 1."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..errors import DatasetError, MetricError
from ..signatures.bridge import Example, Prediction
from .canonical import example_digest, to_jsonable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Score:
    """What a metric says of one prediction: a value from 0 to 1, and in words what was wrong (for reflection)."""

    value: float
    feedback: str = ""

    def __float__(self) -> float:
        return float(self.value)


class Metric(ABC):
    """A callable `(example, prediction, trace=None) -> float` from 0 to 1 with a name.

    `score` is the same with feedback, `fields` the value of every label field where the metric looks at fields one by
    one.
    """

    name: str

    @abstractmethod
    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        """The checked score. Raises MetricError if the example lacks a label or the metric itself fails."""

    def fields(self, example: Example, prediction: Any) -> dict[str, float]:
        """Value per label field, each from 0 to 1; empty for a metric that judges the prediction as a whole."""
        return {}

    def __call__(self, example: Example, prediction: Any, trace: Any = None) -> float:
        return self.score(example, prediction, trace).value

    def __repr__(self) -> str:
        return self.name


class FieldMetric(Metric):
    """The mean over label fields of a comparison of two values; without names, over all label fields of the example."""

    def __init__(self, kind: str, compare: Callable[[Any, Any], float], names: tuple[str, ...]) -> None:
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise MetricError(f"{kind}: {wrong[0]!r} is not a field name; write {kind}('field')")
        self.name = f"{kind}({', '.join(map(repr, names))})"
        self._compare = compare
        self._names = names

    def fields(self, example: Example, prediction: Any) -> dict[str, float]:
        """Value per field; a field that the prediction lacks counts 0. Raises MetricError if the example lacks it."""
        missing = object()
        values: dict[str, float] = {}
        for name in self._names or _label_names(example, self.name):
            if name not in example:
                raise MetricError(
                    f"metric {self.name}: example {_short(example)} has no label {name!r}; "
                    f"it has {', '.join(example.keys())}"
                )
            predicted = _value(prediction, name, missing)
            try:
                values[name] = 0.0 if predicted is missing else self._compare(example[name], predicted)
            except DatasetError as error:  # a value without JSON form
                raise MetricError(f"metric {self.name}: example {_short(example)}, field {name!r}: {error}") from error
        return values

    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        values = self.fields(example, prediction)
        wrong = [
            f"{name}: expected {example[name]!r:.200}, got {_value(prediction, name, 'nothing')!r:.200}"
            for name, value in values.items()
            if value < 1
        ]
        return Score(math.fsum(values.values()) / len(values), "; ".join(wrong))


class CallableMetric(Metric):
    """A user's function, with every result and every failure checked and named."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._trace_as = _trace_parameter(function, self.name)

    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        positional = (trace,) if self._trace_as == "positional" else ()
        keywords = {"trace": trace} if self._trace_as == "keyword" else {}
        try:
            result = self._function(example, prediction, *positional, **keywords)
        except MetricError:
            raise
        except Exception as error:
            raise MetricError(
                f"metric {self.name} failed on example {_short(example)}: {type(error).__name__}: {error}; "
                "correct the metric"
            ) from error
        return self._checked(result, example)

    def _checked(self, result: Any, example: Example) -> Score:
        value, feedback = result, ""
        if isinstance(result, Score):
            value, feedback = result.value, result.feedback
        elif isinstance(result, Prediction):
            value, feedback = result.get("score"), str(result.get("feedback") or "")
        elif not isinstance(result, Real) and hasattr(result, "item") and getattr(result, "size", 2) == 1:
            value = result.item()  # a numpy scalar: numpy's bool is no Real
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:  # NaN fails both comparisons
            if inspect.iscoroutine(result):
                result.close()
            raise MetricError(
                f"metric {self.name} returned {result!r:.100} for example {_short(example)}; "
                "return a number from 0 to 1, a bool, or Score(value, feedback)"
            )
        return Score(float(value), feedback)


def exact(*fields: str) -> Metric:
    """1 where values are equal, else 0; the mean over `fields`, or all labels. Enum members equal their values."""
    return FieldMetric("exact", lambda label, predicted: float(_same(label, predicted)), fields)


def normalized(*fields: str) -> Metric:
    """As `exact`, with text compared after `squad_normalize`, also inside lists and dicts."""
    return FieldMetric("normalized", lambda label, predicted: float(_same(_fold(label), _fold(predicted))), fields)


def f1(*fields: str) -> Metric:
    """F1 of the bags of tokens of label and prediction after `squad_normalize`; two empty texts count 1.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions", section 6.1; empty answers as in SQuAD 2.0 (2018).
    """
    return FieldMetric("f1", _token_f1, fields)


def squad_normalize(text: str) -> str:
    """Text without case, ASCII punctuation, English articles and extra white space.

    Source: the official SQuAD evaluation (Rajpurkar et al. 2016, section 6.1), with `casefold` for `lower`, so that "ß"
    equals "SS".
    """
    return " ".join(_ARTICLES.sub(" ", text.casefold().translate(_PUNCTUATION)).split())


_NAMED: dict[str, Callable[..., Metric]] = {"exact": exact, "normalized": normalized, "f1": f1}


def as_metric(metric: Metric | str | Callable[..., Any]) -> Metric:
    """A Metric from a Metric, a name ("exact", "normalized", "f1": over all labels) or a function.

    A function takes (example, prediction) or (example, prediction, trace) and returns a bool, a number from 0 to 1, a
    Score, or a dspy.Prediction with `score` and perhaps `feedback`.

    Raises:
        MetricError: an unknown name, not a callable, or a callable with other parameters.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric in _NAMED:
            return _NAMED[metric]()
        close = difflib.get_close_matches(metric, _NAMED, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise MetricError(f"metric {metric!r} is unknown; {meant}There are {', '.join(_NAMED)}")
    if metric in _NAMED.values():  # `exact` for `exact()`
        return _NAMED[metric.__name__]()
    if not callable(metric):
        raise MetricError(
            f"metric {metric!r:.80} is not callable; give a function (example, prediction, trace=None) or a name"
        )
    return CallableMetric(metric)


def _trace_parameter(function: Callable[..., Any], name: str) -> str:
    """How to pass the trace: "positional", "keyword" or "none" (a parameter such as `threshold=0.5` is not it)."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have no signature
        return "none"
    places = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    trace = signature.parameters.get("trace")
    third = places[2] if len(places) > 2 else None
    way = "none"
    if third is not None and (third is trace or third.default is third.empty):
        way = "positional"
    elif trace is not None and trace.kind in (trace.KEYWORD_ONLY, trace.POSITIONAL_OR_KEYWORD):
        way = "keyword"
    arguments = (None,) * (3 if way == "positional" else 2)
    keywords = {"trace": None} if way == "keyword" else {}
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise MetricError(
            f"metric {name}{signature} cannot be called with (example, prediction, trace=None): {error}"
        ) from error
    return way


def _label_names(example: Example, metric: str) -> list[str]:
    try:
        names = list(example.labels().keys())
    except ValueError as error:  # dspy: with_inputs was never called
        raise MetricError(f"metric {metric}: example {_short(example)} does not say its inputs; call with_inputs") from error
    if not names:
        raise MetricError(f"metric {metric}: example {_short(example)} has no labels; name fewer columns as inputs")
    return names


def _value(prediction: Any, name: str, default: Any) -> Any:
    if isinstance(prediction, Example | Mapping):
        return prediction.get(name, default)
    return getattr(prediction, name, default)


def _same(left: Any, right: Any) -> bool:
    left, right = to_jsonable(left), to_jsonable(right)
    if isinstance(left, bool) or isinstance(right, bool):  # in Python True == 1
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return bool(left == right)


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


def _token_f1(label: Any, predicted: Any) -> float:
    expected, given = _tokens(label), _tokens(predicted)
    if not expected or not given:
        return float(expected == given)
    shared = (Counter(expected) & Counter(given)).total()
    # 2PR / (P + R) with P = shared / given and R = shared / expected
    return 2 * shared / (len(expected) + len(given))


def _short(example: Example) -> str:
    return example_digest(example)[:12]
