"""Distil as a pass: programs get shorter and better, what cannot be trained leaves them as they were."""

import random
from pathlib import Path
from typing import Literal

import pytest
import still
from dspy.utils import DummyLM
from still.errors import ModelError, TrainingError
from still.optimizers import distil
from still.optimizers.bare import bare_candidate
from still.optimizers.budget import OutOfBudget
from still.optimizers.candidate import Candidate
from still.optimizers.distil import Distil
from still.optimizers.prefer import Prefer
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.sft import SftSettings, train_sft
from still.signatures.fieldset import scorings
from still.signatures.knob import named_knobs
from still.signatures.scoring import Scoring
from weights_toys import write_base


class Size(still.Signature):
    """Say whether the first of the two digits is small or large, and do not be misled by the second one."""

    digits: str = still.Input()
    kind: Literal["small", "large"] = still.Output()


def data(seed):
    drawn = [(a, b) for a in range(10) for b in range(10)]
    random.Random(seed).shuffle(drawn)
    rows = [{"digits": f"{a} {b}", "kind": "small" if a < 5 else "large"} for a, b in drawn]
    return still.Dataset(rows[:70], inputs=["digits"]), still.Dataset(rows[70:], inputs=["digits"])


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = write_base(tmp_path_factory.mktemp("program") / "base", max_position_embeddings=2048)
    return still.LM(str(folder), quantization="fp32")


FAST = Distil(Lora(r=8, alpha=16), SftSettings(epochs=12, batch=8, learning_rate=1e-2, patience=12), precision="fp32")


def compiled(lm, folder, step=FAST, train=None, dev=None, program=None, **more):
    splits = data(0)
    return still.compile(
        program or still.Predict(Size), train or splits[0], dev or splits[1], passes=[step], lm=lm,
        ledger=folder / "ledger.duckdb", progress=False, **more,
    )  # fmt: skip


def test_distilled_programs_are_better_shorter_and_saved(lm, tmp_path, monkeypatch):
    result = compiled(lm, tmp_path)
    rows = {each.name: each for each in result.report.rows}
    assert result.report.winner == "distilled"
    assert rows["distilled"].score > rows["baseline"].score + 0.2
    assert rows["distilled"].tokens < 0.7 * rows["baseline"].tokens
    assert any("distil: 70 rows" in note for note in result.report.notes)
    loaded = still.load(result.save(tmp_path / "size.still"))
    asked = [example["digits"] for example in data(0)[1]]
    assert [loaded(digits=each).kind for each in asked] == [result.program(digits=each).kind for each in asked]
    # Trained once: the same compile finds adapter and results, and makes the same program.
    monkeypatch.setattr(distil.Student, "open", None)
    again = compiled(lm, tmp_path)
    assert again.digest == result.digest


def test_a_changed_adapter_is_not_run(lm, tmp_path):
    loaded = still.load(compiled(lm, tmp_path).save(tmp_path / "size.still"))
    adapter = loaded.config["adapter"]
    lm.local.engine.unload_adapter(adapter.digest)
    config = Path(adapter.path) / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ModelError, match="compile again"):
        loaded(digits="1 2")


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (Distil(settings=SftSettings(learning_rate=1e30), precision="fp32"), "training diverged"),
        (Distil(Lora(r=8), precision="fp32"), "4 rows to train on"),
    ],
)
def test_where_training_fails_the_program_stays_and_the_report_says_why(lm, tmp_path, step, why):
    few = still.Dataset(list(data(0)[0])[:4], inputs=["digits"]) if "4 rows" in why else None
    result = compiled(lm, tmp_path, step, few)
    assert result.report.winner == "baseline"
    assert any(why in note and "baseline stays" in note for note in result.report.notes)


def test_examples_of_dev_are_not_trained_on(lm, tmp_path):
    train, dev = data(0)
    both = still.Dataset([*train, *list(dev)[:5]], inputs=["digits"])
    result = compiled(lm, tmp_path, Distil(Lora(r=4), SftSettings(epochs=1), precision="fp32"), both)
    assert any("5 train examples have the inputs of a dev example" in note for note in result.report.notes)
    assert any("distil: 70 rows" in note for note in result.report.notes)


def test_examples_held_out_are_not_trained_on(lm, tmp_path):
    held = list(data(0)[0])[:6]
    step = Distil(Lora(r=4), SftSettings(epochs=1), precision="fp32", held_out=held)
    notes = compiled(lm, tmp_path, step).report.notes
    assert any("6 train examples have the inputs" in note for note in notes)
    assert any("distil: 64 rows" in note for note in notes)


