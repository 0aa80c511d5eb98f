"""What the best of many can be expected to do on new examples."""

from dataclasses import replace

import numpy as np
import pytest
from still.optimizers.candidate import Candidate
from still.optimizers.context import Outcome, Standing
from still.optimizers.selection import CONFIDENCE, select


def standing(name, scores):
    return Standing(Candidate(name, "test"), tuple(Outcome(float(score)) for score in scores))


def coins(count, examples, chance, rng):
    return [standing(f"c{i}", rng.random(examples) < chance) for i in range(count)]


def test_the_best_of_equals_is_corrected_to_what_it_is():
    """Forty candidates that are all right half of the time: the best looks far better, the correction knows."""
    rng = np.random.default_rng(0)
    best, corrected = [], []
    for trial in range(20):
        baseline, *others = coins(40, 50, 0.5, rng)
        best.append(max(s.mean for s in (baseline, *others)))
        corrected.append(select(baseline, others, trial).score)
    assert np.mean(best) > 0.62
    assert np.mean(corrected) == pytest.approx(0.5, abs=0.04)


def test_chance_seldom_replaces_the_baseline():
    rng = np.random.default_rng(1)
    replaced = 0
    for trial in range(40):
        baseline, *others = coins(10, 30, 0.5, rng)
        replaced += select(baseline, others, trial).confidence >= CONFIDENCE
    assert replaced <= 8


def test_a_clear_gain_is_told_apart():
    rng = np.random.default_rng(2)
    baseline = standing("baseline", rng.random(60) < 0.3)
    better = standing("better", rng.random(60) < 0.75)
    found = select(baseline, [*coins(5, 60, 0.3, rng), better], 0)
    assert found.confidence > 0.99
    assert found.low < 0.75 < found.high
    assert found.score == pytest.approx(better.mean, abs=0.05)


def test_candidates_that_were_dropped_early_cannot_be_picked():
    baseline = standing("baseline", [0, 1] * 20)
    lucky, other = standing("lucky", [1] * 10), standing("other", [0] * 40)
    found = select(baseline, [lucky, other], 0)
    assert found.candidates == 2
    assert found.score == pytest.approx(0.5, abs=0.02)


def test_what_has_not_seen_all_when_the_budget_ran_out_cannot_be_picked():
    baseline = standing("baseline", [0, 1] * 20)
    found = select(baseline, [standing("better", [1] * 24), standing("short", [1] * 12)], 0)
    assert found.candidates == 1
    assert found.confidence == 0.5


@pytest.mark.parametrize("scores", [[1.0], [0.0], [0.5, 0.5]])
def test_one_or_two_examples_tell_nothing(scores):
    found = select(standing("baseline", scores), [standing("other", [1.0] * len(scores))], 0)
    assert 0.0 <= found.low <= found.score <= found.high <= 1.0
    assert found.confidence <= 1.0


def test_the_same_seed_gives_the_same_selection():
    rng = np.random.default_rng(3)
    baseline, *others = coins(6, 40, 0.5, rng)
    assert select(baseline, others, 7) == select(baseline, others, 7)


def test_giving_up_on_what_is_behind_leaves_the_correction_as_it_is():
    """Coins of the same quality: those that fell behind were stopped half way, and the best is still not believed."""
    rng = np.random.default_rng(5)
    whole, stopped = [], []
    for trial in range(40):
        baseline, *others = coins(8, 60, 0.5, rng)
        best = max(others, key=lambda s: s.mean)
        first = sum(o.score for o in best.outcomes[:30]) / 30
        short = [replace(s, outcomes=s.outcomes[:30], dropped="behind") for s in others]
        cut = [s if s is best or part.mean >= first else part for s, part in zip(others, short, strict=True)]
        whole.append(select(baseline, others, trial).score)
        stopped.append(select(baseline, cut, trial).score)
    assert np.mean(stopped) == pytest.approx(np.mean(whole), abs=0.015)
    assert np.mean(whole) == pytest.approx(0.5, abs=0.03)
