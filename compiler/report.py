"""What a compile found: every candidate with score, interval and cost, as text and JSON; as a page: `report_page.py`."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from ..optimizers.context import CalibrationFit
from ..optimizers.selection import Selection
from .evidence import Evidence
from .report_table import LATENCY, Row, cells, columns


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
    evidence: Evidence = field(default_factory=Evidence)
    """What the page shows: the course of the search, prompts, examples won and lost, notes on the data."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Inverse of `to_json`."""
        return TypeAdapter(cls).validate_python(data)

    def __str__(self) -> str:
        # Names and notes have texts of models and users in them: what looks like markup is none.
        console = Console(file=io.StringIO(), width=132, force_terminal=False, markup=False, emoji=False)
        table = Table(title=self.title(), title_justify="left", box=None, pad_edge=False)
        head = columns(self.rows)
        for column in head:
            table.add_column(column, justify="left" if column in ("candidate", "verdict") else "right")
        for row in self.rows:
            table.add_row(*cells(row, LATENCY in head))
        console.print(table)
        for line in self.footer():
            console.print(line, highlight=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def _repr_html_(self) -> str:
        from .report_page import fragment

        return fragment(self)

    def page(self) -> str:
        """The report as a self-contained HTML document."""
        from .report_page import document

        return document(self)

    def title(self) -> str:
        """What was compiled, on what."""
        return (
            f"{self.level} on {self.model}: {self.metric} on {self.dev_size} dev examples "
            f"({self.train_size} train, seed {self.seed})"
        )

    def footer(self) -> list[str]:
        """What there is to say besides the table, a line each."""
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
        return [*lines, *self.notes, *self.evidence.audit]
