"""A GGUF file as a checkpoint: its metadata as a DecoderSpec, its tensors dequantized to fp32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError
from .checkpoint import TokenizerFiles, expect_shape
from .gguf_header import GGUFHeader, TensorInfo, read_header
from .gguf_tokenizer import tokenizer_files
from .rope import llama3_scaling_of
from .spec import DecoderSpec

if TYPE_CHECKING:
    import torch

_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
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
_GEMMA_27B_LAYERS = 62
"""The one Gemma 3 whose scores are scaled by its width instead of its head's; a GGUF file does not say so."""
_YARN = {
    "attention_factor": "rope.scaling.attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
_ROPE_FACTORS = "rope_freqs.weight"
_LAYER_PART = re.compile(r"layers\.(\d+)\.(.+)")


class GGUFFile:
    """A `Checkpoint` over one GGUF file. Raises ModelError on construction when file and architecture do not fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        self.spec = _read_spec(self._header, self._rope_factors())
        self._shapes = dict(self.spec.outer_shapes())
        for layer in range(self.spec.num_layers):
            self._shapes |= self._checked(self.spec.part_shapes(layer))
        self._checked(self.spec.outer_shapes())
        if extra := set(self._header.tensors) - {_file_name(part) for part in self._shapes} - {_ROPE_FACTORS}:
            raise ModelError(f"{path}: tensor {min(extra)!r} is not part of a supported {self.spec.architecture} model")

    def read(self, part: str) -> torch.Tensor:
        import torch

        info = self._header.tensors[_file_name(part)]
        values = self._dequantized(info)
        if self.spec.architecture == "llama" and (heads := self._rope_heads(part)):
            values = _unpermute(values, heads)
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))

    def tokenizer(self) -> TokenizerFiles:
        return tokenizer_files(self.path, self._header.metadata, self.spec.vocab_size)

    def _checked(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for part, expected in shapes.items():
            info = self._header.tensors.get(_file_name(part))
            if info is None:
                raise ModelError(f"{self.path}: tensor {_file_name(part)!r} is missing")
            expect_shape(self.path, info.name, info.shape, expected)
        return shapes

    def _dequantized(self, info: TensorInfo) -> np.ndarray[Any, np.dtype[np.float32]]:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        raw = self._data[info.offset : info.offset + info.size]
        kind = GGMLQuantizationType(info.type_id)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused, by name, when it is converted
                rows = dequantize(np.asarray(raw).reshape(info.shape[0] if len(info.shape) > 1 else 1, -1), kind)
        except NotImplementedError as error:
            raise ModelError(f"{self.path}: tensor {info.name!r} is quantized as {kind.name}: not supported") from error
        return np.asarray(rows, dtype=np.float32).reshape(info.shape)

    def _rope_factors(self) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        info = self._header.tensors.get(_ROPE_FACTORS)
        return None if info is None else self._dequantized(info)

    def _rope_heads(self, part: str) -> int:
        match = _LAYER_PART.fullmatch(part)
        kind = match[2].removesuffix(".bias") if match else ""
        return {"q": self.spec.num_heads, "k": self.spec.num_kv_heads}.get(kind, 0)


def _file_name(part: str) -> str:
    match = _LAYER_PART.fullmatch(part)
    return f"blk.{match[1]}.{_LAYER_NAMES[match[2]]}" if match else _OUTER_NAMES[part]


def _unpermute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order: within a head it stores the two rotary halves interleaved (convert_hf_to_gguf.py)."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


class _Metadata:
    """Typed access to `<architecture>.<key>`."""

    def __init__(self, header: GGUFHeader, architecture: str) -> None:
        self.header, self.prefix = header, architecture

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.metadata.get(f"{self.prefix}.{key}", default)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # some converters write a per-layer list even when all layers agree
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ModelError(f"{self.header.path}: metadata {self.prefix}.{key} = {value!r} must be a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ModelError(f"{self.header.path}: metadata {self.prefix}.{key} = {value!r} must be a number")
        return float(value)


def _read_spec(header: GGUFHeader, rope_factors: np.ndarray[Any, Any] | None) -> DecoderSpec:
    architecture = header.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{header.path}: architecture {architecture!r} is not supported; supported: {', '.join(_ARCHITECTURES)}"
        )
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise ModelError(
            f"{header.path}: one part of a split model; join the parts with llama.cpp's gguf-split --merge"
        )
    meta = _Metadata(header, architecture)
    if meta.get("expert_count", 0):
        raise ModelError(f"{header.path}: mixtures of experts are not supported")
    hidden, heads = meta.integer("embedding_length"), meta.integer("attention.head_count")
    head_dim = meta.integer("attention.key_length", hidden // heads)
    if meta.integer("rope.dimension_count", head_dim) != head_dim:
        raise ModelError(f"{header.path}: rotary positions on a part of each head are not supported")
    embed = header.tensors.get(_OUTER_NAMES["embed"])
    if embed is None:
        raise ModelError(f"{header.path}: tensor {_OUTER_NAMES['embed']!r} is missing")
    gemma = architecture == "gemma3"
    theta = meta.number("rope.freq_base", 1e6 if gemma else 1e4)
    layers = meta.integer("block_count")
    return DecoderSpec.of(
        header.path,
        architecture=architecture,
        vocab_size=embed.shape[0],
        hidden_size=hidden,
        intermediate_size=meta.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=meta.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_eps=meta.number("attention.layer_norm_rms_epsilon"),
        rope_theta=theta,
        rope_scaling=_rope_scaling(meta, rope_factors, head_dim, theta),
        max_position=meta.integer("context_length"),
        tie_embeddings=_OUTER_NAMES["lm_head"] not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        qk_norm=architecture == "qwen3" or gemma,
        sliding_window=meta.integer("attention.sliding_window") if meta.get("attention.sliding_window") else None,
        full_attention_every=meta.integer("attention.sliding_window_pattern", 6) if gemma else 0,
        local_rope_theta=meta.number("rope.freq_base_swa", 1e4) if gemma else None,
        activation="gelu_tanh" if gemma else "silu",
        post_norms=gemma,
        embed_scale=hidden**0.5 if gemma else 1.0,
        attention_scale=(hidden / heads if gemma and layers == _GEMMA_27B_LAYERS else head_dim) ** -0.5,
    )


def _rope_scaling(
    meta: _Metadata, factors: np.ndarray[Any, Any] | None, head_dim: int, theta: float
) -> dict[str, Any] | None:
    if factors is not None:  # how llama.cpp stores the scaling of Llama 3
        found = llama3_scaling_of(factors, head_dim, theta)
        if found is None:
            raise ModelError(
                f"{meta.header.path}: tensor {_ROPE_FACTORS!r} holds a rotary scaling that is not Llama 3's"
            )
        return found
    kind = meta.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": meta.number("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = meta.integer("rope.scaling.original_context_length")
        for ours, theirs in _YARN.items():
            if meta.get(theirs) is not None:
                scaling[ours] = meta.number(theirs)
    return scaling
