"""A linear layer with its LoRA adapter as one operation: what PEFT computes, in fewer steps.

    y = x W^T + bias + (x A^T) (s B)^T

PEFT casts inputs and results back and forth and adds the adapter's share in passes of its own. Here the matrix product that
computes the share adds it, W has no gradient, and the backward pass is the products that are left. Weights and file
format stay PEFT's.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def fuse_adapters(network: Any) -> int:
    """Replace the forward pass of each of PEFT's LoRA layers over a plain linear layer; returns how many there were.

    Layers with dropout, of quantized bases, and of PEFT's variants keep their own.
    """
    import torch
    from peft.tuners.lora.layer import Linear

    count = 0
    for layer in network.modules():
        if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear:
            continue
        if list(layer.lora_variant) or not isinstance(layer.lora_dropout["default"], torch.nn.Identity):
            continue
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
        count += 1
    return count


def _forward(layer: Any, x: Tensor) -> Tensor:
    base = layer.base_layer
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return adapted(x, base.weight, base.bias, down, up, layer.scaling["default"])


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """x [..., in], weight [out, in] and bias [out] without gradients, down (A) [r, in], up (B) [out, r]. Products are in
    weight's number format, and so is the result [..., out]; gradients of `down` and `up` have theirs."""
    result: Tensor = _function().apply(x, weight, bias, down, up, scaling)
    return result


@cache
def _function() -> Any:
    """The operation; made at the first use, since torch is not imported before."""
    import torch

    class Adapted(torch.autograd.Function):
        @staticmethod
        def forward(
            context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
        ) -> Tensor:  # fmt: skip
            rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
            a, b = down.to(weight.dtype), (up * scaling).to(weight.dtype)
            inner = rows @ a.t()
            y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
            y.addmm_(inner, b.t())
            context.save_for_backward(rows, inner, weight, a, b)
            context.scaling, context.shape, context.format = scaling, x.shape, x.dtype
            return y.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(context: Any, given: Tensor) -> Any:
            rows, inner, weight, a, b = context.saved_tensors
            g = given.reshape(-1, given.shape[-1]).to(weight.dtype)
            towards = g @ b
            d_down = (towards.t() @ rows).float()
            d_up = (g.t() @ inner).float() * context.scaling
            dx = None
            if context.needs_input_grad[0]:  # not that of the first layer: embeddings are frozen
                dx = (g @ weight).addmm_(towards, a).view(context.shape).to(context.format)
            return dx, None, None, d_down, d_up, None

    return Adapted
