"""Symmetric int8 weights with one scale per output channel, and the tensors of a model in either precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from ...errors import ModelError
from .checkpoint import Checkpoint
from .spec import DecoderSpec

if TYPE_CHECKING:
    import torch

Quantization = Literal["int8", "fp32"]
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp32")
_LAYER_MATRICES = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight` fp32 [out, in] as int8 [out, in] and fp32 [out], so that weight ≈ q * scale[:, None].

    scale = max-abs of the row / 127, hence |weight - q * scale| <= scale / 2. A row of zeros has scale 1.
    """
    import torch

    scale = weight.abs().amax(dim=1) / 127.0
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(weight / scale[:, None]).clamp_(-127, 127).to(torch.int8), scale


def outer_tensors(checkpoint: Checkpoint, quantization: Quantization) -> dict[str, torch.Tensor]:
    """`embed`, `norm` and `lm_head` under their canonical names; a tied fp32 `lm_head` is left to the loader."""
    import torch

    spec = checkpoint.spec
    embed = _finite(checkpoint, "embed")
    tensors = {"norm": _finite(checkpoint, "norm")}
    if quantization == "fp32":
        tensors["embed"] = embed
        if not spec.tie_embeddings:
            tensors["lm_head"] = _finite(checkpoint, "lm_head")
        return tensors
    tensors["embed"] = embed.to(torch.bfloat16)
    head = embed if spec.tie_embeddings else _finite(checkpoint, "lm_head")
    tensors["lm_head.q"], tensors["lm_head.scale"] = quantize_rows(head)
    return tensors


def layer_tensors(checkpoint: Checkpoint, layer: int, quantization: Quantization) -> dict[str, torch.Tensor]:
    """One layer's tensors under their canonical names. No more than one fp32 matrix is alive at a time for int8."""
    import torch

    prefix = f"layers.{layer}."
    present = checkpoint.spec.part_shapes(layer)
    tensors: dict[str, torch.Tensor] = {}
    for name, parts in _LAYER_MATRICES.items():
        matrix = torch.cat([_finite(checkpoint, prefix + part) for part in parts])
        if quantization == "int8":
            tensors[f"{prefix}{name}.q"], tensors[f"{prefix}{name}.scale"] = quantize_rows(matrix)
        else:
            tensors[prefix + name] = matrix
    for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_post_norm"):
        if prefix + name in present:
            tensors[prefix + name] = _finite(checkpoint, prefix + name)
    if checkpoint.spec.attention_bias:
        tensors[f"{prefix}qkv.bias"] = torch.cat([_finite(checkpoint, f"{prefix}{part}.bias") for part in "qkv"])
    return tensors


def layout(spec: DecoderSpec, quantization: Quantization) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype ("float32", "bfloat16", "int8") of every tensor a converted model stores."""
    hidden, inter = spec.hidden_size, spec.intermediate_size
    queries, qkv = spec.num_heads * spec.head_dim, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    matrices: list[tuple[str, int, int]] = []
    vectors = [("norm", hidden)]
    for layer in range(spec.num_layers):
        prefix = f"layers.{layer}."
        matrices += [
            (prefix + "qkv", qkv, hidden),
            (prefix + "o", hidden, queries),
            (prefix + "gate_up", 2 * inter, hidden),
            (prefix + "down", hidden, inter),
        ]
        vectors += [(prefix + "attn_norm", hidden), (prefix + "mlp_norm", hidden)]
        vectors += [(prefix + "qkv.bias", qkv)] if spec.attention_bias else []
        vectors += [(prefix + name, hidden) for name in ("attn_post_norm", "mlp_post_norm") if spec.post_norms]
        vectors += [(prefix + name, spec.head_dim) for name in ("q_norm", "k_norm") if spec.qk_norm]
    yield "embed", (spec.vocab_size, hidden), "bfloat16" if quantization == "int8" else "float32"
    if quantization == "int8" or not spec.tie_embeddings:
        matrices.append(("lm_head", spec.vocab_size, hidden))
    for name, rows, columns in matrices:
        if quantization == "fp32":
            yield name, (rows, columns), "float32"
        else:
            yield f"{name}.q", (rows, columns), "int8"
            yield f"{name}.scale", (rows,), "float32"
    for name, size in vectors:
        yield name, (size,), "float32"


def _finite(checkpoint: Checkpoint, part: str) -> torch.Tensor:
    tensor = checkpoint.read(part)
    if not tensor.isfinite().all():
        raise ModelError(
            f"tensor {part!r} of the model contains NaN or infinity: the file is damaged; download it again"
        )
    return tensor
