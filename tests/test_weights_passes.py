"""Preference and reinforcement as passes over a distilled program.

`python tests/test_weights_passes.py` writes the fixtures of passes that train anew, see test_pass_fixtures.py.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import still
from still.errors import TrainingError
from still.optimizers.budget import OutOfBudget
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.context import Outcome
from still.optimizers.distil import Distil
from still.optimizers.distil_rows import training_rows
from still.optimizers.prefer import Prefer
from still.optimizers.reinforce import Reinforce
from still.optimizers.tuning import LABELS, Tuned, train_further
from still.optimizers.weights.dpo import DpoSettings
from still.optimizers.weights.grpo import GrpoSettings
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.reward import BATCH, EngineRollouts
from still.optimizers.weights.sft import SftSettings
from still.optimizers.weights.student import Student
from still.signatures.executor import AdapterFolder
from test_pass_fixtures import FOLDER, compare, page, shown
from test_weights_distil import Size, data
from weights_toys import write_base

BEGUN = Distil(Lora(r=8, alpha=16), SftSettings(epochs=4, batch=8, learning_rate=6e-3), precision="fp32")
PREFER = Prefer(
    DpoSettings(loss={"sigmoid": 1.0, "sft": 0.2}, learning_rate=5e-3, epochs=8, batch=8), precision="fp32"
)
REINFORCE = Reinforce(GrpoSettings(steps=60, learning_rate=2e-3, beta=0.0), precision="fp32")


def toy_lm(folder):
    return still.LM(str(write_base(folder, max_position_embeddings=512)), quantization="fp32")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return toy_lm(tmp_path_factory.mktemp("passes") / "base")


def compiled(lm, folder, *passes):
    train, dev = data(0)
    where = folder / "ledger.duckdb"
    return still.compile(still.Predict(Size), train, dev, passes=passes, lm=lm, ledger=where, progress=False)


@pytest.mark.parametrize(("step", "name"), [(PREFER, "preferred"), (REINFORCE, "reinforced")])
def test_a_pass_goes_on_from_what_was_distilled(lm, tmp_path, step, name, monkeypatch):
    result = compiled(lm, tmp_path, BEGUN, step)
    rows = {each.name: each for each in result.report.rows}
    note = next(note for note in result.report.notes if note.startswith(step.name))
    assert name in rows, note
    assert rows[name].score > rows["distilled"].score + 0.05, note
    assert result.report.winner == name
    asked = [example["digits"] for example in data(0)[1]]
    loaded = still.load(result.save(tmp_path / "size.still"))
    assert [loaded(digits=each).kind for each in asked] == [result.program(digits=each).kind for each in asked]
    monkeypatch.setattr("still.optimizers.tuning.Student.open", None)  # trained once
    assert compiled(lm, tmp_path, BEGUN, step).digest == result.digest
    compare(step.name, rendered(result))
    compare(BEGUN.name, rendered(compiled(lm, tmp_path, BEGUN)))


def rendered(result):
    return page(shown(still.Predict(Size)), shown(result.program))


def test_a_pass_goes_on_from_the_weights_that_a_program_came_with(lm, tmp_path):
    """A second compile, on examples of which only the metric knows what is right: they have no label to distil."""
    begun = compiled(lm, tmp_path, BEGUN)
    train, dev = (still.Dataset([{"digits": e["digits"]} for e in each], inputs=["digits"]) for each in data(0))

    def right(example, answer):
        return answer.kind == ("small" if int(example["digits"][0]) < 5 else "large")

    result = still.compile(
        still.load(begun.save(tmp_path / "begun.still")), train, dev, right, passes=[PREFER], lm=lm,
        ledger=tmp_path / "ledger.duckdb", progress=False,
    )  # fmt: skip
    rows = {each.name: each for each in result.report.rows}
    assert result.report.winner == "preferred", result.report.notes
    assert rows["preferred"].score > rows["baseline"].score + 0.05
    assert rows["baseline"].score == next(row.score for row in begun.report.rows if row.name == "distilled")


MANY = Reinforce(GrpoSettings(steps=2, prompts=16), precision="fp32")


@pytest.mark.parametrize("step", [PREFER, MANY])
def test_sampled_answers_count_against_the_budget(lm, tmp_path, step):
    """Enough for what is distilled and ten calls more: sampling ends after its first batch."""
    train, dev = data(0)
    begun = len(dev) + sum(step.calls for step in compiled(lm, tmp_path, BEGUN).report.evidence.steps)
    result = still.compile(
        still.Predict(Size), train, dev, passes=[BEGUN, step], lm=lm, ledger=tmp_path / "ledger.duckdb",
        budget=still.Budget(calls=begun + 10), progress=False,
    )  # fmt: skip
    assert result.report.evidence.steps[-1].calls == BATCH
    assert f"{step.name}: broken off" in result.report.notes
    assert result.report.winner == "distilled"


def test_a_label_is_preferred_to_the_only_answer_where_that_is_wrong(lm, tmp_path):
    """One sample each, nearly greedy: among samples alone there would be nothing to rank."""
    begun = compiled(lm, tmp_path, BEGUN)
    wrong = sum(begun.program(digits=each["digits"]).kind != each["kind"] for each in data(0)[0])
    result = compiled(lm, tmp_path, BEGUN, Prefer(precision="fp32", samples=1, temperature=0.01))
    note = next(note for note in result.report.notes if note.startswith("prefer:"))
    assert wrong >= 8
    assert f"{wrong} pairs" in note


@pytest.mark.parametrize("step", [PREFER, REINFORCE])
def test_without_an_adapter_there_is_nothing_to_go_on_from(lm, tmp_path, step):
    result = compiled(lm, tmp_path, step)
    assert result.report.winner == "baseline"
    assert any("nothing was distilled" in note for note in result.report.notes)


def test_where_all_answers_are_right_there_is_nothing_to_prefer(lm, tmp_path):
    perfect = Distil(
        Lora(r=8, alpha=16), SftSettings(epochs=16, batch=8, learning_rate=1e-2, patience=16), precision="fp32"
    )
    result = compiled(lm, tmp_path, perfect, Prefer(precision="fp32", samples=2, temperature=0.05))
    assert any("prefer: 0 pairs" in note for note in result.report.notes), result.report.notes


TUNED = Tuned(Candidate("distilled", "test"), "self", AdapterFolder("digest"))
"""Of the model as it is: its candidate sets nothing."""
TUNED_INSIDE = Tuned(Candidate("distilled", "test"), "size", AdapterFolder("digest"))
"""The same of a module."""


def looked_at(lm, rows, **more):
    """A context of these train examples, as far as sampling looks at it."""
    train = still.Dataset(rows, inputs=[name for name in rows[0] if name not in ("kind", "base")])
    given = {"train": train, "lm": lm, "input_fields": {*train.inputs}, "report": lambda text: None, "score": lambda *_: 1.0}
    return SimpleNamespace(**{**given, **more})


def test_the_budget_is_looked_at_while_labels_are_scored(lm):
    scored = []

    def report(text):
        if scored:
            raise OutOfBudget("spent")

    context = looked_at(lm, list(data(0)[0]), report=report, score=lambda example, answer: scored.append(answer) or 1.0)
    with pytest.raises(OutOfBudget):
        TUNED.labels(still.Predict(Size), context, range(70))
    assert len(scored) == LABELS


def test_what_is_drawn_does_not_depend_on_the_batches(lm, tmp_path):
    adapter = Student.open(lm.local.model, Lora(r=4), precision="fp32").save(tmp_path / "adapter")
    tasks, _ = TUNED.tasks(still.Predict(Size), looked_at(lm, list(data(0)[0])), range(20))
    looks = []
    once, in_batches = (
        EngineRollouts(lm.local.engine, look=look).sample(tasks, adapter, 8, 1.0, 3) for look in (None, looks.append)
    )
    assert looks == [f"sampling answers, {begin}/20 examples" for begin in (0, 8, 16)]
    assert [[sample.row for sample in group] for group in in_batches] == [[sample.row for sample in group] for group in once]


class Numeral(still.Signature):
    """Say what the number is written in."""

    number: str = still.Input()
    base: Literal["two", "ten"] = still.Output()


def test_an_output_may_be_called_as_a_parameter_of_dspys(lm):
    answers, program = [], still.Predict(Numeral)
    context = looked_at(
        lm, [{"number": "101", "base": "two"}], score=lambda example, answer: answers.append(answer["base"]) or 1.0
    )
    TUNED.labels(program, context, [0])
    (task,), _ = TUNED.tasks(program, context, [0])
    assert task.reward(lm.local.engine.submit(task.request).result()) == 1.0
    assert answers[0] == "two" and answers[1] in ("two", "ten")


def test_examples_that_do_not_fit_the_context_are_left_out(lm):
    context = looked_at(lm, [{"digits": "1 2", "kind": "small"}, {"digits": "9" * 600, "kind": "large"}])
    program, room = still.Predict(Size), lm.local.engine.max_context
    tasks, left = TUNED.tasks(program, context, [0, 1])
    assert [task.key for task in tasks] == ["0"]
    assert left == f"; 1 examples do not fit the context of {room} tokens and were left out"
    with pytest.raises(TrainingError, match="no train example to sample answers to; 1 examples do not fit"):
        TUNED.tasks(program, context, [1])
    rows, notes = training_rows(program, TUNED.candidate, TUNED.candidate, context, [0, 1])
    assert [row.key for row in rows] == ["0"]
    assert notes == (f"distil: 1 rows do not fit the context of {room} tokens, and were not trained on",)
    with pytest.raises(TrainingError, match="nothing to train on: 1 rows do not fit"):
        training_rows(program, TUNED.candidate, TUNED.candidate, context, [1])


class HandsOn(still.Module):
    """Does nothing of its own."""

    def __init__(self):
        super().__init__()
        self.size = still.Predict(Size)

    def forward(self, digits):
        return self.size(digits=digits)


class Adds(HandsOn):
    def forward(self, digits):
        return self.size(digits=f"{digits}!")


class Shouts(HandsOn):
    def forward(self, digits):
        answer = self.size(digits=digits)
        answer.kind = answer.kind.upper()
        return answer


class Renames(HandsOn):
    def forward(self, digits):
        return still.Prediction(size=self.size(digits=digits).kind)


class AsksTwice(HandsOn):
    def forward(self, digits):
        self.size(digits=digits)
        return self.size(digits=digits)


class Fails(HandsOn):
    def forward(self, digits):
        raise ValueError("seven")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (Adds, "inputs of its own making, ['digits']"),
        (Shouts, "returns something else, ['kind']"),
        (Renames, "returns something else, ['kind', 'size']"),
        (AsksTwice, "calls its predictor 2 times"),
        (Fails, "fails on each of 3 train examples that were tried; first ValueError: seven"),
    ],
)
def test_programs_that_do_something_of_their_own_are_not_sampled(lm, program, why):
    context = looked_at(lm, list(data(0)[0]))
    with pytest.raises(TrainingError, match=re.escape(why)):
        TUNED_INSIDE.check(program(), context, range(70))


def test_modules_that_hand_on_and_predictors_are_sampled(lm):
    context = looked_at(lm, list(data(0)[0]))
    TUNED_INSIDE.check(HandsOn(), context, range(70))
    TUNED.check(still.Predict(Size), looked_at(None, list(data(0)[0])), range(70))  # and not even run


@dataclass(frozen=True)
class Step:
    """A pass that trains further."""

    name: str = "step"
    held_out: tuple = ()


def adapter_in(folder):
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")


def test_another_metric_dev_model_or_prompt_is_another_training(tmp_path):
    trained = []
    train, dev = map(list, data(0))

    def training(tuned, program, context, folder):
        adapter_in(folder / "best")
        trained.append(folder)
        return "told"

    def run(dev=dev, metric="exact", model="model", instructions="", step=None):
        context = SimpleNamespace(
            train=train, dev=dev, seed=0, input_fields={"digits"}, metric=metric, folder=tmp_path / "training",
            lm=SimpleNamespace(digest=model, local=object()), report=None,
            evaluate=lambda program, candidate, indices: [Outcome(1.0)] * len(indices),
        )  # fmt: skip
        state = PredictorState(instructions=instructions, adapter=AdapterFolder("digest"))
        before = Candidate("distilled", "distil", {"self": state})
        result = train_further(step or Step(), "further", training, still.Predict(Size), before, context)
        assert result.notes == (f"{(step or Step()).name}: told",)
        return len(trained)

    assert [run(), run()] == [1, 1]
    assert run(metric="f1") == 2
    assert run(dev=[*dev, train[0]]) == 3, "which is not sampled from then"
    assert run(step=Step(held_out=(train[0],))) == 3, "the same examples are left"
    assert run(model="another") == 4
    assert run(instructions="Say it.") == 5
    assert run() == 5


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for case in (BEGUN, PREFER, REINFORCE):
            written = compiled(toy_lm(Path(temporary) / case.name), Path(temporary), *dict.fromkeys((BEGUN, case)))
            (FOLDER / f"{case.name}.txt").write_text(rendered(written), "utf-8")
