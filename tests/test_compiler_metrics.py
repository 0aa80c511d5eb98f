"""Metrics: values from 0 to 1, and every way for a user's metric to go wrong is named."""

from __future__ import annotations

import enum
import itertools
import json
import math
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, partial, wraps
from pathlib import Path

import numpy as np
import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from still.compiler.canonical import example_digest
from still.compiler.metrics import (
    Metric,
    Score,
    as_metric,
    close,
    exact,
    f1,
    json_fields,
    normalized,
    set_f1,
    span_f1,
    squad_normalize,
)
from still.compiler.weighted import weighted
from still.errors import DatasetError, MetricError
from still.signatures.bridge import Example, Prediction

EXAMPLE = Example(q="?", team="billing", urgency=3).with_inputs("q")


class Team(enum.Enum):
    BILLING = "billing"


class Point(BaseModel):
    x: int


def test_exact_is_the_mean_over_fields():
    metric = exact("team", "urgency")
    assert metric(EXAMPLE, Prediction(team="billing", urgency=3)) == 1.0
    assert metric(EXAMPLE, Prediction(team="billing", urgency=2)) == 0.5
    assert metric(EXAMPLE, Prediction(team="Billing")) == 0.0
    assert metric.fields(EXAMPLE, Prediction(team="billing")) == {"team": 1.0, "urgency": 0.0}
    assert metric(EXAMPLE, None) == 0.0
    assert metric(EXAMPLE, {"team": "billing", "urgency": 3}, trace=[]) == 1.0
    assert "expected 'billing', got 'x'" in metric.score(EXAMPLE, Prediction(team="x", urgency=3)).feedback
    assert metric.score(EXAMPLE, Prediction(team="billing", urgency=3)) == Score(1.0)


def test_exact_without_names_takes_all_labels():
    assert exact().fields(EXAMPLE, Prediction(q="x", team="billing", other=1)) == {"team": 1.0, "urgency": 0.0}
    assert as_metric("exact")(EXAMPLE, Prediction(team="billing", urgency=3)) == 1.0
    assert as_metric(exact)(EXAMPLE, Prediction(team="billing", urgency=3)) == 1.0


@pytest.mark.parametrize(
    ("label", "predicted", "same"),
    [
        ("billing", Team.BILLING, True),
        ({"x": 1}, Point(x=1), True),
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ([1, True], [1, 1], False),
        (None, None, True),
        (None, "", False),
        ([1, 2], (1, 2), True),
        ([1, 2], [2, 1], False),
        ({1, 2}, [1, 2], True),
        ("3", 3, False),
    ],
)
def test_exact_compares_values(label, predicted, same):
    assert exact("a")(Example(a=label), Prediction(a=predicted)) == float(same)


class Order(BaseModel):
    price: Decimal
    parts: list[Decimal] = []
    days: dict[int, Decimal] = {}
    seen: set[Decimal] = set()


class Rate(enum.Enum):
    HALF = Decimal("0.5")


ORDERED = Order(price="3.50", parts=["1.0"], days={1: "2E+1"}, seen={"10.0", "9"})


@pytest.mark.parametrize("metric", [exact, normalized, json_fields])
@pytest.mark.parametrize(
    ("label", "predicted", "same"),
    [
        (Decimal("3.5"), Decimal("3.50"), True),
        (3.5, Decimal("3.50"), True),
        (0.1, Decimal("0.1"), True),
        (100, Decimal("1E+2"), True),
        (0, Decimal("-0.00"), True),
        (Decimal("0.5"), Rate.HALF, True),
        (Decimal("1.5"), Decimal("15"), False),
        (Decimal("-5"), Decimal("5"), False),
        (Decimal("1" * 40 + "2"), Decimal("1" * 40 + "3"), False),
        (Decimal("1e999999999"), Decimal("2e999999999"), False),
        (Decimal("1e-999999999"), Decimal("10e-1000000000"), True),
        (Decimal("1e400"), math.inf, False),
        (10**400, Decimal("1e400"), True),
        (True, Decimal(1), False),
        (math.nan, Decimal("sNaN"), True),
        (-math.inf, Decimal("-Infinity"), True),
        ([Decimal("3.5")], (3.5,), True),
        ({"a": [Decimal("3.5")]}, {"a": [Decimal("3.50")]}, True),
        ({Decimal("10"), Decimal("9")}, {Decimal("1e1"), 9.0}, True),
        (ORDERED, Order(price="3.5", parts=["1"], days={1: "20"}, seen={"9.0", "10"}), True),
        ({"price": 3.5, "parts": [1], "days": {"1": 20}, "seen": [10, 9]}, ORDERED, True),
        (ORDERED.model_dump(mode="json") | {"seen": ["10.0", "9"]}, ORDERED, True),  # its JSON has them as text
        ("3.50", Decimal("3.50"), True),
        ("3.5", Decimal("3.50"), False),
        ([Order(price="3.5")], [Order(price="35")], False),
        (3, np.int64(3), True),
        (True, np.bool_(True), True),
        ([0.5], [np.array(0.5)], True),
    ],
)
def test_numbers_are_compared_as_numbers(metric, label, predicted, same):
    assert (metric("a")(Example(a=label), Prediction(a=predicted)) == 1) == same


