"""`Input()` and `Output()`: the fields of a signature."""

from __future__ import annotations

from typing import Any, Literal

from .bridge import InputField, OutputField

_UNSET: Any = object()


def Input(  # noqa: N802 - reads as a declaration
    *,
    desc: str | None = None,
    default: Any = _UNSET,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    pattern: str | None = None,
) -> Any:
    """Declare an input field. `desc` is shown to the model, `default` fills in when a call leaves the input out.

    The bounds are pydantic's. Inputs are not checked against them when a program runs; they document the field.
    """
    return InputField(**_given(locals()))


def Output(  # noqa: N802 - reads as a declaration
    *,
    desc: str | None = None,
    default: Any = _UNSET,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    pattern: str | None = None,
    decide: Literal["decode", "score"] | None = None,
    abstain_below: float | None = None,
) -> Any:
    """Declare an output field. Its type and bounds hold for every value a call returns.

    ge, gt, le, lt, multiple_of: numbers. min_length, max_length: characters of text, or items of a list.
    pattern: a regular expression in Rust's syntax, as pydantic takes it (no look-around, no back-references); generated
    text matches it from beginning to end. Lengths of free text default to at most 500 characters for a field that
    others follow and 2,000 for the last one.
    decide: "score" has the model give the probability of every option of a closed set (a Literal, an Enum, a bool), takes
    the likeliest, and shows them all as `answer.probabilities[name]`; of a model of required fields, of every closed set in
    it (`answer.probabilities["address.country"]`). "decode" (the default) writes one down, which is cheaper where there are
    many. abstain_below: with "score", answer None (the type must allow it) where no option has this
    probability.
    """
    given = _given(locals())
    extra = {name: given.pop(name) for name in ("decide", "abstain_below") if name in given}
    field = OutputField(**given)
    field.json_schema_extra.update(extra)
    return field


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    # pydantic tells "no default" from "default None" by the argument's absence.
    return {name: value for name, value in arguments.items() if value is not (_UNSET if name == "default" else None)}
