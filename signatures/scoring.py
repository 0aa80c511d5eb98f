"""How the value of a closed set is found by scoring its options, instead of decoding one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SignatureError
from .constraint import Constraint
from .optional import NONE


@dataclass(frozen=True)
class Scoring:
    """Score every option; take the likeliest, or None where none is likelier than `abstain_below` (0 to 1).

    bias: one number per option, added to its log-probability; the sum is divided by `temperature`. Both are what
    calibration finds; without it they change nothing.
    """

    bias: tuple[float, ...] = ()
    temperature: float = 1.0
    abstain_below: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"bias": list(self.bias), "temperature": self.temperature, "abstain_below": self.abstain_below}


def scoring_of(extra: Mapping[str, Any], constraint: Constraint) -> Scoring | None:
    """Read `decide`, `abstain_below` and `calibration` of an output field; None if it is to be decoded.

    Raises `SignatureError` for a field whose options cannot be listed, and for abstention where None is no value.
    """
    decide, threshold = extra.get("decide", "decode"), extra.get("abstain_below")
    name = constraint.field
    if decide not in ("decode", "score"):
        raise SignatureError(f"field {name!r}: decide={decide!r}: use 'decode' or 'score'")
    if decide == "decode":
        if threshold is not None:
            raise SignatureError(f"field {name!r}: abstain_below needs probabilities: add decide='score'")
        return None
    options = constraint.options
    if options is None:
        raise SignatureError(f"field {name!r}: decide='score' needs a closed set (Literal, Enum, bool): use 'decode'")
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise SignatureError(f"field {name!r}: abstain_below={threshold}: give a probability between 0 and 1")
    if threshold is not None and NONE not in options:
        raise SignatureError(f"field {name!r}: abstain_below answers None, which is not of its type: declare it Optional")
    calibration = extra.get("calibration") or {}
    bias = calibration.get("bias") or {}
    return Scoring(_in_order(bias, options), float(calibration.get("temperature", 1.0)), threshold)


def _in_order(bias: Mapping[str, float], options: Sequence[str]) -> tuple[float, ...]:
    return tuple(float(bias.get(option, 0.0)) for option in options) if bias else ()