def test_set_f1_compares_decimals_as_numbers():
    label = [Decimal("3.5"), Decimal("0.1"), Order(price="2.0")]
    assert set_f1("a")(Example(a=label), Prediction(a=[0.1, Decimal("3.50"), Order(price=2)])) == 1
    assert set_f1("a")(Example(a=[Decimal("1.5")]), Prediction(a=[Decimal("15")])) == 0
    assert close("a")(Example(a=0.5), Prediction(a=Rate.HALF)) == 1


def test_missing_labels_are_named():
    with pytest.raises(MetricError, match=r"exact\('tem'\).*no label 'tem'; it has q, team, urgency"):
        exact("tem")(EXAMPLE, Prediction(team="billing"))
    with pytest.raises(MetricError, match="with_inputs"):
        exact()(Example(a=1), Prediction(a=1))
    with pytest.raises(MetricError, match="no labels"):
        exact()(Example(a=1).with_inputs("a"), Prediction(a=1))


def test_squad_normalization():
    assert squad_normalize("  The U.S.A., an example—of  A thing!") == "usa example—of thing"
    assert squad_normalize("Theatre") == "theatre"
    metric = normalized("a")
    assert metric(Example(a="The Straße"), Prediction(a="STRASSE.")) == 1.0
    assert metric(Example(a=["A cat", "dog"]), Prediction(a=["cat!", "the Dog"])) == 1.0
    assert metric(Example(a="cat"), Prediction(a="cats")) == 0.0
    for compared in (metric, f1("a")):
        assert compared(Example(a="The caf\u00e9"), Prediction(a="Cafe\u0301")) == 1


@pytest.mark.parametrize(
    ("label", "predicted", "value"),
    [
        ("the quick brown fox", "a quick fox", Fraction(4, 5)),
        ("x x y", "x y y", Fraction(2, 3)),
        ("", "the", 1),
        ("x", "", 0),
        (None, "x", 0),
        ("x", "y", 0),
        (["red", "blue"], "blue red", 1),
        (12, "12", 1),
        (-5, 5, 0),
        (1.5, 15, 0),
        (1.5, "1.50", 1),
        (-5, "It is -5.", Fraction(1, 2)),
        (5, "It is -5.", 0),
        (1200, "$1,200", 1),
        (Decimal("3.5"), 3.50, 1),
        (True, 1, 0),
        (True, "true", 1),
        ({"a": -1}, {"a": 1}, 0),
        (-math.inf, math.inf, 0),
        ("-5", "5", 1),  # between texts as SQuAD has it
    ],
)
def test_f1_values(label, predicted, value):
    assert math.isclose(f1("a")(Example(a=label), Prediction(a=predicted)), value)


@given(st.lists(st.sampled_from("xyz"), min_size=1), st.lists(st.sampled_from("xyz"), min_size=1))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(label, predicted):
    shared = sum((Counter(label) & Counter(predicted)).values())
    precision, recall = Fraction(shared, len(predicted)), Fraction(shared, len(label))
    expected = 0 if shared == 0 else 2 * precision * recall / (precision + recall)
    assert math.isclose(f1("a")(Example(a=" ".join(label)), Prediction(a=" ".join(predicted))), expected)


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (True, 1.0),
        (0, 0.0),
        (0.25, 0.25),
        (Score(0.5, "so so"), 0.5),
        (Prediction(score=0.5, feedback="so so"), 0.5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (np.array(0.5), 0.5),
        (Score(np.bool_(True), "so so"), 1.0),
        (Score(np.float32(0.5), "so so"), 0.5),
        (Prediction(score=np.bool_(True), feedback="so so"), 1.0),
        (Prediction(score=np.float32(1), feedback="so so"), 1.0),
        (Fraction(1, 4), 0.25),
        (1.0000000000000002, 1.0),
        (-1e-12, 0.0),
        (Score(1.0000000000000002, "so so"), 1.0),
    ],
)
def test_callables_may_return(result, value):
    metric = as_metric(lambda example, prediction: result)
    score = metric(EXAMPLE, Prediction())
    assert type(score) is float
    assert score == value
    if isinstance(result, Score | Prediction):
        assert metric.score(EXAMPLE, Prediction()).feedback == "so so"
    assert metric.fields(EXAMPLE, Prediction()) == {}


