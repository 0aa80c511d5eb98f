"""What `still.compile` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..optimizers.candidate import Candidate
from ..signatures.bridge import Module
from .artifact import save_artifact
from .dspy_state import DspyExport, export_dspy
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

    def save(self, path: str | Path) -> Path:
        """Write the artifact folder `path`; read it back with `still.load`. Raises `ArtifactError`."""
        return save_artifact(path, self.program, self.report, self.model, self.data)

    def export_dspy(self, path: str | Path, *, lossy: bool = False) -> DspyExport:
        """Write the program's state for `dspy_program.load(path)`. See `export_dspy` for what DSPy cannot say."""
        return export_dspy(self, path, lossy=lossy)

    def __repr__(self) -> str:
        return f"Result(winner={self.winner.name!r})\n{self.report}"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
