"""A base model's weights with a LoRA adapter added to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import ModelError
from ..models.adapter import Adapter
from ..models.checkpoint import Checkpoint, TokenizerFiles
from ..models.spec import DecoderSpec

if TYPE_CHECKING:
    import torch

_PART = re.compile(r"layers\.(\d+)\.(\w+)")
_FUSED = {
    "q": ("qkv", ("q", "k", "v")),
    "k": ("qkv", ("q", "k", "v")),
    "v": ("qkv", ("q", "k", "v")),
    "o": ("o", ("o",)),
    "gate": ("gate_up", ("gate", "up")),
    "up": ("gate_up", ("gate", "up")),
    "down": ("down", ("down",)),
}


class MergedCheckpoint:
    """A `Checkpoint`: every matrix W is W + s B A, in fp32 (Hu et al., 2021), where the adapter has an update for it.

    The scale s, alpha / rank or alpha / sqrt(rank), is in the adapter's B already. Without an adapter the base as it is.
    Raises ModelError on reading for a tensor that holds NaN or infinity.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter | None) -> None:
        self._base, self._adapter = base, adapter

    @property
    def spec(self) -> DecoderSpec:
        return self._base.spec

    def tokenizer(self) -> TokenizerFiles:
        return self._base.tokenizer()

    def read(self, part: str) -> torch.Tensor:
        """One tensor, fp32, owned by the caller; q and k rows in "rotate half" order."""
        tensor = self._base.read(part)
        lowest, highest = tensor.aminmax()  # NaN if there is one; a fraction of the time that isfinite() takes
        if not (lowest.isfinite() and highest.isfinite()):
            raise ModelError(f"tensor {part!r} of the model holds NaN or infinity: the file is damaged; download it again")
        return self._updated(part, tensor)

    def _updated(self, part: str, tensor: torch.Tensor) -> torch.Tensor:
        match = _PART.fullmatch(part)
        if self._adapter is None or match is None or match[2] not in _FUSED:
            return tensor
        matrix, parts = _FUSED[match[2]]
        update = self._adapter.layers[int(match[1])].get(matrix)
        if update is None:
            return tensor
        shapes = self.spec.part_shapes(int(match[1]))
        begin = 0
        for name in parts[: parts.index(match[2])]:
            begin += shapes[f"layers.{match[1]}.{name}"][0]
        # Rows of B are zero outside their own projection, so that the product of the slice is this projection's update.
        return tensor.addmm_(update.b[:, begin : begin + len(tensor)].t(), update.a)