@pytest.mark.parametrize(
    "result",
    [
        None, "1", float("nan"), 1.01, -0.1, 1 + 1e-6, -1e-6, math.inf, Score(2.0), Prediction(answer=1), [1], np.ones(2),
        Score(np.ones(2)), Prediction(score=np.str_("1")),
    ],
)  # fmt: skip
def test_wrong_results_name_metric_example_and_value(result):
    def closeness(example, prediction):
        return result

    with pytest.raises(MetricError) as caught:
        as_metric(closeness)(EXAMPLE, Prediction())
    message = str(caught.value)
    assert "closeness" in message
    assert example_digest(EXAMPLE)[:12] in message
    assert repr(result)[:20] in message


def test_exceptions_keep_their_cause():
    def broken(example, prediction):
        return 1 / 0

    with pytest.raises(MetricError, match=f"broken failed on example {example_digest(EXAMPLE)[:12]}") as caught:
        as_metric(broken)(EXAMPLE, Prediction())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def ours(example, prediction):
        raise MetricError("as it is")

    with pytest.raises(MetricError, match=r"^as it is$"):
        as_metric(ours)(EXAMPLE, Prediction())

    with pytest.raises(MetricError, match=r"field 'team'.*no JSON form") as caught:
        exact("team")(OpaqueExample(team=object()), Prediction(team="billing"))
    assert isinstance(caught.value.__cause__.__cause__, DatasetError)

    def interrupted(example, prediction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        as_metric(interrupted)(EXAMPLE, Prediction())


def test_the_trace_goes_where_the_function_wants_it():
    class Judge:
        def __call__(self, example, prediction, trace=None):
            return trace == "T"

    wanting = [
        lambda example, prediction, trace: trace == "T",
        lambda example, prediction, steps: steps == "T",
        lambda example, prediction, *, trace: trace == "T",
        lambda example, prediction, threshold=0.5, trace=None: trace == "T" and threshold == 0.5,
        lambda gold, pred, trace=None, pred_name=None, pred_trace=None: trace == "T" and pred_name is None,
        Judge(),
    ]
    for function in wanting:
        assert as_metric(function)(EXAMPLE, Prediction(), "T") == 1.0
        assert as_metric(function)(EXAMPLE, Prediction()) == 0.0
    without = [
        lambda example, prediction: 1,
        lambda example, prediction, threshold=0.5: threshold == 0.5,
        lambda *args: 1,
    ]
    for function in without:
        assert as_metric(function)(EXAMPLE, Prediction(), "T") == 1.0
    assert as_metric(Judge()).name == "Judge"


def test_what_is_no_metric():
    for bad in (lambda example: 1, lambda a, b, c, d: 1, 3, None):
        with pytest.raises(MetricError):
            as_metric(bad)
    with pytest.raises(MetricError, match="did you mean 'exact'"):
        as_metric("exat")
    with pytest.raises(MetricError, match="field name"):
        exact(EXAMPLE)

    async def nowhere(example, prediction):
        return 1

    with pytest.raises(MetricError, match="nowhere"):
        as_metric(nowhere)(EXAMPLE, Prediction())


def test_as_metric_keeps_metrics():
    metric = exact("team")
    assert as_metric(metric) is metric
    assert isinstance(metric, Metric)
    assert repr(metric) == "exact('team')"
    assert float(Score(0.5)) == 0.5


def test_feedback_is_text_whatever_was_given():
    assert Score(0.0, None).feedback == ""
    assert Score(0.0, ["too long", 3]).feedback == "['too long', 3]"
    assert as_metric(lambda example, prediction: Score(0.5, None)).score(EXAMPLE, Prediction()) == Score(0.5)
    assert weighted({"a": (lambda example, prediction: Score(0.5, 7), 1)}).score(EXAMPLE, None) == Score(0.5, "a: 7")


def at_least(least, example, prediction, share=1):
    return share if prediction.urgency >= least else 0


def bounded(least, default=0, keyword=0):
    """A metric that captures one value and has two as defaults."""

    def passes(example, prediction, shift=default, *, rest=keyword):
        return prediction.urgency + shift + rest >= least

    return passes


def logged(function, into=""):
    @wraps(function)
    def wrapper(*arguments):
        return (into, function(*arguments))[1]

    return wrapper


class Above:
    def __init__(self, least):
        self.least, self.seen = least, []

    def __call__(self, example, prediction):
        self.seen.append(prediction)
        return prediction.urgency >= self.least


def alike():
    """Metrics of few sources, that differ in the values they hold."""
    values = [1, 2, 1.0, "1", True, None, [1, 2], {"a": 1}, {"x", "y", "z"}, Team.BILLING, np.int64(7), np.int64(8)]
    values += [Point(x=1), Point, object(), bounded(1), bounded(2), exact("a"), exact("b"), as_metric(bounded(3))]
    return [
        *map(bounded, values), bounded(1, default=1), bounded(1, keyword=1), bounded(1, keyword=object()),
        partial(at_least, 1), partial(at_least, 2), partial(at_least, 2, share=0.5), partial(bounded(1)),
        partial(bounded(2)), partial(bounded(1), shift=1), logged(bounded(1)), logged(bounded(2)), logged(bounded(1), "x"),
        lru_cache(bounded(1)), lru_cache(bounded(2)), Above(1), Above(2),
    ]  # fmt: skip


def test_functions_of_one_source_are_told_apart_by_the_values_they_hold():
    found = [as_metric(function).identity for function in alike()]
    assert len(set(found)) == len(found)
    assert found == [as_metric(function).identity for function in alike()]  # whatever objects lie where in memory
    assert not [identity for identity in found if "0x" in identity]
    parts = [weighted({"a": (bounded(least), 1)}).identity for least in (1, 2)]
    assert parts[0] != parts[1]


def test_telling_a_function_from_others_does_nothing_to_it():
    def countdown(example, prediction, left=2):
        return countdown(example, prediction, left - 1) if left else 1

    assert as_metric(countdown).identity == as_metric(countdown).identity
    endless, above = itertools.count(), Above(1)
    assert as_metric(bounded(endless)).identity == as_metric(bounded(endless)).identity
    assert next(endless) == 0
    before = as_metric(above).identity
    assert as_metric(above)(EXAMPLE, EXAMPLE) == 1
    assert as_metric(above).identity == before  # what it remembers is not what it is
    cyclic: list = []
    cyclic.append(cyclic)
    assert as_metric(bounded(cyclic)).identity == as_metric(bounded(cyclic)).identity

    def waiting(example, prediction):
        return later

    before = as_metric(waiting).identity
    later = 1
    assert as_metric(waiting).identity != before


@pytest.mark.parametrize("gain", ["high", None, [1], math.nan, math.inf, pytest.param(10**400, id="huge")])
@pytest.mark.parametrize("metric", [still.mrr(), still.recall_at(2), still.ndcg_at(2)], ids=["mrr", "recall", "ndcg"])
def test_a_gain_that_is_no_number_is_named(metric, gain):
    example = Example(query="q", relevant={"b": 1, "a": gain}).with_inputs("query")
    told = rf"^metric {re.escape(metric.name)}: example [0-9a-f]{{12}}: 'relevant' gives 'a' the gain .*: give a number"
    with pytest.raises(MetricError, match=told) as caught:
        metric(example, Prediction(passages=["b"]))
    assert f"{gain!r:.60}" in str(caught.value)


@pytest.mark.parametrize(
    ("relevant", "found", "recall"),
    [
        ('["a", "b"]', ["a", "x"], 0.5),
        (' ["a", 7]', ["a", "7"], 1),
        ('{"a": 1, "b": 0}', ["a"], 1),
        ("[a", ["[a"], 1),
        ("{a} b", ["{a} b"], 1),
        ("a", ["a"], 1),
    ],
)
def test_relevant_ids_may_be_json_in_a_cell(relevant, found, recall):
    example = Example(query="q", relevant=relevant).with_inputs("query")
    assert still.recall_at(2)(example, Prediction(passages=found)) == recall


FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Values as programs make them: text, numbers, nothing, nested.
PLAIN = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False) | st.text("ab \"'é.", max_size=4)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
ITEMS = st.lists(
    st.builds(
        lambda name, value, key: {key: name, "value": value},
        st.sampled_from(["artist", "city"]),
        st.sampled_from(["Oslo", "oslo.", "the Oslo", "Rome", "-5", "5"]),
        st.sampled_from(["name", "type", "label", "slot"]),
    ),
    max_size=5,
)
KINDS = [
    (exact, NESTED),
    (normalized, NESTED),
    (f1, NESTED),
    (set_f1, st.lists(PLAIN, max_size=5)),
    (span_f1, ITEMS),
    (close, st.none() | st.integers() | st.floats(allow_nan=False) | st.decimals(allow_nan=False)),
    (json_fields, NESTED),
]
ODD = [
    None, "", "x", "nan", "{", "[" * 5000, True, 0, -1.5, math.nan, math.inf, [], [None], [1, [2]], {}, {"a": {"b": None}},
    {"name": 3, "value": 3}, [{"name": 3, "value": 3}], [{"name": "x"}], [{"name": "x", "value": 1, "start": "0", "end": 1}],
    object(), [object()], {1: 2}, {1, "1"}, Team.BILLING, Point(x=1), EXAMPLE, np.ones(2),
    b"\xff", 1j, lambda: 1, Decimal("sNaN"),
]  # fmt: skip


