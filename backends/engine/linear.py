"""Matrix products: int8 weights with row-wise dynamic activation scales, or plain fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class Linear(Protocol):
    """`y = x @ W.T (+ bias)`: x float32 [rows, in] to float32 [rows, out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class FloatLinear:
    """fp32 weight [out, in]; the reference."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


class Int8Linear:
    """int8 weight [out, in] with a float32 scale per output channel; activations are quantized per row.

    The product is exact in int32, so a row's result does not depend on which other rows are in the batch.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight_t = weight.t()  # column-major is the layout `_int_mm` is fastest with
        self.scale, self.bias = scale, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        quantized, row_scale = quantize_rows(x)
        y = torch._int_mm(quantized, self.weight_t).to(torch.float32)
        y *= row_scale
        y *= self.scale
        if self.bias is not None:
            y += self.bias
        return y


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize float32 [rows, n] to int8 with a symmetric scale per row, float32 [rows, 1]."""
    scale = x.abs().amax(dim=-1, keepdim=True).div_(127.0).clamp_(min=1e-12)
    return (x / scale).round_().to(torch.int8), scale


def linear(weights: Mapping[str, torch.Tensor], name: str) -> Linear:
    """Build the product for `name`, int8 if `<name>.q` is there, else fp32."""
    bias = weights.get(f"{name}.bias")
    if f"{name}.q" in weights:
        return Int8Linear(weights[f"{name}.q"], weights[f"{name}.scale"], bias)
    return FloatLinear(weights[name], bias)
