"""The size and place of a LoRA adapter (Hu et al., 2021)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ...errors import TrainingError

if TYPE_CHECKING:
    from peft import LoraConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices that the engine can adapt: all of a decoder layer's."""


@dataclass(frozen=True, slots=True)
class Lora:
    """Adds (alpha / r) B A to each target matrix, A [r, in] random and B [out, r] zero at the start.

    rslora: divide by the root of r instead (Kalajdzievski, 2023), which keeps updates of one size whatever the rank.
    """

    r: int = 16
    alpha: int = 32
    rslora: bool = False
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise TrainingError(f"r={self.r}: give a rank of at least 1")
        if not self.alpha > 0:
            raise TrainingError(f"alpha={self.alpha}: give a number above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise TrainingError(f"dropout={self.dropout}: give a share from 0 to below 1")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise TrainingError(f"targets={self.targets}: give some of {', '.join(TARGETS)}")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of the adapter in a PEFT folder."""
        found = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        targets = tuple(name for name in TARGETS if name in found["target_modules"])
        return cls(found["r"], found["lora_alpha"], found["use_rslora"], targets, found["lora_dropout"])

    def config(self) -> LoraConfig:
        """As PEFT has it."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r, lora_alpha=self.alpha, use_rslora=self.rslora, target_modules=list(self.targets),
            lora_dropout=self.dropout, bias="none", task_type="CAUSAL_LM",
        )  # fmt: skip
