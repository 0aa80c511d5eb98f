"""Instructions: rewrites, ablations, a teacher's proposals, reflection on the Pareto front."""

from typing import Literal

import pytest
import still
from scripted import ScriptedLM, demonstrations
from still.errors import ArtifactError
from still.optimizers.brief import brief
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.context import Outcome, PassResult, Standing
from still.optimizers.instructions import Instructions
from still.optimizers.pareto import pick_parent
from still.optimizers.racing import measure
from still.optimizers.rewrites import rewrites
from still.signatures.layout import lower


class Sort(still.Signature):
    """Sort the item into its bin."""

    item: str = still.Input(desc="what was thrown away")
    bin: Literal["glass", "paper", "metal"] = still.Output()


BINS = ("glass", "paper", "metal")
THINGS = {"glass": "a jar of jam", "paper": "a letter of love", "metal": "a can of soup"}


def data(count, start=0):
    rows = [{"item": f"{THINGS[BINS[i % 3]]} {i}", "bin": BINS[i % 3]} for i in range(start, start + count)]
    return still.Dataset(rows, inputs=["item"])


def truth(inputs):
    return next(b for b, thing in THINGS.items() if inputs["item"].startswith(thing))


def system(plan):
    return plan.turns[0].text


def compiled(tmp_path, answer, before=(), **options):
    return still.compile(
        still.Predict(Sort), data(30), data(36, 100), lm=ScriptedLM(answer), passes=[*before, Instructions()],
        progress=False, ledger=tmp_path / "l.duckdb", **options,
    )  # fmt: skip


def variants():
    return dict(rewrites(Sort, list(data(30))))


@pytest.mark.parametrize("bins", [("glass",), ("glass", "paper")])
def test_a_dataset_of_one_word_has_no_telling_words(bins):
    rows = [{"item": f"jar {i}", "bin": bins[i % len(bins)]} for i in range(12)]
    assert "words for bin" not in dict(rewrites(Sort, list(still.Dataset(rows, inputs=["item"]))))


def test_rewrites_by_hand():
    found = variants()
    assert found["plain"] == {"instructions": "Read the item and give the bin."}
    assert found["short"] == {"fields": {"bin": {"describe": False}}}
    hint = found["words for bin"]["instructions"]
    assert hint.startswith("Sort the item into its bin.\n\nWords that speak for a bin:\n")
    assert "glass: jam, jar" in hint
    assert "metal: can, soup" in hint


def test_words_come_from_the_training_data_only():
    assert "words for bin" not in dict(rewrites(Sort, []))


@pytest.mark.parametrize(
    ("what", "gone", "there"),
    [
        ("plain", "Sort the item", "Read the item"),
        ("bare", "Sort the item", "bin: one of"),
        ("short", "one of: glass", "Sort the item"),
        ("words for bin", "nothing like this", "glass: jam, jar"),
    ],
)
def test_each_rewrite_changes_the_prompt_as_it_says(what, gone, there):
    from still.optimizers.instructions import changed

    program = still.Predict(Sort)
    variant = changed(Candidate("baseline", "baseline"), "self", program, what, variants()[what]).apply(program)
    text = system(lower(variant.signature))
    assert gone not in text
    assert there in text
    assert lower(program.signature).digest != lower(variant.signature).digest


class Both(still.Signature):
    """Sort it."""

    item: str = still.Input()
    where: str = still.Input()
    bin: Literal["glass", "paper", "metal"] = still.Output(desc="where it goes")
    why: str = still.Output(desc="the reason")


def test_rewrites_of_several_fields():
    found = {name: changes["fields"] for name, changes in rewrites(Both, ()) if "fields" in changes}
    assert list(found) == ["short", "without options", "without formats", "outputs last first", "inputs last first"]
    assert found["without options"] == {"bin": {"describe": False}}
    assert found["without formats"] == {"why": {"describe": False}}
    assert found["outputs last first"] == {"why": {"place": 0}, "bin": {"place": 1}}
    assert found["inputs last first"] == {"where": {"place": 0}, "item": {"place": 1}}
    turned = Both.with_updated_fields("why", place=0).with_updated_fields("bin", place=1)
    assert dict(rewrites(turned, ()))["outputs last first"] == {"fields": {"bin": {"place": 0}, "why": {"place": 1}}}


