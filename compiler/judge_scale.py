"""The scale of a judge's score: the lowest counts 0, the highest 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from ..errors import MetricError


@dataclass(frozen=True, slots=True)
class Scale:
    """Bounds of the output `score`, both inclusive."""

    low: float
    high: float

    @classmethod
    def of(cls, signature: Any) -> Scale:
        """Of a signature. Raises MetricError if it has no output `score` with two bounds."""
        field = signature.output_fields.get("score")
        if field is None:
            raise MetricError(f"judge: {signature.__name__} has no output `score`; add score: int = Output(ge=1, le=5)")
        found = _bounds(TypeAdapter(field.rebuild_annotation()).json_schema())
        if found is None or not found[0] < found[1]:  # also where a bound is missing: NaN is below nothing
            raise MetricError(
                f"judge: score of {signature.__name__} is not bounded; make it an int or float with ge and le, a bool, or a "
                "Literal of at least two numbers"
            )
        return cls(*found)

    def share(self, score: Any) -> float:
        """Where between the bounds a score is, from 0 to 1; of an enum's member, its value."""
        number = float(getattr(score, "value", score))
        return min(1.0, max(0.0, (number - self.low) / (self.high - self.low)))


def _bounds(schema: dict[str, Any]) -> tuple[float, float] | None:
    if schema.get("type") == "boolean":
        return 0.0, 1.0
    if options := schema.get("enum"):
        numbers = all(isinstance(option, int | float) for option in options)
        return (float(min(options)), float(max(options))) if numbers else None
    whole = int(schema.get("type") == "integer")  # above 0 is at least 1 for whole numbers, and about 0 for others
    low = schema.get("minimum", schema.get("exclusiveMinimum", float("nan")) + whole)
    high = schema.get("maximum", schema.get("exclusiveMaximum", float("nan")) - whole)
    return float(low), float(high)
