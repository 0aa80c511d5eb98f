"""Every type that a field may have, at its edges: what its grammar takes, what a text means, and what is impossible.

The first cases of each type are in test_signatures_constraints.py.
"""

import collections
import datetime
import enum
import ipaddress
import os
import pathlib
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Generic, Literal, NamedTuple, Never, NotRequired, Optional, TypeVar

import grammar_walk
import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from pydantic import (
    UUID4,
    AliasChoices,
    AliasPath,
    AwareDatetime,
    Base64Bytes,
    Base64Str,
    BaseModel,
    ConfigDict,
    Discriminator,
    EmailStr,
    Field,
    FutureDate,
    HttpUrl,
    Json,
    NaiveDatetime,
    PastDate,
    RootModel,
    SecretStr,
    Tag,
    TypeAdapter,
    computed_field,
    confloat,
    conint,
    conlist,
    constr,
    field_validator,
)
from still.errors import ConstraintError, SignatureError
from still.signatures.lowering import lower_type
from still.signatures.patterns import date_range, decimal_pattern
from still.signatures.plan import Decode
from typing_extensions import TypeAliasType, TypedDict

BYTES = LLTokenizer("byte")
T = TypeVar("T")


def accepts(kind, text):
    """Whether the grammar of a type takes exactly this text."""
    step = Decode("value", lower_type(kind), "newline", 100)
    machine = LLMatcher(BYTES, step.grammar(), log_level=0)
    tokens = list(f" {text}\n".encode())
    return machine.try_consume_tokens(tokens) == len(tokens) and machine.is_accepting()


