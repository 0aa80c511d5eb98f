"""A GGUF file as a checkpoint: its metadata as a DecoderSpec, its tensors dequantized to fp32."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError
from .checkpoint import TokenizerFiles, expect_shape
from .gguf_header import TensorInfo, read_header
from .gguf_spec import ROPE_FACTORS, read_spec
from .gguf_tokenizer import tokenizer_files

if TYPE_CHECKING:
    import torch

_OUTER_NAMES = {"embed": "token_embd.weight", "norm": "output_norm.weight", "lm_head": "output.weight"}
_LAYER_NAMES = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "q.bias": "attn_q.bias",
    "k.bias": "attn_k.bias",
    "v.bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "o": "attn_output.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "attn_post_norm": "post_attention_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
}
_AT_ONCE = 1 << 22  # values
_LAYER_PART = re.compile(r"layers\.(\d+)\.(.+)")


class GGUFFile:
    """A `Checkpoint` over one GGUF file. Raises ModelError on construction when file and architecture do not fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        self.spec = read_spec(self._header, self._rope_factors())
        self._shapes = dict(self.spec.outer_shapes())
        for layer in range(self.spec.num_layers):
            self._shapes |= self._checked(self.spec.part_shapes(layer))
        self._checked(self.spec.outer_shapes())
        if extra := set(self._header.tensors) - {tensor_name(part) for part in self._shapes} - {ROPE_FACTORS}:
            raise ModelError(f"{path}: tensor {min(extra)!r} is not part of a supported {self.spec.architecture} model")

    def read(self, part: str) -> torch.Tensor:
        import torch

        info = self._header.tensors[tensor_name(part)]
        values = self._dequantized(info)
        if self.spec.architecture == "llama" and (heads := self._rope_heads(part)):
            values = _unpermute(values, heads)
        return torch.from_numpy(np.ascontiguousarray(values))

    def tokenizer(self) -> TokenizerFiles:
        return tokenizer_files(self.path, self._header.metadata, self.spec.vocab_size)

    def _checked(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for part, expected in shapes.items():
            info = self._header.tensors.get(tensor_name(part))
            if info is None:
                raise ModelError(f"{self.path}: tensor {tensor_name(part)!r} is missing")
            expect_shape(self.path, info.name, info.shape, expected)
        return shapes

    def _dequantized(self, info: TensorInfo) -> np.ndarray[Any, np.dtype[np.float32]]:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        raw = self._data[info.offset : info.offset + info.size]
        kind = GGMLQuantizationType(info.type_id)
        stored = np.asarray(raw).reshape(info.shape[0] if len(info.shape) > 1 else 1, -1)
        values = np.empty((len(stored), prod(info.shape) // len(stored)), np.float32)
        step = max(1, _AT_ONCE // values.shape[1])  # the package needs room for several copies of what it is given
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused, by name, when it is converted
                for start in range(0, len(stored), step):
                    values[start : start + step] = dequantize(stored[start : start + step], kind)
        except NotImplementedError as error:
            raise ModelError(f"{self.path}: tensor {info.name!r} is quantized as {kind.name}: not supported") from error
        return values.reshape(info.shape)

    def _rope_factors(self) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        info = self._header.tensors.get(ROPE_FACTORS)
        return None if info is None else self._dequantized(info)

    def _rope_heads(self, part: str) -> int:
        match = _LAYER_PART.fullmatch(part)
        kind = match[2].removesuffix(".bias") if match else ""
        return {"q": self.spec.num_heads, "k": self.spec.num_kv_heads}.get(kind, 0)


def tensor_name(part: str) -> str:
    match = _LAYER_PART.fullmatch(part)
    return f"blk.{match[1]}.{_LAYER_NAMES[match[2]]}" if match else _OUTER_NAMES[part]


def _unpermute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order: within a head it stores the two rotary halves interleaved (convert_hf_to_gguf.py)."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
