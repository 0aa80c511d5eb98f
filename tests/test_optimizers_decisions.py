"""Decode or score, and calibration: what is fitted, what is reported, what is kept."""

import math
import random
from typing import Literal

import numpy as np
import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedLM
from still.optimizers.calibration import (
    RIDGES,
    Calibration,
    calibration_error,
    cross_fitted,
    fit,
    fit_temperature,
    prior_correction,
    probabilities,
    smoothed_prior,
)  # fmt: skip
from still.optimizers.decisions import Decisions

OPTIONS = ("red", "green", "blue")


def biased_scores(count, seed, sharpness=1.0, bias=(3.0, 0.0, 0.0)):
    """Scores that are right but for a bias and a temperature, and the labels drawn from the right probabilities."""
    rng = np.random.default_rng(seed)
    right = rng.normal(0, 2, (count, 3))
    weights = np.exp(right)
    labels = [OPTIONS[rng.choice(3, p=row / row.sum())] for row in weights]
    scores = right * sharpness + np.array(bias)
    return [dict(zip(OPTIONS, row.tolist(), strict=True)) for row in scores], labels


def test_prior_correction_gives_the_prior_as_mean():
    scores, _ = biased_scores(300, 0)
    prior = {"red": 0.2, "green": 0.5, "blue": 0.3}
    bias = prior_correction(scores, prior, ridge=0.0)
    mean = probabilities(scores, Calibration(bias)).mean(axis=0)
    assert mean == pytest.approx([0.2, 0.5, 0.3], abs=1e-4)
    assert sum(bias.values()) == pytest.approx(0.0, abs=1e-9)


def test_prior_correction_takes_a_known_bias_out():
    scores, labels = biased_scores(4000, 1)
    bias = prior_correction(scores, smoothed_prior(labels, OPTIONS), ridge=1.0)
    assert bias["red"] - bias["blue"] == pytest.approx(-3.0, abs=0.3)


@given(st.integers(1, 30), st.integers(2, 40), st.sampled_from(RIDGES), st.integers(0, 10**6))
def test_a_prior_correction_is_where_no_small_step_is_better(inputs, options, ridge, seed):
    """Independently: the gradient of the penalized likelihood, by its definition, is zero there."""
    rng = np.random.default_rng(seed)
    names = [str(option) for option in range(options)]
    rows = rng.normal(0, rng.uniform(0.1, 20), (inputs, options))
    scores = [dict(zip(names, row.tolist(), strict=True)) for row in rows]
    prior = smoothed_prior(rng.choice(names, 20).tolist(), names)
    bias = prior_correction(scores, prior, ridge)
    mean = probabilities(scores, Calibration(bias)).mean(axis=0)
    gradient = [prior[name] - share - ridge / inputs * bias[name] for name, share in zip(names, mean, strict=True)]
    assert gradient == pytest.approx(np.zeros(options), abs=1e-5)


def test_many_options_and_few_inputs_move_little():
    """Of 40 inputs for 40 options, the mean says hardly anything about what the model prefers."""
    rng = np.random.default_rng(0)
    names = [str(option) for option in range(40)]
    truth = rng.integers(0, 40, 1040)
    rows = rng.normal(0, 1, (1040, 40)) + 3 * np.eye(40)[truth]
    scores = [dict(zip(names, row.tolist(), strict=True)) for row in rows]
    prior = dict.fromkeys(names, 1 / 40)

    def right(ridge):
        likely = probabilities(scores[40:], Calibration(prior_correction(scores[:40], prior, ridge)))
        return (likely.argmax(axis=1) == truth[40:]).mean()

    assert right(1.0) > right(0.0) + 0.03


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_undoes_sharpness(sharpness):
    scores, labels = biased_scores(4000, 2, sharpness, bias=(0, 0, 0))
    assert fit_temperature(scores, labels, {}) == pytest.approx(sharpness, rel=0.15)


def test_calibration_lowers_error_and_raises_accuracy_of_biased_scores():
    scores, labels = biased_scores(400, 3, sharpness=4.0, bias=(9.0, 0, 0))
    correct = [OPTIONS.index(label) for label in labels]
    before = probabilities(scores)
    after = cross_fitted(scores, labels, smoothed_prior(labels, OPTIONS), ridge=1.0)
    assert calibration_error(after, correct) < calibration_error(before, correct) / 3
    assert (after.argmax(1) == correct).mean() > (before.argmax(1) == correct).mean() + 0.1


def test_cross_fitting_never_looks_at_the_label_it_judges():
    scores, labels = biased_scores(40, 4)
    prior = smoothed_prior(labels, OPTIONS)
    for changed in range(0, 40, 7):
        others = list(labels)
        others[changed] = "red" if labels[changed] != "red" else "blue"
        found = [cross_fitted(scores, given, prior, ridge=1.0)[changed] for given in (others, labels)]
        assert found[0] == pytest.approx(found[1])


def test_calibration_error_by_hand():
    likely = np.array([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55], [0.35, 0.65]])
    # Bin 0.9: confidence 0.95, accuracy 0.5. Bins 0.5 and 0.6: wrong at 0.55, right at 0.65.
    assert calibration_error(likely, [0, 1, 0, 1]) == pytest.approx((2 * 0.45 + 0.55 + 0.35) / 4)


