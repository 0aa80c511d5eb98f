"""`still.load`: a compiled program back from its artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backends.lm import LM
from ..errors import ArtifactError
from ..signatures.bridge import Module
from .artifact import Artifact, read_artifact
from .identity import weights_digest
from .lms import bind


def load(path: str | Path, program: Module | None = None, *, lm: Any = None, allow_import: bool = False) -> Module:
    """Read an artifact and return its program, bound to the model it was compiled for.

    A single predictor is rebuilt from its schema. A user's module needs `program=MyModule()`, or `allow_import=True`,
    which imports the class named in the manifest and so runs its code. `lm` replaces the model's handle (another cache
    size, say); it must be the same model and quantization.

    Raises `ArtifactError` for a damaged or incomplete folder, another format, fields that differ, or another model.
    """
    artifact = read_artifact(path)
    compiled = artifact.program(program, allow_import=allow_import)
    lm = lm if lm is not None else _recorded_lm(artifact)
    recorded = artifact.manifest["model"]
    found = weights_digest(lm)
    if found != recorded["digest"]:
        raise ArtifactError(
            f"{path} was compiled for {recorded['name']} ({recorded['digest'][:12]}…), this LM is {found[:12]}…: "
            "prompts do not carry over between models, compile again for this one"
        )
    _bind_pinned(artifact, compiled)
    return bind(compiled, lm)


def _bind_pinned(artifact: Artifact, compiled: Module) -> None:
    """Predictors that had an LM of their own get it back: the one that the caller's program has, or a local model."""
    own = artifact.manifest["model"].get("pinned", {})
    for name, predictor in compiled.named_predictors():
        if name not in own:
            predictor.lm = None
            continue
        recorded = own[name]
        if predictor.lm is None and recorded["local"] is not None:
            predictor.lm = LM(**recorded["local"], **recorded["sampling"])
        found = None if predictor.lm is None else weights_digest(predictor.lm)
        if found != recorded["digest"]:
            raise ArtifactError(
                f"{artifact.path}: predictor {name!r} was compiled with {recorded['name']} as an LM of its own: pass "
                f"program= with that LM on it (set_lm), this one has {found or 'none'}"
            )


def _recorded_lm(artifact: Artifact) -> LM:
    model = artifact.manifest["model"]
    if model["local"] is None:
        raise ArtifactError(f"{artifact.path} was compiled for {model['name']}, which is not a local model: pass lm=")
    return LM(**model["local"], **model["sampling"])
