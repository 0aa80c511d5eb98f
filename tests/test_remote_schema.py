"""The schema that servers get: against an independent validator, and against what comes back."""

import asyncio
import dataclasses
import datetime
import enum
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
import still
from chat_server import serving
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from still.backends.remote_schema import answer_schema, without_bounds
from still.signatures.fieldset import constraints
from typing_extensions import TypedDict


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    title: str = Field(default="Sir", description="how it is addressed", max_length=9)


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    puppies: list["Dog"] = []


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: datetime.date
    spot: tuple[int, int]


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Row(TypedDict, total=False):
    name: str


def other_cat() -> type[BaseModel]:
    class Cat(BaseModel):
        lives: int = Field(ge=1, le=9)

    return Cat


def keywords(schema: Any) -> Iterator[str]:
    """Every keyword of a schema, names of members left out."""
    if isinstance(schema, list):
        for part in schema:
            yield from keywords(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            yield from keywords(list(value.values()) if key in ("properties", "$defs") else value)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, list):
        for part in schema:
            yield from objects(part)
    elif isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        yield from objects(list(schema.values()))


def signature_of(kind):
    return still.Signature(
        {"message": (str, still.Input()), "value": (kind, still.Output()), "sure": (bool, still.Output())}
    )


CASES = [
    (Literal["a", 2, None], [2, None], ["b"]),
    (Color, [Color.RED], ["green"]),
    (Annotated[int, Field(ge=1, le=5)], [1, 5], [0, 6, "x"]),
    (Annotated[float, Field(gt=0, multiple_of=0.5)], [0.5], [0, 0.3]),
    (Annotated[Decimal, Field(ge=0, le=10)], [Decimal("9.75")], [-1, 11]),
    (Annotated[str, Field(min_length=2, max_length=3, pattern="^[a-z]+$")], ["ab"], ["a", "abcd", "AB"]),
    (datetime.date, [datetime.date(2024, 2, 29)], [7.5]),
    (datetime.timedelta, [datetime.timedelta(hours=30)], [[]]),
    (uuid.UUID, [uuid.UUID(int=5)], [5]),
    (Annotated[list[Color], Field(max_length=2)], [[], [Color.RED, Color.BLUE]], [["red"] * 3, ["green"]]),
    (set[int], [{1, 2}], [["x"], 1]),
    (tuple[int, str], [(1, "a")], [[1], [1, "a", "b"], ["a", 1]]),
    (dict[str, int], [{"a": 1}], [{"a": "x"}, []]),
    (int | None, [3, None], ["x"]),
    (str | int, ["5", 5], [[]]),
    (Annotated[Cat | Dog, Field(discriminator="kind")], [Cat(), Dog(puppies=[Dog()])], [{"kind": "cow"}, {}]),
    (Strict, [Strict(day=datetime.date(2024, 1, 2), spot=(1, 2))], [{"day": "2024-01-02", "spot": [1]}]),
    (list[Strict] | None, [None, [Strict(day=datetime.date(2024, 1, 2), spot=(1, 2))]], [[{}]]),
    (Point, [Point(1, 2)], [{"x": 1, "y": 2, "z": 3}, {"y": 1}]),
    (Row, [{"name": "a"}], [{"name": 1}]),
]


@pytest.mark.parametrize(("kind", "good", "bad"), CASES, ids=[str(kind)[:50] for kind, *_ in CASES])
def test_values_of_the_type_fit_the_schema_and_others_do_not(kind, good, bad):
    schema = answer_schema(constraints(signature_of(kind)))
    Draft202012Validator.check_schema(schema)
    fits = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid
    plain = [number(TypeAdapter(kind).dump_python(value, mode="json"), value) for value in good]
    for value in plain:
        assert fits({"value": value, "sure": True})
        assert Draft202012Validator(without_bounds(schema)).is_valid({"value": value, "sure": True})
    for value in bad:
        assert not fits({"value": value, "sure": True})
    assert not fits({"value": plain[0]})
    assert not fits({"value": plain[0], "sure": True, "more": 1})


def number(plain, value):
    return float(value) if isinstance(value, Decimal) else plain


@pytest.mark.parametrize(("kind", "good", "bad"), CASES, ids=[str(kind)[:50] for kind, *_ in CASES])
def test_answers_become_values_of_the_type(kind, good, bad):
    texts = [json.dumps({"value": number(TypeAdapter(kind).dump_python(v, mode="json"), v), "sure": False}) for v in good]
    with serving(*texts) as server, still.context(lm=server.lm()):
        for value in good:
            answer = still.Predict(signature_of(kind))(message="x")
            assert answer.value == value and type(answer.value) is type(value)
            assert answer.sure is False


def test_what_strict_modes_refuse_is_not_there():
    kinds = {
        name: (kind, still.Output())
        for name, kind in {"a": Cat | Dog, "b": other_cat(), "c": set[Color], "d": Point}.items()
    }
    schema = answer_schema(constraints(still.Signature({"message": (str, still.Input()), **kinds})))
    used = set(keywords(schema))
    assert not used & {"title", "default", "discriminator", "oneOf", "uniqueItems"}
    for each in objects(schema):
        assert each["required"] == list(each["properties"])
        assert each["additionalProperties"] is False
    # Two models of one name are two definitions, and a member may be called what a keyword is.
    names = [set(found["properties"]) for found in objects(schema["$defs"])]
    assert {"lives"} in names and {"kind", "title"} in names
    bare = without_bounds(schema)
    assert not set(keywords(bare)) & {"maxLength", "minimum", "maximum"}
    assert [list(each["properties"]) for each in objects(bare)] == [list(each["properties"]) for each in objects(schema)]


def test_a_default_stands_in_for_what_was_left_out():
    signature = still.Signature(
        {"q": (str, still.Input()), "a": (int, still.Output()), "note": (str, still.Output(default="-"))}
    )
    with serving('{"a": 1}') as server, still.context(lm=server.lm()):
        answer = asyncio.run(still.Predict(signature).acall(q="x"))
    assert (answer.a, answer.note) == (1, "-")


def test_properties_may_be_called_as_keywords_are():
    from still.signatures.schema_parts import enforceable, without

    text = {"type": "string"}
    schema = {"type": "object", "properties": {"format": text, "pattern": text, "type": text, "uniqueItems": text}}
    assert enforceable(schema) == schema
    assert without({**schema, "uniqueItems": True}, "uniqueItems") == schema


def test_what_servers_do_not_know_is_in_no_part_of_a_schema():
    class Names(still.Signature):
        message: str = still.Input()
        names: dict[Annotated[str, still.Quoted("message")], Literal["person", "place"]] = still.Output()

    assert "x-quoted" not in json.dumps(answer_schema(constraints(Names)))
