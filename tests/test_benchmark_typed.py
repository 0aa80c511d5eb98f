"""The sets of benchmarks/typed.py: what counts as right, and that the right answers of the data do."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import TypeAdapter, ValidationError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("typed_sets")


@pytest.fixture
def benchmark_typed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("typed")


def answer(row, **values):
    """What a program would return: values of the declared types."""
    return SimpleNamespace(
        **{
            name: TypeAdapter(row.signature.output_fields[name].rebuild_annotation()).validate_python(value)
            for name, value in values.items()
        }
    )


def call(properties, required, allowed):
    function = {
        "name": "shop.order",
        "description": "Order things.",
        "parameters": {"type": "dict", "properties": properties, "required": required},
    }
    return {
        "question": [[{"role": "user", "content": "Two cups, please."}]],
        "function": [function],
        "ground_truth": [{"shop.order": allowed}],
    }


def test_a_question_is_right_or_wrong(sets):
    row = sets._trec({"text": "Where is Ulm ?", "label": "LOC"})
    assert row.inputs == {"question": "Where is Ulm ?"}
    assert row.judge(answer(row, kind="location")) == 1
    assert row.judge(answer(row, kind="human")) == 0


def test_a_message_is_scored_by_its_three_fields(sets):
    names = list(sets.facility_signature().output_fields["categories"].annotation.model_fields)
    label = {"urgency": "low", "sentiment": "neutral", "categories": dict.fromkeys(names, False)}
    row = sets._facility({"message": "Hello", "answer": label})
    assert row.judge(answer(row, **label)) == 1
    assert row.judge(answer(row, **{**label, "urgency": "high"})) == pytest.approx(2 / 3)
    one_wrong = {**label["categories"], names[0]: True}
    assert row.judge(answer(row, **{**label, "categories": one_wrong})) == pytest.approx((2 + 0.9) / 3)


def test_every_argument_must_be_one_of_those_allowed(sets):
    row = sets._bfcl(
        call(
            {"from": {"type": "string"}, "count": {"type": "integer"}, "gift": {"type": "boolean"}},
            ["from", "count"],
            {"from": ["New York, NY", "NYC"], "count": [2], "gift": ["", False]},
        )
    )
    assert row.judge(answer(row, arguments={"from": "new york NY", "count": 2})) == 1
    assert row.judge(answer(row, arguments={"from": "nyc", "count": 2, "gift": False})) == 1
    assert row.judge(answer(row, arguments={"from": "NYC", "count": 2, "gift": True})) == 0
    assert row.judge(answer(row, arguments={"from": "NYC", "count": 3})) == 0
    assert row.judge(answer(row, arguments={"from": "York", "count": 2})) == 0


def test_what_must_be_given_cannot_be_left_out(sets):
    row = sets._bfcl(
        call({"count": {"type": "integer"}, "to": {"type": "string"}}, ["count"], {"count": [2], "to": ["Ulm"]})
    )
    assert row.judge(answer(row, arguments={"count": 2})) == 0
    with pytest.raises(ValidationError):
        answer(row, arguments={"to": "Ulm"})


def test_objects_and_lists_are_compared_by_their_parts(sets):
    line = {"type": "dict", "properties": {"item": {"type": "string"}, "size": {"type": "string"}}, "required": ["item"]}
    allowed = {"lines": [[{"item": ["cup", "mug"], "size": ["", "small"]}]], "to": [["Ulm", "Bonn"]]}
    row = sets._bfcl(
        call(
            {"lines": {"type": "array", "items": line}, "to": {"type": "array", "items": {"type": "string"}}},
            ["lines", "to"],
            allowed,
        )
    )
    assert row.judge(answer(row, arguments={"lines": [{"item": "Mug"}], "to": ["ulm", "bonn"]})) == 1
    assert row.judge(answer(row, arguments={"lines": [{"item": "plate"}], "to": ["Ulm", "Bonn"]})) == 0
    assert row.judge(answer(row, arguments={"lines": [{"item": "cup"}] * 2, "to": ["Ulm", "Bonn"]})) == 0
    assert row.judge(answer(row, arguments={"lines": [{"item": "cup"}], "to": ["Bonn", "Ulm"]})) == 0


def test_an_answer_of_another_type_is_not_valid(sets, benchmark_typed):
    row = sets._trec({"text": "Where is Ulm ?", "label": "LOC"})
    assert benchmark_typed._is_valid(row, answer(row, kind="human"))
    assert not benchmark_typed._is_valid(row, SimpleNamespace(kind="place"))
    assert not benchmark_typed._is_valid(row, SimpleNamespace())
    assert not benchmark_typed._is_valid(row, None)


def test_intent_and_slots_count_half_each(sets):
    if not sets.is_there("snips"):
        pytest.skip("the set is not on this machine")
    slots = [{"slot": "artist", "value": "step to me"}, {"slot": "playlist", "value": "Fifty"}]
    row = sets._snips({"text": "add step to me to fifty", "intent": "AddToPlaylist", "slots": slots})
    artist, playlist = {"name": "artist", "value": "Step to me"}, {"name": "playlist", "value": "fifty"}
    assert row.judge(answer(row, intent="AddToPlaylist", slots=[playlist, artist])) == 1
    assert row.judge(answer(row, intent="PlayMusic", slots=[playlist, artist])) == 0.5
    assert row.judge(answer(row, intent="AddToPlaylist", slots=[])) == 0.5
    assert row.judge(answer(row, intent="AddToPlaylist", slots=[artist, artist])) == pytest.approx(0.75)
    with pytest.raises(ValidationError):
        answer(row, slots=[artist] * 9)


def labelled(name, raw):
    """The outputs that a row of the data has as its labels."""
    if name == "trec":
        return {"kind": importlib.import_module("typed_sets").KINDS[raw["label"]]}
    if name == "snips":
        slots = [{"name": slot["slot"], "value": slot["value"]} for slot in raw["slots"]]
        return {"intent": raw["intent"], "slots": slots}
    if name == "facility_support":
        return raw["answer"]
    return {"arguments": first_allowed(*raw["ground_truth"][0].values())}


def first_allowed(allowed):
    """The first allowed value of every argument, at every depth; one that may be left out only if it must be there."""
    if isinstance(allowed, list):
        return [first_allowed(item) for item in allowed]
    if isinstance(allowed, dict):
        return {name: first_allowed(next(v for v in values if v != "")) for name, values in allowed.items()}
    return allowed


@pytest.mark.parametrize("name", ["trec", "snips", "facility_support", "bfcl"])
def test_the_labels_of_the_data_are_right_answers(sets, name):
    if not sets.is_there(name):
        pytest.skip("the set is not on this machine")
    file, make = sets._SETS[name]
    lines = (sets.DATA / name / file).read_text("utf-8").splitlines()
    wrong = []
    for number, line in enumerate(lines[:200]):
        row = make(json.loads(line))
        try:
            right = row.judge(answer(row, **labelled(name, json.loads(line)))) == 1
        except ValidationError:
            right = False
        if not right:
            wrong.append(number)
    assert wrong == []


def test_rows_are_the_same_every_time_and_one_more_than_asked_for(sets):
    if not sets.is_there("trec"):
        pytest.skip("the set is not on this machine")
    first, again = sets.rows_of("trec", 5), sets.rows_of("trec", 8)
    assert len(first) == 6
    assert [row.inputs for row in first] == [row.inputs for row in again[:6]]
