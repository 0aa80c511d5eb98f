"""Values that run out of tokens are brought to the shortest end their grammar allows."""

import datetime
import json
import random
from typing import Annotated, Literal

import pytest
from byte_model import byte_model
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel, Field
from random_types import random_type
from still.backends.engine import Decode, Engine, Request, Sampling, closing, shortest_completion
from still.errors import SignatureError
from still.grammars import compile_grammar
from still.signatures.lowering import lower_type
from still.signatures.plan import Decode as PlanDecode

BYTES = LLTokenizer("byte")


class Line(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]{2}-\d{3}$")
    count: int = Field(ge=10, le=99)
    note: str | None = None


class Order(BaseModel):
    id: str = Field(min_length=8, max_length=12)
    kind: Literal["standard", "express"]
    lines: list[Line] = Field(min_length=1, max_length=9)
    extra: dict[str, bool] = {}


KINDS = [
    Order, Line | int, list[Order], Literal["orders", "order", "shipping"], str, Annotated[str, Field(min_length=30)],
    Annotated[str, Field(pattern=r"^\w+@\w+\.example$")], float, bool, Order | None,
]  # fmt: skip


def grammar_of(kind, last=False):
    constraint = lower_type(kind, field="value", last=last)
    return PlanDecode("value", constraint, "end" if last else "newline", 100)


@pytest.mark.parametrize(
    ("kind", "written", "completed"),
    [
        (Literal["orders", "order", "shipping"], " s", "hipping\n"),
        (Literal["orders", "order", "shipping"], " order", "\n"),
        (bool, " f", "alse\n"),
        (str, " some words", "\n"),
        (str, " some ", ".\n"),
        (str, " back\\", "\\\n"),
        (Annotated[int, Field(ge=100, le=999)], " 1", "00\n"),
        (Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3}$")], " AB", "-000\n"),
        (list[int], " [1, 2", "]\n"),
        (list[int], " [1, ", "0]\n"),
        (dict[str, int], ' {"a', '": 0}\n'),
        (Line, ' {"sku": "AB-1', '00", "count": 10}\n'),
        (Line, ' {"sku": "AB-100", "count": 12, "note": "so', '"}\n'),
        (list[Line], ' [{"sku": "AB-100", "count": 12, "note": "é', '"}]\n'),
    ],
    ids=str,
)  # fmt: skip
def test_the_shortest_end(kind, written, completed):
    found = shortest_completion(grammar_of(kind).grammar(), written.encode(), 200)
    assert len(found) == len(completed.encode())
    grammar_of(kind).parse(written + found.decode())


def test_half_a_character_is_finished():
    step = grammar_of(str)
    written = b" caf" + "é".encode()[:1]
    found = shortest_completion(step.grammar(), written, 20)
    assert len(found) == 2
    assert step.parse((written + found).decode()).startswith("caf")


def test_an_end_that_is_too_long_is_none():
    assert shortest_completion(grammar_of(Order).grammar(), b" {", 10) is None
    assert shortest_completion(grammar_of(Order).grammar(), b" {", 200) is not None


def test_what_the_grammar_does_not_allow_is_an_error():
    with pytest.raises(ValueError, match="does not allow"):
        shortest_completion(grammar_of(bool).grammar(), b" maybe", 20)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(0, 120))
def test_any_beginning_can_be_ended(kind, last, seed, length):
    step = grammar_of(kind, last)
    written = random_beginning(step.grammar(), seed, length)
    found = shortest_completion(step.grammar(), written, 1000)
    assert found is not None
    step.parse((written + found).decode())


@pytest.mark.parametrize("number", range(60))
def test_no_end_is_longer_than_one_that_is_known(number):
    """A random value of a random type, cut anywhere: what was cut off is one way to end it; the shortest is no longer."""
    constraint, last = lowered(number)
    step = PlanDecode("value", constraint, "end" if last else "newline", 100)
    chance = random.Random(number)
    for seed in range(4):
        whole = random_text(step.grammar(), 60 * number + seed)
        cut = chance.randrange(len(whole) + 1)
        found = shortest_completion(step.grammar(), whole[:cut], 4096)
        assert found is not None
        assert len(found) <= len(whole) - cut
        step.parse((whole[:cut] + found).decode())


