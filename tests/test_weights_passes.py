"""Preference and reinforcement as passes over a distilled program.

`python tests/test_weights_passes.py` writes the fixtures of passes that train anew, see test_pass_fixtures.py.
"""

import tempfile
from pathlib import Path

import pytest
import still
from still.optimizers.distil import Distil
from still.optimizers.prefer import Prefer
from still.optimizers.reinforce import Reinforce
from still.optimizers.weights.dpo import DpoSettings
from still.optimizers.weights.grpo import GrpoSettings
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.sft import SftSettings
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


def test_sampled_answers_count_against_the_budget(lm, tmp_path):
    """Enough for what is distilled and ten calls more: sampling ends after its first batch of 50 examples."""
    train, dev = data(0)
    begun = len(dev) + sum(step.calls for step in compiled(lm, tmp_path, BEGUN).report.evidence.steps)
    result = still.compile(
        still.Predict(Size), train, dev, passes=[BEGUN, PREFER], lm=lm, ledger=tmp_path / "ledger.duckdb",
        budget=still.Budget(calls=begun + 10), progress=False,
    )  # fmt: skip
    assert result.report.evidence.steps[-1].calls == 50 * PREFER.samples
    assert "prefer: broken off" in result.report.notes
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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for case in (BEGUN, PREFER, REINFORCE):
            written = compiled(toy_lm(Path(temporary) / case.name), Path(temporary), *dict.fromkeys((BEGUN, case)))
            (FOLDER / f"{case.name}.txt").write_text(rendered(written), "utf-8")
