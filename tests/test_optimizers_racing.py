"""Races: nothing as good as the leader is dropped more often than stated, and what is worse is dropped early."""

import itertools
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.context import Outcome
from still.optimizers.racing import ERROR_RATE, chance_to_lead, paired_p_value, race


class Table:
    """An EvaluationContext over a table of scores, [candidate name][example]."""

    train: ClassVar[list] = []
    input_fields = frozenset()

    def __init__(self, scores, seed=0):
        self.scores, self.seed = scores, seed
        self.dev = range(len(next(iter(scores.values()))))
        self.runs = 0

    def expect(self, examples): ...

    def evaluate(self, program, candidate, indices):
        self.runs += len(indices)
        return [Outcome(self.scores[candidate.name][i]) for i in indices]

    def rollouts(self, program, candidate, indices):
        return []


def candidates(*names, sizes=None):
    sizes = sizes or {}
    return [
        Candidate(n, "test", {"p": PredictorState(tuple({"x": i, "n": n} for i in range(sizes.get(n, 1))))}) for n in names
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9))
def test_p_value_equals_the_enumeration_of_all_sign_flips(pairs):
    better, worse = [a / 4 for a, _ in pairs], [b / 4 for _, b in pairs]
    differences = np.subtract(better, worse)
    observed = differences.sum()
    if observed <= 0:
        assert paired_p_value(better, worse, 0) == 1.0
        return
    flips = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(pairs))]
    exact = np.mean([flip >= observed - 1e-9 for flip in flips])
    assert paired_p_value(better, worse, 0) == pytest.approx(exact, abs=0.02)


def test_equals_are_rarely_called_beaten():
    """Six candidates of the same quality: the share of races that call any beaten stays at the stated rate."""
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(6)]
    wrong = 0
    for seed in range(60):
        scores = {name: (rng.random(48) < 0.5).astype(float).tolist() for name in names}
        standings = race(None, candidates(*names), Table(scores, seed))
        wrong += any((s.dropped or "").startswith("beaten") for s in standings)
    # 99.9 % quantile of a binomial of 60 at 5 %
    assert ERROR_RATE == 0.05
    assert wrong <= 9


def test_giving_up_costs_little_and_saves_much():
    """Of six candidates of about the same quality, the one that is kept is on average as good as the best, seen whole."""
    rng = np.random.default_rng(4)
    names = [f"c{i}" for i in range(6)]
    lost, runs = [], 0
    for seed in range(40):
        scores = {name: (rng.random(100) < 0.6).astype(float).tolist() for name in names}
        table = Table(scores, seed)
        lost.append(max(map(np.mean, scores.values())) - race(None, candidates(*names), table)[0].mean)
        runs += table.runs
    assert np.mean(lost) < 0.006
    assert runs < 0.75 * 40 * 600


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=5), st.integers(1, 3))
def test_the_chance_to_lead_equals_the_enumeration_of_what_may_come(pairs, remaining):
    behind, leader = [a / 2 for a, _ in pairs], [b / 2 for _, b in pairs]
    differences = np.subtract(behind, leader)
    steps = [sign * d for d in differences for sign in (1, -1)]
    ends = [differences.sum() + sum(more) >= -1e-9 for more in itertools.product(steps, repeat=remaining)]
    exact = 1.0 if differences.sum() >= 0 else np.mean(ends)
    assert chance_to_lead(behind, leader, remaining, 0) == pytest.approx(exact, abs=0.05)


def test_the_better_wins_and_the_worse_costs_less():
    rng = np.random.default_rng(1)
    scores = {"bad": (rng.random(96) < 0.2).astype(float).tolist(), "good": (rng.random(96) < 0.9).astype(float).tolist()}
    scores["worse"] = (rng.random(96) < 0.1).astype(float).tolist()
    table = Table(scores)
    standings = race(None, candidates("bad", "good", "worse"), table)
    assert standings[0].candidate.name == "good"
    assert "beaten by good" in next(s.dropped for s in standings if s.candidate.name == "worse")
    assert table.runs < 3 * 96
    baseline = next(s for s in standings if s.candidate.name == "bad")
    assert len(baseline.outcomes) == 96, "the baseline is seen whole, to be compared with"


def test_survivors_have_seen_everything_and_in_the_same_order():
    scores = {name: [float(i % 3 == 0) for i in range(50)] for name in ("a", "b", "c")}
    for standing in race(None, candidates("a", "b", "c"), Table(scores)):
        assert standing.dropped is None
        assert sum(o.score for o in standing.outcomes) == sum(scores["a"])


def test_ties_go_to_fewer_demonstrations_then_to_the_first_named():
    scores = {name: [1.0] * 24 for name in ("big", "small", "first", "second")}
    order = race(None, candidates("big", "small", sizes={"big": 8, "small": 2}), Table(scores))
    assert [s.candidate.name for s in order] == ["small", "big"]
    order = race(None, candidates("first", "second"), Table(scores))
    assert [s.candidate.name for s in order] == ["first", "second"]


@settings(max_examples=20, deadline=None)
@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_naming_does_not_choose_the_winner(names):
    rng = np.random.default_rng(3)
    quality = {"a": 0.3, "b": 0.8, "c": 0.5, "d": 0.6}
    scores = {n: (rng.random(60) < quality[n]).astype(float).tolist() for n in sorted(quality)}
    assert race(None, candidates(*names), Table(scores))[0].candidate.name == "b"


def test_a_handful_of_examples_is_one_block():
    scores = {"a": [0.0] * 5, "b": [1.0] * 5}
    standings = race(None, candidates("a", "b"), Table(scores))
    assert standings[0].candidate.name == "b"
    assert all(len(s.outcomes) == 5 for s in standings)
