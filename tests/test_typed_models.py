"""Random types, random sampling: whatever comes out is a value of the type."""

import json
import random

import pytest
from byte_model import byte_model
from jsonschema import Draft202012Validator
from jsonschema.validators import extend
from pydantic import TypeAdapter
from random_types import random_type
from still.backends.engine import Decode, Engine, Request, Sampling
from still.backends.steps import closing_tokens
from still.errors import SignatureError
from still.signatures.json_constraint import JsonConstraint
from still.signatures.lowering import lower_type
from still.signatures.plan import Decode as PlanDecode

TYPES, SEEDS = 140, 15
"""2,100 generations."""
DRAWN = 60
"""Tokens (bytes, here) drawn of each value before it is brought to an end."""
MAY_BE_CUT = {"length"}
"""Reasons to stop with which a value may end where no grammar ends it: free text that is the last of its answer."""

# What pydantic declares of a set is that its items differ; a decoded list may repeat one, and the set drops it.
Declared = extend(Draft202012Validator, {"uniqueItems": lambda *_: None})


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


def test_every_generation_is_a_value_of_its_type(generated):
    assert len(generated) >= 2000
    for constraint, step, result in generated:
        value = step.parse(result.text)
        TypeAdapter(constraint.annotation).validate_python(value, by_name=True, by_alias=True)


def test_nothing_is_cut_off(generated):
    reasons = {result.finish_reason for _, _, result in generated}
    assert reasons <= {"grammar", "closed", "eos"} | MAY_BE_CUT
    for _, step, result in generated:
        if result.finish_reason == "length":
            step.parse(result.text)
    assert sum(result.finish_reason == "closed" for _, _, result in generated) > 100


def test_values_are_written_as_they_are_read(generated):
    for constraint, step, result in generated:
        value = step.parse(result.text)
        assert constraint.parse(constraint.render(value)) == value


def test_json_is_what_the_type_declares(generated):
    """An independent reading: the JSON schema that pydantic writes of the type, and another library to check it."""
    seen = 0
    for constraint, _, result in generated:
        if isinstance(constraint, JsonConstraint):
            schema = TypeAdapter(constraint.annotation).json_schema()
            Declared(schema).validate(json.loads(result.text))
            seen += 1
    assert seen > 1000


def test_the_types_are_as_varied_as_they_should_be(generated):
    kinds = {json.dumps(TypeAdapter(constraint.annotation).json_schema(), sort_keys=True) for constraint, _, _ in generated}
    assert len(kinds) > TYPES * 0.7
