"""How the value of a closed set is found by scoring its options, instead of decoding one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import SignatureError
from .constraint import Constraint
from .json_members import members_of


@dataclass(frozen=True)
class Scoring:
    """Score every option; take the likeliest, or None where none is likelier than `abstain_below` (0 to 1).

    bias: one number per option, added to its log-probability; the sum is divided by `temperature`. nearness: what is added
    too, by how near the input is to the demonstrations of the option (`NearnessSource`). All three are what calibration
    finds; without it they change nothing.
    """

    bias: tuple[float, ...] = ()
    temperature: float = 1.0
    abstain_below: float | None = None
    nearness: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        near = {"nearness": self.nearness} if self.nearness else {}
        return {"bias": list(self.bias), "temperature": self.temperature, "abstain_below": self.abstain_below, **near}

    def leaning(self, nearness: Sequence[float]) -> Scoring:
        """That of one call, whose input is so near to the demonstrations of each option."""
        bias = self.bias or (0.0,) * len(nearness)
        return replace(self, bias=tuple(b + self.nearness * near for b, near in zip(bias, nearness, strict=True)))


def scorings_of(extra: Mapping[str, Any], constraint: Constraint) -> dict[str, Scoring]:
    """Read `decide`, `abstain_below` and `calibration` of an output field: how it is scored, or, of an object, each closed
    set in it, by name ("urgency", "address.country"). Empty if it is to be decoded.

    Raises `SignatureError` for a field whose options cannot be listed, and for abstention where None is no value.
    """
    decide, threshold = extra.get("decide", "decode"), extra.get("abstain_below")
    name = constraint.field
    if decide not in ("decode", "score"):
        raise SignatureError(f"field {name!r}: decide={decide!r}: use 'decode' or 'score'")
    if decide == "decode":
        if threshold is not None:
            raise SignatureError(f"field {name!r}: abstain_below needs probabilities: add decide='score'")
        return {}
    calibration = extra.get("calibration") or {}
    if (options := constraint.options) is not None:
        _check_threshold(name, threshold, constraint.option_values)
        return {name: _scoring(calibration, options, threshold)}
    closed = {member.constraint.field: member.constraint.options for member in members_of(constraint)}
    if not closed:
        raise SignatureError(
            f"field {name!r}: decide='score' needs a closed set (Literal, Enum, bool), or a model, all of it required, that "
            "has some: use 'decode'"
        )
    if threshold is not None:
        raise SignatureError(f"field {name!r}: abstain_below is for closed sets, not for a model that has some")
    return {
        member: _scoring(calibration.get(member) or {}, options, None)
        for member, options in closed.items()
        if options is not None and len(options) > 1
    }


def _check_threshold(name: str, threshold: float | None, values: Sequence[Any]) -> None:
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise SignatureError(f"field {name!r}: abstain_below={threshold}: give a probability between 0 and 1")
    # The word "none" may be an option of its own.
    if threshold is not None and None not in values:
        raise SignatureError(f"field {name!r}: abstain_below answers None, which is not of its type: declare it Optional")


def _scoring(calibration: Mapping[str, Any], options: Sequence[str], threshold: float | None) -> Scoring:
    bias = calibration.get("bias") or {}
    in_order = tuple(float(bias.get(option, 0.0)) for option in options) if bias else ()
    nearness = float(calibration.get("nearness", 0.0))
    return Scoring(in_order, float(calibration.get("temperature", 1.0)), threshold, nearness)