def compared(metric, label, predicted):
    return metric("a")(Example(a=label), Prediction(a=predicted))


@pytest.mark.parametrize(("metric", "values"), KINDS, ids=[metric.__name__ for metric, _ in KINDS])
@given(data=st.data())
def test_values_are_from_0_to_1_and_symmetric_and_1_for_the_same(metric, values, data):
    left, right = data.draw(values), data.draw(values)
    value = compared(metric, left, right)
    assert 0 <= value <= 1
    assert value == compared(metric, right, left)
    assert compared(metric, left, left) == 1
    score = metric("a").score(Example(a=left), Prediction(a=right))
    assert bool(score.feedback) == (value < 1)


@pytest.mark.parametrize("metric", [metric for metric, _ in KINDS])
def test_odd_predictions_count_0_and_never_raise(metric):
    cyclic: list = []
    cyclic.append(cyclic)
    label = {set_f1: ["unlike"], span_f1: {"unlike": "x"}, close: 7.25}.get(metric, {"unlike": 7})
    for odd in [*ODD, cyclic]:
        score = metric("a").score(Example(a=label), Prediction(a=odd))
        assert score.value == 0, odd
        assert score.feedback.startswith("a: ")
    assert metric("a").score(Example(a=label), Prediction()) == Score(0, f"a: expected {label!r}, got nothing")
    assert metric("a")(Example(a=None), Prediction()) == 0
    assert metric("a")(Example(a=label), None) == 0


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        (exact, [object(), [object()], np.ones(2)]),
        (normalized, [object(), [object()]]),
        (f1, [object(), [object()]]),
        (set_f1, ["x", 1, {"a": 1}, object()]),
        (span_f1, ["x", 1, ["x"], [{"name": "x"}], [{"value": "x"}], [{"name": 1, "value": "x"}], object(),
                   [{"name": "x", "value": 1, "start": 1}], [{"name": "x", "value": 1, "span": [1, 2, 3]}]]),
        (close, ["", "many", math.nan, "1,20", "12,00", "3 4", "0,123", True, [1],
                 Decimal("nan"), "--5", "$", "1e99999999999999999999"]),
        (json_fields, [object(), [object()]]),
    ],
)  # fmt: skip
def test_malformed_labels_are_named(metric, labels):
    for label in labels:
        for predicted in (Prediction(a=[]), Prediction()):
            with pytest.raises(MetricError, match=rf"^metric {metric.__name__}\('a'.*example [0-9a-f]{{12}}, field 'a'"):
                metric("a")(OpaqueExample(a=label), predicted)


