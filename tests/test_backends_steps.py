"""From an engine's result to a completion, on results that no engine has made."""

import math
from typing import Annotated, Any, Literal

import pytest
import still
from pydantic import AfterValidator
from still.backends.engine import Result, StepResult, Usage
from still.backends.steps import to_completion
from still.errors import ConstraintError
from still.signatures.layout import lower

COST = Usage(0, 0, 0, 0, 0, 0.0)


def chosen(kind, text, *shares):
    """The completion of a scored output, of which an option with this text was taken."""

    class Asked(still.Signature):
        """Answer."""

        message: str = still.Input()
        grade: kind = still.Output(decide="score")

    step = StepResult((1,), f" {text}", "chosen", scores=tuple(map(math.log, shares)))
    return to_completion(lower(Asked), Result((step,), COST))


def not_c(value: str) -> str:
    if value == "c":
        raise ValueError("it is c")
    return value


def listed(value: str) -> list[Any]:
    return [value]


def test_a_validator_sees_the_option_that_was_taken_alone():
    kind = Annotated[Literal["a", "b", "c"], AfterValidator(not_c)]
    found = chosen(kind, "a", 0.5, 0.3, 0.2)
    assert found.values == {"grade": "a"}
    assert found.probabilities["grade"] == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2})
    with pytest.raises(ConstraintError, match="it is c"):
        chosen(kind, "c", 0.2, 0.3, 0.5)


def test_a_value_that_cannot_be_a_key_is_no_reason_to_fail():
    found = chosen(Annotated[Literal["a", "b"], AfterValidator(listed)] | None, "a", 0.5, 0.3, 0.2)
    assert found.values == {"grade": ["a"]}
    assert found.probabilities["grade"] == pytest.approx({"a": 0.5, "b": 0.3, None: 0.2})


@pytest.mark.parametrize(("kind", "text", "value"), [(Literal[1, True, 2], "true", True), (Literal[0, False, 2], "0", 0)])
def test_options_that_are_one_key_have_one_sum(kind, text, value):
    found = chosen(kind, text, 0.5, 0.3, 0.2)
    assert found.values["grade"] is value
    assert found.probabilities["grade"] == pytest.approx({value: 0.8, 2: 0.2})
    assert list(found.scores["grade"].values()) == pytest.approx([math.log(share) for share in (0.5, 0.3, 0.2)])


class Points(still.Signature):
    """Write."""

    message: str = still.Input()
    points: list[str] = still.Output()


@pytest.mark.parametrize(("tokens", "remedy"), [(12, "raise max_tokens"), (1024, "bound its texts and lists")])
def test_what_ran_out_of_tokens_says_what_helps(tokens, remedy):
    step = StepResult((0,) * tokens, ' ["a', "length")
    with pytest.raises(ConstraintError, match=rf"field 'points'.*cut off after {tokens} tokens.*{remedy}"):
        to_completion(lower(Points), Result((step,), COST))