def test_a_model_that_cannot_be_trained_leaves_the_program_as_it_was(lm, tmp_path, monkeypatch):
    def refuse(*given, **more):
        raise ModelError("architecture 'other' has no class in transformers")

    monkeypatch.setattr(distil.Student, "open", refuse)
    result = compiled(lm, tmp_path)
    assert result.report.winner == "baseline"
    assert any("no class in transformers; baseline stays" in note for note in result.report.notes)


def test_a_budget_that_ends_a_training_leaves_its_best_epoch(lm, tmp_path, monkeypatch):
    """The clock is turned past the limit in the fifth epoch; with more of it the same compile trains to the end."""
    from still.optimizers.budget import Spending

    late = []
    slow = Distil(Lora(r=8, alpha=16), SftSettings(epochs=12, batch=8, learning_rate=8e-3), precision="fp32")

    def check(self):
        if late:
            self.stopped = "60 seconds"
            raise OutOfBudget("the budget is spent")

    def trained(*given, progress, **more):
        def shown(step):
            if step.step == 4 * 9 + 4:
                late.append(True)
            progress(step)

        return train_sft(*given, progress=shown, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Spending, "check", check)
        patch.setattr(distil, "train_sft", trained)
        result = compiled(lm, tmp_path, slow)
    assert any("the budget ended it after 4 epochs" in note for note in result.report.notes)
    assert result.report.winner == "distilled"
    rows = {each.name: each.score for each in result.report.rows}
    assert rows["distilled"] == max(rows.values()) > rows["baseline"]
    assert len([name for name in rows if "epoch" in name]) == 3  # the fourth, the best one, has another name now
    assert any("distil: 70 rows" in note for note in compiled(lm, tmp_path, slow).report.notes)


def test_a_model_elsewhere_cannot_be_trained(tmp_path):
    result = compiled(DummyLM([{"kind": "small"}] * 1000), tmp_path)
    assert any("not a local model" in note for note in result.report.notes)


class TwoSteps(still.Module):
    def __init__(self):
        super().__init__()
        self.sum = still.Predict("digits -> sum: int")
        self.kind = still.ChainOfThought(Size)

    def forward(self, digits):
        return self.kind(digits=str(self.sum(digits=digits).sum))


def test_runs_that_pass_teach_every_predictor_and_reasoning_is_dropped(lm, tmp_path):
    """The data has no sums: rows come from runs that the metric finds right."""
    train, dev = data(0)
    result = still.compile(
        TwoSteps(), train, dev, passes=[Distil(Lora(r=4), SftSettings(epochs=1), precision="fp32")], lm=lm,
        ledger=tmp_path / "ledger.duckdb", progress=False,
    )  # fmt: skip
    told = next(note for note in result.report.notes if note.startswith("distil:"))
    assert "rows" in told, told
    bare = bare_candidate(TwoSteps(), result.winner).apply(TwoSteps())
    asked = dict(bare.named_predictors())["kind.predict"].effective_signature
    assert list(asked.output_fields) == ["kind"]


class Checked(still.Module):
    """Predictors by a key, and one whose name begins like that of the program itself."""

    def __init__(self):
        super().__init__()
        self.by = {"size": still.ChainOfThought(Size)}
        self.check = still.Predict(Size)
        self.selfcheck = still.Predict(Size)

    def forward(self, digits):
        return self.by["size"](digits=digits)


def test_only_what_is_trained_loses_the_knobs_that_lengthen_answers():
    program = Checked()
    knobs = {path: 3 for path, _, knob in named_knobs(program) if knob.name == "samples"}
    assert sorted(knobs) == ["by[size].predict.samples", "check.samples", "selfcheck.samples"]
    before = Candidate("before", "test", knobs=knobs)
    for name, path in [("by['size'].predict", "by[size].predict"), ("check", "check"), ("selfcheck", "selfcheck")]:
        left = bare_candidate(program, before, name).knobs
        assert left == {key: 3 for key in knobs if key != f"{path}.samples"}, name
    assert bare_candidate(program, before).knobs == {}


class Parity(still.Signature):
    """Say whether the second of the two digits is odd or even."""

    digits: str = still.Input()
    parity: Literal["odd", "even"] = still.Output()


class BothDigits(still.Module):
    """Two predictors that look at the same input, for labels of their own."""

    def __init__(self):
        super().__init__()
        self.size = still.Predict(Size)
        self.parity = still.Predict(Parity)

    def forward(self, digits):
        return still.Prediction(kind=self.size(digits=digits).kind, parity=self.parity(digits=digits).parity)


