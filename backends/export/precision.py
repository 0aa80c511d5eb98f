"""The number formats that weights are exported in, and how many bytes they take."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ...errors import ArtifactError, ModelError
from ..models.spec import DecoderSpec

if TYPE_CHECKING:
    import torch

FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""What safetensors and GGUF hold alike, and torch's name of it."""
BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""GGUF's blocks of 32 weights with a scale that the gguf package writes."""


def check_precision(precision: str, blocks: bool) -> str:
    """The precision if it is known; raises ArtifactError naming those that are."""
    known = (*FLOATS, *BLOCKS) if blocks else tuple(FLOATS)
    if precision not in known:
        raise ArtifactError(f"precision {precision!r} is not known here: use one of {', '.join(known)}")
    return precision


def shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Every part of the model in the order in which it is written."""
    found = dict(spec.outer_shapes())
    for layer in range(spec.num_layers):
        found |= spec.part_shapes(layer)
    return found


def as_float(part: str, tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """An fp32 tensor in a float format. Raises ModelError where a weight is beyond float16."""
    import torch

    given = tensor.to(getattr(torch, FLOATS[precision]))
    if precision == "f16" and not given.isfinite().all():
        raise ModelError(f"{part}: a weight of {float(tensor.abs().max()):.4g} does not fit f16: export as bf16 or f32")
    return given


def byte_size(parts: dict[str, tuple[int, ...]], precision: str) -> int:
    """Bytes of all tensors, at most: vectors stay in fp32 in a GGUF file, and some matrices get more bits."""
    per_matrix = {"f32": 4.0, "f16": 2.0, "bf16": 2.0}.get(precision, 34 / 32)
    return int(sum(prod(shape) * (per_matrix if len(shape) > 1 else 4.0) for shape in parts.values()))