@pytest.mark.parametrize("number", range(40))
def test_where_the_shortest_end_is_too_far_a_short_one_is_found(number, monkeypatch):
    constraint, last = lowered(number)
    step = PlanDecode("value", constraint, "end" if last else "newline", 100)
    whole = random_text(step.grammar(), number)
    written = whole[: random.Random(number).randrange(len(whole) + 1)]
    shortest = shortest_completion(step.grammar(), written, 4096)
    monkeypatch.setattr(closing, "MAX_STATES", 5)
    found = shortest_completion(step.grammar(), written, 4096)
    assert len(shortest) <= len(found) <= 3 * len(shortest) + 10
    step.parse((written + found).decode())


def test_a_value_of_hundreds_of_characters_can_be_ended():
    """One whose shortest end takes more states than are tried."""
    constraint = lower_type(random_type(random.Random(4813), 3), (), "x")
    found = shortest_completion(f"start: x\n{constraint.rules('x')}", b"", 3000)
    constraint.parse(found.decode())


class Visit(BaseModel):
    name: str
    day: datetime.date
    at: datetime.datetime | None = None


@pytest.mark.parametrize(
    ("kind", "written", "size"),
    [
        (Visit, " {", 33),
        (Visit, ' {"name": "', 24),
        (dict[str, Visit], ' {"a": {"name": "b", "day": "2024-02-', 6),
        (dict[str, Visit], ' {"a": {"name": "b", "day": "2024-02-29", "at": ', 7),
        (list[Visit], ' [{"name": "b", "day": "2024-02-29", "at": "', 23),
    ],
    ids=str,
)
def test_free_text_in_front_is_not_filled(kind, written, size):
    found = shortest_completion(grammar_of(kind).grammar(), written.encode(), 4096)
    assert len(found) == size
    grammar_of(kind).parse(written + found.decode())


def test_a_pattern_of_counted_length_can_be_ended_again_and_again():
    """Its lexer is large; if a step breaks, all that share it are broken."""
    grammar = grammar_of(Annotated[str, Field(pattern=r"^\w+@\w+\.org$")], last=False).grammar()
    matcher = compile_grammar(BYTES, grammar)
    for seed in range(30):
        whole = random_text(grammar, seed, matcher.deep_copy())
        written = whole[: random.Random(seed).randrange(len(whole) + 1)]
        assert shortest_completion(grammar, written, 4096) is not None


def random_text(grammar, seed, matcher=None):
    """A complete text of a grammar, drawn byte by byte, with a leaning towards its end."""
    chance = random.Random(seed)
    matcher, text = matcher or LLMatcher(BYTES, grammar, log_level=0), bytearray()
    while not (matcher.is_accepting() and chance.random() < 0.3):
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1]
        if not allowed:
            break
        ends = [byte for byte in allowed if byte in b'"]},\n']
        text.append(chance.choice(ends) if ends and chance.random() < 0.4 else chance.choice(allowed))
        matcher.consume_token(text[-1])
    assert matcher.is_accepting()
    return bytes(text)


def lowered(number):
    """A constraint for a random type that has values, and whether it stands last in its signature."""
    chance = random.Random(1000 + number)
    while True:
        last = chance.random() < 0.5
        try:
            return lower_type(random_type(chance, 4), field="value", last=last), last
        except SignatureError:
            continue


def random_beginning(grammar, seed, length):
    chance = random.Random(seed)
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    written = bytearray()
    while len(written) < length:
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1]
        if not allowed:
            break
        written.append(chance.choice(allowed))
        matcher.consume_token(written[-1])
    return bytes(written)


@pytest.mark.parametrize("tokens", [1, 2, 5, 17, 40])
def test_the_engine_ends_what_it_cuts_off(tiny_int8, tokens):
    step = grammar_of(Order, last=True)
    decode = Decode(tokens, step.grammar(), closing=400)
    with Engine(byte_model(tiny_int8), cache_tokens=8192) as engine:
        requests = [Request((65, 66), (decode,), Sampling(temperature=1.5, seed=seed)) for seed in range(30)]
        results = [future.result().steps[0] for future in [engine.submit(request) for request in requests]]
    for result in results:
        assert result.finish_reason == "closed"
        assert isinstance(step.parse(result.text), Order)
        json.loads(result.text)


def test_text_that_may_end_anywhere_is_only_cut(tiny_int8):
    step = grammar_of(str, last=True)
    with Engine(byte_model(tiny_int8), cache_tokens=2048) as engine:
        prompt = (65, 66)
        for seed in range(20):
            decode = Decode(9, step.grammar(), closing=20)
            result = engine.submit(Request(prompt, (decode,), Sampling(temperature=1.5, seed=seed))).result().steps[0]
            assert result.finish_reason in ("closed", "length", "eos")
            assert step.parse(result.text)
