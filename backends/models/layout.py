"""The tensors of a converted model: names, shapes, dtypes, and how they are made from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import ModelError
from .checkpoint import Checkpoint
from .quantize import GROUP, Quantization, quantize_groups, quantize_rows
from .spec import DecoderSpec

if TYPE_CHECKING:
    import torch

_LAYER_MATRICES = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
_NORMS = ("attn_norm", "mlp_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_post_norm")


def head_quantization(quantization: Quantization) -> Quantization:
    """Format of the head, where an error shows at once: int4 models keep it in int8."""
    return "int8" if quantization == "int4" else quantization


def outer_tensors(checkpoint: Checkpoint, quantization: Quantization) -> dict[str, torch.Tensor]:
    """`norm`, `lm_head`, and `embed` where it is not tied to the head, under their canonical names."""
    import torch

    spec = checkpoint.spec
    head = _finite(checkpoint, "embed" if spec.tie_embeddings else "lm_head")
    tensors = {"norm": _finite(checkpoint, "norm")}
    tensors |= matrix_tensors("lm_head", head, head_quantization(quantization))
    if not spec.tie_embeddings:
        embed = _finite(checkpoint, "embed")
        tensors["embed"] = embed if quantization == "fp32" else embed.to(torch.bfloat16)
    return tensors


def layer_tensors(checkpoint: Checkpoint, layer: int, quantization: Quantization) -> dict[str, torch.Tensor]:
    """One layer's tensors under their canonical names. No more than one fp32 matrix is alive at a time."""
    import torch

    prefix = f"layers.{layer}."
    present = checkpoint.spec.part_shapes(layer)
    tensors: dict[str, torch.Tensor] = {}
    for name, parts in _LAYER_MATRICES.items():
        matrix = torch.cat([_finite(checkpoint, prefix + part) for part in parts])
        tensors |= matrix_tensors(prefix + name, matrix, quantization)
    for name in _NORMS:
        if prefix + name in present:
            tensors[prefix + name] = _finite(checkpoint, prefix + name)
    if checkpoint.spec.attention_bias:
        tensors[f"{prefix}qkv.bias"] = torch.cat([_finite(checkpoint, f"{prefix}{part}.bias") for part in "qkv"])
    return tensors


def matrix_tensors(name: str, matrix: torch.Tensor, quantization: Quantization) -> dict[str, torch.Tensor]:
    """A matrix fp32 [out, in] as the tensors that its format stores."""
    import torch

    if quantization == "fp32":
        return {name: matrix}
    if quantization == "bf16":
        return {name: matrix.to(torch.bfloat16)}
    if quantization == "int8":
        q, scale = quantize_rows(matrix)
        return {f"{name}.q": q, f"{name}.scale": scale}
    groups = quantize_groups(matrix)
    return {f"{name}.q4": groups.q4, f"{name}.group_scale": groups.scale, f"{name}.group_min": groups.minimum}


def layout(spec: DecoderSpec, quantization: Quantization) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype ("float32", "bfloat16", "int8", …) of every tensor a converted model stores."""
    hidden, inter = spec.hidden_size, spec.intermediate_size
    queries, qkv = spec.num_heads * spec.head_dim, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    yield "norm", (hidden,), "float32"
    yield from _matrix_layout("lm_head", spec.vocab_size, hidden, head_quantization(quantization))
    if not spec.tie_embeddings:
        yield "embed", (spec.vocab_size, hidden), "float32" if quantization == "fp32" else "bfloat16"
    for layer in range(spec.num_layers):
        prefix = f"layers.{layer}."
        yield from _matrix_layout(prefix + "qkv", qkv, hidden, quantization)
        yield from _matrix_layout(prefix + "o", hidden, queries, quantization)
        yield from _matrix_layout(prefix + "gate_up", 2 * inter, hidden, quantization)
        yield from _matrix_layout(prefix + "down", hidden, inter, quantization)
        shapes = spec.part_shapes(layer)
        yield from ((prefix + name, shapes[prefix + name], "float32") for name in _NORMS if prefix + name in shapes)
        if spec.attention_bias:
            yield prefix + "qkv.bias", (qkv,), "float32"


def _matrix_layout(
    name: str, out: int, width: int, quantization: Quantization
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    if quantization == "int8":
        yield f"{name}.q", (out, width), "int8"
        yield f"{name}.scale", (out,), "float32"
    elif quantization == "int4":
        groups = -(-width // GROUP)
        yield f"{name}.q4", (out, groups * GROUP // 2), "uint8"
        yield f"{name}.group_scale", (out, groups), "float16"
        yield f"{name}.group_min", (out, groups), "float16"
    else:
        yield name, (out, width), "float32" if quantization == "fp32" else "bfloat16"


def _finite(checkpoint: Checkpoint, part: str) -> torch.Tensor:
    tensor = checkpoint.read(part)
    if not tensor.isfinite().all():
        raise ModelError(f"tensor {part!r} of the model contains NaN or infinity: the file is damaged; download it again")
    return tensor
