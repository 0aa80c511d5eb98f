"""How GRPO trains, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import TrainingError


@dataclass(frozen=True, slots=True)
class GrpoSettings:
    """How to reinforce.

    prompts, samples: per step, so many groups of so many completions. beta: weight of the KL to the start. clip_ratio: how
    far a token's probability may move from where it was drawn. truncation: largest importance weight. updates: passes over
    the samples of a step. scale: divide advantages by the group's standard deviation; off as in Dr. GRPO (Liu et al.,
    2025), which shows that it gives more weight to prompts that are nearly always or never solved. aggregate (trl's
    names): `grpo` gives each answer the same weight, `bnpo` each token, `dr_grpo` too but over the length of the step's
    longest answer (the paper: over a constant), so that long wrong answers are not spared. rows: in a forward pass.
    """

    steps: int = 20
    prompts: int = 8
    samples: int = 8
    learning_rate: float = 1e-4
    beta: float = 0.02
    clip_ratio: float = 0.2
    truncation: float = 2.0
    temperature: float = 1.0
    updates: int = 1
    scale: bool = True
    aggregate: Literal["grpo", "bnpo", "dr_grpo"] = "grpo"
    rows: int = 32
    warmup: float = 0.0
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("prompts", 1), ("samples", 2), ("updates", 1), ("rows", 1)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name}={getattr(self, name)}: give at least {least}")
        if not 0.0 < self.temperature <= 10.0:
            raise TrainingError(f"temperature={self.temperature}: give a number above 0 (1 draws from the policy itself)")
        if not self.beta >= 0:
            raise TrainingError(f"beta={self.beta}: give 0 (no pull to the start) or above")
        if not 0.0 < self.clip_ratio < 1.0:
            raise TrainingError(f"clip_ratio={self.clip_ratio}: give a number between 0 and 1 (0.2 is usual)")
        if not self.truncation >= 1.0:
            raise TrainingError(f"truncation={self.truncation}: give 1 or above (2 is usual)")
        if self.aggregate not in ("grpo", "bnpo", "dr_grpo"):
            raise TrainingError(f"aggregate={self.aggregate!r}: give 'grpo', 'bnpo' or 'dr_grpo'")


@dataclass(frozen=True, slots=True)
class GrpoStep:
    """One step: its rollouts as they were drawn, before the update."""

    step: int
    steps: int
    reward: float
    """Mean of the samples."""
    useful: float
    """Share of the groups whose rewards differ: the others teach nothing."""
    loss: float
    kl: float | None
    """Mean per token of the k3 estimate of KL(policy ‖ start). This and the next three are of the distinct samples of
    useful groups; None where there was none, since the student then computed nothing."""
    mismatch: float | None
    """Mean per token of |log π_student - log π_engine|."""
    ratio: float | None
    """Mean importance weight before truncation: 1 where both models agree."""
    truncated: float | None
    """Share of the tokens whose importance weight was cut off."""
    clipped: float
    """Share of the tokens whose ratio was outside the clip range in the last update."""
    tokens: int
    """Through the student, prompts included."""
    rollout_seconds: float
    seconds: float
    """Of the whole training until now."""
    remaining: float


@dataclass(frozen=True, slots=True)
class GrpoRecord:
    """What training did."""

    settings: GrpoSettings
    steps: tuple[GrpoStep, ...]
    seconds: float

    @property
    def rewards(self) -> list[float]:
        """Mean of each step's rollouts."""
        return [step.reward for step in self.steps]

    @property
    def mismatches(self) -> list[float]:
        """Of each step that taught something."""
        return [step.mismatch for step in self.steps if step.mismatch is not None]