def test_the_order_that_helps_wins_and_travels_along(tmp_path):
    """Right where the reason is written before the bin."""

    def answer(plan, inputs):
        first = plan.decodes[0].field
        return {"bin": truth(inputs) if first == "why" else "glass", "why": "so"}

    def rows(count, start=0):
        made = [{**row, "where": "here", "why": "so"} for row in data(count, start)]
        return still.Dataset(made, inputs=["item", "where"])

    lm = ScriptedLM(answer)
    result = still.compile(
        still.Predict(Both), rows(30), rows(36, 100), lm=lm, passes=[Instructions()], progress=False,
        ledger=tmp_path / "l.duckdb",
    )  # fmt: skip
    assert result.winner.name == "outputs last first"
    program = still.load(result.save(tmp_path / "a"), lm=lm)
    answered = program(item="a can of soup 7", where="there")
    assert (answered.bin, answered.why) == ("metal", "so")
    assert list(program.signature.output_fields) == ["bin", "why"]
    with pytest.raises(ArtifactError, match=r"field 'why': place=0"):
        still.export_dspy(result, tmp_path / "state.json")


def test_the_rewrite_that_helps_wins(tmp_path):
    result = compiled(tmp_path, lambda plan, inputs: {"bin": truth(inputs) if "jam" in system(plan) else "glass"})
    assert result.winner.name == "words for bin"
    assert "jam, jar" in result.program.signature.instructions


def test_what_helps_nobody_changes_nothing(tmp_path):
    result = compiled(tmp_path, lambda plan, inputs: {"bin": "glass"})
    assert result.winner.name == "baseline"


def test_a_kept_layout_comes_back_from_the_artifact(tmp_path):
    result = compiled(tmp_path, lambda plan, inputs: {"bin": "glass" if "one of" in system(plan) else truth(inputs)})
    assert result.winner.name == "short"
    result.save(tmp_path / "a")
    assert "one of: glass, paper, metal" not in (tmp_path / "a" / "plans" / "self.txt").read_text().split("user\n")[0]


class Before:
    """Measures something else, so that there is work to compare with; its candidate shows demonstrations per input."""

    name = "before"

    def run(self, program, baseline, context):
        pool = [{name: example[name] for name in ("item", "bin")} for example in context.train]
        near = Candidate("near", "test", {"self": PredictorState(tuple(pool), nearest=2)})
        return PassResult(near, (measure(program, near, context),))


def test_rewrites_that_bring_nothing_end_it_when_they_have_cost_a_quarter(tmp_path):
    result = compiled(tmp_path, lambda plan, inputs: {"bin": "glass"}, before=[Before()])
    tried = [row.name for row in result.report.rows if row.name.startswith("near, ")]
    assert tried == ["near, words for bin"], "the likeliest was tried, and was as dear as all before"
    assert any("3 of 4 rewrites left out" in note for note in result.report.notes)


def test_a_rewrite_that_gains_is_no_waste(tmp_path):
    def answer(plan, inputs):
        hinted, shown = "jam" in system(plan), "Read the item" in system(plan)
        return {"bin": truth(inputs) if hinted or shown else "glass"}

    result = compiled(tmp_path, answer, before=[Before()])
    tried = [row.name for row in result.report.rows if row.name.startswith("near, ")]
    assert tried == ["near, words for bin", "near, plain"], "one that brought something, and one that did not"
    assert result.winner.name == "near, words for bin"


class Teacher(ScriptedLM):
    """Proposes what the test says; remembers what it was shown."""

    def __init__(self, texts):
        super().__init__(self.propose, "teacher")
        self.texts, self.shown = list(texts), []

    def propose(self, plan, inputs):
        if "better_instructions" not in {step.field for step in plan.decodes}:
            return {"bin": "glass"}  # it also runs the program, for demonstrations
        self.shown.append(inputs)
        return {"better_instructions": self.texts[min(len(self.shown), len(self.texts)) - 1]}


