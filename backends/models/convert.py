"""Convert a checkpoint once and keep the result in the cache, ready to be mapped into memory."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .cache import cache_folder
from .checkpoint import Checkpoint, TokenizerFiles
from .gguf_file import GGUFFile
from .layout import layer_tensors, layout, outer_tensors
from .quantize import Quantization
from .safetensors_folder import SafetensorsFolder
from .source import ModelSource
from .spec import DecoderSpec

if TYPE_CHECKING:
    import torch

FORMAT = 3
"""Raised whenever what is stored changes, so that older caches are left alone and rebuilt beside."""
_META = "model.json"
_LOCK_TIMEOUT = 3600.0
_ROOM = "set STILL_CACHE to a folder on a sound disk with room"


Converted = tuple[DecoderSpec, dict[str, "torch.Tensor"], TokenizerFiles]


def converted(source: ModelSource, digest: str, quantization: Quantization) -> Converted:
    """Spec, mapped weights and tokenizer of a source, converted on first use; a damaged cache is rebuilt.

    Safe when several processes call it at once. Raises ModelError when the source cannot be read.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder() / "converted" / f"{digest[:16]}-{quantization}-v{FORMAT}"
    if (found := _load(folder, digest, quantization)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=_LOCK_TIMEOUT):
            # Once more under the lock: another process may have built it meanwhile.
            if (found := _load(folder, digest, quantization)) is None:
                _build(source, digest, quantization, folder)
                found = _load(folder, digest, quantization)
    except Timeout as error:
        raise ModelError(f"model {source.name!r}: {folder}.lock is held for too long; end the other process") from error
    except OSError as error:
        raise ModelError(f"model {source.name!r} cannot be stored in {folder} ({error}); {_ROOM}") from error
    if found is None:
        raise ModelError(f"model {source.name!r}: what was written to {folder} does not read back; {_ROOM}")
    return found


def open_checkpoint(source: ModelSource) -> Checkpoint:
    return GGUFFile(source.path) if source.kind == "gguf" else SafetensorsFolder(source.path)


def _build(source: ModelSource, digest: str, quantization: Quantization, folder: Path) -> None:
    from safetensors.torch import save_file

    checkpoint = open_checkpoint(source)
    tokenizer = checkpoint.tokenizer()
    for stale in folder.parent.glob(f"{folder.name}-*"):  # of a process that was killed; the lock is ours now
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        # A file per layer, so that one layer at a time is in memory.
        save_file(outer_tensors(checkpoint, quantization), work / "outer.safetensors")
        for layer in range(checkpoint.spec.num_layers):
            save_file(layer_tensors(checkpoint, layer, quantization), work / f"layer-{layer:04d}.safetensors")
        _sync(work)
        meta = {
            "format": FORMAT,
            "digest": digest,
            "quantization": quantization,
            "spec": checkpoint.spec.to_json(),
            "tokenizer": asdict(tokenizer),
            "files": {file.name: file.stat().st_size for file in sorted(work.iterdir())},
        }
        (work / _META).write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
        _sync(work)
        if folder.exists():
            shutil.rmtree(folder)  # the damaged one
        os.replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())


def _load(folder: Path, digest: str, quantization: Quantization) -> Converted | None:
    """What is stored in the folder; None when it is absent, damaged or another model's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    try:
        meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
        if (meta["format"], meta["digest"], meta["quantization"]) != (FORMAT, digest, quantization):
            return None
        spec = DecoderSpec.from_json(meta["spec"])
        tokenizer = TokenizerFiles(**meta["tokenizer"] | {"eos_ids": tuple(meta["tokenizer"]["eos_ids"])})
        for name, size in meta["files"].items():
            if (folder / name).stat().st_size != size:
                return None
            weights |= load_file(folder / name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ModelError):
        return None
    stored = {(name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in weights.items()}
    if stored != set(layout(spec, quantization)):
        return None
    return spec, weights, tokenizer
