"""Runs from the ledger: a metric sees the prediction that the program made, or the program is run again."""

from decimal import Decimal
from typing import Literal

import dspy
import pytest
import still
from pydantic import BaseModel
from scripted import ScriptedLM
from still.compiler.example_run import Run, RunFormat
from still.compiler.ledger import EvaluationRow
from still.errors import StillError
from still.optimizers.context import PredictorTrace


class Part(BaseModel):
    text: str
    weight: float = 1.0


class Read(still.Signature):
    """Read the parts."""

    parts: list[Part] = still.Input()
    question: str = still.Input()
    answer: float = still.Output()


class Reader(still.Module):
    def __init__(self, answer=None, parts=None):
        super().__init__()
        self.answer, self.parts = answer, parts
        self.read = still.Predict(Read)

    def forward(self, question):
        parts = [Part(text=f"about {question}")]
        said = self.read(parts=parts, question=question)
        return still.Prediction(answer=said.answer if self.answer is None else self.answer, parts=self.parts or parts)


DATA = still.Dataset([{"question": f"q{i}", "answer": 3.5} for i in range(3)], inputs=["question"])


def twice(tmp_path, program, metric, lm=None):
    """Scores of the first and the second evaluation, and the calls of both."""
    lm = lm or ScriptedLM(lambda plan, inputs: {"answer": 3.5})
    rows = [
        still.evaluate(program, DATA, metric, lm=lm, ledger=tmp_path / "l.duckdb", progress=False) for _ in range(2)
    ]
    return [row.score for row in rows], lm.calls


def test_objects_that_a_program_returns_come_back(tmp_path):
    def about(example, prediction):
        return prediction.parts[0].text == f"about {example.question}"

    assert twice(tmp_path, Reader(), about) == ([1.0, 1.0], 3)


@pytest.mark.parametrize("answer", ["3.50", 3, Decimal("3.5"), [3.5], {"a": 3.5}, (3.5,)])
def test_a_value_is_never_another_than_it_was(tmp_path, answer):
    def is_it(example, prediction):
        return type(prediction.answer) is type(answer) and prediction.answer == answer

    scores, calls = twice(tmp_path, Reader(answer), is_it)
    assert scores == [1.0, 1.0]
    assert calls == (6 if isinstance(answer, Decimal | tuple) else 3), "what JSON cannot say is asked for again"


class Thing:
    text = "about q0"

    def __eq__(self, other):
        return NotImplemented

    __hash__ = None


def test_what_cannot_be_kept_is_run_again(tmp_path):
    scores, calls = twice(tmp_path, Reader(parts=[Thing()]), lambda example, prediction: prediction.parts[0].text[0] == "a")
    assert (scores, calls) == ([1.0, 1.0], 6)


def test_probabilities_come_back(tmp_path, model_int8):
    class Light(still.Signature):
        light: str = still.Input()
        colour: Literal["red", "green"] | None = still.Output(decide="score")

    def sureness(example, prediction):
        return max(prediction.probabilities["colour"].values())

    lights = still.Dataset([{"light": "like blood", "colour": "red"}], inputs=["light"])
    first, second = (
        still.evaluate(
            still.Predict(Light), lights, sureness, lm=still.LM(), ledger=tmp_path / "l.duckdb", progress=False
        )
        for _ in range(2)
    )
    assert first.failures == second.failures == 0
    assert 0.3 < first.score == second.score < 1.0
    assert second.seconds == first.seconds, "from the ledger"


def test_an_output_may_be_called_as_dspys_own(tmp_path):
    program = still.Predict("question -> base: str, answer: float")
    lm = ScriptedLM(lambda plan, inputs: {"base": "firm", "answer": 3.5})
    assert twice(tmp_path, program, lambda example, prediction: prediction["base"] == "firm", lm) == ([1.0, 1.0], 3)


def test_failed_runs_keep_what_was_done_until_then():
    program = Reader()
    trace = (PredictorTrace("read", {"parts": [Part(text="a")], "question": "q"}, {"answer": 3.5}),)
    stored = RunFormat(program).to_stored(Run(None, trace, "ValueError: late"), True, {})
    row = EvaluationRow(
        evaluation_id="e", candidate_id="c", example_id="x", split="rollout", model_digest="m", run_id="r",
        prediction=stored, error="ValueError: late",
    )  # fmt: skip
    run = RunFormat(program).from_row(row)
    assert run.error == "ValueError: late"
    assert [(step.predictor, step.outputs) for step in run.trace] == [("read", {"answer": 3.5})]
    assert run.trace[0].inputs["question"] == "q"


def test_what_the_network_did_is_not_kept(tmp_path):
    """A server that cannot be reached says nothing of an example; what a program does wrong does."""
    down = ["ConnectionError", "ValueError"]

    class Flaky(still.Module):
        def __init__(self):
            super().__init__()
            self.ask = still.Predict("question -> answer: float")

        def forward(self, question):
            if question == "q0" and "ConnectionError" in down:
                raise ConnectionError("refused")
            if question == "q1" and "ConnectionError" in down:
                raise RuntimeError("no answer") from dspy.utils.exceptions.LMRateLimitError("slow down")
            if question == "q2":
                raise ValueError("my own")
            return self.ask(question=question)

    def evaluated():
        return still.evaluate(Flaky(), DATA, lm=lm, ledger=tmp_path / "l.duckdb", progress=False)

    lm = ScriptedLM(lambda plan, inputs: {"answer": 3.5})
    with pytest.raises(StillError, match="on every one of 3 examples"):
        evaluated()
    with still.Ledger(tmp_path / "l.duckdb") as ledger:
        _, rows = ledger.query("SELECT count(*), sum(score) FROM scored WHERE error IS NOT NULL")
        assert rows == [(3, 0.0)], "they count as failures of this run"
        assert ledger.query("SELECT count(*) FROM failures")[1] == [(3,)]
    down.clear()
    row = evaluated()
    assert (row.score, row.failures, lm.calls) == (pytest.approx(2 / 3), 1, 2)
    with still.Ledger(tmp_path / "l.duckdb") as ledger:
        assert ledger.query("SELECT score, error FROM scores ORDER BY score")[1] == [
            (0.0, "ValueError: my own"), (1.0, None), (1.0, None)
        ]  # fmt: skip


def test_a_metric_of_any_class_may_fail(tmp_path):
    class Broken(still.compiler.metric.Metric):
        name = "broken"

        def score(self, example, prediction, trace=None):
            if example.question == "q1":
                raise KeyError("weight")
            return still.Score(1.0)

    row = still.evaluate(
        Reader(), DATA, Broken(), lm=ScriptedLM(lambda plan, inputs: {"answer": 1.0}), ledger=tmp_path / "l.duckdb",
        progress=False,
    )  # fmt: skip
    assert (row.score, row.failures) == (pytest.approx(2 / 3), 1)
    with still.Ledger(tmp_path / "l.duckdb") as ledger:
        assert ledger.query("SELECT error FROM scores WHERE error IS NOT NULL")[1] == [
            ("MetricError: broken: KeyError: 'weight'",)
        ]
