"""Runs on training examples: drawn again where they fail, chosen by score."""

from dataclasses import replace

import duckdb
import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedLM
from still.optimizers.bootstrap import DRAWS, WANTED, best_of, bootstrap
from still.optimizers.candidate import TEMPERATURE, Candidate
from still.optimizers.context import PredictorTrace, Rollout
from still.optimizers.demonstrations import Demonstrations
from still.signatures.executor import Sampling

EXAMPLES = [still.Example(question=f"q{i}", answer=f"a{i}").with_inputs("question") for i in range(40)]
START = Candidate("baseline", "baseline")


class Context:
    """Runs an example with the score that `worth(example's number, draw)` gives; `left` calls are paid for."""

    train, seed = EXAMPLES, 0

    def __init__(self, worth, left=100):
        self.worth, self.left, self.asked = worth, left, []

    def rollouts(self, program, candidate, indices):
        self.asked.append((candidate.draw, sorted(indices)))
        if self.left < len(self.asked):
            return []
        return [
            Rollout(EXAMPLES[i], self.worth(i, candidate.draw), (PredictorTrace("self", {}, {"draw": candidate.draw}),))
            for i in indices
        ]


def test_what_fails_is_drawn_again_and_the_best_run_is_kept():
    context = Context(lambda i, draw: 1.0 if i % 8 == draw else 0.1 * draw)
    runs = bootstrap(None, START, context, again=True)
    assert [draw for draw, _ in context.asked] == list(range(DRAWS))
    assert context.asked[1][1] == [i for i in range(40) if i % 8]
    assert context.asked[2][1] == [i for i in range(40) if i % 8 not in (0, 1)]
    found = {run.example.question: (run.score, run.trace[0].outputs["draw"]) for run in runs}
    assert (found["q8"], found["q9"], found["q10"]) == ((1.0, 0), (1.0, 1), (1.0, 2))
    assert found["q11"] == (pytest.approx(0.2), 2)


def test_of_equal_runs_the_first_is_kept():
    runs = bootstrap(None, START, Context(lambda i, draw: 0.5), again=True)
    assert {run.trace[0].outputs["draw"] for run in runs} == {0}


@pytest.mark.parametrize(("passing", "rounds"), [(WANTED, 1), (WANTED - 1, 2)])
def test_nothing_is_drawn_again_once_enough_pass(passing, rounds):
    context = Context(lambda i, draw: float(i < passing or draw == 1))
    bootstrap(None, START, context, again=True)
    assert len(context.asked) == rounds


@pytest.mark.parametrize(("score", "count"), [(1.0, WANTED), (0.0, 40)])
def test_where_labels_say_all_examples_run_once_until_enough_pass(score, count):
    context = Context(lambda i, draw: score)
    runs = bootstrap(None, START, context, again=False)
    assert {draw for draw, _ in context.asked} == {0}
    asked = [i for _, indices in context.asked for i in indices]
    assert len(set(asked)) == len(asked) == len(runs) == count


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_spent_budget_keeps_what_was_run(left):
    context = Context(lambda i, draw: 0.1 + draw / 10, left)
    runs = bootstrap(None, START, context, again=True)
    assert len(runs) == (40 if left else 0)
    assert {run.score for run in runs} == ({0.1 + (left - 1) / 10} if left else set())


@given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), max_size=30), st.integers(1, 10))
def test_the_best_of_runs(scores, count):
    runs = [Rollout(None, score, ()) for score in scores]
    kept = best_of(runs, count)
    passed = [run for run in runs if run.score == 1.0]
    assert kept[: len(passed)] == passed
    others = [run.score for run in kept[len(passed) :]]
    assert len(kept) <= max(count, len(passed))
    assert others == sorted(others, reverse=True)
    left_out = sorted((run.score for run in runs if run.score < 1.0), reverse=True)[len(others) :]
    if others:
        assert others[-1] >= max(left_out, default=0.0)
        assert others[-1] > sorted(scores)[(len(scores) - 1) // 2]


class Drawing(ScriptedLM):
    """Finds the answer only where it draws; remembers how it was asked."""

    def __init__(self):
        super().__init__(self.say)
        self.samplings, self.now = [], None

    def execute(self, plan, inputs, sampling=None, n=1):
        with self.lock:
            self.samplings.append(sampling or Sampling())
            self.now = self.samplings[-1]
        return super().execute(plan, inputs, sampling, n)

    def say(self, plan, inputs):
        shown = any("because" in turn.text for turn in plan.turns[:-2])
        return {"reasoning": "because", "answer": f"a{inputs['question'][1:]}" if shown or self.now.temperature else "no"}


def test_a_compile_shows_what_was_found_by_drawing(tmp_path):
    lm = Drawing()
    data = still.Dataset([dict(example) for example in EXAMPLES], inputs=["question"])
    result = still.compile(
        still.ChainOfThought("question -> answer"), data, data, lm=lm, passes=[Demonstrations()], progress=False,
        ledger=tmp_path / "l.duckdb",
    )  # fmt: skip
    assert result.winner.name == "bootstrapped-4"
    drawn = [sampling for sampling in lm.samplings if sampling.temperature]
    assert {sampling.temperature for sampling in drawn} == {TEMPERATURE}
    assert len({sampling.seed for sampling in drawn}) == 1, "one draw found enough"
    assert result.program.predict.config == still.ChainOfThought("question -> answer").predict.config
    with duckdb.connect(tmp_path / "l.duckdb", read_only=True) as ledger:
        found = ledger.sql("SELECT name FROM candidates WHERE name LIKE '%draw%'").fetchall()
    assert found == [("baseline, draw 1",)]


def test_a_draw_is_another_candidate_at_the_programs_own_temperature():
    program = still.Predict("question -> answer", temperature=0.3)
    one, two = replace(START, draw=1), replace(START, draw=2)
    assert len({START.digest, one.digest, two.digest}) == 3
    configs = [candidate.apply(program).config for candidate in (START, one, two)]
    assert [config["temperature"] for config in configs] == [0.3, 0.3, 0.3]
    assert len({config.get("rollout_id") for config in configs}) == 3
    assert one.apply(still.Predict("question -> answer", temperature=0.0)).config["temperature"] == TEMPERATURE


def test_where_nothing_passes_the_nearest_to_it_are_shown_and_the_report_says_so(tmp_path):
    """The metric has degrees and nothing is perfect, as with a judge's marks."""

    def marks(example, prediction, trace=None):
        return 0.9 if "well" in prediction.answer else 0.2

    def answer(plan, inputs):
        number = int(inputs["question"][1:])
        good = number % 4 == 0 or any("well" in turn.text for turn in plan.turns[:-2])
        return {"reasoning": "so", "answer": "well said" if good else "hm"}

    data = still.Dataset([{"question": f"q{i}"} for i in range(40)], inputs=["question"])
    result = still.compile(
        still.ChainOfThought("question -> answer"), data, data, marks, lm=ScriptedLM(answer), passes=[Demonstrations()],
        progress=False, ledger=tmp_path / "l.duckdb",
    )  # fmt: skip
    assert result.winner.origin == "bootstrapped"
    assert {demo["answer"] for demo in result.program.predict.demos} == {"well said"}
    assert any("8 runs too that did not pass, of 0.90 to 0.90" in note for note in result.report.notes)