class OpaqueExample(Example):
    """Its digest can be taken, whatever its label is."""

    def items(self, include_dspy=False):
        return [(key, repr(type(value))) for key, value in super().items(include_dspy)]


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_set_f1_is_the_harmonic_mean_of_precision_and_recall(label, predicted):
    rest, hits = list(label), 0
    for item in predicted:
        if item in rest:
            rest.remove(item)
            hits += 1
    assert math.isclose(compared(set_f1, label, predicted), reference_f1(hits, len(label), len(predicted)))


def reference_f1(hits, expected, given):
    if not expected and not given:
        return 1
    precision = Fraction(hits, given) if given else 0
    recall = Fraction(hits, expected) if expected else 0
    return 2 * precision * recall / (precision + recall) if hits else 0


@pytest.mark.parametrize(
    ("label", "predicted", "value"),
    [
        ([], [], 1),
        (None, [], 1),
        (None, None, 1),
        ([], ["a"], 0),
        (["a"], [], 0),
        ({"a", "b"}, ["b", "a"], 1),
        ((1, 2), [2.0, 1], 1),
        ([1], [True], 0),
        (["1"], [1], 0),
        (["a", "a"], ["a"], Fraction(2, 3)),
        (["a"], ["A"], 0),
        ([{"x": 1}], [Point(x=1)], 1),
        (["billing"], [Team.BILLING], 1),
        ([[1, 2]], [[2, 1]], 0),
    ],
)
def test_set_f1_values(label, predicted, value):
    assert math.isclose(compared(set_f1, label, predicted), value)


