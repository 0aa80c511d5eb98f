"""Objects taken apart: closed sets among the members of a JSON value are scored, the rest is decoded as before."""

import enum
import json
import math
from typing import Literal

import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model, field_validator
from still.errors import ConstraintError, SignatureError
from still.optimizers.decisions import Decisions
from still.optimizers.weights.rows import RowWriter
from still.signatures.executor import Piece, Sampling
from still.signatures.fieldset import constraints, scorings
from still.signatures.json_members import closed_sets, members_of
from still.signatures.layout import lower
from still.signatures.lowering import lower_type
from typing_extensions import TypedDict


class Size(enum.Enum):
    SMALL = "s"
    LARGE = 'l"'


class Place(BaseModel):
    indoors: bool
    floor: int = Field(ge=0, le=9)


class Repair(BaseModel):
    urgent: bool
    size: Size | None
    place: Place
    kind: Literal["repair"]
    note: str = Field(max_length=12)
    done: bool


class Job(still.Signature):
    """Read the message."""

    message: str = still.Input()
    repair: Repair = still.Output(decide="score")
    team: Literal["north", "south"] = still.Output(decide="score")


MESSAGE = {"message": "A lamp is broken"}


@pytest.fixture
def answer(tiny_lm):
    with still.context(lm=tiny_lm):
        return still.Predict(Job)(**MESSAGE)


def test_members_are_steps_between_known_texts():
    found = members_of(constraints(Job)["repair"])
    assert [(m.before, ".".join(m.path), m.after) for m in found] == [
        (' {"urgent":', "urgent", ","),
        (' "size":', "size", ","),
        (' "place": {"indoors":', "place.indoors", ","),
        (' "floor":', "place.floor", "},"),
        (' "kind":', "kind", ","),
        (' "note":', "note", ","),
        (' "done":', "done", "}"),
    ]
    assert list(scorings(Job)) == ["repair.urgent", "repair.size", "repair.place.indoors", "repair.done", "team"]


LEAVES = st.sampled_from([bool, Literal["a", 'b"c', "ü"], Literal[1, 2], bool | None, int, str, list[bool], Size])
MODELS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda kinds: create_model("M", **{f"f {i}": (kind, ...) for i, kind in enumerate(kinds)})
    ), max_leaves=6,
)  # fmt: skip
VALUES = {
    bool: True, int: 7, str: 'x "y", {z: ', list[bool]: [True, False], Size: Size.LARGE, bool | None: None,
    Literal["a", 'b"c', "ü"]: 'b"c', Literal[1, 2]: 2,
}  # fmt: skip


def value_of(kind):
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind(**{name: value_of(field.annotation) for name, field in kind.model_fields.items()})
    return VALUES[kind]


@given(MODELS)
def test_the_steps_of_a_value_make_its_text(kind):
    class Made(still.Signature):
        text: str = still.Input()
        made: kind = still.Output()
        after: bool = still.Output()

    whole, value = constraints(Made)["made"], value_of(kind)
    found = closed_sets({"made": whole})
    if not any(each.path for each in found):
        return
    plan = lower(Made.with_updated_fields("made", decide="score"))
    assert plan.target({"made": value, "after": True}).text == lower(Made).target({"made": value, "after": True}).text
    for each in found:
        assert each.label(value) in each.constraint.options


def test_answers_are_of_the_type_and_every_closed_member_has_probabilities(answer):
    assert isinstance(answer.repair, Repair)
    assert set(answer.probabilities) == set(scorings(Job))
    assert set(answer.probabilities["repair.size"]) == {"s", 'l"', None}
    for shares in answer.probabilities.values():
        assert math.isclose(sum(shares.values()), 1.0)
    likely = answer.probabilities["repair.urgent"]
    assert likely[answer.repair.urgent] == max(likely.values())
    assert json.loads(answer.completion.texts["repair"]) == answer.repair.model_dump(mode="json")
    cost = answer.completion.costs["repair"]
    assert cost.scored_tokens > 0
    assert 0 < cost.decoded_tokens < 20, "the number and the note alone"


def test_members_are_scored_after_what_was_written_before_them(tiny_lm, answer):
    """The last member's scores, from the text of all before it."""
    plan = tiny_lm.local.prior.correct(lower(Job), MESSAGE)
    request = tiny_lm.request(plan, MESSAGE, Sampling())
    result = tiny_lm.local.engine.submit(request).result()
    last = next(i for i, step in enumerate(plan.decodes) if step.name == "repair.done")
    open_steps = [i for i, step in enumerate(result.steps) if step.finish_reason != "forced"]
    before = [token for step in result.steps[: open_steps[last]] for token in step.tokens]
    options = request.steps[open_steps[last]].options
    expected = [math.fsum(each) for each in tiny_lm.local.engine.score((*request.prompt, *before), options)]
    assert list(answer.completion.scores["repair.done"].values()) == pytest.approx(expected, abs=1e-3)


