"""Artifacts: they come back whole, or not at all."""

import enum
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Annotated, Literal

import dspy
import pytest
import still
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter
from scripted import ScriptedLM, demonstrations
from still.compiler import artifact as artifact_module
from still.compiler.artifact import SUMS, read_artifact
from still.compiler.schema_types import type_from_schema
from still.errors import ArtifactError
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.nearest import NearestDemonstrations


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Line(BaseModel):
    sku: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}\d{3}$")]
    count: int = Field(ge=1, le=9)


class Order(still.Signature):
    """Read the order."""

    text: str = still.Input()
    kind: Literal["new", "change"] = still.Output()
    urgent: bool = still.Output()
    size: Size = still.Output()
    code: Annotated[str, StringConstraints(pattern=r"^LV-\d{6}$")] | None = still.Output(desc="like LV-204518")
    rating: int = still.Output(ge=1, le=5)
    weight: float = still.Output(gt=0, le=100)
    tags: list[str] = still.Output(max_length=3)
    line: Line = still.Output()


VALUES = {
    "kind": "new", "urgent": True, "size": Size.LARGE, "code": None, "rating": 3, "weight": 2.5, "tags": ["a", "b"],
    "line": Line(sku="AB123", count=2),
}  # fmt: skip


def rows(count):
    plain = {**VALUES, "size": "large", "line": VALUES["line"].model_dump()}
    return still.Dataset([{"text": f"order {i}", **plain} for i in range(count)], inputs=["text"])


def right(plan, inputs):
    """Right once demonstrations are shown."""
    values = {step.field: step.constraint.coerce(_plain(VALUES[step.field])) for step in plan.decodes}
    return values if demonstrations(plan) else {**values, "rating": 1}


def _plain(value):
    return value.value if isinstance(value, enum.Enum) else value.model_dump() if isinstance(value, BaseModel) else value


@pytest.fixture
def lm():
    return ScriptedLM(right)


@pytest.fixture
def saved(tmp_path, lm):
    result = still.compile(
        still.Predict(Order), rows(16), rows(20), lm=lm, progress=False, ledger=tmp_path / "ledger.duckdb",
    )  # fmt: skip
    assert result.winner.name != "baseline"
    return result.save(tmp_path / "order.still")


def test_a_predictor_comes_back_from_its_schema_alone(saved, lm):
    program = still.load(saved, lm=lm)
    answer = program(text="two lamps please")
    assert answer.rating == 3, "the demonstrations came along"
    assert answer.kind == "new"
    assert answer.code is None
    assert answer.line.sku == "AB123"
    assert answer.size == "large", "an Enum comes back as a Literal of its values"
    assert program.signature.instructions == "Read the order."


def test_with_the_program_given_values_are_of_its_own_classes(saved, lm):
    answer = still.load(saved, still.Predict(Order), lm=lm)(text="two lamps please")
    assert answer.size is Size.LARGE
    assert isinstance(answer.line, Line)


