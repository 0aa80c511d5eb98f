"""The metadata of a GGUF file as a DecoderSpec."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ModelError
from .gguf_header import GGUFHeader
from .rope import complete_scaling, llama3_scaling_of
from .spec import DecoderSpec

ROPE_FACTORS = "rope_freqs.weight"
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
_LARGEST = 2**31  # no size of a model is larger; a damaged one must not overflow what is computed from it
_LOCAL_THETA, _PATTERN = 1e4, 6  # of Gemma 3's windowed layers, where the file does not say
_GEMMA3_27B = 62
"""Layers of the one Gemma 3 whose scores are scaled by hidden size over heads; the files do not say, llama.cpp knows."""


def read_spec(header: GGUFHeader, rope_factors: np.ndarray[Any, Any] | None) -> DecoderSpec:
    """The spec a header describes; `rope_factors` is the tensor of that name. Raises ModelError naming the key."""
    meta = _Metadata(header)
    hidden, heads = meta.integer("embedding_length"), meta.integer("attention.head_count")
    head_dim = meta.integer("attention.key_length", hidden // heads)
    if meta.integer("rope.dimension_count", head_dim) != head_dim:
        raise ModelError(f"{header.path}: rotary positions on a part of each head are not supported")
    if meta.integer("attention.value_length", head_dim) != head_dim:
        raise ModelError(f"{header.path}: values of another size than keys are not supported")
    embed = header.tensors.get("token_embd.weight")
    if embed is None:
        raise ModelError(f"{header.path}: tensor 'token_embd.weight' is missing")
    theta, layers, context = meta.number("rope.freq_base", 10000.0), meta.integer("block_count"), meta.context()
    own = _gemma3_fields(meta, hidden, heads, head_dim, layers) if meta.prefix == "gemma3" else _plain_fields(meta, head_dim)
    return DecoderSpec.of(
        header.path,
        architecture=meta.prefix,
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
        max_position=context,
        tie_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        **own,
    )


class _Metadata:
    """Typed access to `<architecture>.<key>` of a file whose architecture is one of ours."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        architecture = header.metadata.get("general.architecture")
        if architecture not in _ARCHITECTURES:
            raise ModelError(
                f"{header.path}: architecture {architecture!r} is not supported; supported: {', '.join(_ARCHITECTURES)}"
            )
        self.prefix = str(architecture)
        if header.metadata.get("split.count", 0) not in (0, 1):
            raise ModelError(f"{header.path}: one part of a split model; join the parts with llama.cpp's gguf-split --merge")
        if self.get("expert_count", 0):
            raise ModelError(f"{header.path}: mixtures of experts are not supported")

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.metadata.get(f"{self.prefix}.{key}", default)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # some converters write a per-layer list even when all layers agree
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LARGEST:
            raise self.wrong(key, "must be a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.wrong(key, "must be a number")
        return float(value)

    def context(self) -> int:
        return self.integer("context_length")

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.header.path}: metadata {self.prefix}.{key} = {self.get(key)!r} {what}")


def _plain_fields(meta: _Metadata, head_dim: int) -> dict[str, Any]:
    """The fields in which Llama and Qwen differ from Gemma."""
    return {
        "qk_norm": meta.prefix == "qwen3",
        "sliding_window": meta.integer("attention.sliding_window") if meta.get("attention.sliding_window") else None,
        "full_attention_every": 0,
        "local_rope_theta": None,
        "activation": "silu",
        "post_norms": False,
        "embed_scale": 1.0,
        "attention_scale": head_dim**-0.5,
    }


def _gemma3_fields(meta: _Metadata, hidden: int, heads: int, head_dim: int, layers: int) -> dict[str, Any]:
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if meta.get(key):
            raise meta.wrong(key, "is not supported (softcapping)")
    every = _full_every(meta, layers) if meta.get("attention.sliding_window") else 1
    windowed = every != 1
    return {
        "qk_norm": True,
        "sliding_window": meta.integer("attention.sliding_window") if windowed else None,
        "full_attention_every": every if windowed else 0,
        "local_rope_theta": meta.number("rope.freq_base_swa", _LOCAL_THETA) if windowed else None,
        "activation": "gelu_tanh",
        "post_norms": True,
        "embed_scale": hidden**0.5,
        "attention_scale": (hidden // heads if layers == _GEMMA3_27B else head_dim) ** -0.5,
    }


def _full_every(meta: _Metadata, layers: int) -> int:
    """n where each n-th layer sees everything; 0 where none does. A file has n, or a truth value per layer (windowed)."""
    key = "attention.sliding_window_pattern"
    given = meta.get(key, _PATTERN)
    if not isinstance(given, list):
        return meta.integer(key, _PATTERN)
    every = given.index(False) + 1 if False in given else 0
    if len(given) != layers or any(bool(w) == bool(every and (i + 1) % every == 0) for i, w in enumerate(given)):
        raise meta.wrong(key, f"must be n, or say of {layers} layers that each n-th has no window")
    return every


def _rope_scaling(
    meta: _Metadata, factors: np.ndarray[Any, Any] | None, head_dim: int, theta: float
) -> dict[str, Any] | None:
    path = meta.header.path
    if factors is not None:  # how llama.cpp stores the scaling of Llama 3
        found = llama3_scaling_of(factors, head_dim, theta)
        if found is None:
            raise ModelError(f"{path}: tensor {ROPE_FACTORS!r} holds a rotary scaling that is not Llama 3's")
        return found
    factor = meta.number("rope.scaling.factor", meta.get("rope.scale_linear", 1.0))
    kind = meta.get("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")  # llama.cpp's default
    if kind == "none":
        return None
    given = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        given |= _yarn(meta)
    return complete_scaling(path, given, meta.context())


def _yarn(meta: _Metadata) -> dict[str, Any]:
    """YaRN's parameters under transformers' names.

    A converter writes transformers' `attention_factor` as `yarn_attn_factor`, and what is to be multiplied with the
    factor llama.cpp computes itself as `attn_factor`.
    """
    if meta.number("rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):  # -1: not set
        raise meta.wrong("rope.scaling.yarn_ext_factor", "must be 1")
    given: dict[str, Any] = {
        "original_max_position_embeddings": meta.get("rope.scaling.original_context_length"),
        "beta_fast": meta.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": meta.get("rope.scaling.yarn_beta_slow"),
        "attention_factor": meta.get("rope.scaling.yarn_attn_factor"),
    }
    if meta.get("rope.scaling.yarn_log_multiplier"):
        given |= {"mscale": 1.0, "mscale_all_dim": meta.get("rope.scaling.yarn_log_multiplier")}
    times = meta.number("rope.scaling.attn_factor", 1.0)
    if times == 1.0:
        return given
    whole = complete_scaling(
        meta.header.path, {**given, "rope_type": "yarn", "factor": meta.get("rope.scaling.factor")}, meta.context()
    )
    return given | {"attention_factor": whole["attention_factor"] * times}
