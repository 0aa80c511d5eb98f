"""`Quoted`: what is written is a run of words of the input, and every run of words can be written."""

import json
import re
from typing import Annotated

import dspy
import grammar_walk
import pytest
import still
from dspy.utils import DummyLM
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter
from still.compiler.schema_types import type_from_schema
from still.errors import ConstraintError, SignatureError
from still.signatures.lowering import lower_type
from still.signatures.quoted import LONGEST
from weights_toys import write_base

BYTES = LLTokenizer("byte")
Words = Annotated[str, still.Quoted("message")]
LETTER = "Please send Ms. O'Neill's  parcel to “São Paulo”,\n not to Łódź\\Praha, at 5 o'clock/noon: it costs 3.50 €!"


class Slot(BaseModel):
    name: str = Field(min_length=1, max_length=3)
    value: Words


def words(text):
    """An independent account of where a quote may begin and end."""
    return [(m.start(), m.end()) for m in re.finditer(r"\w+|[^\w\s]", text)]


def quotes(text):
    plain = " ".join(text.split())
    places = words(plain)
    return {plain[b:places[j][1]] for i, (b, _) in enumerate(places) for j in range(i, min(i + LONGEST, len(places)))}


def matcher(constraint):
    return LLMatcher(BYTES, "start: value\n" + constraint.rules("value"), log_level=0)


def accepts(constraint, text):
    machine, raw = matcher(constraint), list(text.encode())
    return machine.try_consume_tokens(raw) == len(raw) and machine.is_accepting()


def walk(constraint, seed):
    return grammar_walk.walk(matcher(constraint), seed, closing='"]}', often=0.4, stop=0.3)


@pytest.mark.parametrize("seed", range(40))
def test_what_the_grammar_lets_pass_is_a_quote(seed):
    constraint = lower_type(Words).bound({"message": LETTER})
    assert constraint.parse(walk(constraint, seed)) in quotes(LETTER)
    inside = lower_type(list[Slot]).bound({"message": LETTER})
    assert all(slot.value in quotes(LETTER) for slot in inside.parse(walk(inside, seed)))


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab ä_1.,'\"\\/(\n\té"), min_size=1, max_size=30).filter(lambda text: words(text)))
def test_every_quote_can_be_written(text):
    constraint, inside = (lower_type(kind).bound({"message": text}) for kind in (Words, Slot))
    for quote in list(quotes(text))[:40]:
        assert accepts(constraint, constraint.render(quote)), quote
        assert constraint.parse(constraint.render(quote)) == quote
        slot = Slot(name="a", value=quote)
        assert accepts(inside, inside.render(slot)), quote
        assert inside.parse(inside.render(slot)) == slot


def test_what_is_no_run_of_whole_words_is_refused():
    constraint = lower_type(Words, field="who").bound({"message": LETTER})
    for text in ("parcel Ms", "arcel", "parce", "Ms.O'Neill", "", "parcel  to"):
        assert not accepts(constraint, text), text
    with pytest.raises(ConstraintError, match=r"'who'.*no quote from message"):
        constraint.parse("a parrot")
    with pytest.raises(ConstraintError, match="no quote from message"):
        lower_type(list[Slot]).bound({"message": LETTER}).validate([{"name": "a", "value": "a parrot"}])


def test_white_space_of_the_input_is_one_space():
    assert accepts(lower_type(Words).bound({"message": LETTER}), "parcel to “São Paulo”, not to")


def test_other_bounds_hold_too():
    short = lower_type(Annotated[Words, Field(max_length=6)]).bound({"message": "one two three four"})
    assert accepts(short, "three") and not accepts(short, "one two")
    marked = lower_type(Words, (StringConstraints(pattern=r"^\d+$"),)).bound({"message": "7 of 12 cups"})
    assert accepts(marked, "12") and not accepts(marked, "of")
    digits = Annotated[str, StringConstraints(pattern=r"^\d+$"), still.Quoted("message")]
    number = lower_type(list[digits]).bound({"message": "7 of 12 cups"})
    assert accepts(number, '["12", "7"]') and not accepts(number, '["cups"]') and not accepts(number, '["71"]')


