"""A model as a Hugging Face folder: config.json, safetensors, tokenizer, generation settings, chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ..models.checkpoint import Checkpoint, TokenizerFiles
from ..models.safetensors_folder import GEMMA3_NAMES, LAYER_NAMES, LAYER_PART
from .config_json import config_json
from .precision import FLOATS, as_float, shapes

if TYPE_CHECKING:
    import torch

SHARD = 4 << 30
"""Bytes of weights in one file, which are in memory at once."""
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
Advance = Callable[[int], None]
"""Called with the number of bytes that were written."""


def write_folder(
    work: Path, checkpoint: Checkpoint, precision: str, source: Path | None, advance: Advance, shard: int = SHARD
) -> None:
    """Write the model into the folder `work`. source: the Hugging Face folder it is from, whose tokenizer files are
    copied as they are; None: they are made from the checkpoint's tokenizer."""
    files = checkpoint.tokenizer()
    config = config_json(checkpoint.spec, FLOATS[precision]) | _special_ids(files)
    _write_json(work / "config.json", config)
    _write_weights(work, checkpoint, precision, advance, shard)
    if source is not None:
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, work / name)
    else:
        _write_tokenizer(work, files)
    if not (work / "generation_config.json").is_file():
        _write_json(work / "generation_config.json", _special_ids(files))


def file_name(part: str, gemma: bool) -> str:
    """The name of a part in transformers' checkpoints."""
    match = LAYER_PART.fullmatch(part)
    if match is not None:
        return f"model.layers.{match[1]}.{(GEMMA3_NAMES if gemma else LAYER_NAMES)[match[2]]}"
    return {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "lm_head": "lm_head.weight"}[part]


def _write_weights(work: Path, checkpoint: Checkpoint, precision: str, advance: Advance, shard: int) -> None:
    from safetensors.torch import save_file

    width = 4 if precision == "f32" else 2
    parts = shapes(checkpoint.spec)
    groups = list(_groups({part: prod(shape) * width for part, shape in parts.items()}, shard))
    gemma = checkpoint.spec.architecture == "gemma3"
    weight_map: dict[str, str] = {}
    for index, group in enumerate(groups):
        file = "model.safetensors" if len(groups) == 1 else f"model-{index + 1:05d}-of-{len(groups):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for part in group:
            tensor = checkpoint.read(part)
            if gemma and "norm" in part:
                tensor -= 1.0  # transformers' Gemma norms by 1 + weight
            tensors[file_name(part, gemma)] = as_float(part, tensor, precision)
            advance(tensor.numel() * width)
        save_file(tensors, work / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if len(groups) > 1:
        total = sum(prod(shape) for shape in parts.values()) * width
        index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(work / "model.safetensors.index.json", index_file)


def _groups(sizes: dict[str, int], most: int) -> Iterator[list[str]]:
    """Parts in order, as many together as stay within `most` bytes, at least one."""
    group: list[str] = []
    filled = 0
    for part, size in sizes.items():
        if group and filled + size > most:
            yield group
            group, filled = [], 0
        group.append(part)
        filled += size
    yield group


def _write_tokenizer(work: Path, files: TokenizerFiles) -> None:
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(files.json)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": files.add_bos,
        "add_eos_token": False,
    }
    if files.bos_id is not None:
        settings["bos_token"] = _text_of(tokenizer, files.bos_id)
        if files.add_bos:
            bos = settings["bos_token"]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, files.bos_id)]
            )
    if files.eos_ids:
        settings["eos_token"] = settings["pad_token"] = _text_of(tokenizer, files.eos_ids[0])
    tokenizer.save(str(work / "tokenizer.json"))
    _write_json(work / "tokenizer_config.json", settings)
    if files.chat_template is not None:
        (work / "chat_template.jinja").write_text(files.chat_template, encoding="utf-8")


def _text_of(tokenizer: Any, index: int) -> str:
    token = tokenizer.id_to_token(index)
    if token is None:
        raise ModelError(f"the tokenizer has no token {index}, which the model ends or begins texts with: it is damaged")
    return str(token)


def _special_ids(files: TokenizerFiles) -> dict[str, Any]:
    ids: dict[str, Any] = {} if files.bos_id is None else {"bos_token_id": files.bos_id}
    if files.eos_ids:
        ids |= {"eos_token_id": list(files.eos_ids), "pad_token_id": files.eos_ids[0]}
    return ids


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
