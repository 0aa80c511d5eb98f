"""Metrics: values from 0 to 1, and every way for a user's metric to go wrong is named."""

from __future__ import annotations

import enum
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from still.compiler.canonical import example_digest
from still.compiler.metrics import Metric, Score, as_metric, exact, f1, normalized, squad_normalize
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
        (Fraction(1, 4), 0.25),
    ],
)
def test_callables_may_return(result, value):
    metric = as_metric(lambda example, prediction: result)
    score = metric(EXAMPLE, Prediction())
    assert type(score) is float
    assert score == value
    if not isinstance(result, bool | int | float | np.generic | Fraction):
        assert metric.score(EXAMPLE, Prediction()).feedback == "so so"
    assert metric.fields(EXAMPLE, Prediction()) == {}


@pytest.mark.parametrize(
    "result", [None, "1", float("nan"), 1.01, -0.1, math.inf, Score(2.0), Prediction(answer=1), [1], np.ones(2)]
)
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
        exact("team")(EXAMPLE, Prediction(team=object()))
    assert isinstance(caught.value.__cause__, DatasetError)

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