def test_keys_may_be_quotes():
    kind = dict[Words, Words]
    constraint = lower_type(kind, field="found").bound({"message": LETTER})
    assert lower_type(kind).quoted == {"message"}
    assert lower_type(kind).describe() == "JSON {words copied from message: words copied from message, ...}"
    for quote in sorted(quotes(LETTER))[::40]:
        assert accepts(constraint, constraint.render({quote: quote})), quote
        assert constraint.parse(constraint.render({quote: quote})) == {quote: quote}
    for text in ('{"parrot": "parcel"}', '{"parce": "parcel"}', '{"parcel": "parrot"}'):
        assert not accepts(constraint, text), text
        with pytest.raises(ConstraintError, match=r"'found'.*no quote from message"):
            constraint.parse(text)


def test_bounds_of_a_key_are_checked_afterwards():
    key = Annotated[str, Field(max_length=6), still.Quoted("message")]
    short = lower_type(dict[key, int]).bound({"message": "one two three"})
    assert short.parse('{"three": 1}') == {"three": 1}
    with pytest.raises(ConstraintError, match="at most 6"):
        short.parse('{"one two": 1}')


def test_keys_of_which_some_are_quotes_are_refused():
    with pytest.raises(SignatureError, match=r"field 'found'.*keys are Quoted or something else"):
        lower_type(dict[Words | int, str], field="found")


def test_none_and_other_inputs():
    maybe = lower_type(Words | None)
    assert maybe.quoted == {"message"}
    maybe = maybe.bound({"message": "one two"})
    assert accepts(maybe, "null") and accepts(maybe, '"two"') and not accepts(maybe, '"three"')
    passages = lower_type(Words).bound({"message": ["first words", "others"]})
    assert accepts(passages, "first words"), "what is no text is quoted as the prompt shows it"


def test_without_a_call_any_text_is_one():
    assert TypeAdapter(Slot).validate_python({"name": "a", "value": "whatever"}).value == "whatever"
    assert lower_type(Words).parse("whatever") == "whatever"


def test_what_cannot_be_quoted_is_said():
    with pytest.raises(SignatureError, match="output 'b' quotes 'c', which is no input; the inputs are: a"):
        class Wrong(still.Signature):
            a: str = still.Input()
            b: Annotated[str, still.Quoted("c")] = still.Output()

    with pytest.raises(SignatureError, match="only a str can be quoted"):
        lower_type(Annotated[int, still.Quoted("message")])
    with pytest.raises(ConstraintError, match=r"quotes 'message', which is ' \\n': there is no word to quote"):
        lower_type(Words).bound({"message": " \n"})


class Who(still.Signature):
    """Who is the letter from?"""

    message: str = still.Input()
    who: Words = still.Output()


def test_a_model_without_sense_quotes_demonstrations_and_all(tmp_path):
    lm = still.LM(str(write_base(tmp_path / "base", max_position_embeddings=512)), quantization="fp32")
    predict = still.Predict(Who)
    predict.demos = [{"message": "I am Ada", "who": "Ada"}]
    with still.context(lm=lm):
        for message in ("Yours, Bo", "From your Cy Li"):
            assert predict(message=message).who in quotes(message)
        assert "words copied from message" in repr(still.signatures.layout.lower(Who))


@pytest.mark.parametrize("made_up", ["Zoe", "ours", "Yours, B", "B", ""])
def test_a_server_that_makes_something_up_is_asked_again(made_up):
    lm = DummyLM([{"who": made_up}, {"who": "Bo"}])
    with dspy.context(lm=lm):
        assert still.Predict(Who)(message="Yours, Bo").who == "Bo"
    assert len(lm.history) == 2


@pytest.mark.parametrize("text", [LETTER, "a.b_c !? d"])
def test_what_a_server_says_passes_if_it_is_a_quote(text):
    plain = " ".join(text.split())
    anything = {plain[i:j] for i in range(len(plain)) for j in range(i + 1, len(plain) + 1)}
    constraint = lower_type(Words).bound({"message": text})
    for piece in anything:
        if piece in quotes(text):
            assert constraint.parse(piece) == piece
        elif piece == piece.strip():
            with pytest.raises(ConstraintError):
                constraint.parse(piece)


def test_it_is_part_of_what_is_saved():
    schema = TypeAdapter(list[Slot]).json_schema()
    again = lower_type(type_from_schema(schema, "slots")).bound({"message": "one two"})
    assert accepts(again, json.dumps([{"name": "a", "value": "two"}]))
    assert not accepts(again, json.dumps([{"name": "a", "value": "three"}]))
    schema = TypeAdapter(dict[Annotated[str, still.Quoted("message")], int]).json_schema()
    again = lower_type(type_from_schema(schema, "counts")).bound({"message": "one two"})
    assert accepts(again, '{"two": 2}')
    assert not accepts(again, '{"three": 3}')