def test_set_f1_says_what_is_missing_and_what_is_too_much():
    score = set_f1("a").score(Example(a=["x", "y", "y"]), Prediction(a=["y", "z"]))
    assert score.feedback == "a: missing 'x', 'y'; too much 'z'"
    many = set_f1("a").score(Example(a=list(range(8))), Prediction(a=[]))
    assert many.feedback == "a: missing 0, 1, 2, 3, 4, and 3 more"
    loose = set_f1("a", normalize=True)
    assert loose(Example(a=["The Cat", "C++"]), Prediction(a=["cat.", "c++"])) == 1
    assert loose(Example(a=["C"]), Prediction(a=["C++"])) == 0
    assert loose(Example(a=["hello", "x", "!"]), Prediction(a=["Hello .", '" the x " ,', "!"])) == 1
    assert repr(loose) == "set_f1('a', normalize=True)"


def song(**rest):
    return {"type": "track", "value": "Hey Jude", **rest}


@pytest.mark.parametrize(
    ("label", "predicted", "value"),
    [
        ([song()], [{"name": "track", "text": " “hey  jude”."}], 1),
        ([song()], {"track": "hey jude", "artist": None}, 1),
        ({"track": ["a", "b"]}, [{"slot": "track", "value": "b"}, {"label": "track", "value": "a"}], 1),
        ([song(start=0, end=8)], [song(start=0, end=8)], 1),
        ([song(span=[0, 8])], [song(start=0, end=8)], 1),
        ([song(start=0, end=8)], [song(start=1, end=8)], 0),
        ([song(start=0, end=8)], [song()], 1),  # places count where both sides have them
        ([song(start=0, end=8), song(start=10, end=18)], [song(start=0, end=8)], Fraction(2, 3)),
        ([song()], [song(), song()], Fraction(2, 3)),
        ([song()], [song(type="album")], 0),
        ([{"name": "price", "value": "$3.50"}], {"price": "350"}, 0),
        ([{"name": "degrees", "value": "-5"}], {"degrees": "5"}, 0),
        ([{"name": "band", "value": "The Who"}], {"band": "who"}, 1),
        ([{"name": "mark", "value": "!"}], {"mark": "?"}, 0),
        ([{"name": "mark", "value": "A"}], {"mark": "the"}, 0),
        ([{"name": "greeting", "value": "hello ."}], {"greeting": "“ Hello ”"}, 1),
        ([{"name": "size", "value": Decimal("4.0")}], {"size": 4}, 1),
        ([{"name": "size", "value": "4"}], {"size": 4}, 0),
        ([{"name": "size", "value": 4}], {"size": 4.0}, 1),
        ([{"name": "city", "value": "Cafe\u0301"}], {"city": "café"}, 1),
        ([song(confidence=0.3)], [song(confidence=0.9)], 1),
        ([song(value=None)], [], 1),
        ({}, [], 1),
        (None, {"track": None}, 1),
        ([], [song()], 0),
        ({"x": Point(x=1)}, {"x": {"x": 1}}, 1),
    ],
)
def test_span_f1_values(label, predicted, value):
    assert math.isclose(compared(span_f1, label, predicted), value)


@given(ITEMS, ITEMS)
def test_span_f1_is_micro_f1(label, predicted):
    def key(item):
        value = item["value"].casefold().rstrip(".").removeprefix("the ")
        return next(item[name] for name in ("name", "type", "label", "slot") if name in item), value

    expected, given_ = Counter(map(key, label)), Counter(map(key, predicted))
    true = sum(min(expected[k], given_[k]) for k in expected)
    false_positive = sum(max(0, given_[k] - expected[k]) for k in given_)
    false_negative = sum(max(0, expected[k] - given_[k]) for k in expected)
    errors = 2 * true + false_positive + false_negative
    assert math.isclose(compared(span_f1, label, predicted), 2 * true / errors if errors else 1)


def test_span_f1_takes_slots_as_they_come():
    path = Path(__file__).parents[2] / "shared" / "data" / "snips" / "dev.jsonl"
    if not path.is_file():
        pytest.skip("no snips here")
    for line in path.read_text("utf-8").splitlines()[:200]:
        slots = json.loads(line)["slots"]
        assert compared(span_f1, slots, slots) == 1
        kept = slots[1:]
        expected = reference_f1(len(kept), len(slots), len(kept))
        assert math.isclose(compared(span_f1, slots, kept), expected)
    assert "missing playlist='x'" in span_f1("a").score(Example(a={"playlist": "x"}), Prediction(a=[])).feedback


