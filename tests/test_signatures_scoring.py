"""Fields whose options are scored: probabilities, abstention, and what cannot be scored."""

import enum
import math
from typing import Annotated, Literal

import pytest
import still
from pydantic import AfterValidator
from still.backends.meter import metered
from still.errors import SignatureError
from still.signatures.fieldset import scorings
from still.signatures.layout import lower
from still.signatures.scoring import Scoring


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2


class Route(still.Signature):
    """Route the message."""

    message: str = still.Input()
    team: Literal["orders", "order desk", "shipping"] = still.Output(decide="score")
    urgent: bool = still.Output(decide="score")
    size: Size | None = still.Output(decide="score", abstain_below=0.5)


@pytest.fixture
def answer(tiny_lm):
    with still.context(lm=tiny_lm):
        return still.Predict(Route)(message="Where is my parcel?")


def test_every_option_has_a_probability_under_its_value(answer):
    assert set(answer.probabilities) == {"team", "urgent", "size"}
    assert set(answer.probabilities["team"]) == {"orders", "order desk", "shipping"}
    assert set(answer.probabilities["urgent"]) == {True, False}
    assert set(answer.probabilities["size"]) == {Size.SMALL, Size.LARGE, None}
    for shares in answer.probabilities.values():
        assert math.isclose(sum(shares.values()), 1.0)
    for name in ("team", "urgent"):
        assert answer.probabilities[name][getattr(answer, name)] == max(answer.probabilities[name].values())


def test_values_have_their_types(answer):
    assert answer.team in ("orders", "order desk", "shipping")
    assert isinstance(answer.urgent, bool)
    assert answer.size is None or isinstance(answer.size, Size)
    assert answer.truncated == ()
    usage = answer.completion.usage
    assert usage.decoded_tokens == 0
    assert usage.scored_tokens > 0


def test_scores_are_log_probabilities_of_the_texts(tiny_lm, answer):
    plan = lower(Route)
    request = tiny_lm.request(plan, {"message": "Where is my parcel?"}, still_sampling())
    options = request.steps[0].options
    expected = [math.fsum(each) for each in tiny_lm.local.engine.score(request.prompt, options)]
    assert list(answer.completion.scores["team"].values()) == pytest.approx(expected, abs=1e-3)
    assert list(answer.completion.scores["team"]) == ["orders", "order desk", "shipping"]


def still_sampling():
    from still.signatures.executor import Sampling

    return Sampling()


def with_calibration(**calibration):
    return Route.with_updated_fields("team", calibration=calibration)


def test_a_calibration_moves_choice_and_probabilities(tiny_lm, answer):
    other = next(option for option in answer.probabilities["team"] if option != answer.team)
    with still.context(lm=tiny_lm):
        moved = still.Predict(with_calibration(bias={other: 50.0}))(message="Where is my parcel?")
        flat = still.Predict(with_calibration(temperature=1e6))(message="Where is my parcel?")
    assert moved.team == other
    assert moved.completion.scores["team"] == answer.completion.scores["team"]
    assert flat.team == answer.team
    assert max(flat.probabilities["team"].values()) == pytest.approx(1 / 3, abs=1e-3)


def test_abstention_is_none_below_the_threshold(tiny_lm):
    def ask(threshold):
        signature = Route.with_updated_fields("size", abstain_below=threshold)
        with still.context(lm=tiny_lm):
            return still.Predict(signature)(message="Where is my parcel?")

    sure = ask(1e-6)
    top = max(sure.probabilities["size"].values())
    assert ask(min(top + 1e-6, 0.999)).size is None
    assert ask(top - 1e-6).size == max(sure.probabilities["size"], key=sure.probabilities["size"].get)


def test_abstention_beside_a_label_none_is_none(tiny_lm):
    class Lid(still.Signature):
        """Which lid?"""

        message: str = still.Input()
        lid: Literal["none", "tin"] | None = still.Output(decide="score", abstain_below=0.99)

    unsure = Lid.with_updated_fields("lid", calibration={"temperature": 1e6})
    with still.context(lm=tiny_lm):
        answer = still.Predict(unsure)(message="A jar")
    assert answer.lid is None
    assert set(answer.probabilities["lid"]) == {"none", "tin", None}


def test_samples_are_drawn_by_probability(tiny_lm):
    signature = with_calibration(temperature=50.0)
    with still.context(lm=tiny_lm):
        answer = still.Predict(signature, n=60, temperature=1.0)(message="Where is my parcel?")
    assert len(set(answer.completions.team)) == 3