def test_saving_again_replaces_the_artifact(saved, tmp_path, lm):
    before = (saved / "manifest.json").read_bytes()
    result = still.compile(still.Predict(Order), rows(16), rows(20), lm=lm, level="O0", progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    result.save(saved)
    assert (saved / "manifest.json").read_bytes() != before
    assert read_artifact(saved).report.winner == "baseline"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "nothing temporary is left"


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_any_changed_byte_is_refused(saved, lm):
    for name in files(saved):
        path = saved / name
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(ArtifactError):
                still.load(saved, lm=lm)
        path.write_bytes(content)
    still.load(saved, lm=lm)


def test_any_missing_file_is_refused(saved, lm):
    for name in files(saved):
        content = (saved / name).read_bytes()
        (saved / name).unlink()
        with pytest.raises(ArtifactError, match=name.replace("\\", ".")):
            still.load(saved, lm=lm)
        (saved / name).write_bytes(content)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/hostname", "plans/../../evil.json", "link/evil.json"])
def test_a_path_that_leaves_the_folder_is_refused(saved, lm, name):
    outside = saved.parent / "evil.json"
    outside.write_text("{}")
    (saved / "link").symlink_to(saved.parent)
    digest = hashlib.sha256(b"{}").hexdigest()
    with (saved / SUMS).open("a") as sums:
        sums.write(f"{digest}  {name}\n")
    with pytest.raises(ArtifactError, match="leaves the folder"):
        still.load(saved, lm=lm)


def resealed(folder, change):
    """Change the manifest and make the digests right again: damage that digests cannot show."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in files(folder) if n != SUMS]
    (folder / SUMS).write_text("".join(lines))


def test_another_format_is_refused(saved, lm):
    resealed(saved, lambda m: m.update(format=99))
    with pytest.raises(ArtifactError, match="format 99"):
        still.load(saved, lm=lm)


def test_a_malformed_manifest_is_refused(saved, lm):
    resealed(saved, lambda m: m.pop("format"))
    with pytest.raises(ArtifactError, match="malformed"):
        still.load(saved, lm=lm)


def test_another_model_is_refused(saved):
    with pytest.raises(ArtifactError, match="compile again for this one"):
        still.load(saved, lm=ScriptedLM(right, name="other"))


def test_the_lms_sampling_settings_travel_along(tmp_path, monkeypatch):
    lm = ScriptedLM(right)
    lm.kwargs["temperature"] = 0.7
    result = still.compile(still.Predict(Order), rows(4), rows(4), lm=lm, level="O0", progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    path = result.save(tmp_path / "a")
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["model"]["sampling"] == {"temperature": 0.7}
    assert still.load(path, lm=ScriptedLM(right)).lm.kwargs["temperature"] is None, "an LM that is given is taken as it is"
    monkeypatch.setattr("still.compiler.load.weights_digest", lambda lm: manifest["model"]["digest"])
    assert still.load(path).lm.kwargs["temperature"] == 0.7


def test_fields_that_differ_are_named(saved, lm):
    class Other(still.Signature):
        """Read the order."""

        text: str = still.Input()
        kind: Literal["new", "change", "cancel"] = still.Output()

    with pytest.raises(ArtifactError, match=r"field 'kind': schema"):
        still.load(saved, still.Predict(Other), lm=lm)


def test_descriptions_that_differ_are_named(saved, lm):
    """They are not among an artifact's states: those of the program that is passed would go into the prompts."""
    told = Order.with_updated_fields("urgent", desc="only where it says so")
    named = r"'self', field 'urgent': its description is 'only .*'\$\{urgent\}'.*import_dspy"
    with pytest.raises(ArtifactError, match=named):
        still.load(saved, still.Predict(told), lm=lm)


def test_what_a_compile_sets_of_fields_makes_no_other_program(tmp_path, lm):
    result = still.compile(still.Predict(Order), rows(4), rows(4), lm=lm, level="O0", progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    short = PredictorState(fields={"urgent": {"describe": False}, "text": {"place": 0}}, instructions="Read it.")
    program = Candidate("short", "test", {"self": short}).apply(still.Predict(Order))
    loaded = still.load(replace(result, program=program).save(tmp_path / "a"), still.Predict(Order), lm=lm)
    assert loaded.signature.instructions == "Read it."
    assert loaded.signature.fields["urgent"].json_schema_extra["describe"] is False


def test_half_a_surrogate_pair_is_saved_as_a_replacement_character(tmp_path, lm):
    result = still.compile(still.Predict(Order), rows(4), rows(4), lm=lm, level="O0", progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    report = replace(result.report, notes=("half \ud800 pair", "a whole \ud83d\ude00 one"))
    saved = replace(result, report=report).save(tmp_path / "a")
    assert read_artifact(saved).report.notes == ("half \ufffd pair", "a whole \U0001f600 one")


def test_a_folder_that_is_something_else_is_left_alone(saved, lm, tmp_path):
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    result = still.compile(still.Predict(Order), rows(4), rows(4), lm=lm, level="O0", progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    with pytest.raises(ArtifactError, match="not an artifact"):
        result.save(other)
    assert (other / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ArtifactError, match="not an artifact"):
        still.load(other, lm=lm)


def test_a_full_disk_leaves_the_old_artifact_whole(saved, lm, tmp_path, monkeypatch):
    result = still.compile(still.Predict(Order), rows(4), rows(4), lm=lm, level="O0", progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    before = {name: (saved / name).read_bytes() for name in files(saved)}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact_module.Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="No space left"):
        result.save(saved)
    monkeypatch.undo()
    assert {name: (saved / name).read_bytes() for name in files(saved)} == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_pool_of_nearest_demonstrations_travels_along(tmp_path):
    class Sort(still.Signature):
        """Sort."""

        item: str = still.Input()
        bin: Literal["glass", "paper"] = still.Output()

    def copies_the_nearest(plan, inputs):
        """As good as its last demonstration, if that was chosen for this input."""
        last = next((t.text for t in reversed(plan.turns[:-2]) if t.role == "assistant"), "bin: glass")
        return {"bin": last.removeprefix("bin: ")}

    words = ["bottle", "letter", "jar", "page"]
    data = [{"item": f"{words[i % 4]} {i}", "bin": "glass" if i % 2 == 0 else "paper"} for i in range(80)]
    lm = ScriptedLM(copies_the_nearest)
    split = still.Dataset(data, inputs=["item"])
    result = still.compile(still.Predict(Sort), split[:40], split[40:], lm=lm, progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    assert result.winner.origin == "nearest"
    program = still.load(result.save(tmp_path / "a"), lm=lm)
    assert isinstance(program.demos, NearestDemonstrations)
    assert [program(item=f"{word} 7").bin for word in words] == ["glass", "paper", "glass", "paper"]


class Alike(still.Module):
    """Two predictors whose names differ in a sign only."""

    def __init__(self):
        super().__init__()
        self.by = {name: still.Predict(Order.with_instructions(f"By {name}.")) for name in ("a b", "a_b")}

    def forward(self, text):
        return self.by["a b"](text=text)


def test_every_predictor_has_a_file_of_its_own(tmp_path):
    result = still.compile(
        Alike(), rows(4), rows(4), lm=ScriptedLM(right), level="O0", progress=False, ledger=tmp_path / "l.duckdb"
    )
    plans = [file.read_text() for file in sorted((result.save(tmp_path / "a") / "plans").iterdir())]
    assert ["By a b." in text for text in plans] == [True, False]
    assert ["By a_b." in text for text in plans] == [False, True]


class Reason(dspy.Module):
    def __init__(self):
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer: int")

    def forward(self, question):
        return self.think(question=question)


def test_a_module_needs_its_class(tmp_path, monkeypatch):
    lm = ScriptedLM(lambda plan, inputs: {"reasoning": "because", "answer": 4})
    data = still.Dataset([{"question": f"{i} and {4 - i}?", "answer": 4} for i in range(5)], inputs=["question"])
    (tmp_path / "mathbook.py").write_text(
        textwrap.dedent("""
        import dspy
        class Reason(dspy.Module):
            def __init__(self):
                super().__init__()
                self.think = dspy.ChainOfThought("question -> answer: int")
            def forward(self, question):
                return self.think(question=question)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mathbook

    result = still.compile(mathbook.Reason(), data, data, lm=lm, level="O0", progress=False, ledger=tmp_path / "l.duckdb")
    path = result.save(tmp_path / "reason.still")
    with pytest.raises(ArtifactError, match="allow_import=True"):
        still.load(path, lm=lm)
    assert still.load(path, Reason(), lm=lm)(question="2 and 2?").answer == 4
    assert type(still.load(path, lm=lm, allow_import=True)) is mathbook.Reason


def test_chain_of_thought_comes_back_with_its_reasoning(tmp_path):
    lm = ScriptedLM(lambda plan, inputs: {"reasoning": "because", "answer": 4})
    data = still.Dataset([{"question": f"{i} and {4 - i}?", "answer": 4} for i in range(5)], inputs=["question"])
    result = still.compile(still.ChainOfThought("question -> answer: int"), data, data, lm=lm, level="O0", progress=False,
                           ledger=tmp_path / "l.duckdb")  # fmt: skip
    answer = still.load(result.save(tmp_path / "a"), lm=lm)(question="2 and 2?")
    assert (answer.reasoning, answer.answer) == ("because", 4)


@pytest.mark.parametrize(
    "annotation",
    [
        str, int, float, bool, Literal["a", "b"], int | None, int | str | None, list[int], dict[str, float],
        Annotated[int, Field(ge=1, lt=9)], Annotated[str, StringConstraints(pattern="^x+$", max_length=4)],
        list[Literal["p", "q"]], Line, list[Line], Size, tuple[int, str], set[int], dict[Literal["a", "b"], float],
        dict[Annotated[str, StringConstraints(pattern="^x+$")], int], dict[Annotated[str, Field(max_length=2)], float],
    ],
    ids=str,
)  # fmt: skip
def test_a_type_rebuilt_from_its_schema_accepts_the_same_json(annotation):
    """Compared with pydantic on good and bad values of every kind."""
    original = TypeAdapter(annotation)
    rebuilt = TypeAdapter(type_from_schema(original.json_schema(), "field"))
    probes = [
        "a", "p", "small", "xx", "xxxxx", 1, 9, 2.5, True, None, [], [1], [1, 1], ["p"], [1, "a"], {}, {"a": 1.5},
        {"sku": "AB123", "count": 2}, {"sku": "AB123", "count": 0}, [{"sku": "AB123", "count": 2}], "", -1,
        {"b": 1.0, "c": 2.0}, {"b": 1.0}, {"xx": 1}, {"x": 1, "y": 1}, {"long": 1.0},
    ]  # fmt: skip

    def accepts(adapter, value):
        try:
            adapter.validate_json(json.dumps(value), strict=True)
        except ValueError:
            return False
        return True

    assert [accepts(rebuilt, p) for p in probes] == [accepts(original, p) for p in probes]


def test_a_cited_type_is_one_again():
    for annotation in (still.Cited[str], still.Cited[int], still.Cited[Literal["a", "b"]] | None):
        rebuilt = type_from_schema(TypeAdapter(annotation).json_schema(), "field")
        assert rebuilt == annotation


def test_a_recursive_type_asks_for_the_program():
    class Tree(BaseModel):
        children: list["Tree"]

    with pytest.raises(ArtifactError, match=r"'field'.*recursive"):
        type_from_schema(TypeAdapter(Tree).json_schema(), "field")


@pytest.mark.model
def test_a_new_process_without_the_data_gives_the_same_answers(tmp_path):
    class Ticket(still.Signature):
        """Route a customer message."""

        message: str = still.Input()
        team: Literal["shipping", "billing", "returns"] = still.Output()

    texts = [("where is my parcel", "shipping"), ("charged twice", "billing"), ("want to send it back", "returns")]
    data = still.Dataset([{"message": f"{t} {i}", "team": k} for i in range(6) for t, k in texts], inputs=["message"])
    result = still.compile(still.Predict(Ticket), data, data, lm=still.LM(), progress=False,
                           ledger=tmp_path / "ledger.duckdb")  # fmt: skip
    path = result.save(tmp_path / "ticket.still")
    questions = ["my parcel never came", "why two charges?", "wrong size, back it goes", "hello"]
    expected = [result.program(message=q).team for q in questions]
    moved = tmp_path / "elsewhere" / "t.still"
    shutil.copytree(path, moved)
    code = f"import still\np = still.load({str(moved)!r})\nprint([p(message=q).team for q in {questions!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "elsewhere",
                          env={**os.environ, "PYTHONPATH": ""}, check=True)  # fmt: skip
    assert done.stdout.strip() == str(expected)