@given(st.lists(st.lists(st.floats(-60, 0), min_size=3, max_size=3), min_size=1, max_size=12), st.data())
def test_any_scores_give_probabilities(rows, data):
    scores = [dict(zip(OPTIONS, row, strict=True)) for row in rows]
    labels = [data.draw(st.sampled_from(OPTIONS)) for _ in rows]
    fitted = fit(scores, labels, smoothed_prior(labels, OPTIONS), data.draw(st.sampled_from(RIDGES)))
    found = probabilities(scores, fitted)
    assert np.isfinite(found).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(len(rows)))
    assert math.isfinite(fitted.temperature)


class Colour(still.Signature):
    """Name the colour."""

    thing: str = still.Input()
    colour: Literal["red", "green", "blue"] = still.Output()


THINGS = ["blood", "grass", "sky", "tomato", "leaf", "sea", "cherry", "pine", "ice", "rose", "fern", "lake"]


def colours(count, seed):
    chance = random.Random(seed)
    rows = [(f"{chance.choice(['a', 'the', 'some'])} {THINGS[i % 12]} {i // 12}", OPTIONS[i % 3]) for i in range(count)]
    return still.Dataset([{"thing": thing, "colour": colour} for thing, colour in rows], inputs=["thing"])


def test_compiling_tries_scoring_and_reports_calibration(tmp_path):
    result = still.compile(
        still.Predict(Colour), colours(36, 0), colours(36, 1), lm=still.LM(), ledger=tmp_path / "l.duckdb", progress=False
    )
    names = [row.name for row in result.report.rows]
    assert any(name.endswith("scored") for name in names)
    assert any(name.endswith("calibrated") for name in names)
    best = max(row.score for row in result.report.rows if row.examples == 36)
    assert next(row.score for row in result.report.rows if row.name == result.report.winner) == best
    if "calibrated" in result.winner.name:
        (summary,) = result.report.calibrations
        assert summary.field == "colour"
        assert summary.examples == 36
        assert f"{summary.error_before:.3f} before" in str(result.report)


def test_what_is_scored_already_is_calibrated_for_nothing(tmp_path):
    scored = still.Predict(Colour.with_updated_fields("colour", decide="score"))
    result = still.compile(
        scored, colours(12, 0), colours(12, 1), lm=still.LM(), passes=[Decisions()], ledger=tmp_path / "l.duckdb",
        progress=False, embedder=None,
    )  # fmt: skip
    assert [row.name for row in result.report.rows] == ["baseline", "calibrated"]
    baseline, calibrated = result.report.rows
    assert calibrated.calls == baseline.calls == 12
    with still.Ledger(tmp_path / "l.duckdb") as ledger:
        spent = {
            name: ledger.query(
                "SELECT sum(prompt_tokens - cached_tokens), sum(prompt_tokens) FROM evaluations JOIN candidates USING "
                f"(candidate_id) WHERE name = '{name}'"
            )[1][0]
            for name in ("baseline", "calibrated")
        }
    assert spent["calibrated"][0] == 0, "the scores are known, only the decisions are new"
    assert spent["calibrated"][1] == spent["baseline"][1], "and count against a budget as they did"


def test_a_calibrated_program_comes_back_from_its_artifact(tmp_path):
    from still.compiler.artifact import save_artifact
    from still.compiler.report import Report
    from still.optimizers.candidate import Candidate, PredictorState

    lm = still.LM()
    fields = {"colour": {"decide": "score", "calibration": {"bias": {"red": 4.0, "blue": -2.0}, "temperature": 2.0}}}
    program = Candidate("c", "test", {"self": PredictorState(fields=fields)}).apply(still.Predict(Colour))
    report = Report("O1", "exact", "m", 0, 1, 1, 0.0, 0, 0, "c", ())
    model = {"name": "m", "digest": lm.digest, "sampling": {}, "local": lm.local.to_json()}
    save_artifact(tmp_path / "a", program, report, model, {})
    loaded = still.load(tmp_path / "a")
    with still.context(lm=lm):
        for thing in ("a tomato", "the sky"):
            mine, theirs = program(thing=thing), loaded(thing=thing)
            assert theirs.probabilities == mine.probabilities
            assert theirs.completion.scores == mine.completion.scores
    assert "scored" in (tmp_path / "a" / "plans" / "self.txt").read_text()


def test_scores_survive_the_ledger(tmp_path):
    """The second compile takes every row from the ledger and finds the same calibration."""
    arguments = {"lm": still.LM(), "ledger": tmp_path / "l.duckdb", "progress": False}
    first = still.compile(still.Predict(Colour), colours(24, 0), colours(24, 1), **arguments)
    second = still.compile(still.Predict(Colour), colours(24, 0), colours(24, 1), **arguments)
    assert second.report.resumed > 0
    assert second.winner.digest == first.winner.digest
    assert second.report.calibrations == first.report.calibrations
    assert [row.score for row in second.report.rows] == [row.score for row in first.report.rows]


def test_programs_without_closed_sets_are_left_alone(tmp_path):
    class Free(still.Signature):
        """Repeat."""

        text: str = still.Input()
        again: str = still.Output()

    data = still.Dataset([{"text": str(i), "again": str(i)} for i in range(8)], inputs=["text"])
    lm = ScriptedLM(lambda plan, inputs: {"again": "1"})
    result = still.compile(still.Predict(Free), data, data, lm=lm, ledger=tmp_path / "l.duckdb", progress=False)
    assert not any("scored" in row.name for row in result.report.rows)