@pytest.mark.parametrize(
    ("declare", "why"),
    [
        (lambda: {"x": (str, still.Output(decide="score"))}, r"field 'x': decide='score' needs a closed set"),
        (lambda: {"x": (int, still.Output(decide="score"))}, "needs a closed set"),
        (lambda: {"x": (bool, still.Output(decide="guess"))}, "use 'decode' or 'score'"),
        (lambda: {"x": (bool, still.Output(abstain_below=0.5))}, "add decide='score'"),
        (lambda: {"x": (bool, still.Output(decide="score", abstain_below=0.5))}, "declare it Optional"),
        (lambda: {"x": (Literal["none", "a"], still.Output(decide="score", abstain_below=0.5))}, "declare it Optional"),
        (lambda: {"x": (bool | None, still.Output(decide="score", abstain_below=1.5))}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_scored_is_refused_where_it_is_declared(declare, why):
    fields = {"text": (str, still.Input()), **declare()}
    with pytest.raises(SignatureError, match=why):
        still.Signature(fields, "Do it.")


def test_the_plan_says_what_is_scored():
    assert scorings(Route)["size"] == Scoring(abstain_below=0.5)
    assert lower(Route).digest != lower(Route.with_updated_fields("team", decide="decode")).digest
    assert "scored" in str(lower(Route))


def test_a_field_of_the_same_name_comes_first(tiny_lm):
    class Own(still.Signature):
        """Answer."""

        message: str = still.Input()
        truncated: bool = still.Output()

    with still.context(lm=tiny_lm):
        assert isinstance(still.Predict(Own)(message="x").truncated, bool)


def test_a_value_that_was_cut_off_is_flagged(tiny_lm):
    class Long(still.Signature):
        """Write."""

        message: str = still.Input()
        points: list[str] = still.Output(min_length=2)
        note: str = still.Output(max_length=300)

    with still.context(lm=tiny_lm):
        answers = [
            still.Predict(Long)(message="x", config={"temperature": 1.5, "seed": seed, "max_tokens": 12})
            for seed in range(8)
        ]
    assert all(len(answer.points) >= 2 for answer in answers)
    assert sum("points" in answer.truncated for answer in answers) >= 6
    assert answers[0].truncated


def test_a_refused_answer_is_shown_to_the_model_with_the_reason(tiny_lm, monkeypatch):
    refused = []

    def even(value: int) -> int:
        if len(refused) < 2:
            refused.append(value)
            raise ValueError("it must be even, says the test")
        return value

    class Number(still.Signature):
        """Say a number."""

        message: str = still.Input()
        number: Annotated[int, AfterValidator(even)] = still.Output(ge=0, le=99)

    seen = []
    submit = tiny_lm.local.engine.submit
    monkeypatch.setattr(tiny_lm.local.engine, "submit", lambda request: seen.append(request) or submit(request))
    with still.context(lm=tiny_lm):
        answer = still.Predict(Number)(message="x")
    assert answer.completion.usage.calls == 3
    decode = tiny_lm.local.engine.model.tokenizer.decode
    assert f"number: {refused[0]}" in decode(list(seen[1].prompt))
    assert decode(list(seen[2].prompt)).count("it must be even, says the test") == 2
    # What was asked before is the beginning of what is asked now, so that it is computed once.
    shared = len(seen[0].prompt) - len(tiny_lm.local.prompter.encode("number:")) - 3
    assert seen[1].prompt[:shared] == seen[0].prompt[:shared]


def test_after_a_refusal_the_likeliest_option_is_still_the_value(tiny_lm):
    """Refused answers are asked for again warmer; options that are as good as equally likely would be drawn at random."""
    tries = []

    def second(value: int) -> int:
        tries.append(value)
        if len(tries) % 2:
            raise ValueError("not this one")
        return value

    class Number(still.Signature):
        """Say a number."""

        message: str = still.Input()
        number: Annotated[int, AfterValidator(second)] = still.Output(ge=0, le=99)
        team: Literal["orders", "order desk", "shipping"] = still.Output(decide="score")

    flat = Number.with_updated_fields("team", calibration={"temperature": 1e6})
    with still.context(lm=tiny_lm):
        answers = [still.Predict(flat)(message="x", config={"seed": seed}) for seed in range(10)]
    for answer in answers:
        likely = answer.probabilities["team"]
        assert answer.completion.usage.calls == 2
        assert answer.team == max(likely, key=likely.get)


def test_what_a_completion_cost_counts_the_refused_answers(tiny_lm):
    tries = []

    def third(value: int) -> int:
        tries.append(value)
        if len(tries) < 3:
            raise ValueError("not this one")
        return value

    class Number(still.Signature):
        """Say a number."""

        message: str = still.Input()
        number: Annotated[int, AfterValidator(third)] = still.Output(ge=0, le=99)

    with still.context(lm=tiny_lm), metered() as meter:
        usage = still.Predict(Number)(message="x").completion.usage
    assert (usage.calls, meter.calls) == (3, 3)
    assert usage.prompt_tokens == meter.prompt_tokens
    assert usage.cached_tokens == meter.cached_tokens
    assert usage.decoded_tokens == meter.decoded_tokens