def test_a_teacher_is_shown_task_examples_and_mistakes(tmp_path):
    teacher = Teacher(["Look at the material."])
    result = compiled(
        tmp_path, lambda plan, inputs: {"bin": truth(inputs) if "material" in system(plan) else "glass"}, teacher=teacher
    )
    assert result.winner.name.startswith("proposal")
    shown = teacher.shown[0]
    assert shown["task"] == "inputs: item. outputs: bin: one of: glass, paper, metal"
    assert shown["current_instructions"] == "Sort the item into its bin."
    assert shown["mistakes"].count("expected") == 5
    assert "got 'glass'" in shown["mistakes"]
    dev = {row["item"] for row in data(36, 100)}
    assert not any(item in text for told in teacher.shown for text in told.values() for item in dev), "these choose"
    assert shown["data"].splitlines() == [
        "30 examples", "item (input): texts of 5 to 5 words, 5 in the middle",
        "bin (label): 'glass' 33%, 'paper' 33%, 'metal' 33%",
    ]  # fmt: skip
    assert shown["program"] == "", "a predictor alone has no source of its own"


class Shelf(still.Module):
    """Sorts by a rule that only its source says."""

    def __init__(self):
        super().__init__()
        self.sort = still.Predict(Sort)

    def forward(self, item):
        return self.sort(item=item.lower())


def test_a_teacher_reads_the_programs_source(tmp_path):
    teacher = Teacher(["Look at the material."])
    still.compile(
        Shelf(), data(30), data(36, 100), lm=ScriptedLM(lambda plan, inputs: {"bin": "glass"}), passes=[Instructions()],
        teacher=teacher, progress=False, ledger=tmp_path / "l.duckdb",
    )  # fmt: skip
    source = teacher.shown[0]["program"]
    assert source.startswith("class Shelf(still.Module):")
    assert "self.sort(item=item.lower())" in source
    assert "class Predict" not in source


def test_the_brief_of_data():
    rows = [
        {"text": "one two", "note": None, "amount": 3, "tags": ["a", "b"]},
        {"text": "three", "note": "a b c", "amount": 4.5, "tags": []},
        {"text": "", "note": None, "amount": 1, "tags": ["c"]},
    ]
    examples = [still.Example(**row).with_inputs("text") for row in rows]
    assert brief(still.Predict(Sort), examples, {"text"}).data.splitlines() == [
        "3 examples", "text (input): texts of 0 to 2 words, 1 in the middle",
        "note (label): texts of 3 to 3 words, 3 in the middle, in 1 of 3", "amount (label): numbers from 1 to 4.5",
        "tags (label): texts of 1 to 2 words, 1 in the middle",
    ]  # fmt: skip


def test_reflection_improves_step_by_step(tmp_path):
    """Each text of the teacher is right on one bin more; only reflections see the later ones."""
    teacher = Teacher(["one", "one", "one", "one", "one two", "one two three"])

    def answer(plan, inputs):
        known = BINS[: sum(word in system(plan) for word in ("one", "two", "three"))]
        return {"bin": truth(inputs) if truth(inputs) in known else "metal" if truth(inputs) != "metal" else "paper"}

    result = compiled(tmp_path, answer, teacher=teacher)
    assert "reflection" in result.winner.name
    assert "one two three" in result.program.signature.instructions
    assert next(row.score for row in result.report.rows if row.name == result.report.winner) == 1.0


def test_a_teacher_that_fails_is_done_without(tmp_path):
    from still.errors import ConstraintError

    def broken(plan, inputs):
        raise ConstraintError("no valid answer")

    result = compiled(tmp_path, lambda plan, inputs: {"bin": "glass"}, teacher=ScriptedLM(broken, "teacher"))
    assert result.winner.name == "baseline"
    assert any("the teacher failed 10 times" in note and "no valid answer" in note for note in result.report.notes)


def fickle_compile(folder, stop=None, **options):
    """A compile whose teacher never says the same twice; it is interrupted at the teacher's call number `stop`. Bins are
    sorted by what it said last in the instructions that win."""

    class Fickle(ScriptedLM):
        def propose(self, plan, inputs):
            if len(said) == stop:
                raise KeyboardInterrupt
            said.append(f"word{len(said)}x")
            return {"better_instructions": said[-1]}

    def answer(plan, inputs):
        known = max((int(word[4:-1]) for word in system(plan).split() if word.startswith("word")), default=0)
        return {"bin": truth(inputs) if known > int(inputs["item"].split()[-1]) % 8 else "glass"}

    said = []
    teacher = Fickle(None, "fickle")
    teacher.answer = teacher.propose
    folder.mkdir(exist_ok=True)

    def run(**more):
        return compiled(folder, answer, teacher=teacher, **{**options, **more})

    return run, said


