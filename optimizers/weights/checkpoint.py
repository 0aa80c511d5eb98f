"""Training that survives a kill: adapter, optimizer and place are written together, and taken up again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import TrainingError
from .policy import Descent
from .student import Student, disk_errors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The last saved state of one training, in the folder `path`; whole or not there at all.

    key: digest of everything the training depends on. What another training left there is not taken up.
    """

    path: Path
    key: str

    def save(self, student: Student, descent: Descent, progress: Mapping[str, Any]) -> None:
        """Replace what was saved. progress: JSON that `restore` gives back. Raises `TrainingError` where it cannot write;
        what was saved before is still there then."""
        from safetensors.torch import save_file

        part, old = self.path.with_suffix(".part"), self.path.with_suffix(".old")
        try:
            with disk_errors(f"checkpoint {self.path}"):
                shutil.rmtree(part, ignore_errors=True)
                student.save(part)
                save_file(descent.state(), part / "optimizer.safetensors")
                told = {"key": self.key, "drawn": student.drawn, **progress}
                (part / "progress.json").write_text(json.dumps(told), "utf-8")
                shutil.rmtree(old, ignore_errors=True)
                if self.path.is_dir():
                    os.replace(self.path, old)
                os.replace(part, self.path)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)  # nothing, where it was renamed

    def restore(self, student: Student, descent: Descent) -> dict[str, Any] | None:
        """Put student and optimizer where they were, and return the progress; None if there is nothing to take up: what
        cannot be read is as good as not there, and training begins anew."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for folder in (self.path, self.path.with_suffix(".old")):
            try:
                progress: dict[str, Any] = json.loads((folder / "progress.json").read_text("utf-8"))
                if progress.pop("key") != self.key:
                    continue
                drawn = int(progress.pop("drawn", 0))
                state = load_file(folder / "optimizer.safetensors")
                student.load(folder)
            except (OSError, ValueError, KeyError, SafetensorError, TrainingError):
                continue
            student.drawn = drawn
            descent.restore(state)
            return progress
        return None

    def remove(self) -> None:
        """The training is over."""
        for folder in self._folders():
            shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> Iterable[Path]:
        return self.path, self.path.with_suffix(".old"), self.path.with_suffix(".part")
