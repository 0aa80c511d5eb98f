"""`Cited` where it is not the whole type: Optional, and inside others. More of it is in test_retrieval_cited.py."""

import pytest
import still
from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel
from still.errors import ConstraintError, SignatureError
from still.signatures.cited import Cited
from still.signatures.lowering import lower_type
from still.signatures.optional import OptionalConstraint

PASSAGES = {"passages": [{"id": str(i), "text": f"Text {i}."} for i in range(3)]}


def accepts(constraint, text):
    machine = LLMatcher(LLTokenizer("byte"), 'start: value "\\n"\n' + constraint.rules("value"), log_level=0)
    raw = list(f"{text}\n".encode())
    return machine.try_consume_tokens(raw) == len(raw) and machine.is_accepting()


def test_a_cited_text_or_none_keeps_to_the_passages():
    maybe = lower_type(Cited[str] | None, field="answer")
    assert isinstance(maybe, OptionalConstraint)
    bound = maybe.bound(PASSAGES)
    for text in ("none", "So it is [2]", "none of it [1]"):
        assert accepts(bound, text), text
    for text in ("So it is", "So it is [4]", "null", "none of it"):
        assert not accepts(bound, text), text
    assert bound.parse("none") is None
    assert bound.parse("So it is [2]").citations == (2,)
    with pytest.raises(ConstraintError, match=r"field 'answer'.*there is no passage \[4\]"):
        bound.parse("So it is [4]")
    for value in (None, Cited[str](value="So", citations=(3,))):
        assert bound.parse(bound.render(value)) == (value and Cited[str].model_validate("So [3]"))


def test_without_passages_an_optional_text_cites_nothing():
    bare = lower_type(Cited[str] | None).bound({"passages": []})
    assert accepts(bare, "none") and accepts(bare, "nobody knows") and not accepts(bare, "so it is [1]")


@pytest.mark.parametrize("kind", [Cited[int] | None, Cited[int]])
def test_what_a_server_says_is_checked_in_an_optional_too(kind):
    bound = lower_type(kind, field="n").bound(PASSAGES)
    assert bound.coerce({"value": 20, "citations": [2]}).citations == (2,)
    with pytest.raises(ConstraintError, match=r"field 'n'.*there is no passage \[9\]"):
        bound.coerce({"value": 20, "citations": [9]})
    with pytest.raises(ConstraintError, match=r"field 'n'.*it cites nothing"):
        bound.coerce({"value": 20})


def test_none_needs_no_citation():
    assert lower_type(Cited[int] | None).bound(PASSAGES).coerce(None) is None


class Report(BaseModel):
    members: list[Cited[str]]


@pytest.mark.parametrize("kind", [list[Cited[str]], dict[str, Cited[int]], Report, list[Report] | None, Cited[str] | int])
def test_inside_another_type_it_is_refused_when_the_signature_is_defined(kind):
    with pytest.raises(SignatureError, match=r"field 'answer'.*Cited inside another type"):

        class Asked(still.Signature):
            passages: list[still.Passage] = still.Input()
            answer: kind = still.Output()
