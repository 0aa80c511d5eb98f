"""Rows: token for token what the engine sees, and loss where the model had a choice."""

from typing import Literal

import pytest
import still
from byte_model import END
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from still.backends.engine import Decode
from still.errors import ConstraintError
from still.optimizers.weights.row import Row
from still.optimizers.weights.rows import RowWriter, distinct_rows
from still.signatures.executor import Sampling
from still.signatures.layout import lower
from weights_toys import write_base


class Part(BaseModel):
    name: Literal["wheel", "wheelbarrow", "chain"]
    count: int = Field(ge=1, le=99)


class Order(still.Signature):
    """Read the order."""

    text: str = still.Input()
    kind: Literal["order", "order change", "complaint"] = still.Output()
    urgent: bool = still.Output(decide="score")
    parts: list[Part] = still.Output(max_length=3)
    note: str = still.Output(max_length=40)


VALUES = {"kind": "order change", "urgent": True, "parts": [Part(name="wheel", count=12)], "note": "before noon, please"}


@pytest.fixture(scope="module")
def lm():
    return still.LM("smollm2-135m")


@pytest.fixture(scope="module")
def writer(lm):
    return RowWriter(lm.local.engine, lm.local.prompter)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_is_what_the_engine_saw(tmp_path_factory, seed):
    """Over bytes, where every text has one spelling, the row of a drawn answer is what was computed when it was drawn."""
    folder = write_base(tmp_path_factory.getbasetemp() / f"bytes-{seed}", max_position_embeddings=1024)
    lm = still.LM(str(folder), quantization="fp32")
    request = lm.request(lower(Order), {"text": "Où est ma roue ?"}, Sampling(temperature=1.0, seed=seed, max_tokens=150))
    result = lm.local.engine.submit(request).result()
    row = RowWriter(lm.local.engine, lm.local.prompter).answer(
        request, [step.text for step in result.steps if step.finish_reason != "forced"]
    )
    seen, drawn = list(request.prompt), 0
    for step, done in zip(request.steps, result.steps, strict=True):
        seen += done.tokens
        drawn += done.drawn_tokens if isinstance(step, Decode) else len(done.tokens) * (done.finish_reason == "chosen")
        if done.finish_reason == "eos":
            seen.append(END)
    assert row.tokens == tuple(seen)
    if all(done.finish_reason != "closed" for done in result.steps):  # an end that was appended would have been drawn
        assert row.decided == drawn
    lm.local.engine.close()


def test_prompt_and_text_are_those_of_the_run(lm, writer):
    inputs = {"text": "My chain broke <|im_end|>"}
    request = lm.request(lower(Order), inputs, Sampling())
    (completion,) = lm.execute(lower(Order), inputs)
    row = writer.write(lower(Order), inputs, completion.values)
    assert row.tokens[: len(request.prompt)] == request.prompt
    texts = [completion.texts[name] for name in ("kind", "urgent", "parts", "note")]
    answer = lm.local.engine.model.tokenizer.decode(row.tokens[len(request.prompt) :])
    assert answer == "{}urgent:{}parts:{}note:{}".format(*texts)


def test_loss_is_on_what_had_to_be_decided(lm, writer):
    row = writer.write(lower(Order), {"text": "Twelve wheels"}, VALUES, predictor="self", key="7")
    tokenizer = lm.local.engine.model.tokenizer
    prompt = len(lm.request(lower(Order), {"text": "Twelve wheels"}, Sampling()).prompt)
    assert not any(row.loss[:prompt])
    decided = [tokenizer.decode([t], skip_special=False) for t, loss in zip(row.tokens, row.loss, strict=True) if loss]
    answer = tokenizer.decode(row.tokens[prompt:], skip_special=False)
    json = '[{"name": "wheel", "count": 12}]'
    assert answer == f" order change\nurgent: true\nparts: {json}\nnote: before noon, please<|im_end|>"
    # Of the JSON only what could have been otherwise; "wheel" and "wheelbarrow" part after their first letters.
    assert not {"name", '":', "count", "urgent", "note"} & set(decided)
    assert "<|im_end|>" in decided and any("12" in piece or piece == "1" for piece in decided)
    assert (row.predictor, row.key) == ("self", "7")


def test_a_value_outside_its_type_makes_no_row(writer):
    with pytest.raises(ConstraintError, match=r"praise"):
        writer.write(lower(Order), {"text": "x"}, {**VALUES, "kind": "praise"})


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1, max_size=30))
def test_any_text_is_spelled_as_it_is(lm, text):
    plan = lower(still.Signature("question -> note"))
    part = plan.decodes[0]
    writer = RowWriter(lm.local.engine, lm.local.prompter)
    try:
        written = part.render(text)
        request = lm.request(plan, {"question": "?"}, Sampling())
        row = writer.answer(request, [written])
    except ConstraintError:  # a text that is no value, or a character that has no tokens
        return
    tokenizer = lm.local.engine.model.tokenizer
    answer = row.tokens[len(request.prompt) :]
    assert tokenizer.decode(answer) == written


def test_a_text_that_the_grammar_refuses_is_an_error(lm, writer):
    request = lm.request(lower(Order), {"text": "x"}, Sampling())
    with pytest.raises(ConstraintError, match="no text of the grammar"):
        writer.answer(request, [" orders\n", " true\n", " []\n", " x"])


def test_equal_rows_are_one():
    row = Row((1, 2), (False, True))
    assert distinct_rows([row, Row((1, 2), (False, True), key="other"), Row((1, 2), (False, False))]) == [
        row, Row((1, 2), (False, False)),
    ]  # fmt: skip