def with_parity(dataset):
    rows = [{**example, "parity": ["even", "odd"][int(example["digits"][-1]) % 2]} for example in dataset]
    return still.Dataset(rows, inputs=["digits"])


def test_each_predictor_has_an_adapter_of_its_own(lm, tmp_path):
    train, dev = map(with_parity, data(0))
    settings = SftSettings(epochs=12, batch=8, learning_rate=1e-2)
    step = Distil(Lora(r=8, alpha=16), settings, precision="fp32", adapters="each")
    result = still.compile(
        BothDigits(), train, dev, passes=[step], lm=lm, ledger=tmp_path / "ledger.duckdb", progress=False
    )
    assert result.report.winner == "distilled"
    told = [note for note in result.report.notes if "70 rows" in note]
    assert [note.split(":")[1].strip() for note in told] == ["size", "parity"]
    adapters = {name: state.adapter.digest for name, state in result.winner.states.items()}
    assert adapters["size"] != adapters["parity"]
    loaded = still.load(result.save(tmp_path / "both.still"), program=BothDigits())
    assert len(list((tmp_path / "both.still" / "adapters").iterdir())) == 2
    for example in list(dev)[:8]:
        assert loaded(digits=example["digits"]).toDict() == result.program(digits=example["digits"]).toDict()


class FourParities(BothDigits):
    """Its second predictor is asked four different things at most."""

    def forward(self, digits):
        digit = str(int(digits[-1]) % 4)
        return still.Prediction(kind=self.size(digits=digits).kind, parity=self.parity(digits=digit).parity)


def test_a_predictor_with_too_few_rows_stays_as_it_is(lm, tmp_path):
    train, dev = map(with_parity, data(0))
    step = Distil(Lora(r=4), SftSettings(epochs=1), precision="fp32", adapters="each")
    result = still.compile(
        FourParities(), train, dev, passes=[step], lm=lm, ledger=tmp_path / "ledger.duckdb", progress=False
    )
    told = [note for note in result.report.notes if note.startswith("distil: parity: ")]
    assert len(told) == 1 and "4 rows to train on" in told[0] and "it stays as it was" in told[0]
    assert any("distil: size: 70 rows" in note for note in result.report.notes)
    assert "distilled" in {row.name for row in result.report.rows}


class Looked(still.Signature):
    """Say whether the noted digit is small or large."""

    note: str = still.Input()
    kind: Literal["small", "large"] = still.Output()


class LooksUp(still.Module):
    """What its predictor is given is no column of the data: a step of plain code makes it."""

    def __init__(self):
        super().__init__()
        self.answer = still.Predict(Looked)

    def forward(self, digits):
        return self.answer(note=f"{digits.split()[0]} was noted")


def test_labels_teach_a_predictor_that_another_step_feeds(lm, tmp_path):
    train, dev = data(0)
    result = still.compile(
        LooksUp(), train, dev, passes=[FAST], lm=lm, ledger=tmp_path / "ledger.duckdb", progress=False
    )
    rows = {each.name: each for each in result.report.rows}
    # Ten different notes: all of them, not only those whose runs were right.
    assert any("distil: 10 rows" in note for note in result.report.notes), result.report.notes
    assert rows["distilled"].score > rows["baseline"].score + 0.2


def test_preferences_are_not_sampled_where_other_steps_feed_the_predictor(lm, tmp_path):
    train, dev = data(0)
    result = still.compile(
        LooksUp(), train, dev, passes=[FAST, Prefer()], lm=lm, ledger=tmp_path / "ledger.duckdb", progress=False
    )
    assert any("prefer:" in note and "'note'" in note for note in result.report.notes), result.report.notes


class Noting(LooksUp):
    """What its predictor is given has the name of a column, and is not what the column holds."""

    def __init__(self):
        super().__init__()
        self.answer = still.Predict(Size)

    def forward(self, digits):
        return self.answer(digits=f"{digits}!")


def test_what_a_module_gives_its_predictor_is_what_is_trained_on(lm, tmp_path, monkeypatch):
    seen = []

    def refuse(student, rows, *given, **more):
        seen.extend(rows)
        raise TrainingError("enough seen")

    monkeypatch.setattr(distil.Student, "open", lambda *given, **more: None)
    monkeypatch.setattr(distil, "train_sft", refuse)
    result = compiled(lm, tmp_path, program=Noting())
    assert any("enough seen" in note for note in result.report.notes)
    prompts = [bytes(token for token in row.tokens[: row.loss.index(True)] if token < 256) for row in seen]
    assert sorted(prompt.split(b"digits: ")[1][:4].decode() for prompt in prompts) == sorted(
        f"{example['digits']}!" for example in data(0)[0]
    )