def test_a_teachers_answers_outlive_an_interrupt(tmp_path):
    unbroken, told = fickle_compile(tmp_path / "unbroken")
    whole = unbroken()
    assert len(told) > 6
    assert "word" in whole.program.signature.instructions
    broken, said = fickle_compile(tmp_path / "broken", stop=6)
    with pytest.raises(KeyboardInterrupt):
        broken()
    assert len(said) == 6
    again, more = fickle_compile(tmp_path / "broken")
    more.extend(said)  # what it says next, unless it is asked again
    resumed = again()
    assert resumed.digest == whole.digest
    assert more == told, "each was asked once"
    assert again().digest == whole.digest
    assert more == told, "a compile that was finished asks nothing"


def test_a_teachers_kept_answers_count_against_the_budget(tmp_path):
    budget = still.Budget(calls=400)
    unbroken, told = fickle_compile(tmp_path, budget=budget)
    whole = unbroken()
    assert 0 < len(told) < 10, "the budget binds"
    again = unbroken()
    assert (again.digest, again.report.notes) == (whole.digest, whole.report.notes)
    with still.Ledger(tmp_path / "l.duckdb") as book:
        (_, kept), (_, asked) = (
            book.query("SELECT count(*) FROM answers"),
            book.query("SELECT count(*) FROM calls WHERE purpose = 'instructions'"),
        )
    assert kept == asked == [(len(told),)], "what was taken from the ledger is no call"


def test_a_full_ledger_is_not_the_teachers_fault(tmp_path, monkeypatch):
    from still.errors import LedgerError

    def full(self, answer_id):
        raise LedgerError("no space left on device")

    monkeypatch.setattr(still.Ledger, "answer", full)
    with pytest.raises(LedgerError, match="no space left"):
        compiled(tmp_path, lambda plan, inputs: {"bin": "glass"}, teacher=Teacher(["Look."]))


def test_a_server_that_fails_ends_no_compile(tmp_path):
    def broken(plan, inputs):
        raise RuntimeError("429: slow down")

    result = compiled(
        tmp_path, lambda plan, inputs: {"bin": truth(inputs) if "jam" in system(plan) else "glass"},
        teacher=ScriptedLM(broken, "teacher"),
    )  # fmt: skip
    assert result.winner.name == "words for bin"
    assert any("429: slow down" in note for note in result.report.notes)


class Turned(still.Module):
    """No predictor at all."""

    k = still.Knob(choices=(1, 2, 3))

    def forward(self, item):
        return still.Prediction(bin=BINS[self.k - 1])


def test_a_program_without_predictors_needs_no_teacher(tmp_path):
    teacher = Teacher(["Look."])
    result = still.compile(
        Turned(), data(9), data(9, 100), lm=ScriptedLM(None), passes=[Instructions()], teacher=teacher,
        ledger=tmp_path / "l.duckdb", progress=False,
    )  # fmt: skip
    assert result.winner.name == "baseline"
    assert teacher.calls == 0


def test_the_second_run_finds_every_row(tmp_path):
    def answer(plan, inputs):
        return {"bin": truth(inputs) if demonstrations(plan) or "jam" in system(plan) else "glass"}

    first = compiled(tmp_path, answer)
    second = compiled(tmp_path, answer)
    assert second.winner.digest == first.winner.digest
    assert second.report.resumed == sum(row.examples for row in first.report.rows)


def standing(name, scores):
    return Standing(Candidate(name, "test"), tuple(Outcome(score) for score in scores))


def test_parents_come_from_the_front_in_proportion_to_what_they_are_best_at():
    front = [standing("a", [1, 1, 1, 0]), standing("b", [0, 0, 0, 1]), standing("worse", [0, 0, 0, 0.5])]
    picks = [pick_parent(front, seed).candidate.name for seed in range(400)]
    assert set(picks) == {"a", "b"}
    assert 250 < picks.count("a") < 350


def test_candidates_that_saw_less_are_no_parents():
    front = [standing("a", [0, 0, 1]), standing("partial", [1, 1])]
    assert {pick_parent(front, seed).candidate.name for seed in range(20)} == {"a"}
