"""Losses on preferences: how far a policy has moved towards the chosen and away from the rejected, against a reference.

Names and formulas are those of trl 1.16 (`trl/trainer/dpo_trainer.py`), which names the papers' own choices where they
differ. Everything is in natural logs; the log-probabilities are sums over the decoded tokens of a completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairScores:
    """Log-probabilities of a batch of pairs, each float32 [pairs]; the lengths count the tokens that were summed over."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log π(chosen) - log π_ref(chosen), [pairs]."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log π(rejected) - log π_ref(rejected), [pairs]."""
        return self.rejected - self.reference_rejected

    @property
    def delta(self) -> Tensor:
        """By how much the policy prefers the chosen more than the reference does, [pairs]."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_delta(self) -> Tensor:
        """`delta` with each side per token, [pairs]."""
        chosen, rejected = self.chosen_length.clamp(min=1), self.rejected_length.clamp(min=1)
        return self.chosen_ratio / chosen - self.rejected_ratio / rejected


@dataclass(frozen=True, slots=True)
class LossShape:
    """The numbers that losses take.

    beta: strength of the pull to the reference (τ of IPO, which divides by it). label_smoothing: of `robust`, the share of
    pairs that are the wrong way round; of `exo_pair` its ε; of `aot` and `aot_unpaired` as in cDPO. discopop_tau: of
    `discopop`.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise TrainingError(f"beta={self.beta}: give a number above 0 (0.1 is usual)")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise TrainingError(f"label_smoothing={self.label_smoothing}: give a share of wrong labels, 0 to below 0.5")
        if not self.discopop_tau > 0:
            raise TrainingError(f"discopop_tau={self.discopop_tau}: give a number above 0 (0.05 is the paper's)")


Loss = Callable[[PairScores, LossShape], "Tensor"]
"""Loss of each pair, float32 [pairs]."""


def preference_loss(scores: PairScores, loss: str | Mapping[str, float], shape: LossShape) -> Tensor:
    """Mean over the pairs of a loss of `LOSSES`, or of a weighted sum of several: `{"sigmoid": 1.0, "sft": 0.1}`."""
    weights = loss_weights(loss, shape)
    parts = [weight * LOSSES[name](scores, shape).mean() for name, weight in weights.items()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def loss_weights(loss: str | Mapping[str, float], shape: LossShape) -> dict[str, float]:
    """The losses by name with their weights. Raises `TrainingError` for a name or number that means nothing."""
    weights = {loss: 1.0} if isinstance(loss, str) else dict(loss)
    if not weights:
        raise TrainingError(f"loss={loss!r} names no loss: give one of {', '.join(LOSSES)}")
    for name, weight in weights.items():
        if name not in LOSSES:
            raise TrainingError(f"loss={name!r} is not known: give one of {', '.join(LOSSES)}")
        if not math.isfinite(weight):
            raise TrainingError(f"loss {name!r} has the weight {weight}: give a finite number")
    if "exo_pair" in weights and shape.label_smoothing == 0.0:
        raise TrainingError("label_smoothing=0 with the loss 'exo_pair', which takes its logarithm: give 0.001")
    return weights


def sigmoid(scores: PairScores, shape: LossShape) -> Tensor:
    """DPO: -log σ(β Δ) (Rafailov et al., 2023)."""
    return -_log_sigmoid(shape.beta * scores.delta)


def hinge(scores: PairScores, shape: LossShape) -> Tensor:
    """SLiC: max(0, 1 - β Δ) (Zhao et al., 2023)."""
    return (1 - shape.beta * scores.delta).relu()


def ipo(scores: PairScores, shape: LossShape) -> Tensor:
    """(Δ per token - 1 / 2τ)², τ = beta (Azar et al., 2023, eq. 17; per token as their authors confirmed to trl)."""
    return (scores.mean_delta - 1 / (2 * shape.beta)) ** 2


def robust(scores: PairScores, shape: LossShape) -> Tensor:
    """Unbiased under a share ε of flipped pairs (Chowdhury et al., 2024)."""
    logit, epsilon = shape.beta * scores.delta, shape.label_smoothing
    return (-(1 - epsilon) * _log_sigmoid(logit) + epsilon * _log_sigmoid(-logit)) / (1 - 2 * epsilon)


def sigmoid_norm(scores: PairScores, shape: LossShape) -> Tensor:
    """DPO with each side per token, so that length earns nothing (Tülu 3; Lambert et al., 2024)."""
    return -_log_sigmoid(shape.beta * scores.mean_delta)


def exo_pair(scores: PairScores, shape: LossShape) -> Tensor:
    """Reverse KL to [1 - ε, ε] (EXO, Ji et al., 2024, eq. 16)."""
    logit, epsilon = shape.beta * scores.delta, shape.label_smoothing
    won, lost = _log_sigmoid(logit), _log_sigmoid(-logit)
    return won.exp() * (won - math.log1p(-epsilon)) + lost.exp() * (lost - math.log(epsilon))


def nca_pair(scores: PairScores, shape: LossShape) -> Tensor:
    """Noise contrastive alignment (Chen et al., 2024): keeps the chosen likely, not only likelier."""
    chosen, rejected = shape.beta * scores.chosen_ratio, shape.beta * scores.rejected_ratio
    return -_log_sigmoid(chosen) - 0.5 * _log_sigmoid(-chosen) - 0.5 * _log_sigmoid(-rejected)


def bco_pair(scores: PairScores, shape: LossShape) -> Tensor:
    """Binary classifier (Jung et al., 2024), without its running mean of the rewards, as trl has it."""
    chosen, rejected = shape.beta * scores.chosen_ratio, shape.beta * scores.rejected_ratio
    return -_log_sigmoid(chosen) - _log_sigmoid(-rejected)


def sppo_hard(scores: PairScores, shape: LossShape) -> Tensor:
    """Self-play with a probability of winning of 1 (Wu et al., 2024, eq. 4.7)."""
    return (scores.chosen_ratio - 0.5 / shape.beta) ** 2 + (scores.rejected_ratio + 0.5 / shape.beta) ** 2


def aot(scores: PairScores, shape: LossShape) -> Tensor:
    """Stochastic dominance of the sorted margins of a batch over the reference's (Melnyk et al., 2024)."""
    policy, reference = scores.chosen - scores.rejected, scores.reference_chosen - scores.reference_rejected
    return _smoothed(policy.sort().values - reference.sort().values, shape)


