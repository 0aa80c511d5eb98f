"""Direct preference optimization (Rafailov et al., 2023): learn from pairs, without a reward model and without sampling.

The reference is the policy as training finds it: after SFT, the SFT adapter. (trl takes the bare base model when it is
handed a new adapter; then the loss also pays for everything that SFT has taught.) Its log-probabilities are computed
once, before the first step, so that a step costs one forward and one backward pass (a batch that is too large for one graph:
one forward pass more).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import TrainingError
from .pairs import Pair, distinct
from .policy import Descent, Policy, memory_errors
from .preference import LossShape, PairScores, loss_weights, preference_loss
from .row import Row

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE_ROWS = 32
"""Rows in a forward pass of the reference."""


@dataclass(frozen=True, slots=True)
class DpoSettings:
    """How to train on pairs.

    loss: of `preference.LOSSES` (trl's names), or several with weights. label_smoothing and discopop_tau: see `LossShape`.
    batch: pairs per step. warmup: share of the steps in which the learning rate rises; then it falls linearly to 0.
    clip: largest norm of a gradient.
    """

    loss: str | Mapping[str, float] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05
    learning_rate: float = 1e-4
    epochs: int = 1
    batch: int = 8
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        loss_weights(self.loss, self.shape)
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name}={getattr(self, name)}: give at least 1")
        if not 0.0 <= self.warmup < 1.0:
            raise TrainingError(f"warmup={self.warmup}: give a share of the steps, 0 to below 1")

    @property
    def shape(self) -> LossShape:
        """The numbers of the loss."""
        return LossShape(self.beta, self.label_smoothing, self.discopop_tau)


@dataclass(frozen=True, slots=True)
class DpoStep:
    """One step, as it was measured before its update."""

    step: int
    steps: int
    loss: float
    accuracy: float
    """Share of the pairs whose chosen answer gained more on the reference than the rejected one."""
    margin: float
    """Mean of β times by how much more it gained: the implicit reward's margin."""
    chosen: float
    """Mean log-probability of the chosen answers. Where it falls, both answers lose to others: add an `sft` loss."""
    rejected: float
    tokens: int
    """Of both answers and their prompts, as they went through the model."""
    seconds: float
    """Of training until now, the reference included."""
    remaining: float
    """Seconds that the steps to come will take, by the mean of those taken."""


@dataclass(frozen=True, slots=True)
class DpoRecord:
    """What training did."""

    settings: DpoSettings
    pairs: int
    steps: tuple[DpoStep, ...]
    tokens: int
    """Trained on, prompts included; the reference's pass is not counted."""
    seconds: float
    reference_seconds: float

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        return [step.loss for step in self.steps]

    @property
    def accuracies(self) -> list[float]:
        """Of each step, 0 to 1."""
        return [step.accuracy for step in self.steps]

    @property
    def margins(self) -> list[float]:
        """Of each step."""
        return [step.margin for step in self.steps]

    @property
    def tokens_per_second(self) -> float:
        """Of the steps."""
        return self.tokens / max(1e-9, self.seconds - self.reference_seconds)


@dataclass(frozen=True, slots=True)
class _Known:
    """A pair with its reference log-probabilities, sums."""

    pair: Pair
    chosen: float
    rejected: float


def train_dpo(
    policy: Policy,
    pairs: Sequence[Pair],
    settings: DpoSettings | None = None,
    progress: Callable[[DpoStep], None] | None = None,
) -> DpoRecord:
    """Train the policy in place. Same policy, pairs and seed: same steps.

    Raises `TrainingError` for too few pairs before anything is computed, and where loss or gradient stop being numbers or
    memory runs out; the policy then is as the last good step left it.
    """
    settings = settings or DpoSettings()
    pairs = distinct(pairs)
    if not pairs:
        raise TrainingError("pairs is empty: sample at a higher temperature, lower the margin, or leave DPO out")
    steps = settings.epochs * math.ceil(len(pairs) / settings.batch)
    descent = Descent(
        policy, learning_rate=settings.learning_rate, steps=steps, warmup=settings.warmup, clip=settings.clip
    )  # fmt: skip
    began = time.perf_counter()
    with memory_errors(f"give batch={max(1, settings.batch // 2)}, fewer target modules, or shorter prompts"):
        known = _with_reference(policy, pairs)
        reference_seconds = time.perf_counter() - began
        taken: list[DpoStep] = []
        for batch in _batches(known, settings):
            measured = _step(policy, descent, batch, settings)
            now = time.perf_counter() - began
            done = len(taken) + 1
            remaining = (now - reference_seconds) / done * (steps - done)
            taken.append(DpoStep(done, steps, *measured, now, remaining))
            if progress is not None:
                progress(taken[-1])
    seconds = time.perf_counter() - began
    return DpoRecord(settings, len(pairs), tuple(taken), sum(step.tokens for step in taken), seconds, reference_seconds)


def measure_pairs(policy: Policy, pairs: Sequence[Pair]) -> tuple[float, float]:
    """Share of the pairs whose chosen answer is likelier to the policy than the rejected one, and the mean difference of
    log-probability. No reference: this is what greedy decoding between the two would do."""
    if not pairs:
        raise TrainingError("pairs is empty: there is nothing to measure")
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    sums = _sums(policy, rows)
    deltas = [sums[pair.chosen.tokens] - sums[pair.rejected.tokens] for pair in pairs]
    return sum(delta > 0 for delta in deltas) / len(deltas), math.fsum(deltas) / len(deltas)


def _with_reference(policy: Policy, pairs: Sequence[Pair]) -> list[_Known]:
    sums = _sums(policy, [row for pair in pairs for row in (pair.chosen, pair.rejected)])
    return [_Known(pair, sums[pair.chosen.tokens], sums[pair.rejected.tokens]) for pair in pairs]


def _sums(policy: Policy, rows: Sequence[Row]) -> dict[tuple[int, ...], float]:
    """Summed log-probabilities by tokens; an answer that is in several pairs is computed once."""
    unique = sorted({row.tokens: row for row in rows}.values(), key=lambda row: (len(row.tokens), row.tokens))
    sums: dict[tuple[int, ...], float] = {}
    for begin in range(0, len(unique), REFERENCE_ROWS):
        part = unique[begin : begin + REFERENCE_ROWS]
        sums |= {row.tokens: float(of.sum()) for row, of in zip(part, policy.reference(part), strict=True)}
    return sums


def _batches(known: Sequence[_Known], settings: DpoSettings) -> Iterator[list[_Known]]:
    """Pairs of about one length together, since a batch is as wide as its longest row; batches in random order."""
    drawing = random.Random(settings.seed)
    for _ in range(settings.epochs):
        # The tie-breaker differs from epoch to epoch, so that a pair does not always meet the same ones.
        order = sorted(known, key=lambda one: (_length(one.pair), drawing.random()))
        batches = [order[i : i + settings.batch] for i in range(0, len(order), settings.batch)]
        drawing.shuffle(batches)
        yield from batches


def _length(pair: Pair) -> int:
    return max(len(pair.chosen.tokens), len(pair.rejected.tokens))


def _step(
    policy: Policy, descent: Descent, batch: Sequence[_Known], settings: DpoSettings
) -> tuple[float, float, float, float, float, int]:  # fmt: skip
    """Loss, accuracy, margin, mean log-probability of chosen and of rejected, tokens."""
    rows = [one.pair.chosen for one in batch] + [one.pair.rejected for one in batch]
    scores = _scores(policy.token_logprobs(rows), batch)
    loss = descent.add(preference_loss(scores, settings.loss, settings.shape))
    descent.take()
    delta = scores.delta.detach()
    return (
        loss,
        float((delta > 0).float().mean()),
        settings.beta * float(delta.mean()),
        float(scores.chosen.detach().mean()),
        float(scores.rejected.detach().mean()),
        sum(len(row.tokens) for row in rows),
    )


def _scores(logprobs: Sequence[Tensor], batch: Sequence[_Known]) -> PairScores:
    import torch

    sums = torch.stack([of.sum() for of in logprobs])
    lengths = torch.tensor([float(len(of)) for of in logprobs], device=sums.device)
    half = len(batch)
    reference = [torch.tensor([getattr(one, side) for one in batch], device=sums.device) for side in ("chosen", "rejected")]
    return PairScores(sums[:half], sums[half:], reference[0], reference[1], lengths[:half], lengths[half:])