class Grade(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


class Empty(enum.Enum):
    pass


class Seat(NamedTuple):
    row: Annotated[int, Field(ge=1, le=9)]
    window: bool = False


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog", "puppy"]
    name: str = Field(max_length=5)


class Defaults(BaseModel):
    size: int = 3
    tags: list[Grade] = Field(default_factory=list, max_length=2)
    grade: Grade = Grade.GOOD


class Renamed(BaseModel):
    read: int = Field(alias="as it is read")
    written: str = Field(default="w", serialization_alias="as it is written")
    either: int = Field(default=3, validation_alias=AliasChoices("one", "other"))
    hidden: bool = Field(default=False, exclude=True)


class ByEither(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    size: int = Field(alias="Size")


class Deep(BaseModel):
    found: int = Field(validation_alias=AliasPath("there", 0))


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    day: datetime.date
    sizes: tuple[int, ...]


class Area(BaseModel):
    width: int

    @computed_field
    def double(self) -> int:
        return 2 * self.width


class Even(BaseModel):
    count: int

    @field_validator("count")
    @classmethod
    def is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it is odd")
        return value


class Box(BaseModel, Generic[T]):
    content: T


class Numbers(RootModel[list[int]]):
    pass


class Endless(BaseModel):
    next: "Endless"


class Chain(BaseModel):
    length: int = Field(ge=0, le=9)
    rest: Optional["Chain"] = None


class Poodle(BaseModel):
    kind: Literal["dog"] = "dog"


class Siamese(BaseModel):
    kind: Literal["cat"] = "cat"


class Pets(BaseModel):
    """A union whose tag has defaults, which pydantic does not look at."""

    first: Annotated[Poodle | Siamese, Field(discriminator="kind")] = Siamese()


class Frozen(BaseModel, frozen=True):
    size: conint(ge=1, le=2)


@dataclass
class Order:
    id: Annotated[int, Field(ge=1)]
    lines: list[str] = field(default_factory=list)


class Partial(TypedDict):
    size: int
    colour: NotRequired[Grade]


Tree = TypeAliasType("Tree", "dict[Grade, Tree] | list[Tree] | bool | None")
Two = TypeAliasType("Two", tuple[T, T], type_params=(T,))
Small = TypeAliasType("Small", Annotated[int, Field(ge=1, le=3)])
Lengthy = constr(min_length=2, max_length=3)
Penny = Annotated[Decimal, Field(ge=Decimal("0.5"), lt=2, decimal_places=2)]
NewYear = Annotated[datetime.date, Field(ge=datetime.date(2023, 12, 30), lt=datetime.date(2024, 1, 3))]
Evening = Annotated[datetime.time, Field(gt=datetime.time(18), le=datetime.time(23, 30))]
Era = Annotated[datetime.datetime, Field(ge=datetime.datetime(2000, 1, 1), lt=datetime.datetime(2001, 1, 1))]
Animal = Annotated[Cat | Dog, Field(discriminator="kind")]


def animal_kind(value: Any) -> str:
    return "cat" if (value.get("kind") if isinstance(value, dict) else value.kind) == "cat" else "dog"


Tagged = Annotated[Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")], Discriminator(animal_kind)]

CASES = [
    # type, texts that are taken, with their values, and texts that are not
    (Literal["x"], {"x": "x"}, ["y", "", "x x"]),
    (Literal[-1, 0, 1], {"-1": -1, "0": 0}, ["2", "+1", "-0"]),
    (Literal[Grade.GOOD], {"good": Grade.GOOD}, ["bad"]),
    (Literal[b"raw"], {"b'raw'": b"raw"}, ["raw"]),
    (None, {"none": None}, ["null", ""]),
    (Literal["a"] | Literal["b"], {'"a"': "a", '"b"': "b"}, ["a", '"c"']),
    (bool | None, {"true": True, "none": None}, ["null", "True"]),
    (conint(gt=2, le=4), {"3": 3, "4": 4}, ["2", "5", "3.0"]),
    (Annotated[int, Field(multiple_of=5, gt=0, lt=11)], {"5": 5, "10": 10}, ["0", "1", "15"]),
    (Annotated[int, Field(ge=-3, le=-3)], {"-3": -3}, ["3", "-2", "-4"]),
    (conint(lt=0), {"-1": -1}, ["0", "-0"]),
    (confloat(ge=-1, lt=0), {"-0.5": -0.5, "-1": -1.0}, ["0", "-0", "-0.0", "-0.000"]),
    (list[confloat(lt=0)], {"[-0.5]": [-0.5]}, ["[-0]", "[0]"]),
    (confloat(gt=0, lt=0.5), {"0.000001": 1e-6, "0.499999": 0.499999}, ["0", "0.0", "0.5", "-0.1"]),
    (Annotated[float, Field(multiple_of=0.25, gt=0, lt=0.5)], {"0.25": 0.25}, ["0", "0.5", "0.3"]),
    (confloat(gt=-0.5, lt=0.25), {"-0.4": -0.4, "0": 0.0}, ["-0.5", "0.25", "0.3"]),
    (Annotated[bytes, Field(min_length=2, max_length=3)], {'"ab"': b"ab"}, ['"é"', '"a"', '"abcd"']),
    (Literal["a", None] | None, {"a": "a", "none": None}, ["null", "b"]),
    (list[Pets], {'[{"first": {"kind": "dog"}}, {}]': [Pets(first=Poodle()), Pets()]}, ['[{"first": {}}]']),
    (set[Frozen], {'[{"size": 1}, {"size": 2}]': {Frozen(size=1), Frozen(size=2)}}, ['[{"size": 3}]']),
    (confloat(gt=0, lt=1), {"0.5": 0.5, "0.000001": 1e-6}, ["0", "1", "0.0", "1.5", ".5"]),
    (Annotated[float, Field(multiple_of=0.1, ge=0, le=1)], {"0.3": 0.3, "1": 1.0}, ["0.35", "1.1"]),
    (Penny, {"0.5": Decimal("0.5"), "1.99": Decimal("1.99")}, ["0.49", "2", "1.999"]),
    (Annotated[Decimal, Field(multiple_of=Decimal("0.05"), ge=0, le=1)], {"0.15": Decimal("0.15")}, ["0.14", "1.05"]),
    (Annotated[Decimal, Field(decimal_places=0)], {"7": Decimal(7)}, ["7.5", "7."]),
    (Annotated[Decimal, Field(max_digits=3, decimal_places=1)], {"99.9": Decimal("99.9")}, ["100", "9.99"]),
    (list[Penny], {'["0.5", "1.99"]': [Decimal("0.5"), Decimal("1.99")]}, ['["0.49"]', '["2"]', '["1.999"]', "[1]"]),
    (list[Annotated[Decimal, Field(max_digits=2)]], {'["12", "1.5", "0.1"]': [Decimal(12), Decimal("1.5"), Decimal("0.1")]},
     ['["123"]', '["12.5"]']),
    (list[Annotated[Decimal, Field(gt=-1, lt=0)]], {'["-0.5"]': [Decimal("-0.5")]}, ['["0"]', '["-1"]', '["0.5"]']),
    (Lengthy, {"ab": "ab", "éé": "éé"}, ["a", "abcd"]),
    (constr(strip_whitespace=True, min_length=2), {"ab": "ab"}, ["a", " a"]),
    (constr(to_lower=True, max_length=3), {"AbC": "abc"}, ["abcd"]),
    (Annotated[str, Field(pattern=re.compile("^a+$"))], {"aa": "aa"}, ["b", "ab"]),
    (NewYear, {"2023-12-30": datetime.date(2023, 12, 30), "2024-01-02": datetime.date(2024, 1, 2)},
     ["2023-12-29", "2024-01-03", "2023-12-32", "2022-12-31", "2024-02-01"]),
    (list[NewYear], {'["2023-12-31"]': [datetime.date(2023, 12, 31)]}, ['["2024-01-03"]']),
    (NewYear | None, {"none": None, "2024-01-01": datetime.date(2024, 1, 1)}, ["2024-01-03"]),
    (Annotated[datetime.date, Field(gt=datetime.date(9999, 12, 30))], {"9999-12-31": datetime.date.max}, ["9999-12-30"]),
    (Evening, {"18:00:01": datetime.time(18, 0, 1), "23:30:00": datetime.time(23, 30)},
     ["18:00:00", "23:30:01", "24:00:00"]),
    (Era, {"2000-02-29T23:59:59": datetime.datetime(2000, 2, 29, 23, 59, 59)},
     ["1999-12-31T23:59:59", "2001-02-01T00:00:00"]),
    (AwareDatetime, {"2024-01-01T00:00:00Z": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)}, ["2024-01-01T00:00:00"]),
    (NaiveDatetime, {"2024-01-01T00:00:00": datetime.datetime(2024, 1, 1)}, ["2024-01-01T00:00:00Z", "2024-01-01"]),
    (PastDate, {"1999-12-31": datetime.date(1999, 12, 31)}, ["1999-02-29"]),
    (datetime.timedelta, {"P1DT2H": datetime.timedelta(days=1, hours=2), "-PT5M": datetime.timedelta(minutes=-5)},
     ["P", "PT"]),
    (Annotated[datetime.timedelta, Field(ge=datetime.timedelta(0))], {"P2D": datetime.timedelta(2)}, ["-P2D"]),
    (UUID4, {"12345678-1234-4234-8234-123456789abc": uuid.UUID("12345678-1234-4234-8234-123456789abc")},
     ["12345678-1234-1234-8234-123456789abc", "12345678123442348234123456789abc"]),
    (list[UUID4], {'["12345678-1234-4234-8234-123456789abc"]': [uuid.UUID("12345678-1234-4234-8234-123456789abc")]},
     ['["12345678-1234-1234-8234-123456789abc"]']),
    (ipaddress.IPv4Address, {"10.0.0.255": ipaddress.IPv4Address("10.0.0.255")}, ["10.0.0.256", "10.0.0", "01.0.0.0"]),
    (ipaddress.IPv6Address, {"0:0:0:0:0:0:0:1": ipaddress.IPv6Address("::1")}, ["0:0:0:0:0:0:0", "g:0:0:0:0:0:0:1"]),
    (HttpUrl, {"https://example.org/a?b=c": HttpUrl("https://example.org/a?b=c")}, ["ftp://example.org", "example.org"]),
    (Fraction, {"3/4": Fraction(3, 4), "-2": Fraction(-2)}, ["3/0", "/2"]),
    (pathlib.Path, {'"a/b.txt"': pathlib.Path("a/b.txt")}, ["a/b.txt"]),
    (bytes, {'"é"': "é".encode()}, ["b'x'"]),
    (Annotated[list[int], Field(min_length=1, max_length=2)], {"[1]": [1], "[1, 2]": [1, 2]}, ["[]", "[1, 2, 3]", "[1,2]"]),
    (conlist(Grade, min_length=2, max_length=2), {'["good", "bad"]': [Grade.GOOD, Grade.BAD]},
     ['["good"]', '["ugly", "bad"]']),
    (tuple[int, ...], {"[]": (), "[1, 2]": (1, 2)}, ["[true]"]),
    (Annotated[tuple[bool, ...], Field(min_length=2, max_length=2)], {"[true, false]": (True, False)}, ["[true]"]),
    (tuple[()], {"[]": ()}, ["[1]"]),
    (Seat, {"[3, true]": Seat(3, True), "[9]": Seat(9)}, ["[0, true]", "[3, true, 1]", "[]"]),
    (collections.deque[int], {"[1]": collections.deque([1])}, ["1"]),
    (set[Grade], {'["bad", "good"]': {Grade.GOOD, Grade.BAD}, "[]": set()}, ['["bad", "bad"]', '["ugly"]']),
    (Annotated[set[bool], Field(min_length=2)], {"[false, true]": {True, False}}, ["[]", "[true]", "[true, true]"]),
    (Annotated[frozenset[Literal["a", "b", "c"]], Field(min_length=2, max_length=2)],
     {'["a", "c"]': frozenset("ac")}, ['["a"]', '["a", "b", "c"]', '["a", "a"]']),
    (set[int], {"[1, 1]": {1}}, ["[1.5]"]),
    (dict[Literal["x", "y"], int], {'{"x": 1, "y": 2}': {"x": 1, "y": 2}, "{}": {}}, ['{"x": 1, "x": 2}', '{"z": 1}']),
    (Annotated[dict[Literal["x", "y", "z"], int], Field(min_length=2)], {'{"x": 1, "z": 2}': {"x": 1, "z": 2}},
     ['{"x": 1}']),
    (dict[Grade, bool], {'{"good": true}': {Grade.GOOD: True}}, ['{"ugly": true}']),
    (dict[Annotated[str, Field(min_length=1, max_length=2)], int], {'{"é€": 1}': {"é€": 1}}, ['{"": 1}', '{"abc": 1}']),
    (dict[Annotated[int, Field(ge=-1, le=12)], int], {'{"-1": 1, "12": 2}': {-1: 1, 12: 2}}, ['{"13": 1}', '{"-2": 1}']),
    (dict[datetime.date | Grade, int], {'{"2024-01-01": 1}': {datetime.date(2024, 1, 1): 1}}, ['{"x": 1}']),
    (dict[bool, int], {'{"true": 1}': {True: 1}}, ['{"yes": 1}']),
    (Mapping[str, Small], {'{"a": 3}': {"a": 3}}, ['{"a": 4}']),
    (collections.OrderedDict[Literal["a"], int], {'{"a": 3}': collections.OrderedDict(a=3)}, ['{"b": 3}']),
    (collections.Counter[Grade], {'{"good": 3}': collections.Counter({Grade.GOOD: 3})}, ['{"ugly": 3}']),
    (Defaults, {"{}": Defaults(), '{"size": 4, "grade": "bad"}': Defaults(size=4, grade=Grade.BAD)},
     ['{"grade": "bad", "size": 4}', '{"tags": ["good", "good", "good"]}']),
    (Renamed, {'{"as it is read": 1, "written": "x", "one": 2, "hidden": true}':
               Renamed.model_validate({"as it is read": 1, "written": "x", "one": 2, "hidden": True})}, ['{"read": 1}']),
    (ByEither, {'{"Size": 1}': ByEither(size=1)}, ['{"size": 1}']),
    (Strict, {'{"day": "2024-02-29", "sizes": [1]}': Strict(day=datetime.date(2024, 2, 29), sizes=(1,))}, ["{}"]),
    (Area, {'{"width": 2}': Area(width=2)}, ['{"width": 2, "double": 4}']),
    (Box[Small], {'{"content": 3}': Box[Small](content=3)}, ['{"content": 4}']),
    (Numbers, {"[1, 2]": Numbers([1, 2])}, ["1"]),
    (Order, {'{"id": 1}': Order(1), '{"id": 1, "lines": ["a"]}': Order(1, ["a"])}, ['{"id": 0}', "{}"]),
    (Partial, {'{"size": 1}': {"size": 1}, '{"size": 1, "colour": "bad"}': {"size": 1, "colour": Grade.BAD}}, ["{}"]),
    (Animal, {'{"kind": "puppy", "name": "Rex"}': Dog(kind="puppy", name="Rex")}, ['{"kind": "cat", "name": "Rex"}']),
    (Tagged, {'{"kind": "cat", "lives": 9}': Cat(kind="cat", lives=9)}, ['{"kind": "dog", "lives": 9}']),
    (Chain, {'{"length": 1, "rest": {"length": 0, "rest": null}}': Chain(length=1, rest=Chain(length=0))},
     ['{"rest": null}']),
    (Tree, {'{"good": [true, null]}': {Grade.GOOD: [True, None]}, "[[], {}]": [[], {}]}, ['{"ugly": true}', "1"]),
    (Two[Small], {"[1, 3]": (1, 3)}, ["[1]", "[1, 4]"]),
    (Small, {"3": 3}, ["4"]),
    (Small | None, {"none": None, "1": 1}, ["0", "null"]),
    (list[int] | None, {"none": None, "[1]": [1]}, ["null"]),
    (Cat | None, {"none": None, '{"kind": "cat", "lives": 1}': Cat(kind="cat", lives=1)}, ["null"]),
    (int | Grade | None, {"none": None, "3": 3, '"bad"': Grade.BAD}, ["null", "bad"]),
    (int | bool, {"1": 1, "true": True}, ["yes"]),
    (Any, {'{"a": [1, "b", null]}': {"a": [1, "b", None]}}, ["1e999", "a"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "good", "bad"), CASES, ids=lambda part: str(part)[:60] if not isinstance(part, dict) else ""
)
def test_what_a_grammar_takes_is_what_the_type_has(kind, good, bad):
    constraint = lower_type(kind, field="value")
    for text, value in good.items():
        assert accepts(kind, text), text
        found = constraint.parse(text)
        assert found == value
        assert type(found) is type(value)
        assert constraint.parse(constraint.render(value)) == value
    for text in bad:
        assert not accepts(kind, text), text


IMPOSSIBLE = [
    (Literal[()], "no members"),
    (Empty, "no members"),
    (list[Empty], "without members"),
    (conint(ge=5, le=4), "minimum"),
    (conint(gt=3, lt=4), "interval"),
    (confloat(gt=1, lt=1), "Minimum"),
    (Annotated[int, Field(multiple_of=7, ge=1, le=6)], "multiple of 7"),
    (Annotated[Decimal, Field(ge=2, le=1)], "minimum"),
    (list[Annotated[Decimal, Field(ge=2, le=1)]], "bounds leave no number"),
    (Annotated[list[conint(gt=3, lt=4)], Field(min_length=1)], "no value"),
    (constr(min_length=3, max_length=2), "characters"),
    (constr(min_length=4, pattern="^[a-z]{3}$"), "no value"),
    (Annotated[datetime.date, Field(ge=datetime.date(2024, 1, 2), le=datetime.date(2024, 1, 1))], "leave none"),
    (Annotated[datetime.date, Field(gt=datetime.date.max)], "leave none"),
    (list[Annotated[datetime.time, Field(gt=datetime.time(8), lt=datetime.time(8, 0, 1))]], "leave none"),
    (Annotated[set[Literal["a", "b"]], Field(min_length=3)], "no value"),
    (Annotated[frozenset[bool], Field(min_length=3)], "no value"),
    (Annotated[set[conint(ge=1, le=3)], Field(min_length=4)], "no value"),
    (Annotated[dict[Literal["a", "b"], int], Field(min_length=3)], "no value"),
    (Annotated[tuple[int, ...], Field(min_length=3, max_length=2)], "minItems|no value"),
    (Endless, "Endless"),
    (list[Endless], "Endless"),
    (Never, "Never"),
    (complex, "complex"),
    (Callable, "Callable"),
    (Callable[[int], str], "Callable"),
    (list[Callable[[], int]], "Callable"),
    (type, "class|type"),
    (Iterable[int], "say list"),
    (Json[list[int]], "say the type itself"),
    (dict[tuple[int, int], int], "keys are lists"),
    (Deep, "read from inside another"),
    (SecretStr, "password"),
    (Base64Str, "base64"),
    (Base64Bytes, "base64"),
    (re.Pattern, "regex"),
]


@pytest.mark.parametrize(("kind", "why"), IMPOSSIBLE, ids=str)
def test_impossible_types_are_refused_when_the_signature_is_defined(kind, why):
    with pytest.raises(SignatureError, match=r"field 'answer'") as caught:
        type("Asked", (still.Signature,), {"__annotations__": {"question": str, "answer": kind},
             "question": still.Input(), "answer": still.Output()})  # fmt: skip
    assert re.search(why, str(caught.value))
    assert "https://" not in str(caught.value)


def test_a_type_whose_package_is_missing_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "email_validator", None)
    monkeypatch.setattr("pydantic.networks.email_validator", None)
    with pytest.raises(SignatureError, match=r"field 'answer'.*email-validator"):
        lower_type(EmailStr, field="answer")
    with pytest.raises(SignatureError, match=r"field 'answer'.*email-validator"):

        class Asked(still.Signature):
            answer: EmailStr = still.Output()


@pytest.mark.filterwarnings("ignore::pydantic.json_schema.PydanticJsonSchemaWarning")
def test_a_union_keeps_the_alternatives_that_can_be_decoded():
    assert accepts(int | Callable, "3")
    assert not accepts(int | Callable, '"print"')


EVERYTHING = [
    bool, Grade, Literal["a", 1], conint(ge=1, le=3), float, Penny, Lengthy, constr(pattern="^[a-m]+$"), NewYear, Evening,
    datetime.datetime, AwareDatetime, datetime.timedelta, uuid.UUID, UUID4, HttpUrl, ipaddress.IPv4Address, list[int],
    set[Grade], tuple[int, str], Seat, dict[str, int], Defaults, Order, Partial, Animal, Chain, Tree, int | Grade, Fraction,
    str, Any,
]  # fmt: skip


@pytest.mark.parametrize("kind", EVERYTHING, ids=str)
def test_anything_may_be_missing(kind):
    missing = Optional[kind]  # noqa: UP045 - `type | None` is not defined for every kind
    bare = lower_type(missing, field="value")
    text = bare.render(None)
    assert text in ("none", "null")
    assert accepts(missing, text)
    assert bare.parse(text) is None
    assert accepts(list[missing], "[null, null]")
    assert lower_type(list[missing]).parse("[null, null]") == [None, None]


# --- what a grammar cannot say ---


@pytest.mark.parametrize(
    ("kind", "good", "bad", "why"),
    [
        (Even, '{"count": 2}', '{"count": 3}', "it is odd"),
        (PastDate, "1999-12-31", "9999-12-31", "in the past"),
        (FutureDate, "9999-12-31", "1999-12-31", "in the future"),
        (Annotated[set[int], Field(min_length=2)], "[1, 2]", "[1, 1]", "at least 2 items"),
        (dict[Annotated[str, Field(pattern="^a+$", max_length=2)], int], '{"aa": 1}', '{"aaa": 1}', "at most 2"),
        (list[Annotated[Decimal, Field(multiple_of=Decimal("0.25"))]], '["0.75"]', '["0.8"]', "multiple of 0.25"),
        (Annotated[datetime.timedelta, Field(le=datetime.timedelta(1))], "PT23H", "P2D", "less than or equal"),
        (Era, "2000-12-31T23:59:59", "2001-01-01T00:00:00", "less than"),
    ],
    ids=str,
)
def test_pydantic_has_the_last_word(kind, good, bad, why):
    constraint = lower_type(kind, field="value")
    assert accepts(kind, good)
    constraint.parse(good)
    assert accepts(kind, bad)
    with pytest.raises(ConstraintError, match=f"field 'value'.*{why}"):
        constraint.parse(bad)


# --- how types are described and written ---


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NewYear, "date like 2024-12-31 from 2023-12-30 to 2024-01-02"),
        (FutureDate, "date like 2024-12-31 in the future"),
        (AwareDatetime, "date and time like 2024-12-31T23:59:00Z"),
        (set[Grade], 'JSON ["good" or "bad", ...]'),
        (dict[Grade, int], 'JSON {"good": integer, "bad": integer}'),
        (HttpUrl, "URL"),
    (tuple[()], "JSON []"),
        (Penny, "number of at least 0.5 less than 2, a multiple of 0.01"),
    ],
)
def test_descriptions(kind, words):
    assert lower_type(kind).describe() == words