def test_pieces_of_a_stream_make_the_text(tiny_lm):
    with still.context(lm=tiny_lm):
        stream = still.Predict(Job).stream(**MESSAGE)
        pieces = [piece for piece in stream if isinstance(piece, Piece)]
    text = "".join(piece.text for piece in pieces if piece.field == "repair")
    assert text == stream.prediction.completion.texts["repair"].strip()


@pytest.mark.parametrize("kind", [dict[str, bool], list[bool], int | Place, TypedDict("T", {"n": int})])
def test_what_has_no_closed_members_is_refused_where_it_is_declared(kind):
    with pytest.raises(SignatureError, match="field 'x': decide='score' needs a closed set"):
        still.Signature({"text": (str, still.Input()), "x": (kind, still.Output(decide="score"))}, "Do it.")


def test_members_that_may_be_left_out_keep_an_object_whole():
    class Loose(BaseModel):
        sure: bool
        maybe: bool = True

    assert members_of(lower_type(Loose)) == ()


def test_members_of_one_name_keep_an_object_whole():
    inner = create_model("Inner", b=(bool, ...))
    assert members_of(lower_type(create_model("Outer", a=(inner, ...)))) != ()
    assert members_of(lower_type(create_model("Outer", a=(inner, ...), **{"a.b": (bool, ...)}))) == ()


def test_a_model_cannot_abstain():
    with pytest.raises(SignatureError, match="abstain_below is for closed sets"):
        still.Signature(
            {"text": (str, still.Input()), "x": (Place, still.Output(decide="score", abstain_below=0.5))}, "Do it."
        )


def test_what_only_pydantic_can_say_is_still_checked(tiny_lm):
    class Never(BaseModel):
        a: bool
        b: bool

        @field_validator("b")
        @classmethod
        def _no(cls, value: bool) -> bool:
            raise ValueError("b cannot be")

    class Asked(still.Signature):
        """Answer."""

        message: str = still.Input()
        never: Never = still.Output(decide="score")

    with still.context(lm=tiny_lm), pytest.raises(ConstraintError, match=r"field 'never'.*b cannot be"):
        still.Predict(Asked)(**MESSAGE)


def test_rows_for_training_have_the_text_and_lose_where_there_was_a_choice(tiny_lm):
    values = {
        "repair": Repair(urgent=True, size=None, place=Place(indoors=False, floor=3), kind="repair", note="hi", done=True),
        "team": "south",
    }
    plan, local = lower(Job), tiny_lm.local
    row = RowWriter(local.engine, local.prompter).write(plan, MESSAGE, values)
    request = tiny_lm.request(plan, MESSAGE, Sampling())
    written = local.engine.model.tokenizer.decode(row.tokens[len(request.prompt) :])
    assert json.dumps(values["repair"].model_dump(mode="json")) in written
    decided = local.engine.model.tokenizer.decode([t for t, loss in zip(row.tokens, row.loss, strict=True) if loss])
    assert "true" in decided
    assert "urgent" not in decided
    assert "repair" not in decided, "its only value is no choice"


class Light(BaseModel):
    stop: bool
    colour: Literal["red", "green"]


class Sign(still.Signature):
    """Say what the light means."""

    light: str = still.Input()
    sign: Light = still.Output()


def sign_of(i):
    return {"light": f"{['green', 'red'][i % 2]} light {i}", "sign": {"stop": i % 2 == 1, "colour": ["green", "red"][i % 2]}}


def test_compiling_tries_members_and_calibrates_them(tmp_path):
    train, dev = (still.Dataset([sign_of(i) for i in part], inputs=["light"]) for part in (range(24), range(24, 48)))

    def metric(example, prediction, trace=None):
        wanted = Light.model_validate(example.sign)
        return (prediction.sign.stop == wanted.stop) / 2 + (prediction.sign.colour == wanted.colour) / 2

    result = still.compile(
        still.Predict(Sign), train, dev, metric, passes=[Decisions()], lm=still.LM(), ledger=tmp_path / "l.duckdb",
        progress=False,
    )  # fmt: skip
    scores = {row.name: row.score for row in result.report.rows}
    assert set(scores) == {"baseline", "scored inside", "calibrated inside", "calibrated by examples inside"}
    assert scores["calibrated inside"] > 0.55
    assert scores["calibrated by examples inside"] > scores["baseline"]


def test_a_calibration_of_a_member_moves_its_probabilities_and_no_other(tiny_lm):
    scored = Sign.with_updated_fields("sign", decide="score")
    bias = {"sign.colour": {"bias": {'"red"': 3.0, '"green"': 0.0}, "temperature": 2.0}}
    moved = scored.with_updated_fields("sign", calibration=bias)
    with still.context(lm=tiny_lm):
        plain, answer = still.Predict(scored)(light="a light"), still.Predict(moved)(light="a light")
    scores = list(answer.completion.scores["sign.colour"].values())
    red = math.exp((scores[0] + 3) / 2)
    assert answer.probabilities["sign.colour"]["red"] == pytest.approx(red / (red + math.exp(scores[1] / 2)))
    assert list(answer.completion.scores["sign.stop"].values()) == list(plain.completion.scores["sign.stop"].values())