@pytest.mark.parametrize(
    ("label", "predicted", "value"),
    [
        (1200, "1,200", 1),
        ("1,234,567.50", 1234567.5, 1),
        (3.5, "$3.50", 1),
        (-3.5, "-$3.50", 1),
        (-3.5, "$ -3.50", 1),
        (-5, "−5", 1),
        (12, " 12 € ", 1),
        (0.5, "50%", 1),
        (50, "50%", 0),
        (2000, "2e3", 1),
        (42, "42.", 1),
        (0.5, ".5", 1),
        (Decimal("3.50"), 3.5, 1),
        (Fraction(1, 3), 0.3333333333333333, 1),
        (np.float64(2), np.int64(2), 1),
        (10**400, 10**400, 1),
        (1, 2, 0),
        (1e-9, 2e-9, 0),
        (0, 1e-12, 0),
        (1, True, 0),
        (None, None, 1),
        (None, 0, 0),
        (0, None, 0),
        (math.inf, math.inf, 1),
        (math.inf, -math.inf, 0),
        (math.inf, 1e308, 0),
        (1, math.nan, 0),
        (3, "about 3", 0),
        (3, "1e999999999", 0),
        (3, "9" * 5000, 0),
        (1.8333333333333335, "1.8333333", 1),
    ],
)
def test_close_values(label, predicted, value):
    assert compared(close, label, predicted) == value


@given(
    FINITE | st.integers(-5, 5),
    FINITE | st.integers(-5, 5),
    st.sampled_from([0, 0.01, 0.1, 1.0]),
    st.sampled_from([0, 0.1, 1e6]),
)
def test_close_is_pep_485(a, b, rel, absolute):
    exactly = [Fraction(repr(number)) for number in (a, b, rel, absolute)]
    x, y, r, t = exactly
    expected = abs(x - y) <= max(r * max(abs(x), abs(y)), t)
    assert close("a", rel=rel, abs=absolute)(Example(a=a), Prediction(a=b)) == expected


def test_close_counts_tolerances_as_written():
    assert close("a", rel=0, abs=0.1)(Example(a=1.0), Prediction(a=1.1)) == 1  # 1.1 - 1.0 > 0.1 in floats
    assert close("a", rel=0.01)(Example(a=100), Prediction(a="$99")) == 1
    assert close("a", rel=0.01)(Example(a=100), Prediction(a="98.9")) == 0
    assert repr(close("a", rel=0.01)) == "close('a', rel=0.01, abs=0.0)"
    for bad in ({"rel": -1}, {"abs": math.nan}, {"rel": "1"}, {"abs": None}, {"rel": math.inf}, {"abs": True}):
        with pytest.raises(MetricError, match=f"close: {next(iter(bad))}="):
            close("a", **bad)


ORDER = {"id": 7, "items": [{"sku": "A", "count": 1}, {"sku": "B", "count": 2}], "note": None, "tags": []}


def changed_order(path, value):
    order = json.loads(json.dumps(ORDER))
    *way, last = path
    place = order
    for step in way:
        place = place[step]
    place[last] = value
    return order


@pytest.mark.parametrize(
    ("label", "predicted", "value", "feedback"),
    [
        (ORDER, ORDER, 1, ""),
        (ORDER, json.dumps(ORDER), 1, ""),
        (ORDER, changed_order(["items", 1, "sku"], "C"), Fraction(6, 7), "a: items[1].sku: expected 'B', got 'C'"),
        (ORDER, changed_order(["more"], {"x": 1, "y": 2}), Fraction(7, 9), "a: more: too much, got {'x': 1, 'y': 2}"),
        (changed_order(["more"], 1), ORDER, Fraction(7, 8), "a: more: missing, expected 1"),
        (ORDER, changed_order(["items"], None), Fraction(3, 7), None),
        (
            ORDER,
            changed_order(["tags"], ["x", "y"]),
            Fraction(6, 8),
            "a: tags[0]: too much, got 'x'; tags[1]: too much, got 'y'",
        ),
        (ORDER, changed_order(["items"], ORDER["items"][:1]), Fraction(5, 7), None),
        (ORDER, "not json", 0, None),
        (ORDER, None, 0, None),
        ({"odd key": 1}, {"odd key": 2}, 0, "a: ['odd key']: expected 1, got 2"),
        ([1, True], [1, 1], Fraction(1, 2), "a: [1]: expected True, got 1"),
        ({}, {}, 1, ""),
        ({}, [], 0, None),
        ([], None, 0, None),
        (None, None, 1, ""),
        ("x", "x", 1, ""),
        ("[1", "[1", 1, ""),
        ({"a": math.nan}, {"a": math.nan}, 1, ""),
        ({"x": 1}, Point(x=1), 1, ""),
        ({"x": None}, {}, 0, "a: x: missing, expected None"),
    ],
)
def test_json_fields_values(label, predicted, value, feedback):
    score = json_fields("a").score(Example(a=label), Prediction(a=predicted))
    assert math.isclose(score.value, value)
    if feedback is not None:
        assert score.feedback == feedback


def paths(value, path=()):
    """Leaves by path, written another way than the metric."""
    if isinstance(value, dict | list) and value:
        steps = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for step, inner in steps for key, leaf in paths(inner, (*path, type(value), step)).items()}
    return {path: (type(value) if isinstance(value, dict | list | bool) else 0, repr(value) if value != 0 else "0")}


