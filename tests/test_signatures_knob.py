"""Knobs: declared, set, checked, found, kept in artifacts."""

import copy
from collections import Counter
from typing import Literal

import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedLM
from still.errors import SignatureError
from still.optimizers.candidate import Candidate
from still.signatures.knob import knob_values, named_knobs, set_knobs
from still.signatures.vote import majority


class Sort(still.Signature):
    """Sort the item."""

    item: str = still.Input()
    bin: Literal["glass", "paper"] = still.Output()


class Finder(still.Module):
    k = still.Knob(choices=(2, 4, 8), default=4)
    weight = still.Knob(range=(0.0, 1.0))

    def __init__(self):
        super().__init__()
        self.sort = still.Predict(Sort)


class Program(still.Module):
    mode = still.Knob(choices=("fast", None))

    def __init__(self):
        super().__init__()
        self.finders = [Finder(), Finder()]


def test_a_knob_is_its_value():
    finder = Finder()
    assert (finder.k, finder.weight) == (4, 0.0)
    finder.k = 8
    assert (finder.k, Finder().k) == (8, 4)
    assert isinstance(Finder.k, still.Knob)


def test_copies_are_independent():
    finder = Finder()
    finder.k = 2
    other = copy.deepcopy(finder)
    other.k = 8
    assert (finder.k, other.k) == (2, 8)


@pytest.mark.parametrize("value", [3, "4", 4.0, True, None])
def test_other_values_are_refused(value):
    with pytest.raises(SignatureError, match="knob 'k'"):
        Finder().k = value


@given(st.one_of(st.floats(), st.integers(), st.booleans()))
def test_a_range_takes_the_numbers_in_it(value):
    finder = Finder()
    if not isinstance(value, bool) and 0 <= value <= 1:
        finder.weight = value
        assert finder.weight == value
    else:
        with pytest.raises(SignatureError, match="knob 'weight'"):
            finder.weight = value


@pytest.mark.parametrize(
    "make",
    [
        lambda: still.Knob(),
        lambda: still.Knob(choices=()),
        lambda: still.Knob(choices=([1],)),
        lambda: still.Knob(choices=(1, 2), default=3),
        lambda: still.Knob(range=(2, 1)),
        lambda: still.Knob(range=(1,)),
        lambda: still.Knob(range=(0, 5), default=2.5),
        lambda: still.Knob(choices=(1,), range=(0, 1)),
    ],
)
def test_what_is_no_knob_is_refused(make):
    with pytest.raises(SignatureError):
        make()


def test_knobs_are_found_by_path():
    found = {path for path, _, _ in named_knobs(Program())}
    own = {f"finders[{i}].{name}" for i in (0, 1) for name in ("k", "weight", "sort.reasoning", "sort.samples")}
    assert found == {"mode", *own}


def test_values_by_path_set_and_read():
    program = Program()
    set_knobs(program, {"finders[1].k": 8, "mode": None})
    assert program.finders[1].k == 8
    assert program.finders[0].k == 4
    assert knob_values(program) == {"finders[1].k": 8, "mode": None}
    with pytest.raises(SignatureError, match=r"knob 'finders\[2\].k' is not in the program"):
        set_knobs(program, {"finders[2].k": 8})


def test_a_candidate_carries_knobs():
    program = Program()
    plain, tuned = Candidate("a", "t"), Candidate("b", "t", {}, {"finders[0].k": 2})
    assert tuned.apply(program).finders[0].k == 2
    assert program.finders[0].k == 4
    assert plain.digest != tuned.digest


def test_reasoning_is_written_before_the_outputs():
    seen = []

    def answer(plan, inputs):
        fields = [step.field for step in plan.decodes]
        seen.append(fields)
        return {name: "glass" if name == "bin" else "because" for name in fields}

    predict = still.Predict(Sort)
    predict.reasoning = True
    with still.context(lm=ScriptedLM(answer)):
        result = predict(item="jar")
    assert seen == [["reasoning", "bin"]]
    assert (result.bin, result.reasoning) == ("glass", "because")
    assert list(predict.signature.output_fields) == ["bin"]


class Drawing(ScriptedLM):
    """Draws n answers, of which two in three are paper."""

    def execute(self, plan, inputs, sampling=None, n=1):
        self.drawn = (n, sampling.temperature)
        return [super(Drawing, self).execute(plan, {"i": i}, sampling)[0] for i in range(n)]


def test_samples_vote():
    lm = Drawing(lambda plan, inputs: {"bin": "glass" if inputs["i"] % 3 == 0 else "paper"})
    predict = still.Predict(Sort)
    predict.samples = 3
    with still.context(lm=lm):
        assert predict(item="jar").bin == "paper"
        assert lm.drawn == (3, 0.7)
        predict(item="jar", config={"temperature": 1.2})
    assert lm.drawn == (3, 1.2)


@pytest.mark.parametrize("reasoning", [False, True])
def test_samples_vote_on_what_is_asked_in_a_call(reasoning):
    """The signature of the call, and not its reasoning: no two draws give the same."""

    def answer(plan, inputs):
        drawn = {"lid": "cork" if inputs["i"] == 0 else "tin", "reasoning": f"because {inputs['i']}"}
        return {step.field: drawn[step.field] for step in plan.decodes}

    predict = still.Predict(Sort)
    predict.samples, predict.reasoning = 3, reasoning
    with still.context(lm=Drawing(answer)):
        assert predict(item="jar", signature="item -> lid").lid == "tin"


def test_samples_vote_on_a_reasoning_that_is_the_signatures_own():
    lm = Drawing(lambda plan, inputs: {"reasoning": "a" if inputs["i"] == 0 else "b", "bin": "glass"})
    predict = still.Predict("item -> reasoning, bin")
    predict.samples = 3
    with still.context(lm=lm):
        assert predict(item="jar").reasoning == "b"


def test_samples_do_not_vote_on_what_is_not_written():
    lm = Drawing(lambda plan, inputs: {"bin": "glass" if inputs["i"] == 0 else "paper"})
    predict = still.Predict(still.Signature("item -> why, bin").with_updated_fields("why", written=False))
    predict.samples = 3
    with still.context(lm=lm):
        assert predict(item="jar").bin == "paper"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_the_majority_is_the_first_of_the_most_frequent(values):
    index = majority([{"x": value, "why": i} for i, value in enumerate(values)], ["x"])
    counts = Counter(values)
    assert counts[values[index]] == max(counts.values())
    assert values.index(values[index]) == index


def test_knobs_come_back_from_an_artifact(tmp_path):
    lm = ScriptedLM(lambda plan, inputs: {step.field: "glass" for step in plan.decodes})
    data = still.Dataset([{"item": f"jar {i}", "bin": "glass"} for i in range(8)], inputs=["item"])
    predict = still.Predict(Sort)
    predict.reasoning = True
    result = still.compile(predict, data, data, lm=lm, level="O0", ledger=tmp_path / "l.duckdb", progress=False)
    result.save(tmp_path / "a")
    from still.compiler.artifact import read_artifact

    artifact = read_artifact(tmp_path / "a")
    assert artifact.program().reasoning is True
    assert "reasoning" in (tmp_path / "a" / "plans" / "self.txt").read_text()
