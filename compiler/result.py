"""What `still.compile` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..optimizers.candidate import Candidate
from ..signatures.bridge import Module
from .artifact import content_digest, save_artifact
from .dspy_state import DspyExport, export_dspy
from .ledger import ArtifactRow, Ledger
from .report import Report


@dataclass(frozen=True, slots=True)
class Result:
    """A compiled program and the evidence for it."""

    program: Module
    """The best program found, bound to the LM it was compiled for; the baseline itself where nothing beat it."""
    report: Report
    winner: Candidate
    model: dict[str, Any]
    """Name, digest and quantization of the LM."""
    data: dict[str, str]
    """Digests of the train and dev sets."""
    ledger: Path
    """The file of the compile's ledger, where `save` is noted too."""
    run_id: str
    """Of the compile, in the ledger."""
    front: tuple[Result, ...] = ()
    """With latency as an objective: a result for each candidate than which no other is both better on dev and faster,
    fastest first. `result.front[0].save(path)` keeps that one in place of the one that was picked."""

    @property
    def digest(self) -> str:
        """sha256 of everything that decides what the program answers; the same for the same compile with the same seed."""
        return content_digest(self.program, self.model)

    def save(self, path: str | Path) -> Path:
        """Write the artifact folder `path`; read it back with `still.load`. Raises `ArtifactError`, or, when the artifact is
        there but the ledger cannot be told of it, `LedgerError`."""
        saved = save_artifact(path, self.program, self.report, self.model, self.data)
        if self.ledger.is_file():
            self._note(saved)
        return saved

    def _note(self, saved: Path) -> None:
        row = next(row for row in self.report.rows if row.name == self.winner.name)
        with Ledger(self.ledger) as book:
            book.record(
                ArtifactRow(
                    path=str(saved.resolve()), digest=self.digest, run_id=self.run_id,
                    candidate_id=self.winner.digest, name=self.winner.name, score=row.score,
                )
            )  # fmt: skip

    def export_dspy(self, path: str | Path, *, lossy: bool = False) -> DspyExport:
        """Write the program's state for `dspy_program.load(path)`. See `export_dspy` for what DSPy cannot say."""
        return export_dspy(self, path, lossy=lossy)

    def __repr__(self) -> str:
        return f"Result(winner={self.winner.name!r})\n{self.report}"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
