"""Matrix products in torch: int8 weights with row-wise dynamic activation scales, int4 groups, bf16, or plain fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from ..models import Groups, dequantize_groups

FEW_ROWS = 4
EXACT_TERMS = 1024


class Linear(Protocol):
    """`y = x @ W.T (+ bias)`: x float32 [rows, in] to float32 [rows, out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class FloatLinear:
    """fp32 or bf16 weight [out, in]; bf16 weights meet bf16 activations. fp32 is the reference."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y + self.bias


class Int4Linear:
    """Groups of four-bit weights; unpacked for each product, so that they stay four bits in memory. Activations are bf16."""

    def __init__(self, groups: Groups, bias: torch.Tensor | None) -> None:
        self.groups, self.bias = groups, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x.to(torch.bfloat16).float(), dequantize_groups(self.groups, x.shape[-1]))
        return y if self.bias is None else y + self.bias


class Int8Linear:
    """int8 weight [out, in] with a float32 scale per output channel; activations are quantized per row.

    The product is exact in int32, so a row's result does not depend on which other rows are in the batch.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight_t = weight.t()  # column-major is the layout `_int_mm` is fastest with
        self.scale, self.bias = scale, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        quantized, row_scale = quantize_rows(x)
        y = exact_product(quantized, self.weight_t).to(torch.float32)
        y *= row_scale
        y *= self.scale
        if self.bias is not None:
            y += self.bias
        return y


class Int8Head(Int8Linear):
    """Final hidden states are too uneven for eight bits: what they leave over is quantized and multiplied once more."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        quantized, row_scale = quantize_rows(x)
        return super().__call__(x) + super().__call__(x - quantized * row_scale)


def exact_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """int8 [rows, in] @ int8 [in, out], magnitudes up to 127, to int32 [rows, out], exactly.

    torch's own product of integers is a plain loop on most processors. Whole numbers below 2**24 are exact in float32, so up
    to 1,024 products of bytes may be summed there, in any order; for a row or two, converting the weights costs more.
    """
    if len(a) < FEW_ROWS:
        return torch._int_mm(a, b)
    parts = zip(torch.split(a, EXACT_TERMS, 1), torch.split(b, EXACT_TERMS, 0), strict=True)
    return torch.stack([(x.float() @ y.float()).to(torch.int32) for x, y in parts]).sum(0, dtype=torch.int32)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize float32 [rows, n] to int8 with a symmetric scale per row, float32 [rows, 1]."""
    scale = x.abs().amax(dim=-1, keepdim=True).div_(127.0).clamp_(min=1e-12)
    return (x / scale).round_().to(torch.int8), scale


def linear(weights: Mapping[str, torch.Tensor], name: str) -> Linear:
    """Build the product for `name` in the format its tensors are in (see `Model`)."""
    bias = weights.get(f"{name}.bias")
    if f"{name}.q" in weights and name == "lm_head":
        return Int8Head(weights[f"{name}.q"], weights[f"{name}.scale"], bias)
    if f"{name}.q" in weights:
        return Int8Linear(weights[f"{name}.q"], weights[f"{name}.scale"], bias)
    if f"{name}.q4" in weights:
        return Int4Linear(Groups(*(weights[f"{name}.{part}"] for part in ("q4", "group_scale", "group_min"))), bias)
    return FloatLinear(weights[name], bias)


def embedding(weights: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """float32 [rows, hidden] of token ids [rows]; a tied model's embedding is its head."""
    if "embed" in weights:
        return weights["embed"][tokens].float()
    if "lm_head.q" in weights:
        return weights["lm_head.q"][tokens].float() * weights["lm_head.scale"][tokens, None]
    return weights["lm_head"][tokens].float()
