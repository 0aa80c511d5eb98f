"""`SentenceEncoder`: a sentence-transformers folder run through transformers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import ModelError
from .model_folder import find_folder, folder_digest

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 8192
"""Tokens of a batch, padding included."""
Precision = Literal["bf16", "fp32"]
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}


class SentenceEncoder:
    """Vectors of texts: the transformer's last hidden states, pooled, and normalized where the folder's modules say so.

    name: "minilm", a folder, or a hub id. precision: "bf16" (products in bf16 where the CPU has them, sums in fp32).
    Source of the folder's layout: sentence-transformers (Reimers and Gurevych, 2019). Safe to call from several threads.
    Raises `ModelError` for a folder whose modules are others than a transformer, one pooling and normalization.
    """

    def __init__(self, name: str | Path = "minilm", precision: Precision | None = None) -> None:
        self.folder = find_folder(name)
        self.name = str(name)
        self.digest = folder_digest(self.folder)
        self._precision = precision
        modules = _modules(self.folder)
        self._pooling = _pooling(self.folder / modules["Pooling"]) if "Pooling" in modules else "mean"
        self._normalize = "Normalize" in modules
        self._length = _json(self.folder / "sentence_bert_config.json").get("max_seq_length")
        self._prompts: dict[str, str] = _json(self.folder / "config_sentence_transformers.json").get("prompts") or {}
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any, torch.dtype] | None = None
        config = _json(self.folder / "config.json")
        self.dimension = int(config["hidden_size"])

    def embed(self, texts: Sequence[str], kind: Literal["document", "query"] = "document") -> np.ndarray:
        """float32 [len(texts), dimension]. The same text has the same vector up to rounding, whatever is beside it."""
        import torch

        found = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return found
        with self._lock:
            tokenizer, model, dtype = self._load()
            prompt = self._prompts.get(kind) or (self._prompts.get("passage", "") if kind == "document" else "")
            encoded = tokenizer.encode_batch([prompt + clean(text) for text in texts])
            order = sorted(range(len(texts)), key=lambda i: len(encoded[i].ids))
            for part in batches(order, [len(e.ids) for e in encoded]):
                width = max(len(encoded[i].ids) for i in part)
                ids = torch.zeros(len(part), width, dtype=torch.long)
                mask = torch.zeros(len(part), width, dtype=torch.long)
                for row, i in enumerate(part):
                    ids[row, : len(encoded[i].ids)] = torch.tensor(encoded[i].ids)
                    mask[row, : len(encoded[i].ids)] = 1
                with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
                found[part] = self._pooled(states.float(), mask).numpy()
        return found

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[texts, tokens, dimension] and [texts, tokens] -> [texts, dimension]."""
        import torch

        wide = mask.unsqueeze(-1).float()
        if self._pooling == "cls":
            pooled = states[:, 0]
        elif self._pooling == "max":
            pooled = states.masked_fill(wide == 0, -torch.inf).max(dim=1).values
        else:
            pooled = (states * wide).sum(1) / wide.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1) if self._normalize else pooled

    def _load(self) -> tuple[Any, Any, torch.dtype]:
        if self._loaded is None:
            import torch

            tokenizer, model = load_encoder(self.folder, "AutoModel", self._length)
            precision = self._precision or ("bf16" if fast_bf16() else "fp32")
            self._loaded = tokenizer, model, torch.bfloat16 if precision == "bf16" else torch.float32
        return self._loaded


def load_encoder(folder: Path, kind: str, length: int | None = None) -> tuple[Any, Any]:
    """(tokenizer of `tokenizers`, model of the transformers class `kind`), in fp32, cut at `length` tokens."""
    import transformers
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"model folder {folder} has no tokenizer.json: save its tokenizer in the fast format")
    level = transformers.utils.logging.get_verbosity()
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True, dtype="float32").eval()
    except Exception as error:  # whatever transformers meets in a folder that is not its own
        raise ModelError(f"model folder {folder} cannot be read as {kind}: {error}") from error
    finally:
        transformers.utils.logging.set_verbosity(level)
        if shown:
            transformers.utils.logging.enable_progress_bar()
    longest = int(getattr(model.config, "max_position_embeddings", 512) or 512)
    tokenizer.enable_truncation(min(length or longest, longest))
    tokenizer.no_padding()
    return tokenizer, model


@cache
def fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def clean(text: str) -> str:
    """Text with every lone surrogate shown as "?": tokenizers and DuckDB take only what UTF-8 can say."""
    return text.encode("utf-8", "replace").decode("utf-8")


def batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Parts of `order`, which is sorted by length, of at most `BATCH_TOKENS` tokens once padded."""
    part: list[int] = []
    for i in order:
        if part and lengths[i] * (len(part) + 1) > BATCH_TOKENS:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _modules(folder: Path) -> dict[str, str]:
    file = folder / "modules.json"
    if not file.is_file():
        return {}  # a plain transformer: mean pooling, as sentence-transformers has it
    modules = {str(row["type"]).rsplit(".", 1)[-1]: str(row["path"]) for row in json.loads(file.read_text("utf-8"))}
    other = modules.keys() - {"Transformer", "Pooling", "Normalize"}
    if other:
        raise ModelError(f"model folder {folder}: module {min(other)!r} of modules.json is not known here")
    return modules


def _pooling(folder: Path) -> str:
    config = _json(folder / "config.json")
    if "pooling_mode" in config:
        chosen = [str(config["pooling_mode"])]
    else:
        chosen = [name.removeprefix("pooling_mode_") for name, on in config.items() if name in _POOLINGS and on]
        chosen += [name for name, on in config.items() if name.startswith("pooling_mode_") and on and name not in _POOLINGS]
    kinds = [_POOLINGS.get(f"pooling_mode_{name}", name) for name in chosen]
    if len(kinds) != 1 or kinds[0] not in ("cls", "mean", "max"):
        raise ModelError(f"{folder / 'config.json'}: pooling {chosen} is not known here: cls, mean or max")
    return kinds[0]


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found
