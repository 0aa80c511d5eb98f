"""The LoRA adapters that an artifact carries: PEFT folders `adapters/<name>/`, listed in its SHA256SUMS as all files are."""

from __future__ import annotations

from pathlib import Path

from ..errors import ArtifactError
from .artifact import ADAPTER_FILES, ADAPTERS, Artifact


def artifact_adapters(artifact: Artifact) -> dict[str, Path]:
    """Name → PEFT folder. Raises ArtifactError for one that is incomplete, or whose files no digest vouches for."""
    place = artifact.path / ADAPTERS
    found = sorted(folder for folder in place.iterdir() if folder.is_dir()) if place.is_dir() else []
    for folder in found:
        for name in ADAPTER_FILES:
            if f"{ADAPTERS}/{folder.name}/{name}" not in artifact.files:
                raise ArtifactError(
                    f"{artifact.path}: SHA256SUMS does not list {ADAPTERS}/{folder.name}/{name}: compile again"
                )
    return {folder.name: folder for folder in found}


def chosen_adapter(artifact: Artifact, name: str | None) -> Path | None:
    """The adapter of this name; without one the only adapter, or None where the artifact has none."""
    adapters = artifact_adapters(artifact)
    if name is None and len(adapters) < 2:
        return next(iter(adapters.values()), None)
    listed = ", ".join(adapters) or "none"
    if name is None:
        raise ArtifactError(f"{artifact.path} has several adapters ({listed}): say which one is exported")
    if name not in adapters:
        raise ArtifactError(f"{artifact.path} has no adapter {name!r}; it has: {listed}")
    return adapters[name]
