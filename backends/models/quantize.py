"""Weights in fewer bits: int8 with a scale per output channel, int4 in groups of inputs with a scale and a minimum each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

Quantization = Literal["int8", "int4", "bf16", "fp32"]
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4", "bf16", "fp32")
GROUP = 32
"""Inputs that share a scale and a minimum when Still quantizes to int4 itself; the layout takes any multiple of 32."""
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight` fp32 [out, in] as int8 [out, in] and fp32 [out], so that weight ≈ q * scale[:, None].

    scale = max-abs of the row / 127, hence |weight - q * scale| <= scale / 2. A row of zeros has scale 1.
    """
    import torch

    scale = weight.abs().amax(dim=1) / 127.0
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(weight / scale[:, None]).clamp_(-127, 127).to(torch.int8), scale


class Groups(NamedTuple):
    """A matrix [out, in] in four bits: w = nibble * scale + minimum, for each group of `in // scale.shape[1]` inputs.

    q4: uint8 [out, in / 2], even inputs in the low nibbles; scale, minimum: float16 [out, groups]. Inputs are padded to
    whole groups. What GPTQ and AWQ call a zero point is -minimum / scale.
    """

    q4: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor


def quantize_groups(weight: torch.Tensor, group: int = GROUP) -> Groups:
    """`weight` fp32 [out, in] in groups. Of a few ranges around each group's own the one with the least squared error is
    taken; weights that came from 4-bit blocks of this size (GGUF's Q4_0 and Q4_1) are found again exactly."""
    import torch

    out, width = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -width % group), mode="replicate") if width % group else weight
    blocks = padded.view(out, -1, group)
    low, high = blocks.amin(dim=-1, keepdim=True), blocks.amax(dim=-1, keepdim=True)
    least = torch.full(low.shape, float("inf"))
    scale, minimum = torch.zeros_like(low).half(), torch.zeros_like(low).half()
    for step, start in _grids(low, high):
        error = _nibbles(blocks, step, start).mul_(step.float()).add_(start.float()).sub_(blocks)
        error = error.square_().sum(dim=-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scale, minimum = torch.where(better, step, scale), torch.where(better, start, minimum)
    nibbles = _nibbles(blocks, scale, minimum).to(torch.uint8).view(out, -1)
    return Groups(nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale.view(out, -1), minimum.view(out, -1))


def _nibbles(blocks: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """The nearest of the sixteen values, as floats 0 … 15. A scale of zero is a constant group."""
    import torch

    inverse = torch.where(scale > 0, scale.float().reciprocal(), 0.0)
    return (blocks - minimum.float()).mul_(inverse).round_().clamp_(0, 15)


def _grids(low: torch.Tensor, high: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales and minima (half precision) to try for groups that range from `low` to `high`."""
    import torch

    middle, half = (low + high) / 2, (high - low) / 2
    for shrink in _SHRINKS:
        yield (half * shrink * 2 / 15).half(), (middle - half * shrink).half()
    # Q4_0's grid: its largest value is eight steps from zero.
    step = (torch.maximum(-low, high) / 8).half()
    yield step, step * torch.where(-low >= high, -8, -7)


def dequantize_groups(groups: Groups, width: int) -> torch.Tensor:
    """float32 [out, width]: inverse of `quantize_groups`, but for what rounding took."""
    import torch

    out, count = groups.scale.shape
    nibbles = torch.stack([groups.q4 & 15, groups.q4 >> 4], dim=-1).view(out, count, -1)
    weight = nibbles.float().mul_(groups.scale.float()[..., None]).add_(groups.minimum.float()[..., None])
    return weight.view(out, -1)[:, :width]
