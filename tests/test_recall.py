"""A recall gives what the engine would: the same answers under other calibrations, without asking it again."""

from typing import Literal

import pytest
import still
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.meter import metered
from still.backends.recall import Recall, recalling
from still.optimizers.candidate import Candidate, PredictorState

COLOURS, SIZES = ("red", "green", "blue"), ("small", "large")


class Thing(still.Signature):
    """Say what it looks like."""

    thing: str = still.Input()
    colour: Literal["red", "green", "blue"] = still.Output(decide="score")
    size: Literal["small", "large"] = still.Output(decide="score")


def calibrated(colours, sizes):
    """Thing with these biases; demonstrations, so that the engine makes no correction of its own."""
    fields = {
        name: {"decide": "score", "calibration": {"bias": dict(zip(options, bias, strict=True)), "temperature": 1.0}}
        for name, options, bias in (("colour", COLOURS, colours), ("size", SIZES, sizes))
    }
    shown = ({"thing": "a leaf", "colour": "green", "size": "small"},)
    return Candidate("c", "test", {"self": PredictorState(shown, fields=fields)}).apply(still.Predict(Thing))


def answers(program, recall, thing="the sea"):
    lm = still.LM()
    before = lm.local.engine.stats.prefilled_tokens
    with still.context(lm=lm), recalling(recall), metered() as meter:
        answer = program(thing=thing)
    completion = answer.completion
    found = (answer.colour, answer.size, completion.scores, completion.probabilities, completion.texts)
    return found, lm.local.engine.stats.prefilled_tokens - before, meter.log


def test_the_same_question_costs_nothing_and_counts_the_same():
    recall = Recall()
    first, cost, (call,) = answers(calibrated((0, 0, 0), (0, 0)), recall)
    again, nothing, (repeated,) = answers(calibrated((0, 0, 0), (0, 0)), recall)
    assert again == first
    assert cost > 0
    assert nothing == 0
    assert (repeated.prompt_tokens, repeated.decoded_tokens) == (call.prompt_tokens, call.decoded_tokens)
    assert repeated.cached_tokens == repeated.prompt_tokens


def test_another_last_decision_costs_nothing():
    recall = Recall()
    first, _, _ = answers(calibrated((0, 0, 0), (0, 0)), recall)
    other = next(name for name in SIZES if name != first[1])
    biased = calibrated((0, 0, 0), tuple(50.0 * (name == other) for name in SIZES))
    turned, cost, _ = answers(biased, recall)
    assert turned[1] == other
    assert turned[2] == first[2], "the model's own scores"
    assert cost == 0
    assert turned == answers(biased, None)[0]


bias = st.floats(-3, 3).map(lambda value: round(value, 2))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.tuples(bias, bias, bias), st.tuples(bias, bias)), min_size=2, max_size=4), st.booleans())
def test_a_recall_never_changes_an_answer(biases, drawn):
    recall = Recall()
    for colours, sizes in biases:
        program = calibrated(colours, sizes)
        program.config = {"temperature": 0.9, "seed": 3} if drawn else {}
        assert answers(program, recall)[0] == answers(program, None)[0]


@pytest.mark.parametrize("change", ["thing", "temperature"])
def test_what_is_asked_differently_is_asked(change):
    recall = Recall()
    program = calibrated((0, 0, 0), (0, 0))
    answers(program, recall)
    if change == "temperature":
        program.config = {"temperature": 0.9}
    _, cost, _ = answers(program, recall, "a mouse" if change == "thing" else "the sea")
    assert cost > 0
