"""What examples with like inputs say of a scored output, beside what the model says."""

import asyncio
import threading
from typing import Literal

import numpy as np
import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from still.optimizers.calibration import leaning, settle, smoothed_prior
from still.optimizers.candidate import Candidate, PredictorState, current_state
from still.optimizers.decisions import Decisions
from still.optimizers.nearest import NearestDemonstrations
from still.optimizers.neighbours import WORDS, Neighbours
from still.optimizers.prototypes import Prototypes
from still.signatures.layout import lower
from still.signatures.scoring import Scoring

OPTIONS = ("red", "green", "blue")
MINILM = Neighbours.by("minilm")


def unit(*rows):
    rows = np.array(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_nearness_is_the_likelihood_among_an_options_examples(count, seed):
    """Independently: quadratic forms of the shared covariance, which differ between options as nearness does."""
    rng = np.random.default_rng(seed)
    size = 8
    rows, vector = unit(*rng.normal(size=(count, size))), unit(rng.normal(size=size))[0]
    labels = [int(label) if label < 3 else None for label in rng.integers(0, 4, count)]
    without = [i for i in range(count) if rng.random() < 0.3]
    found = Prototypes(rows, labels, 3).nearness(vector, without)
    kept = {o: rows[[i for i in range(count) if labels[i] == o and i not in without]].astype(float) for o in range(3)}
    kept = {option: given for option, given in kept.items() if len(given)}
    spread = [row - given.mean(axis=0) for given in kept.values() for row in given]
    total = sum((np.outer(row, row) for row in spread), np.zeros((size, size)))
    variance = np.trace(total) / size / max(1, len(spread))
    more = 8 * size
    shape = (total / variance + more * np.eye(size)) / (len(spread) + more) if variance > 1e-9 else np.eye(size)
    away = {option: vector - given.mean(axis=0) for option, given in kept.items()}
    likely = {option: -0.5 * step @ np.linalg.pinv(shape) @ step for option, step in away.items()}
    for a in kept:
        for b in kept:
            assert found[a] - found[b] == pytest.approx(likely[a] - likely[b], abs=1e-6)
    for option in {0, 1, 2} - kept.keys():
        assert found[option] == pytest.approx(np.mean([found[o] for o in kept]) if kept else 0.0)


def test_an_option_without_examples_is_neither_near_nor_far():
    rows = unit([1, 0], [0, 1])
    assert Prototypes(rows, [0, 1], 3).nearness(rows[0]) == pytest.approx((0.5, -0.5, 0.0))
    assert Prototypes(rows, [None, None], 2).nearness(rows[0]) == (0.0, 0.0)


def test_a_direction_in_which_examples_differ_tells_little():
    """Two options that differ a little in the first direction; what is in the others is chance, and large."""
    rng = np.random.default_rng(0)

    def drawn(count):
        labels = rng.integers(0, 2, count)
        rows = rng.normal(0, [0.2, 2.0, 1.0, 0.2], (count, 4))
        rows[:, 0] += np.where(labels, 0.3, -0.3)
        return unit(*rows), labels.tolist()

    rows, labels = drawn(1000)
    near, asked = Prototypes(rows, labels, 2), drawn(1000)
    right = np.mean([np.argmax(near.nearness(row)) == label for row, label in zip(*asked, strict=True)])
    means = [rows[[i for i, own in enumerate(labels) if own == option]].mean(axis=0) for option in (0, 1)]
    plain = [np.argmin([np.linalg.norm(row - m) for m in means]) == label for row, label in zip(*asked, strict=True)]
    assert right > np.mean(plain) + 0.02


def told(count, seed, informative):
    """Scores that tell a little, nearness that tells something or nothing, and labels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    scores = rng.normal(0, 2, (count, 3)) + 1.5 * np.eye(3)[truth]
    near = rng.normal(0.3, 0.1, (count, 3)) + (0.2 * np.eye(3)[truth] if informative else 0.0)
    rows = [[dict(zip(OPTIONS, row.tolist(), strict=True)) for row in table] for table in (scores, near)]
    return *rows, [OPTIONS[label] for label in truth]


def test_nearness_counts_where_it_tells_of_labels_it_has_not_seen():
    scores, near, labels = told(100, 0, informative=True)
    prior = smoothed_prior(labels, OPTIONS)
    _, weight = settle(scores, labels, prior, near)
    assert weight > 0
    assert settle(scores, labels, prior)[1] == 0

    def right(rows):
        return np.mean([max(row, key=row.get) == label for row, label in zip(rows, labels, strict=True)])

    assert right(leaning(scores, near, weight)) > right(scores) + 0.1


def test_nearness_that_tells_nothing_hardly_ever_counts():
    asked = (told(60, seed, informative=False) for seed in range(20))
    weights = [settle(scores, labels, smoothed_prior(labels, OPTIONS), near)[1] for scores, near, labels in asked]
    assert sum(weight > 10 for weight in weights) <= 4


def test_a_scoring_leans_by_its_weight():
    assert Scoring(nearness=10.0).leaning((0.5, 0.25)).bias == (5.0, 2.5)
    assert Scoring((1.0, -1.0), nearness=10.0).leaning((0.5, 0.25)).bias == (6.0, 1.5)
    assert "nearness" not in Scoring().to_json()


class Help(still.Signature):
    """Which team helps?"""

    message: str = still.Input()
    team: Literal["shipping", "refund", "broken"] = still.Output()


MESSAGES = [
    ("the parcel never arrived at my house", "shipping"), ("my shipment got lost on its way", "shipping"),
    ("please pay back what I spent", "refund"), ("I would like a reimbursement", "refund"),
    ("the screen is cracked", "broken"), ("it does not turn on any more", "broken"),
]  # fmt: skip
POOL = tuple({"message": message, "team": team} for message, team in MESSAGES)
ASKED = [
    ("where has the delivery gone", "shipping"), ("return my money", "refund"), ("the display has a crack", "broken"),
    ("the courier lost the package", "shipping"), ("I want to be paid back", "refund"), ("it is dead, no light", "broken"),
]  # fmt: skip


def helping(weight, neighbours=MINILM, shown=2):
    """A program with two neighbours, or none shown, whose options lean by so much."""
    calibration = {"bias": {}, "temperature": 1.0, "nearness": weight}
    fields = {"team": {"decide": "score", "calibration": calibration}}
    state = PredictorState(POOL, shown, fields=fields, neighbours=neighbours)
    return Candidate("c", "test", {"self": state}).apply(still.Predict(Help))


def test_a_message_is_nearest_to_its_teams_examples_and_never_to_itself():
    pool = NearestDemonstrations(POOL, 2, MINILM)
    options = ("shipping", "refund", "broken")
    for message, team in ASKED:
        near = pool.nearness(Help, {"message": message})["team"]
        assert options[int(np.argmax(near))] == team
    inside, outside = (pool.nearness(Help, {"message": text})["team"][2] for text in (POOL[4]["message"], "screen cracked!"))
    assert inside < outside, "an example's own label is not among what it is told"
    assert NearestDemonstrations(POOL, 2, WORDS).nearness(Help, {"message": "lost"}) == {}


@pytest.mark.model
@pytest.mark.parametrize("message", [message for message, _ in ASKED])
def test_a_program_answers_by_scores_and_nearness_together(message):
    team = dict(ASKED)[message]
    with still.context(lm=still.LM()):
        plain, light, heavy = (helping(weight)(message=message) for weight in (0.0, 20.0, 1000.0))
        words = helping(1000.0, WORDS)(message=message), helping(0.0, WORDS)(message=message)
    assert heavy.team == team, "so heavy a weight decides alone"
    assert plain.probabilities["team"][team] < light.probabilities["team"][team] < heavy.probabilities["team"][team]
    assert heavy.completion.scores == plain.completion.scores, "scores stay the model's own"
    assert words[0].probabilities == words[1].probabilities, "words tell nothing"


def test_a_pool_may_tell_without_being_shown():
    (pool, two), state = (NearestDemonstrations(POOL, n, MINILM) for n in (0, 2)), PredictorState(POOL, 0, neighbours=MINILM)
    candidate = Candidate("c", "test", {"self": state})
    assert pool.select({"message": "lost"}) == []
    assert pool.nearness(Help, {"message": "lost"}) == two.nearness(Help, {"message": "lost"})
    assert "compared with 6 demonstrations" in pool.about
    assert (candidate.demonstration_count, candidate.per_input) == (0, False)
    assert current_state(candidate.apply(still.Predict(Help))).nearest == 0


def test_a_state_knows_whether_its_options_lean():
    near, far = {"bias": {"nearness": 1.0}, "nearness": 5.0}, {"bias": {"nearness": 1.0}}
    given = [{"f": {"calibration": calibration}} for calibration in (near, far, {"f.a": near}, {"f.a": far})]
    assert [PredictorState(fields=fields).leans for fields in given] == [True, False, True, False]


@pytest.mark.model
def test_a_compile_finds_what_examples_say_without_showing_them(tmp_path):
    result = still.compile(
        still.Predict(Help), *splits(), lm=still.LM(), passes=[Decisions()], ledger=tmp_path / "l.duckdb", progress=False
    )
    rows = {row.name: row for row in result.report.rows}
    assert result.report.winner == "calibrated by examples"
    assert rows["calibrated by examples"].score > rows["baseline"].score
    assert rows["calibrated by examples"].calls == rows["baseline"].calls, "nothing was asked for it"
    assert (result.winner.states["self"].leans, result.winner.states["self"].shown) == (True, 0)
    assert "nearness to examples" in result.report.page()
    assert "compared with 18 demonstrations" in result.report.evidence.prompts[0].after


@pytest.mark.model
@pytest.mark.parametrize("shown", [0, 2])
def test_an_artifact_has_what_its_options_lean_by(tmp_path, shown):
    lm = still.LM()
    result = still.compile(helping(20.0, shown=shown), *splits(), lm=lm, level="O0", ledger=tmp_path / "l", progress=False)
    result.save(tmp_path / "help.still")
    loaded = still.load(tmp_path / "help.still")
    with still.context(lm=lm):
        programs = loaded, result.program, helping(0.0, shown=shown)
        for message, _ in ASKED:
            found = [program(message=message).probabilities for program in programs]
            assert found[0] == found[1] != found[2]


def test_a_coroutine_leans_without_holding_up_its_loop(tiny_lm):
    class Source(list):
        threads = []  # noqa: RUF012

        def select(self, inputs):
            return []

        def nearness(self, signature, inputs):
            self.threads.append(threading.current_thread())
            return {"team": (0.0, 1.0, 0.0)}

    program = helping(1000.0)
    program.demos = Source()
    with still.context(lm=tiny_lm):
        answers = [program(message="lost"), asyncio.run(program.acall(message="lost"))]
    assert [answer.team for answer in answers] == ["refund", "refund"]
    assert [thread is threading.main_thread() for thread in Source.threads] == [True, False]


def splits():
    return (
        still.Dataset([{"message": f"{m}{end}", "team": t} for end in ends for m, t in rows], ["message"])
        for rows, ends in ((MESSAGES, ("", "!", " please")), (ASKED, ("", ".")))
    )


def test_a_plan_says_what_its_options_lean_by():
    assert "calibrated by examples, all scored" in str(lower(helping(10.0).signature))