def test_sets_are_written_the_same_in_every_process():
    code = (
        "from still.signatures.lowering import lower_type\n"
        "names = {'red', 'green', 'blue', 'cyan', 'grey'}\n"
        "print(lower_type(dict[str, list[set[str]]]).render({'a': [names]}))"
    )
    written = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert written == {'{"a": [["blue", "cyan", "green", "grey", "red"]]}\n'}


def test_models_within_containers_are_written_as_they_are_read():
    value = [{"a": (Renamed.model_validate({"as it is read": 1, "written": "x", "hidden": True}),)}]
    constraint = lower_type(list[dict[str, tuple[Renamed]]])
    assert constraint.parse(constraint.render(value)) == value


# --- ranges, against arithmetic ---

DECIMALS = st.decimals(-2000, 2000, places=3)


@given(DECIMALS, DECIMALS, DECIMALS, st.integers(0, 3))
def test_patterns_of_decimals_are_exact(one, other, value, places):
    low, high = sorted((one, other))
    pattern = decimal_pattern(low, high, places)
    for number in (value, low, high, value.quantize(Decimal(1)), low.quantize(Decimal("0.1"))):
        text = format(number, "f")
        for spelled in (text, text.rstrip("0").rstrip(".") if "." in text else text):
            if spelled in ("-0", "") or (not number and spelled.startswith("-")):
                continue  # zero has no sign
            digits = len(spelled.partition(".")[2])
            found = pattern is not None and re.fullmatch(pattern, spelled) is not None
            assert found == (low <= number <= high and digits <= places)


@given(st.dates(), st.dates(), st.dates(), st.integers(-40, 40))
def test_patterns_of_dates_are_exact(one, other, value, days):
    low, high = sorted((one, other))
    pattern = date_range(low, high)
    near = datetime.date.fromordinal(min(max(low.toordinal() + days, 1), datetime.date.max.toordinal()))
    for day in (low, high, value, near):
        assert (re.fullmatch(pattern, day.isoformat()) is not None) == (low <= day <= high)


# --- whatever the grammar takes ---


@pytest.mark.parametrize("kind", [case[0] for case in CASES], ids=lambda kind: str(kind)[:60])
def test_random_texts_are_values(kind):
    constraint = lower_type(kind)
    checked = {PastDate, Era}
    for seed in range(12):
        text = walk(constraint, seed)
        if kind in checked:  # at their bounds, pydantic decides
            continue
        value = constraint.parse(text)
        assert TypeAdapter(kind).validate_python(value) == value
        assert constraint.parse(constraint.render(value)) == value


def walk(constraint, seed):
    machine = LLMatcher(BYTES, "start: value\n" + constraint.rules("value"), log_level=0)
    return grammar_walk.walk(machine, seed, closing='"]},', often=0.4, stop=0.3)