BRIEF = Distil(Lora(r=4), SftSettings(epochs=1), precision="fp32")
SOME = Distil(Lora(r=8, alpha=16), SftSettings(epochs=5, batch=8, learning_rate=6e-3, patience=5), precision="fp32")


def test_another_metric_or_dev_is_another_training(lm, tmp_path, monkeypatch):
    begun, dev = [], data(0)[1]

    def trained(*given, **more):
        begun.append(more["folder"])
        return train_sft(*given, **more)

    monkeypatch.setattr(distil, "train_sft", trained)

    def trainings(**more):
        compiled(lm, tmp_path, BRIEF, **more)
        return len(begun)

    assert [trainings(), trainings()] == [1, 1]
    assert trainings(metric="normalized") == 2
    assert trainings(dev=dev[:20]) == 3
    assert len(set(begun)) == 3


def test_a_training_that_is_taken_up_again_keeps_its_finished_epochs(lm, tmp_path, monkeypatch):
    """It is killed in its third epoch of nine steps, and then the budget ends there."""

    def ended_by(error):
        def trained(*given, progress, **more):
            def shown(step):
                if step.step > 2 * 9:
                    raise error
                progress(step)

            return train_sft(*given, progress=shown, **more)

        return trained

    monkeypatch.setattr(distil, "train_sft", ended_by(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compiled(lm, tmp_path, SOME)
    monkeypatch.setattr(distil, "train_sft", ended_by(OutOfBudget("spent")))
    result = compiled(lm, tmp_path, SOME)
    assert any("the budget ended it after 2 epochs" in note for note in result.report.notes), result.report.notes
    assert len([row for row in result.report.rows if row.name.startswith("distilled")]) == 2


def test_a_budget_ends_a_training_that_was_finished_before_where_it_ends_a_new_one(lm, tmp_path):
    """Enough for the baseline's 30 runs, two epochs, and a part of the third, which is measured whole."""
    budget = still.Budget(calls=30 + 2 * 30 + 10)
    compiled(lm, tmp_path / "again", SOME)
    again, new = (compiled(lm, tmp_path / name, SOME, budget=budget) for name in ("again", "new"))
    assert any("the budget ended it after 3 epochs" in note for note in new.report.notes), new.report.notes
    assert again.digest == new.digest
    assert [step.calls for step in again.report.evidence.steps] == [step.calls for step in new.report.evidence.steps]
    assert [(row.name, row.score) for row in again.report.rows] == [(row.name, row.score) for row in new.report.rows]


UNKNOWN = "digits -> word: Literal['a', 'b']"
"""What no column of the data holds."""


@pytest.mark.parametrize("adapters", ["shared", "each"])
def test_without_rows_no_student_is_opened(lm, tmp_path, monkeypatch, adapters):
    monkeypatch.setattr(distil.Student, "open", None)
    step = Distil(precision="fp32", adapters=adapters)
    result = compiled(lm, tmp_path, step, program=still.Predict(UNKNOWN), metric=lambda example, answer: 0.0)
    assert any("no run was right and no label is known; baseline stays" in note for note in result.report.notes)


@pytest.mark.parametrize("adapters", ["shared", "each"])
def test_a_budget_that_ends_the_runs_is_no_lack_of_labels(lm, tmp_path, adapters):
    """Enough for the baseline and the first of two batches of runs."""
    result = compiled(
        lm, tmp_path, Distil(precision="fp32", adapters=adapters), program=still.Predict(UNKNOWN),
        metric=lambda example, answer: 1.0, budget=still.Budget(calls=40),
    )  # fmt: skip
    assert "distil: broken off" in result.report.notes, result.report.notes


def test_a_calibration_that_the_program_came_with_is_dropped():
    calibration = {"bias": {"small": 5.0}, "temperature": 2.0}
    program = still.Predict(Size.with_updated_fields("kind", decide="score", calibration=calibration))
    assert scorings(program.signature)["kind"].temperature == 2.0
    bare = bare_candidate(program, Candidate("before", "test"))
    assert scorings(bare.apply(program).signature) == {"kind": Scoring()}
    assert bare_candidate(still.Predict(Size), Candidate("before", "test")).states["self"].fields == {
        "kind": {"describe": False}
    }
