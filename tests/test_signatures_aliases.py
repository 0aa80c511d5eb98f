"""Types under another name: what a signature makes of `type` statements and NewType."""

from typing import Annotated, Literal, NewType, TypeVar

import dspy
import pytest
from pydantic import Field
from still import ChainOfThought, Input, Output, Signature
from still.errors import ConstraintError, SignatureError
from still.signatures.aliases import unwrap
from still.signatures.fieldset import constraints, scorings
from still.signatures.layout import lower
from typing_extensions import TypeAliasType

T = TypeVar("T")
Team = TypeAliasType("Team", Literal["sales", "returns"])
Small = TypeAliasType("Small", Annotated[int, Field(ge=1, le=9)])
Smaller = TypeAliasType("Smaller", Annotated[Small, Field(le=3)])
Maybe = TypeAliasType("Maybe", Team | None)
Tree = TypeAliasType("Tree", "dict[str, Tree] | list[Tree] | bool")
Pair = TypeAliasType("Pair", tuple[T, T], type_params=(T,))
Id = NewType("Id", int)


One = TypeAliasType("One", "Other")
Other = TypeAliasType("Other", "One")


def signature_of(kind, base=Signature, output=Output):
    class Asked(base):
        """Answer."""

        question: str = dspy.InputField()
        answer: kind = output()

    return Asked


KINDS = [
    (Team, "one of: sales, returns", ["sales"], ["other"]),
    (Small, "integer from 1 to 9", [9], [0]),
    (Smaller, "integer from 1 to 3", [3], [9]),
    (Annotated[Small, Field(ge=5)], "integer from 5 to 9", [5], [4]),
    (Maybe, "one of: sales, returns, none", ["sales", None], ["other"]),
    (Pair[int], "JSON [integer, integer]", [(1, 2)], [(1,)]),
    (Id, "integer", [7], ["x"]),
    (list[Small], "JSON [integer from 1 to 9, ...]", [[1, 2]], [[0]]),
    (Tree, None, [True, [True, {"a": [False]}]], [3, {"a": 3}]),
]


@pytest.mark.parametrize(("kind", "words", "good", "bad"), KINDS, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("base", [Signature, dspy.Signature])
def test_a_type_keeps_its_meaning_when_the_signature_is_edited(base, kind, words, good, bad):
    asked = signature_of(kind, base, Output if base is Signature else dspy.OutputField)
    before = constraints(asked)["answer"]
    edits = [
        asked.with_instructions("Answer well."),
        asked.with_updated_fields("question", desc="what is asked"),
        asked.prepend("thought", dspy.OutputField(), str),
        asked.append("more", dspy.OutputField(), str).delete("more"),
    ]
    for edited in (asked, *edits):
        constraint = constraints(edited)["answer"]
        assert constraint.rules("value") == before.rules("value")
        assert words is None or constraint.describe() == words
        for value in good:
            assert constraint.parse(constraint.render(value)) == value
        for value in bad:
            with pytest.raises(ConstraintError, match="answer"):
                constraint.validate(value)


def test_an_alias_of_a_closed_set_is_scored_and_may_abstain():
    class Routed(Signature):
        """Route."""

        message: str = Input()
        team: Maybe = Output(decide="score", abstain_below=0.5)

    assert scorings(Routed)["team"].abstain_below == 0.5
    # A demonstration with None is whole, since the alias allows None: it has its two turns.
    assert "team: none" in lower(Routed.with_instructions("Route it."), [{"message": "x", "team": None}]).turns[2].text


def test_chain_of_thought_takes_an_alias():
    assert list(ChainOfThought(signature_of(Small)).predict.signature.output_fields) == ["reasoning", "answer"]


def test_an_alias_with_a_name_that_nobody_knows_is_refused():
    unknown = TypeAliasType("unknown", "list[Nowhere]")  # noqa: F821
    with pytest.raises(SignatureError, match="names 'Nowhere', which its module does not define"):
        lower(signature_of(unknown))


def test_aliases_in_a_circle_end():
    assert unwrap(One)[0] in (One, Other)
    with pytest.raises(SignatureError):
        signature_of(One)