FLAT = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2) | st.dictionaries(st.sampled_from("xyz"), st.booleans()))


@given(FLAT, FLAT)
def test_json_fields_counts_paths(label, predicted):
    expected, given_ = paths(label), paths(predicted)
    equal = sum(given_.get(path) == leaf for path, leaf in expected.items())
    # Where one side has a leaf and the other a branch of n leaves, that is n leaves, not n + 1.
    total = 0
    for key in label.keys() | predicted.keys():
        sides = [side[key] for side in (label, predicted) if key in side]
        counts = [len(paths(side)) for side in sides]
        nested = all(isinstance(side, dict) and side for side in sides)
        total += len(set().union(*sides)) if nested else max(counts)
    assert math.isclose(compared(json_fields, label, predicted), equal / total if total else 1)


def test_metrics_go_by_name():
    example = Example(q="?", tags=["x"], price="$2", slots={"a": "b"}).with_inputs("q")
    right = Prediction(tags=["x"], price="$2", slots={"a": "b"})
    for name in ("set_f1", "span_f1", "close", "json_fields"):
        field = {"set_f1": "tags", "span_f1": "slots", "close": "price", "json_fields": "slots"}[name]
        only = Example(q="?", **{field: example[field]}).with_inputs("q")
        assert as_metric(name)(only, right) == 1
        assert as_metric(getattr(still, name))(only, right) == 1
    for name in ("judge", "weighted"):
        with pytest.raises(MetricError, match=rf"needs arguments; give metric=still.{name}\("):
            as_metric(name)


def test_weighted_combines_fields():
    example = Example(q="?", team="a b", price=10, tags=["x", "y"]).with_inputs("q")
    metric = weighted({"team": 1, "price": (close(rel=0.1), 2), "tags": ("set_f1", 1.0)})
    wrong = Prediction(team="a", price=10.5, tags=["x"])
    assert math.isclose(metric(example, wrong), (0 + 2 + 2 / 3) / 4)
    assert metric.fields(example, wrong) == {"team": 0.0, "price": 1.0, "tags": 2 / 3}
    assert metric.score(example, wrong).feedback == "team: expected 'a b', got 'a'; tags: missing 'y'"
    assert metric(example, example) == 1
    assert metric(example, None) == 0
    assert repr(metric) == (
        "weighted({'team': (exact('team'), 1.0), 'price': (close('price', rel=0.1, abs=0.0), 2.0), "
        "'tags': (set_f1('tags'), 1.0)})"
    )
    assert as_metric(metric) is metric
    with pytest.raises(MetricError, match="no label 'price'"):
        metric(Example(team="a", tags=[]), wrong)


def test_weighted_takes_functions_and_other_weighted_metrics():
    asked = []

    def brief(example, prediction, trace=None):
        asked.append(trace)
        return Score(0.5, "too long")

    inner = weighted({"team": ("f1", 1), "urgency": 1})
    metric = weighted({"all": (inner, 3), "style": (brief, 1)})
    score = metric.score(EXAMPLE, Prediction(team="billing", urgency=1), "T")
    assert math.isclose(score.value, (3 * 0.5 + 0.5) / 4)
    assert score.feedback == "all: urgency: expected 3, got 1; style: too long"
    assert metric.fields(EXAMPLE, Prediction(team="billing", urgency=1)) == {"team": 1.0, "urgency": 0.0}
    assert asked == ["T"]


@pytest.mark.parametrize(
    "parts",
    [
        {}, [], None, {"a": 0}, {"a": -1}, {"a": math.nan}, {"a": math.inf}, {"a": True}, {"a": "exact"},
        {"a": ("exact",)}, {"a": ("exact", "1")}, {"a": ("exat", 1)}, {1: 1}, {"a": (exact("b"), 1)},
        {"a": (exact("a", "b"), 1)},
        {"a": (3, 1)},
    ],
)  # fmt: skip
def test_weighted_refuses(parts):
    with pytest.raises(MetricError):
        weighted(parts)


@given(st.lists(st.tuples(st.floats(1e-300, 1e308), st.floats(0, 1)), min_size=1, max_size=6))
def test_weighted_is_the_mean_by_weight(pairs):
    parts = {f"p{i}": ((lambda e, p, value=value: value), weight) for i, (weight, value) in enumerate(pairs)}
    exactly = sum(Fraction(w) * Fraction(v) for w, v in pairs) / sum(Fraction(w) for w, _ in pairs)
    value = weighted(parts)(EXAMPLE, None)
    assert 0 <= value <= 1
    assert math.isclose(value, exactly, rel_tol=1e-9, abs_tol=1e-12)
