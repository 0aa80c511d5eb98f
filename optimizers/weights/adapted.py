"""A linear layer with a LoRA adapter, forward and backward in as few operations as there can be.

PEFT's own layer casts input and both matrices in every step, multiplies by the scale and adds as operations of their own,
and keeps what each of them needs for its gradient. The parameters stay PEFT's: so does what it saves.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def adapt(network: Any) -> bool:
    """Let the LoRA layers of a PEFT model compute by `adapted_linear`. False, and nothing is changed, where a layer is of a
    kind that only PEFT computes: a quantized base, dropout."""
    import torch
    from peft.tuners.lora import Linear, LoraLayer

    layers: list[Any] = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        drop: Any = layer.lora_dropout["default"]
        if not isinstance(layer, Linear) or type(layer.base_layer) is not torch.nn.Linear or drop.__dict__.get("p", 0.0):
            return False
    for layer in layers:
        layer.forward = partial(_forward, layer)
    return True


def _forward(layer: Any, x: Tensor) -> Tensor:
    base, a, b = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return adapted_linear(x, base.weight, base.bias, a, b, layer.scaling["default"])


def adapted_linear(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x (W + s B A)ᵀ + bias, with gradients for x, A and B alone.

    x [..., in] and W [out, in] of one type, in which all is computed; A [r, in] and B [out, r] float32.
    """
    found: Tensor = _function().apply(x, w, bias, a, b, scale)
    return found


@cache
def _function() -> Any:
    """Made at the first call: torch is imported only where something is trained."""
    import torch

    class AdaptedLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
            flat = x.reshape(-1, x.shape[-1])
            down, up = a.to(x.dtype), (b * scale).to(x.dtype)
            hidden = flat @ down.T
            ctx.save_for_backward(flat, w, down, up, hidden)
            ctx.scale = scale
            found = torch.nn.functional.linear(flat, w, bias).addmm_(hidden, up.T)
            return found.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, given: Tensor) -> Any:
            flat, w, down, up, hidden = ctx.saved_tensors
            out = given.reshape(-1, given.shape[-1])
            back = out @ up
            dx = (out @ w).addmm_(back, down).view(*given.shape[:-1], -1) if ctx.needs_input_grad[0] else None
            return dx, None, None, (back.T @ flat).float(), (out.T @ hidden).float() * ctx.scale, None

    return AdaptedLinear
