"""What a type asks for at least, and the refusal of too much."""

import json
import random
from typing import Annotated, Literal

import pytest
import still
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter
from random_types import random_type
from still.backends.engine.closing import shortest_completion
from still.errors import SignatureError
from still.signatures.json_schema import DecodeSchema
from still.signatures.least import shortest
from still.signatures.lowering import lower_type


class Leaf(BaseModel):
    size: int
    tags: list[Literal["a", "bc"]] = Field(min_length=2)


class Node(BaseModel):
    name: str = Field(min_length=3)
    children: list["Node"]
    leaf: Leaf | None


def least(kind):
    return shortest(TypeAdapter(kind).json_schema(schema_generator=DecodeSchema))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (list[int], "[]"),
        (Annotated[list[int], Field(min_length=3)], "[0, 0, 0]"),
        (tuple[int, bool, str], '[0, true, ""]'),
        (Leaf, '{"size": 0, "tags": ["a", "a"]}'),
        (Node, '{"name": "aaa", "children": [], "leaf": null}'),
        (dict[str, int], "{}"),
        (Literal["long", "s"] | Leaf, '"s"'),
    ],
)
def test_the_shortest_value_is_counted(kind, text):
    assert least(kind) == len(text)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_no_completion_is_shorter(seed):
    try:
        constraint = lower_type(random_type(random.Random(seed), 3), (), "x")
    except SignatureError:  # a random type may be impossible
        reject()
    if not hasattr(constraint, "schema"):
        return
    found = shortest_completion(f"start: x\n{constraint.rules('x')}", b"", 3000)
    assert found is not None and len(found.decode()) >= shortest(json.loads(constraint.schema))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Annotated[list[int], Field(min_length=2000)], "6,000 characters of JSON"),
        (Annotated[list[Node], Field(min_length=40)], "characters of JSON"),
        (Annotated[str, Field(min_length=5000)], "at least 5,000 characters"),
        (Annotated[list[Annotated[str, Field(min_length=600)]], Field(min_length=2)], "1,208 characters of JSON"),
    ],
)
def test_a_type_that_asks_for_too_much_is_refused_when_the_signature_is_defined(kind, why):
    with pytest.raises(SignatureError, match="field 'value'") as refused:

        class Long(still.Signature):
            text: str = still.Input()
            value: kind = still.Output()

    assert why in str(refused.value)
