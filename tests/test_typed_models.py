"""Random types, random sampling: whatever comes out is a value of the type."""

import datetime
import enum
import json
import math
import random
import uuid
from dataclasses import make_dataclass
from decimal import Decimal
from typing import Annotated, Literal, Union

import pytest
from byte_model import byte_model
from pydantic import BaseModel, Field, TypeAdapter, create_model
from still.backends.engine import Decode, Engine, Request, Sampling
from still.backends.steps import closing_tokens
from still.errors import SignatureError
from still.signatures.lowering import lower_type
from still.signatures.plan import Decode as PlanDecode
from typing_extensions import TypedDict

TYPES, SEEDS = 110, 20
"""2,200 generations."""
DRAWN = 60
"""Tokens (bytes, here) drawn of each value before it is brought to an end."""


class Shade(enum.Enum):
    DARK = "dark"
    PALE = 2


class Knot(BaseModel):
    """Recursive."""

    tag: Literal["a", "bc"]
    next: list["Knot"] = Field(default=[], max_length=2)


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float = Field(gt=0, le=9)


class Square(BaseModel):
    kind: Literal["square"]
    side: int = Field(ge=1, le=99)


def leaf(chance):
    low = chance.randint(-50, 50)
    return chance.choice(
        [
            bool,
            Shade,
            Literal["red", "green", 3, None],
            Literal[tuple(f"option {i}" for i in range(chance.randint(1, 12)))],
            Annotated[int, Field(ge=low, le=low + chance.randint(0, 300))],
            Annotated[int, Field(ge=0, le=1000, multiple_of=chance.choice([2, 5, 7]))],
            Annotated[float, Field(ge=low, lt=low + 10)],
            Annotated[float, Field(ge=0, le=1, multiple_of=0.25)],
            Annotated[Decimal, Field(decimal_places=2)],  # inside JSON, bounds of a Decimal are checked afterwards
            Annotated[str, Field(min_length=chance.randint(0, 3), max_length=chance.randint(3, 9))],
            Annotated[str, Field(pattern=chance.choice([r"^[A-Z]{2}\d{1,3}$", r"^(yes|no)!?$", r"^\w+@\w+\.org$"]))],
            str,
            int,
            datetime.date,
            datetime.time,
            datetime.datetime,
            uuid.UUID,
        ]
    )


def random_type(chance, depth):
    if depth == 0 or chance.random() < 0.25:
        return leaf(chance)
    deeper = random_type(chance, depth - 1)
    few = {"min_length": chance.randint(0, 1), "max_length": chance.randint(1, 3)}
    fields = {f"field_{i}": random_type(chance, depth - 1) for i in range(chance.randint(1, 3))}
    kind = chance.choice(
        ["list", "set", "tuple", "dict", "optional", "union", "model", "dataclass", "typed_dict", "shapes", "recursive"]
    )
    if kind == "list":
        return Annotated[list[deeper], Field(**few)]
    if kind == "set":
        return Annotated[set[Literal["a", "b", "c", "d"]], Field(max_length=4)]
    if kind == "tuple":
        return tuple[deeper, leaf(chance)]
    if kind == "dict":
        return Annotated[dict[chance.choice([str, Literal["x", "y"]]), deeper], Field(max_length=2)]
    if kind == "optional":
        return deeper | None
    if kind == "union":
        return Union[deeper, leaf(chance)]  # noqa: UP007 - built from data
    if kind == "model":
        return create_model("Model", **{name: (of, ...) for name, of in fields.items()}, note=(str | None, None))
    if kind == "dataclass":
        return make_dataclass("Data", list(fields.items()))
    if kind == "typed_dict":
        return TypedDict("Typed", fields)
    return Annotated[Circle | Square, Field(discriminator="kind")] if kind == "shapes" else Knot


def lowered(number):
    """A constraint for the number-th random type that has values, and whether it stands last in its signature."""
    chance = random.Random(number)
    while True:
        last = chance.random() < 0.5
        try:
            return lower_type(random_type(chance, 4), field="value", last=last), last
        except SignatureError:
            continue  # a random combination may be impossible; that it is refused is tested elsewhere


@pytest.fixture(scope="module")
def generated(tiny_int8):
    """(constraint, step, result) of every generation, all decoded together."""
    asked = []
    with Engine(byte_model(tiny_int8), cache_tokens=65536) as engine:
        for number in range(TYPES):
            constraint, last = lowered(number)
            step = PlanDecode("value", constraint, "end" if last else "newline", constraint.max_tokens)
            decode = Decode(DRAWN, step.grammar(), closing=4 * closing_tokens(step.grammar()))
            for seed in range(SEEDS):
                sampling = Sampling(temperature=1.5, seed=1000 * number + seed)
                asked.append((constraint, step, engine.submit(Request((number % 256, 65), (decode,), sampling))))
        return [(constraint, step, future.result().steps[0]) for constraint, step, future in asked]


def same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other) or one == other
    return one == other


def test_every_generation_is_a_value_of_its_type(generated):
    assert len(generated) >= 2000
    for constraint, step, result in generated:
        value = step.parse(result.text)
        TypeAdapter(constraint.annotation).validate_python(value)


def test_nothing_is_cut_off(generated):
    reasons = {result.finish_reason for _, _, result in generated}
    assert reasons <= {"grammar", "closed", "eos", "length"}
    for _, step, result in generated:
        if result.finish_reason == "length":  # only text that may end anywhere, or nothing would parse
            step.parse(result.text)
    assert sum(result.finish_reason == "closed" for _, _, result in generated) > 100


def test_values_are_written_as_they_are_read(generated):
    for constraint, _, result in generated[:: SEEDS // 4]:
        value = constraint.parse(result.text.removeprefix(" ").removesuffix("\n"))
        assert same(constraint.parse(constraint.render(value)), value)


def test_json_values_are_json(generated):
    from still.signatures.json_constraint import JsonConstraint

    seen = 0
    for constraint, _, result in generated:
        if isinstance(constraint, JsonConstraint):
            json.loads(result.text)
            seen += 1
    assert seen > 500


def test_the_types_are_as_varied_as_they_should_be(generated):
    kinds = {json.dumps(TypeAdapter(constraint.annotation).json_schema(), sort_keys=True) for constraint, _, _ in generated}
    assert len(kinds) > TYPES * 0.7
