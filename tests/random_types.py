"""Random types: everything that a field may be declared as, put together by chance."""

import datetime
import enum
import uuid
from collections import deque
from dataclasses import field, make_dataclass
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple, NotRequired, Optional, Union

from pydantic import UUID4, AwareDatetime, BaseModel, Field, NaiveDatetime, create_model
from typing_extensions import TypedDict


class Shade(enum.Enum):
    DARK = "dark"
    PALE = 2


class Rank(enum.StrEnum):
    LOW = "low"
    HIGH = "high"


class Knot(BaseModel):
    """Recursive in a list."""

    tag: Literal["a", "bc"]
    next: list["Knot"] = Field(default=[], max_length=2)


class Chain(BaseModel):
    """Recursive in an optional."""

    length: int = Field(ge=0, le=9)
    rest: Optional["Chain"] = None


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float = Field(gt=0, le=9)


class Square(BaseModel):
    kind: Literal["square", "box"]
    side: int = Field(ge=1, le=99)


class Pair(NamedTuple):
    left: Rank
    right: bool = True


class Renamed(BaseModel):
    """Names in JSON that differ from those in Python, and from each other."""

    first: int = Field(alias="First field", ge=0, le=99)
    second: Rank = Field(default=Rank.LOW, serialization_alias="written")
    third: bool = Field(default=False, validation_alias="read")
    hidden: Literal["x", "y"] = Field(default="x", exclude=True)


Small = Annotated[int, Field(ge=0, le=9)]
PATTERNS = [r"^[A-Z]{2}\d{1,3}$", r"^(yes|no)!?$", r"^\w+@\w+\.org$", "a/b|c", r'^"[a-z]{1,5}"$', r"^\\\d$"]


def numbers(chance):
    low = chance.randint(-50, 50)
    return [
        int,
        float,
        Annotated[int, Field(ge=low, le=low + chance.randint(0, 300))],
        Annotated[int, Field(gt=low, lt=low + chance.randint(2, 9))],
        Annotated[int, Field(ge=0, le=1000, multiple_of=chance.choice([2, 5, 7]))],
        Annotated[float, Field(ge=low, lt=low + 10)],
        Annotated[float, Field(ge=0, le=1, multiple_of=0.25)],
        Decimal,
        Annotated[Decimal, Field(decimal_places=chance.randint(0, 3))],
        Annotated[Decimal, Field(ge=Decimal(low) / 8, lt=low + 3, decimal_places=2)],
        Annotated[Decimal, Field(max_digits=chance.randint(3, 5), decimal_places=chance.randint(0, 2))],
    ]


def texts(chance):
    least = chance.randint(0, 3)
    return [
        str,
        Annotated[str, Field(min_length=least, max_length=max(1, least) + chance.randint(0, 6))],
        Annotated[str, Field(pattern=chance.choice(PATTERNS), max_length=12)],
        Annotated[str, Field(pattern=chance.choice(PATTERNS))],
    ]


def moments(chance):
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=chance.randint(0, 80_000))
    hour = datetime.time(chance.randint(0, 22), chance.randint(0, 59))
    return [
        datetime.date,
        datetime.time,
        datetime.datetime,
        datetime.timedelta,
        AwareDatetime,
        NaiveDatetime,
        uuid.UUID,
        UUID4,
        Annotated[datetime.date, Field(ge=day, lt=day + datetime.timedelta(days=chance.randint(1, 900)))],
        Annotated[datetime.date, Field(gt=day)],
        Annotated[datetime.time, Field(gt=hour, le=datetime.time(23))],
    ]


def closed(chance):
    return [
        bool,
        Shade,
        Rank,
        None,
        Literal["red", "green", 3, None],
        Literal[tuple(f"option {i}" for i in range(chance.randint(1, 12)))],
    ]


def leaf(chance):
    kinds = chance.choice([numbers, texts, moments, closed])
    return chance.choice(kinds(chance))


def random_type(chance, depth):
    if depth == 0 or chance.random() < 0.2:
        return leaf(chance)
    return chance.choice([collection, collection, model, model, union])(chance, depth - 1)


def union(chance, depth):
    of = random_type(chance, depth)
    return chance.choice(
        [
            any_of(of, None),
            any_of(of, None),
            any_of(of, leaf(chance)),
            any_of(random_type(chance, depth), of, None),
            Annotated[Circle | Square, Field(discriminator="kind")],
        ]
    )


def any_of(*kinds):
    return Union[kinds]  # noqa: UP007 - built from data


def collection(chance, depth):
    of, least = random_type(chance, depth), chance.randint(0, 2)
    some = Field(min_length=least, max_length=least + chance.randint(0, 2))
    few = Literal["a", "b", "c", "d"]
    return chance.choice(
        [
            Annotated[list[of], some],
            Annotated[tuple[of, ...], some],
            Annotated[deque[of], Field(max_length=2)],
            tuple[of, leaf(chance)],
            Pair,
            Annotated[set[few], some],
            Annotated[frozenset[Rank], Field(min_length=chance.randint(0, 2))],
            Annotated[set[int], Field(max_length=3)],
            Annotated[dict[str, of], Field(max_length=1)],
            Annotated[dict[Annotated[str, Field(max_length=3)], of], Field(max_length=2)],
            Annotated[dict[few, of], some],
            Annotated[dict[Annotated[int, Field(ge=-5, le=120)], of], Field(max_length=2)],
            Annotated[dict[datetime.date | Rank, of], Field(max_length=2)],
        ]
    )


def model(chance, depth):
    fields = {f"field_{i}": random_type(chance, depth) for i in range(chance.randint(1, 3))}
    kind = chance.choice(["model", "aliases", "dataclass", "typed_dict", Knot, Chain, Renamed])
    if kind == "model":
        declared = {name: (of, ...) for name, of in fields.items()}
        return create_model("Model", **declared, note=(Annotated[str, Field(max_length=2)] | None, None), some=(Small, 3))
    if kind == "aliases":
        return create_model("Aliases", **{name: (of, Field(alias=f'the "{name}"')) for name, of in fields.items()})
    if kind == "dataclass":
        return make_dataclass("Data", [*fields.items(), ("flags", list[bool], field(default_factory=list))])
    if kind == "typed_dict":
        return TypedDict("Typed", {**fields, "extra": NotRequired[bool]})
    return kind
