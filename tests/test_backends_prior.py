"""Contextual calibration: what the model prefers without any input is taken out, once per plan."""

import asyncio
import math
from typing import Annotated, Literal

import pytest
import still
from pydantic import AfterValidator, BaseModel, Field
from still.backends.context_prior import MOST_WORDS, TEXTS, WORDS, sizes, without_content
from still.backends.engine import END, option_probabilities
from still.signatures.executor import Sampling
from still.signatures.layout import lower


class Route(still.Signature):
    """Route the message."""

    message: str = still.Input()
    team: Literal["orders", "order desk", "shipping"] = still.Output(decide="score")


DEMOS = [{"message": "hello", "team": "orders"}]


def scores(lm, plan, text):
    request, engine = lm.request(plan, {"message": text}, Sampling()), lm.local.engine
    found = []
    for option in request.steps[0].options:
        assert option[-1] == END
        ends = [(*option[:-1], eos) for eos in engine.model.tokenizer.eos_ids]
        found.append(math.log(math.fsum(math.exp(math.fsum(each)) for each in engine.score(request.prompt, ends))))
    return found


def test_the_bias_is_minus_the_log_of_the_mean_probability_without_content(tiny_lm):
    plan, inputs = lower(Route), {"message": "Where is it, please?"}
    free = [each["message"] for each in without_content(sizes(plan, inputs))]
    assert [len(text.split()) for text in free] == [4] * TEXTS
    shares = [option_probabilities(scores(tiny_lm, plan, text)) for text in free]
    means = [math.fsum(column) / len(shares) for column in zip(*shares, strict=True)]
    step = tiny_lm.local.prior.correct(plan, inputs).decodes[0]
    assert step.scoring.bias == pytest.approx([-math.log(mean) for mean in means], abs=1e-3)


def test_without_content_no_option_is_preferred(tiny_lm):
    free = without_content((("message", 8),))
    with still.context(lm=tiny_lm):
        answers = [still.Predict(Route)(**inputs) for inputs in free]
    raw = [option_probabilities(list(a.completion.scores["team"].values())) for a in answers]
    corrected = [list(a.probabilities["team"].values()) for a in answers]
    before, after = ([math.fsum(column) / TEXTS for column in zip(*rows, strict=True)] for rows in (raw, corrected))
    assert max(after) - min(after) < max(before) - min(before)
    # What is taken out: after it each option has the same share, up to how much each input counts.
    step = tiny_lm.local.prior.correct(lower(Route), free[0]).decodes[0]
    levelled = [[p * math.exp(bias) for p, bias in zip(row, step.scoring.bias, strict=True)] for row in raw]
    assert [math.fsum(column) / TEXTS for column in zip(*levelled, strict=True)] == pytest.approx([1.0] * 3, rel=1e-3)


def test_demonstrations_and_fitted_calibrations_are_left_alone(tiny_lm):
    def correct(plan):
        return tiny_lm.local.prior.correct(plan, {"message": "hello"})

    shown = lower(Route, DEMOS)
    assert correct(shown) is shown
    fitted = lower(Route.with_updated_fields("team", calibration={"bias": {"orders": 1.0}}))
    assert correct(fitted) is fitted
    decoded = lower(Route.with_updated_fields("team", decide="decode"))
    assert correct(decoded) is decoded


def test_what_is_said_instead_of_an_input_has_about_its_length():
    plan = lower(Route)
    for words, size in ((0, 0), (1, 1), (2, 2), (3, 4), (5, 4), (6, 8), (100, 128), (5000, MOST_WORDS)):
        (one, other, *_) = without_content(sizes(plan, {"message": "lorem " * words}))
        assert len(one["message"].split()) == size
        assert set(one["message"].split()) <= set(WORDS)
        assert one != other or size < 2
    assert without_content((("message", 8),)) == without_content((("message", 8),))


def test_inputs_of_any_type_have_a_size():
    class Long(still.Signature):
        text: str = still.Input()
        numbers: list[int] = still.Input()
        note: str | None = still.Input()
        team: Literal["a", "b"] = still.Output(decide="score")

    inputs = {"text": "one two three four", "numbers": [1, 2, 3], "note": None}
    assert sizes(lower(Long), inputs) == (("text", 4), ("numbers", 4), ("note", 1))


def test_a_plan_is_measured_once_for_inputs_of_one_length(tiny_lm, monkeypatch):
    prior, calls = tiny_lm.local.prior, []
    run = prior._run
    monkeypatch.setattr(prior, "_run", lambda plan, inputs: calls.append(plan) or run(plan, inputs))
    program = still.Predict(Route.with_instructions("Route it, please."))

    async def ask():
        with still.context(lm=tiny_lm):
            return await asyncio.gather(*(program.acall(message=f"message {i}") for i in range(8)))

    answers = asyncio.run(ask())
    with still.context(lm=tiny_lm):
        assert program(message="message 0").team == answers[0].team
        assert len(calls) == 1
        program(message="a message with a good many words in it, more than the others")
    assert len(calls) == 2


def test_what_only_one_call_may_say_does_not_make_it_measured_again(tiny_lm, monkeypatch):
    """And outputs after the last scored one are not written for it."""

    class Both(still.Signature):
        """Who wants it, and which team handles it?"""

        message: str = still.Input()
        who: Annotated[str, still.Quoted("message")] = still.Output()
        team: Literal["orders", "shipping"] = still.Output(decide="score")
        reply: str = still.Output()

    prior, calls = tiny_lm.local.prior, []
    run = prior._run
    monkeypatch.setattr(prior, "_run", lambda plan, inputs: calls.append(plan) or run(plan, inputs))
    with still.context(lm=tiny_lm):
        answers = [still.Predict(Both, max_tokens=8)(message=f"I am {name}") for name in ("Ada", "Bo")]
    assert all(answer.who in f"I am {name}" for answer, name in zip(answers, ("Ada", "Bo"), strict=True))
    (measured,) = calls
    assert [step.field for step in measured.decodes] == ["who", "team"]


class Place(BaseModel):
    indoors: bool
    floor: int = Field(ge=0, le=9)


def test_an_object_may_end_in_what_is_not_scored(tiny_lm):
    """What is measured ends with the last option that is scored: the beginning of an object, and no value."""

    class Repair(still.Signature):
        """Where is it?"""

        message: str = still.Input()
        place: Place = still.Output(decide="score")

    with still.context(lm=tiny_lm):
        answer = still.Predict(Repair)(message="A lamp is broken")
    assert isinstance(answer.place, Place)
    likely = answer.probabilities["place.indoors"]
    assert likely[answer.place.indoors] == max(likely.values())


def test_answers_to_words_without_content_are_not_validated(tiny_lm):
    seen = []

    class Booking(still.Signature):
        """For how many, and which team handles it?"""

        message: str = still.Input()
        guests: Annotated[int, AfterValidator(lambda value: seen.append(value) or value)] = still.Output(ge=0, le=9)
        team: Literal["north", "south"] = still.Output(decide="score")

    with still.context(lm=tiny_lm):
        answer = still.Predict(Booking)(message="A table for two, please")
    assert seen == [answer.guests]
