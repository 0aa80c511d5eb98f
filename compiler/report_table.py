"""The table of a report: a row per candidate, with score, interval and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..optimizers.context import Outcome, Standing

RESAMPLES = 2000
COLUMNS = ("candidate", "score", "95 % interval", "examples", "calls", "tokens", "cached", "seconds", "verdict")
LATENCY = "latency, ms"


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate on one set of examples. Scores are fractions."""

    name: str
    origin: str
    score: float
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    fields: dict[str, float]
    examples: int
    failures: int
    """Examples on which the program or the metric raised."""
    calls: int
    tokens: int
    """Prompt and decoded tokens, cached ones included."""
    cached_tokens: int
    seconds: float
    """Of the wall time of examples run side by side, summed."""
    verdict: str
    latency: float | None = None
    """Median seconds of one call of the program alone, where latency is an objective."""
    on_front: bool = False
    """No other candidate is both better and faster."""


def make_row(standing: Standing, verdict: str, seed: int) -> Row:
    """Summarize one candidate's outcomes."""
    outcomes = standing.outcomes
    low, high = interval([o.score for o in outcomes], seed)
    return Row(
        name=standing.candidate.name,
        origin=standing.candidate.origin,
        score=standing.mean,
        low=low,
        high=high,
        fields=mean_fields(outcomes),
        examples=len(outcomes),
        failures=sum(o.error is not None for o in outcomes),
        calls=sum(o.calls for o in outcomes),
        tokens=sum(o.prompt_tokens + o.decoded_tokens for o in outcomes),
        cached_tokens=sum(o.cached_tokens for o in outcomes),
        seconds=sum(o.seconds for o in outcomes),
        verdict=verdict,
    )


def mean_fields(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean of each field's metric; an outcome without the field (a failure) counts 0."""
    names = sorted({name for outcome in outcomes for name in outcome.fields})
    return {name: sum(o.fields.get(name, 0.0) for o in outcomes) / len(outcomes) for name in names}


def interval(scores: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron, 1979); seeded."""
    if not scores:
        return 0.0, 0.0
    values = np.asarray(scores, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, values.size, size=(RESAMPLES, values.size))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The table's head; with latency where it was measured."""
    timed = any(row.latency is not None for row in rows)
    return (*COLUMNS[:-1], LATENCY, COLUMNS[-1]) if timed else COLUMNS


def cells(row: Row, timed: bool = False) -> tuple[str, ...]:
    """A row as texts, one for each column."""
    failures = f" ({row.failures} failed)" if row.failures else ""
    return (
        row.name,
        f"{row.score:.3f}",
        f"{row.low:.3f}-{row.high:.3f}",
        f"{row.examples}{failures}",
        str(row.calls),
        f"{row.tokens:,}",
        f"{row.cached_tokens / row.tokens:.0%}" if row.tokens else "-",
        f"{row.seconds:.1f}",
        *([f"{1000 * row.latency:.0f}" if row.latency is not None else "-"] if timed else []),
        row.verdict,
    )
