"""Weights in the layouts that the compiled decoder reads (see native/network.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

_INT8, _BF16, _INT4, _WIDE = range(4)


class Packer:
    """Packs matrices and keeps what it made in `keep`: C structures hold bare addresses."""

    def __init__(self, keep: list[Any]) -> None:
        self._keep = keep

    def pointer(self, tensor: torch.Tensor) -> int:
        """Address of a tensor's elements, contiguous."""
        tensor = tensor.contiguous()
        self._keep.append(tensor)
        return tensor.data_ptr()

    def matrix(self, weights: dict[str, torch.Tensor], name: str) -> dict[str, int | None]:
        """Fields of the C `Matrix` for `name`, in the format its tensors are in (see `Model`)."""
        bias = weights.get(f"{name}.bias")
        if f"{name}.q" in weights:
            # Final hidden states are too uneven for eight bits: the head takes them in two parts.
            form = _WIDE if name == "lm_head" else _INT8
            fields = {**self._int8(weights[f"{name}.q"], weights[f"{name}.scale"]), "format": form}
        elif f"{name}.q4" in weights:
            q4, scale, least = (weights[f"{name}.{part}"] for part in ("q4", "group_scale", "group_min"))
            fields = self._int4(q4, scale, least)
        else:
            fields = self._bf16(weights[name])
        out = fields["out"]
        return {**fields, "bias": None if bias is None else self.pointer(pad(bias.float(), (0, -out % 32)))}

    def _int8(self, weight: torch.Tensor, scale: torch.Tensor) -> dict[str, int]:
        """int8 [out, in] to panels [out / 16][in / 4][16][4]."""
        out, width = weight.shape
        padded = pad(weight, (0, -width % 64, 0, -out % 32)).contiguous()
        # Four int8 move as one int32, and ones multiply faster than torch sums int8.
        packed = padded.view(torch.int32).view(-1, 16, padded.shape[1] // 4).transpose(1, 2)
        sums = torch._int_mm(padded, torch.ones(padded.shape[1], 8, dtype=torch.int8))[:, 0]
        return {
            "packed": self.pointer(packed), "scale": self.pointer(pad(scale.float(), (0, -out % 32))),
            "offset": self.pointer(sums * 128), "out": out, "in_": width, "padded_in": padded.shape[1],
        }  # fmt: skip

    def _bf16(self, weight: torch.Tensor) -> dict[str, int]:
        """bf16 [out, in] to panels [out / 16][in / 2][16][2]."""
        out, width = weight.shape
        padded = pad(weight, (0, -width % 64, 0, -out % 32)).contiguous()
        packed = padded.view(torch.int32).view(-1, 16, padded.shape[1] // 2).transpose(1, 2)
        return {
            "packed": self.pointer(packed), "format": _BF16, "out": out, "in_": width, "padded_in": padded.shape[1],
        }  # fmt: skip

    def _int4(self, q4: torch.Tensor, scale: torch.Tensor, least: torch.Tensor) -> dict[str, int]:
        """uint8 [out, in / 2] to panels [out / 16][in / 8][16][2] of four nibbles; groups to [out / 16][groups][16]."""
        out, width = q4.shape[0], q4.shape[1] * 2
        group = width // scale.shape[1]
        padded = pad(q4, (0, -width % 64 // 2, 0, -out % 32))
        # [panel, channel, block of 8, j, half]: a byte holds inputs 2j (low) and 2j + 1, that is both halves of pair j.
        pairs = padded.view(-1, 16, padded.shape[1] // 4, 4).to(torch.int32)
        low, high = pairs & 15, pairs >> 4
        shifts = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
        words = torch.stack([(low << shifts).sum(-1), (high << shifts).sum(-1)], dim=-1)
        packed = words.transpose(1, 2).to(torch.int32).to(torch.uint16)

        padded_in = padded.shape[1] * 2
        groups = -(-padded_in // group)

        def panels(values: torch.Tensor) -> int:
            whole = pad(values.half(), (0, groups - values.shape[1], 0, -out % 32))
            return self.pointer(whole.view(-1, 16, groups).transpose(1, 2))

        return {
            "packed": self.pointer(packed), "group_scale": panels(scale), "group_min": panels(least), "format": _INT4,
            "out": out, "in_": width, "padded_in": padded_in, "group": group,
        }  # fmt: skip