def aot_unpaired(scores: PairScores, shape: LossShape) -> Tensor:
    """The same of chosen over rejected ratios, each sorted for itself."""
    return _smoothed(scores.chosen_ratio.sort().values - scores.rejected_ratio.sort().values, shape)


def apo_zero(scores: PairScores, shape: LossShape) -> Tensor:
    """For chosen texts better than what the model writes (D'Oosterlinck et al., 2024, eq. 7)."""
    return 1 - (shape.beta * scores.chosen_ratio).sigmoid() + (shape.beta * scores.rejected_ratio).sigmoid()


def apo_down(scores: PairScores, shape: LossShape) -> Tensor:
    """For chosen texts worse than what the model writes (eq. 8)."""
    return (shape.beta * scores.chosen_ratio).sigmoid() + 1 - (shape.beta * scores.delta).sigmoid()


def discopop(scores: PairScores, shape: LossShape) -> Tensor:
    """A found blend of logistic and exponential loss (Lu et al., 2024, eq. 5)."""
    logit = shape.beta * scores.delta
    blend = (logit / shape.discopop_tau).sigmoid()
    return -_log_sigmoid(logit) * (1 - blend) + (-logit).exp() * blend


def sft(scores: PairScores, shape: LossShape) -> Tensor:
    """Cross-entropy of the chosen, per token of the batch: beside another loss it holds the chosen up."""
    return (-scores.chosen.sum() / scores.chosen_length.sum().clamp(min=1)).expand(len(scores.chosen))


def _smoothed(delta: Tensor, shape: LossShape) -> Tensor:
    logit, epsilon = shape.beta * delta, shape.label_smoothing
    return -_log_sigmoid(logit) * (1 - epsilon) - _log_sigmoid(-logit) * epsilon


def _log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


LOSSES: dict[str, Loss] = {
    made.__name__: made
    for made in (
        sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down,
        discopop, sft, sigmoid_norm,
    )
}  # fmt: skip
"""By trl's names."""
