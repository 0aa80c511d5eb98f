"""A model, with or without an adapter, written for other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import ArtifactError, ModelError
from ..models.adapter import Adapter, load_adapter
from ..models.checkpoint import Checkpoint
from ..models.convert import open_checkpoint
from ..models.hf_config import read_json
from ..models.source import ModelSource, resolve
from ..models.tokenizer import Tokenizer
from .chat_family import Message
from .gguf_metadata import copied, described
from .gguf_model import write_gguf
from .gguf_vocabulary import vocabulary
from .hf_folder import write_folder
from .merged import MergedCheckpoint
from .modelfile import modelfile
from .precision import byte_size, check_precision, shapes
from .staging import check_free, new_folder

Format = Literal["peft", "hf", "gguf", "modelfile"]
FORMATS: tuple[Format, ...] = ("peft", "hf", "gguf", "modelfile")
GGUF_NAME = "model.gguf"
Progress = Callable[[int, int], None]
"""Called with the bytes that are written and those that will be."""
_DEFAULTS = {"hf": "f32", "gguf": "f16", "modelfile": "f16"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a Modelfile says of the program: the system's words (None: the model's own), demonstrations, and comments."""

    system: str | None = None
    messages: Sequence[Message] = ()
    comments: Sequence[str] = ()
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelExport:
    """What `export_model` wrote."""

    path: Path
    format: Format
    precision: str
    """Of the matrices: "f32", "f16", "bf16", "q8_0", …; of a PEFT folder as the adapter's file has it: ""."""
    files: tuple[Path, ...] = field(default=())


def export_model(
    model: str | ModelSource,
    path: str | Path,
    to: Format,
    *,
    adapter: str | Path | None = None,
    precision: str | None = None,
    conversation: Conversation | None = None,
    progress: Progress | None = None,
) -> ModelExport:
    """Write a model, its adapter (a PEFT folder) merged in, to the new folder `path`; all or nothing.

    to: "peft", the adapter itself; "hf", a Hugging Face folder (precision f32, f16, bf16; by default f32, which keeps every
    bit); "gguf", `model.gguf` (also q8_0, q5_1, q5_0, q4_1, q4_0; by default f16); "modelfile", that and Ollama's Modelfile.
    Weights are computed in fp32 from what the source holds, dequantized, not from what the engine quantized.

    Raises ArtifactError for what cannot be said or written (a folder that exists, a full disk, a chat template of no known
    family), ModelError for a model or an adapter that cannot be read, or an adapter that is another model's.
    """
    if to not in FORMATS:
        raise ArtifactError(f"format {to!r} is not known: use one of {', '.join(FORMATS)}")
    if to == "peft" and (adapter is None or precision is not None):
        what = "without an adapter there is nothing to write" if adapter is None else f"precision {precision!r} has no use"
        raise ArtifactError(f"format 'peft' is the adapter itself: {what}")
    precision = "" if to == "peft" else check_precision(precision or _DEFAULTS[to], blocks=to != "hf")
    target = Path(path).expanduser()
    check_free(target)
    source = resolve(model) if isinstance(model, str) else model
    base = open_checkpoint(source)
    update = None if adapter is None else _adapter(Path(adapter).expanduser(), base, source)
    merged = MergedCheckpoint(base, update)
    if to == "peft":
        assert adapter is not None
        written = _write_peft(target, Path(adapter).expanduser(), source)
    elif to == "hf":
        written = _write_hf(target, merged, precision, source, progress)
    else:
        text = _modelfile(merged, conversation or Conversation()) if to == "modelfile" else None
        written = _write_gguf(target, merged, precision, source, text, progress)
    return ModelExport(target, to, precision, written)


def _adapter(folder: Path, base: Checkpoint, source: ModelSource) -> Adapter:
    try:
        return load_adapter("export", folder, base.spec)
    except ModelError as error:
        raise ModelError(f"adapter for {source.name}: {error}") from error


def _write_peft(target: Path, adapter: Path, source: ModelSource) -> tuple[Path, ...]:
    weights = adapter / "adapter_model.safetensors"
    config = read_json(adapter / "adapter_config.json")
    if source.kind == "folder":  # PEFT can load the base by this name; a GGUF file it cannot
        config["base_model_name_or_path"] = source.name
    with new_folder(target, weights.stat().st_size) as work:
        shutil.copyfile(weights, work / weights.name)
        (work / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return _files(target)


def _write_hf(
    target: Path, merged: MergedCheckpoint, precision: str, source: ModelSource, progress: Progress | None
) -> tuple[Path, ...]:
    total = byte_size(shapes(merged.spec), precision)
    with new_folder(target, total) as work:
        origin = source.path if source.kind == "folder" else None
        write_folder(work, merged, precision, origin, _counter(total, progress))
    return _files(target)


def _write_gguf(
    target: Path, merged: MergedCheckpoint, precision: str, source: ModelSource, text: str | None, progress: Progress | None
) -> tuple[Path, ...]:
    total = byte_size(shapes(merged.spec), precision)
    if source.kind == "gguf":
        entries = copied(source.path)
    else:
        name = source.path.name if Path(source.name).is_dir() else source.name
        entries = described(merged.spec, name) + vocabulary(merged.tokenizer(), merged.spec.vocab_size)
    with new_folder(target, total) as work:
        write_gguf(work / GGUF_NAME, merged, precision, entries, _counter(total, progress))
        if text is not None:
            (work / "Modelfile").write_text(text, encoding="utf-8")
    return _files(target)


def _modelfile(merged: MergedCheckpoint, conversation: Conversation) -> str:
    return modelfile(
        Tokenizer(merged.tokenizer()),
        f"./{GGUF_NAME}",
        system=conversation.system,
        messages=conversation.messages,
        temperature=conversation.temperature,
        comments=conversation.comments,
    )


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done = min(total, done + count)
        if progress is not None:
            progress(done, total)

    return advance


def _files(target: Path) -> tuple[Path, ...]:
    return tuple(sorted(target.iterdir()))
