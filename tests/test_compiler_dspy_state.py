"""Compiled programs go to DSPy's state format and back; what it cannot say is refused, or named."""

import datetime
import enum
import json
from dataclasses import replace
from typing import Literal

import dspy
import pytest
import still
from pydantic import BaseModel, Field
from scripted import ScriptedLM, demonstrations
from still.cli import app
from still.compiler.dspy_state import export_dspy, import_dspy, read_dspy
from still.errors import ArtifactError
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.nearest import NearestDemonstrations
from still.signatures.adapter import PlanAdapter
from still.signatures.executor import AdapterFolder
from still.signatures.layout import lower
from typer.testing import CliRunner


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Grade(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Maker(BaseModel):
    name: str = Field(alias="makerName")
    since: datetime.date


class Part(BaseModel):
    sku: str
    size: Size
    maker: Maker | None = None


class Order(dspy.Signature):
    """Read the order."""

    text: str = dspy.InputField()
    stock: list[Part] = dspy.InputField(desc="what is there")
    kind: Literal["new", "change"] = dspy.OutputField(desc="new unless it says change")
    size: Size = dspy.OutputField()
    grade: Grade = dspy.OutputField()
    due: datetime.date | None = dspy.OutputField()
    at: datetime.datetime = dspy.OutputField()
    rating: int = dspy.OutputField(ge=1, le=5)
    tags: set[str] = dspy.OutputField()
    part: Part = dspy.OutputField()


def order(i):
    maker = Maker(makerName=f"maker {i}", since=datetime.date(2020, 1, i + 1))
    return {
        "text": f"order {i}\nkind: forged", "stock": [Part(sku="a", size=Size.SMALL, maker=maker)],
        "kind": ("new", "change")[i % 2], "size": Size.LARGE, "grade": Grade.HIGH, "rating": 1 + i % 5, "tags": {"x"},
        "due": None if i else datetime.date(2024, 2, 29), "at": datetime.datetime(2024, 5, 6, 7, 8, i, tzinfo=datetime.UTC),
        "part": Part(sku=f"b{i}", size=Size.SMALL, maker=maker),
    }  # fmt: skip


class Two(dspy.Module):
    def __init__(self):
        super().__init__()
        self.read = dspy.ChainOfThought("text -> hint")
        self.answer = dspy.Predict("hint -> label: bool, note")

    def forward(self, text):
        return self.answer(hint=self.read(text=text).hint)


class Nested(dspy.Module):
    def __init__(self):
        super().__init__()
        self.inner = Two()
        self.steps = [dspy.Predict("text -> label: bool"), dspy.ChainOfThought(Order)]
        self.by_name = {"a b": dspy.Predict("text -> word")}
        self.both = self.inner.answer


def values(signature, i):
    """Values for a predictor's fields, whichever signature it has."""
    made = {**order(i), "hint": f"hint {i}", "label": bool(i % 2), "note": "n\nn", "word": "ü", "reasoning": f"since {i}"}
    return {name: made[name] for name in signature.fields}


def compiled(program, count=3):
    """The program as a compile could leave it: new instructions and demonstrations for every predictor."""
    states = {
        name: PredictorState(tuple(values(p.signature, i) for i in range(count)), instructions=f"Do {name} well.\nAlways.")
        for name, p in program.named_predictors()
    }
    return Candidate("test", "test", states).apply(program)


def plans(program):
    return {name: lower(p.signature, p.demos).digest for name, p in program.named_predictors()}


PROGRAMS = {
    "predict": lambda: dspy.Predict(Order),
    "chain of thought": lambda: dspy.ChainOfThought(Order),
    "two predictors": Two,
    "nested, listed, in a dict": Nested,
    "of still": lambda: still.ChainOfThought(Order),
}


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_the_unmodified_program_loads_it_and_has_the_same_plans(make, tmp_path):
    program = compiled(make())
    written = export_dspy(program, tmp_path / "state.json")
    assert written.lost == ()
    fresh = make()
    assert plans(fresh) != plans(program)
    fresh.load(tmp_path / "state.json")
    assert plans(fresh) == plans(program)
    assert all("Always." in p.signature.instructions for _, p in fresh.named_predictors())


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_what_dspy_saves_is_read_back_with_the_same_plans(make, tmp_path):
    tuned = make()
    for name, predictor in tuned.named_predictors():
        shown = [values(predictor.signature, i) | {"augmented": True} for i in range(2)]
        for demo in shown:
            demo["tags"] = ["x"]  # dspy cannot save a set
        predictor.demos = [dspy.Example(**shown[0]).with_inputs("text"), shown[1], {"text": "no label"}]
        predictor.signature = predictor.signature.with_instructions(f"{name} it")
    tuned.save(tmp_path / "state.json")
    back = import_dspy(tmp_path / "state.json", make())
    assert plans(back) == plans(tuned)
    for _, predictor in back.named_predictors():
        assert len(predictor.demos) == 3
        assert all(demo.keys() <= predictor.signature.fields.keys() for demo in predictor.demos)


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_export_then_import_gives_the_candidate_back(make, tmp_path):
    program = compiled(make())
    export_dspy(program, tmp_path / "state.json")
    assert plans(import_dspy(tmp_path / "state.json", make())) == plans(program)


class Sort(still.Signature):
    """Sort."""

    item: str = still.Input()
    bin: Literal["glass", "paper", "metal"] = still.Output()


BINS = ("glass", "paper", "metal")
POOL = [{"item": f"thing {i}", "bin": BINS[0 if i < 6 else i % 3]} for i in range(12)]


class Searching(still.Module):
    k = still.Knob(choices=(2, 4))

    def __init__(self):
        super().__init__()
        self.sort = still.Predict(Sort)


def test_values_in_the_file_are_plain(tmp_path):
    export_dspy(compiled(dspy.Predict(Order), 1), tmp_path / "state.json")
    (demo,) = json.loads((tmp_path / "state.json").read_text("utf-8"))["demos"]
    assert demo["size"] == "large"
    assert demo["grade"] == 2
    assert demo["due"] == "2024-02-29"
    assert demo["at"] == "2024-05-06T07:08:00Z"
    assert demo["part"]["maker"] == {"makerName": "maker 0", "since": "2020-01-01"}


def test_dspys_own_format_shows_what_it_was_given(tmp_path):
    """The loaded program, run through DSPy's chat format by an LM that is not Still's."""
    export_dspy(compiled(Two(), 2), tmp_path / "state.json")
    program = Two()
    program.load(tmp_path / "state.json")
    lm = dspy.utils.DummyLM([{"reasoning": "r", "hint": "h"}, {"label": "True", "note": "n"}])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        assert program(text="new text").label is True
    first, second = (call["messages"] for call in lm.history)
    assert "Do read.predict well." in first[0]["content"]
    assert [m["role"] for m in first] == ["system", *["user", "assistant"] * 2, "user"]
    assert "since 1" in first[4]["content"]
    assert "hint 0" in second[1]["content"]


@pytest.mark.parametrize("lossy", [False, True])
def test_a_pool_is_refused_or_becomes_its_balanced_first(tmp_path, lossy):
    program = Candidate("nearest", "test", {"self": PredictorState(tuple(POOL), nearest=4)}).apply(still.Predict(Sort))
    if not lossy:
        with pytest.raises(ArtifactError, match=r"predictor 'self': the 4 .*of 12.*\n.*lossy=True"):
            export_dspy(program, tmp_path / "state.json")
        assert not any(tmp_path.iterdir())
        return
    written = export_dspy(program, tmp_path / "state.json", lossy=True)
    assert len(written.lost) == 1
    fresh = dspy.Predict(Sort)
    fresh.load(tmp_path / "state.json")
    assert [demo["item"] for demo in fresh.demos] == ["thing 0", "thing 7", "thing 8", "thing 1"]
    assert isinstance(program.demos, NearestDemonstrations), "the compiled program keeps its pool"


def test_scores_calibrations_and_knobs_are_named(tmp_path):
    fields = {"bin": {"decide": "score", "calibration": {"bias": {"glass": 1.0}, "temperature": 2.0}}}
    states = {"sort": PredictorState(fields=fields)}
    program = Candidate("test", "test", states, {"k": 4, "sort.samples": 3}).apply(Searching())
    with pytest.raises(ArtifactError, match="lossy"):
        export_dspy(program, tmp_path / "state.json")
    lost = export_dspy(program, tmp_path / "state.json", lossy=True).lost
    assert [loss for loss in lost if "decide='score', calibration" in loss]
    assert [loss for loss in lost if loss == "knob 'k': 4"]
    assert len(lost) == 3


def test_a_trained_adapter_is_named(tmp_path):
    state = PredictorState(adapter=AdapterFolder("0" * 64, str(tmp_path / "adapter")))
    program = Candidate("distil", "test", {"self": state}).apply(still.Predict(Sort))
    with pytest.raises(ArtifactError, match=r"predictor 'self': the adapter .*--to peft"):
        export_dspy(program, tmp_path / "state.json")
    written = export_dspy(program, tmp_path / "state.json", lossy=True)
    assert len(written.lost) == 1 and "adapter" in written.lost[0]


def test_incomplete_demonstrations_are_left_out_as_the_plan_does(tmp_path):
    shown = ({"item": "a", "bin": "glass"}, {"item": "b"})
    program = Candidate("test", "test", {"self": PredictorState(shown)}).apply(dspy.Predict(Sort))
    export_dspy(program, tmp_path / "state.json")
    fresh = dspy.Predict(Sort)
    fresh.load(tmp_path / "state.json")
    assert fresh.demos == [shown[0]]


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud800"])
def test_a_value_without_json_is_named(tmp_path, value):
    program = dspy.Predict("item: list -> bin")
    program.demos = [{"item": [value], "bin": "x"}]
    with pytest.raises(ArtifactError, match="predictor 'self', demonstration 0, field 'item'"):
        export_dspy(program, tmp_path / "state.json")


def test_a_plain_lm_comes_along_without_its_key_and_a_local_one_does_not(tmp_path):
    program = Two()
    program.read.predict.lm = dspy.LM("openai/some-model", api_key="secret", temperature=0.5)
    program.answer.lm = ScriptedLM(lambda plan, inputs: {})
    export_dspy(program, tmp_path / "state.json")
    assert "secret" not in (tmp_path / "state.json").read_text("utf-8")
    fresh = Two()
    fresh.load(tmp_path / "state.json")
    assert fresh.read.predict.lm.model == "openai/some-model"
    assert fresh.read.predict.lm.kwargs["temperature"] == 0.5
    assert fresh.answer.lm is None


def test_a_path_that_dspy_does_not_read_or_that_cannot_be_written(tmp_path):
    program = dspy.Predict(Sort)
    with pytest.raises(ArtifactError, match=r"state\.pkl.*\.json"):
        export_dspy(program, tmp_path / "state.pkl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        export_dspy(program, tmp_path / "file" / "state.json")


def test_descriptions_changed_by_dspy_are_read(tmp_path):
    tuned = Two()
    tuned.answer.signature = tuned.answer.signature.with_updated_fields("note", desc="a note", prefix="Said:")
    tuned.answer.signature = tuned.answer.signature.with_updated_fields("hint", desc="a hint")
    tuned.save(tmp_path / "state.json")
    candidate = read_dspy(tmp_path / "state.json", Two())
    assert candidate.states["answer"].fields == {"hint": {"desc": "a hint"}, "note": {"prefix": "Said:", "desc": "a note"}}
    assert candidate.states["read.predict"].fields == {}
    assert plans(candidate.apply(Two())) == plans(tuned)


def edited(tmp_path, change, program=None):
    """A state saved by DSPy with something changed in the file."""
    path = tmp_path / "state.json"
    (program or Two()).save(path)
    state = json.loads(path.read_text("utf-8"))
    change(state)
    path.write_text(json.dumps(state), "utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("answer"), "predictor 'answer' is not in .*which has: read.predict"),
        (lambda s: s.update(other=s["answer"]), "predictor 'other' of .* is not in the program, which has: answer"),
        (lambda s: s["answer"].pop("signature"), "predictor 'answer': it has no signature"),
        (lambda s: s["answer"].update(demos={}), "predictor 'answer': it has no signature or demos"),
        (lambda s: s["answer"].update(fields={"label": {}}), "predictor 'answer': decision settings of 'label'"),
        (lambda s: s["answer"]["signature"]["fields"].pop(), "predictor 'answer': .*2 fields, the program's has 3: hint"),
        (lambda s: s["answer"]["signature"].update(fields=["x"] * 3), "predictor 'answer', field 'hint'"),
        (lambda s: s["answer"].update(demos=["text"]), "predictor 'answer', demonstration 0: it is a str"),
        (lambda s: s["answer"].update(demos=[{}, {"label": "perhaps"}]), "'answer', demonstration 1: field 'label'"),
        (lambda s: s.update(answer=3), "predictor 'answer': the state is a int"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(ArtifactError, match=message):
        import_dspy(edited(tmp_path, change), Two())


def test_states_of_another_shape_or_kind_are_refused(tmp_path):
    single = edited(tmp_path, lambda s: None, dspy.Predict(Sort))
    with pytest.raises(ArtifactError, match="state of a single predictor, Two is a module"):
        import_dspy(single, Two())
    with pytest.raises(ArtifactError, match="predictor 'self': it has no signature"):
        import_dspy(edited(tmp_path, lambda s: None), dspy.Predict(Sort))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    wrong = {"broken.json": "not JSON", "list.json": "holds a list", "a.pkl": "pickle", "no.json": "read"}
    for name, message in wrong.items():
        with pytest.raises(ArtifactError, match=message):
            import_dspy(tmp_path / name, Two())


def test_metadata_is_not_needed_and_none_counts_as_missing(tmp_path):
    path = edited(tmp_path, lambda s: (s.pop("metadata"), s["answer"].update(demos=[{"hint": "h", "label": None, "id": 3}])))
    program = import_dspy(path, Two())
    assert program.answer.demos == [{"hint": "h", "label": None}]
    assert len(lower(program.answer.signature, program.answer.demos).turns) == 3, "half a demonstration is not shown"


def test_an_artifact_of_an_imported_program_is_loaded_with_its_descriptions(tmp_path):
    tuned = dspy.Predict(Sort)
    tuned.signature = tuned.signature.with_updated_fields("bin", desc="what it is made of")
    state = edited(tmp_path, lambda s: None, tuned)
    lm, data = ScriptedLM(lambda plan, inputs: {"bin": "glass"}), still.Dataset(POOL, inputs=["item"])
    result = still.compile(
        import_dspy(state, still.Predict(Sort)), data, data, lm=lm, level="O0", progress=False, ledger=tmp_path / "l.duckdb"
    )
    artifact = result.save(tmp_path / "sort.still")
    with pytest.raises(ArtifactError, match=r"field 'bin': its description is .*'what it is made of'.*import_dspy"):
        still.load(artifact, still.Predict(Sort), lm=lm)
    assert plans(still.load(artifact, import_dspy(state, still.Predict(Sort)), lm=lm)) == plans(result.program)


@pytest.fixture
def sorting(tmp_path):
    """An LM that is right once it is shown 4 demonstrations, and a program compiled for it."""
    lm = ScriptedLM(lambda plan, inputs: {"bin": inputs["item"].split()[-1] if demonstrations(plan) >= 4 else "glass"})
    rows = [{"item": f"{i} {BINS[i % 3]}", "bin": BINS[i % 3]} for i in range(60)]
    train, dev = still.Dataset(rows[:24], inputs=["item"]), still.Dataset(rows[24:], inputs=["item"])
    return lm, still.compile(dspy.Predict(Sort), train, dev, lm=lm, progress=False, ledger=tmp_path / "ledger.duckdb")


def test_a_compiled_program_goes_out_and_comes_back(tmp_path, sorting):
    lm, result = sorting
    assert result.export_dspy(tmp_path / "state.json").lost == ()
    loaded = dspy.Predict(Sort)
    loaded.load(tmp_path / "state.json")
    assert plans(loaded) == plans(result.program)
    with dspy.context(lm=lm, adapter=PlanAdapter()):
        assert dspy.Predict(Sort)(item="of metal").bin == "glass"
        assert loaded(item="of metal").bin == "metal"
        assert import_dspy(tmp_path / "state.json", still.Predict(Sort))(item="of metal").bin == "metal"


def test_a_knob_that_was_turned_back_to_its_default_is_lost_too(tmp_path, sorting):
    """The program's class may set another value, which DSPy then has."""
    result = replace(sorting[1], winner=Candidate("turned", "search", knobs={"samples": 1}))
    with pytest.raises(ArtifactError, match="knob 'samples': 1"):
        result.export_dspy(tmp_path / "state.json")


def test_the_command_line_exports_an_artifact(tmp_path, sorting):
    sorting[1].save(tmp_path / "sort.still")
    target = tmp_path / "state.json"
    done = CliRunner().invoke(app, ["export", str(tmp_path / "sort.still"), "--to", "dspy", str(target)])
    assert done.exit_code == 0, done.output
    assert str(target) in done.output
    loaded = dspy.Predict(Sort)
    loaded.load(target)
    assert plans(loaded) == plans(sorting[1].program)


def test_the_command_line_names_what_is_lost_and_other_formats(tmp_path, sorting):
    pool = PredictorState(tuple(POOL), nearest=4)
    program = Candidate("nearest", "test", {"self": pool}).apply(still.Predict(Sort))
    artifact = replace(sorting[1], program=program).save(tmp_path / "nearest.still")
    command = ["export", str(artifact), str(tmp_path / "state.json")]
    assert isinstance(CliRunner().invoke(app, command).exception, ArtifactError)
    done = CliRunner().invoke(app, [*command, "--lossy"])
    assert done.exit_code == 0, done.output
    assert "not in the file: predictor 'self': the 4 demonstrations nearest" in done.output
    assert "the formats are dspy, peft" in str(CliRunner().invoke(app, [*command, "--to", "onnx"]).exception)
