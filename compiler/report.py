"""What a compile found: every candidate with score, interval and cost, as text, JSON and HTML."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..optimizers.context import CalibrationFit, Outcome, Standing
from ..optimizers.selection import Selection

RESAMPLES = 2000
COLUMNS = ("candidate", "score", "95 % interval", "examples", "calls", "tokens", "cached", "seconds", "verdict")


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
    """Summed over examples, which run side by side: larger than the wall time."""
    verdict: str


@dataclass(frozen=True, slots=True)
class Report:
    """Baseline first, then the candidates, best first."""

    level: str
    metric: str
    model: str
    seed: int
    train_size: int
    dev_size: int
    seconds: float
    """Wall time of this compile, without what came from the ledger."""
    resumed: int
    """Examples taken from the ledger."""
    saved: int
    """Example runs that racing made unnecessary."""
    winner: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    calibrations: tuple[CalibrationFit, ...] = ()
    """Of the winner's scored fields."""
    selection: Selection | None = None
    """What to expect of the winner, having been picked from many."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Inverse of `to_json`."""
        rows = tuple(Row(**row) for row in data["rows"])
        fits = tuple(CalibrationFit(**fit) for fit in data.get("calibrations", ()))
        selection = Selection(**data["selection"]) if data.get("selection") else None
        read = {"rows": rows, "notes": tuple(data["notes"]), "calibrations": fits, "selection": selection}
        return cls(**{**data, **read})

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=132, force_terminal=False)
        table = Table(title=self._title(), title_justify="left", box=None, pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("candidate", "verdict") else "right")
        for row in self.rows:
            table.add_row(*_cells(row))
        console.print(table)
        for line in self._footer():
            console.print(line, highlight=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
        body = "".join(
            f"<tr{' style=font-weight:bold' if row.name == self.winner else ''}>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))
            + "</tr>"
            for row in self.rows
        )
        footer = "".join(f"<p>{html.escape(line)}</p>" for line in self._footer())
        return f"<p><b>{html.escape(self._title())}</b></p><table><tr>{head}</tr>{body}</table>{footer}"

    def _title(self) -> str:
        return (
            f"{self.level} on {self.model}: {self.metric} on {self.dev_size} dev examples "
            f"({self.train_size} train, seed {self.seed})"
        )

    def _footer(self) -> list[str]:
        lines = [f"winner: {self.winner}, {self.seconds:.1f} s, racing saved {self.saved} example runs"]
        if (found := self.selection) is not None and found.candidates > 1:
            lines.append(
                f"to be expected on new examples: {found.score:.3f} ({found.low:.3f}-{found.high:.3f}), corrected for "
                f"having picked the best of {found.candidates}; ahead of the baseline in {found.confidence:.0%} of resamples"
            )
        if self.resumed:
            lines.append(f"{self.resumed} example runs were taken from the ledger")
        lines += [
            f"{fit.predictor}.{fit.field}: probabilities off by {fit.error_before:.3f} before calibration, "
            f"{fit.error_after:.3f} after (expected calibration error on {fit.examples} dev examples)"
            for fit in self.calibrations
        ]
        return [*lines, *self.notes]


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


def _cells(row: Row) -> tuple[str, ...]:
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
        row.verdict,
    )
