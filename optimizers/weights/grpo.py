"""Group-relative policy optimization (Shao et al., 2024): reinforce by the metric, without a value model.

In each step the engine answers a few prompts several times with the adapter as it is; what an answer's reward is above
its group's mean is what its tokens are pushed by, within a clipped ratio and with a penalty for leaving the start
(Schulman's k3 estimator of the KL divergence).

**Two models.** The engine draws from int8 (or int4) weights under a grammar; training computes the student's
log-probabilities in full precision without the mask. The difference of the weights is corrected by truncated importance
sampling (Ionides, 2008; for quantized rollouts Yao et al., 2025): each token counts by min(π_student / π_engine,
`truncation`), both without mask and at temperature 1, since the engine reports just those. What remains uncorrected: the
mask's own normalizer, Z_student / Z_engine of the allowed tokens' mass, which is a second ratio of the same two models
and is near 1 where the first is; and that the gradient is that of the unmasked log π, not of log π - log Z. Within a
group the first decided token has one Z, and advantages sum to 0, so there it cancels (as far as the importance weights
are equal); at later tokens it adds a push towards prefixes after which the grammar agrees with the model. The mismatch is
measured in every step that learns.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import TrainingError
from .grpo_record import GrpoRecord, GrpoSettings, GrpoStep
from .layout import parts_of
from .policy import Descent, Policy, memory_errors, parameters_at, snapshot
from .reward import Rollouts, Sample, check_sample

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GrpoRecord", "GrpoSettings", "GrpoStep", "advantages", "token_terms", "train_grpo"]

EPSILON = 1e-4
"""Added to a group's standard deviation, as trl does."""


class Weighted(NamedTuple):
    """A distinct sample: with its advantage, and how many times it was drawn."""

    sample: Sample
    advantage: float
    times: int


class Terms(NamedTuple):
    """Of one row's loss tokens, each float32 [tokens]."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor


class _Fixed(NamedTuple):
    """What stays as it was when the samples were drawn, per row float32 [loss tokens]."""

    old: list[Tensor]
    start: list[Tensor]
    weights: list[Tensor]
    gaps: list[Tensor]
    """log π_student - log π_engine."""


def train_grpo(
    policy: Policy,
    prompts: Sequence[Any],
    rollouts: Rollouts,
    settings: GrpoSettings | None = None,
    progress: Callable[[GrpoStep], None] | None = None,
) -> GrpoRecord:
    """Reinforce the policy in place, from where it is. Same policy, prompts, rollouts and seed: same steps.

    Raises `TrainingError` where there is no prompt, where loss or gradient stop being numbers, or memory runs out; the
    policy then is as the last good step left it. Errors of the rollouts pass through.
    """
    settings = settings or GrpoSettings()
    if not prompts:
        raise TrainingError("prompts is empty: give at least one prompt to sample from")
    start = snapshot(policy)
    descent = Descent(
        policy, learning_rate=settings.learning_rate, steps=settings.steps * settings.updates, warmup=settings.warmup,
        clip=settings.clip,
    )  # fmt: skip
    order = _endless(len(prompts), settings.seed)
    began = time.perf_counter()
    taken: list[GrpoStep] = []
    with tempfile.TemporaryDirectory(prefix="still-grpo-") as folder, memory_errors(
        f"give rows={max(1, settings.rows // 2)}, or fewer samples"
    ):
        for step in range(settings.steps):
            asked = [prompts[next(order)] for _ in range(min(settings.prompts, len(prompts)))]
            drawing = time.perf_counter()
            adapter = Path(folder) / f"step-{step}"
            policy.save(adapter)
            seed = settings.seed * 1_000_003 + step
            groups = rollouts.sample(asked, adapter, settings.samples, settings.temperature, seed)
            drawn = time.perf_counter() - drawing
            measured = _learn(policy, descent, start, groups, settings)
            now = time.perf_counter() - began
            remaining = now / (step + 1) * (settings.steps - step - 1)
            taken.append(GrpoStep(step + 1, settings.steps, *measured, drawn, now, remaining))
            if progress is not None:
                progress(taken[-1])
    return GrpoRecord(settings, tuple(taken), time.perf_counter() - began)


def advantages(rewards: Sequence[float], scale: bool = True) -> list[float]:
    """Of a group: reward - mean, if `scale` over the standard deviation (with n - 1) + 1e-4. 0 where all are equal."""
    if not rewards or max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    if not scale:
        return [reward - mean for reward in rewards]
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return [(reward - mean) / (deviation + EPSILON) for reward in rewards]


def token_terms(
    new: Tensor, old: Tensor, start: Tensor, weights: Tensor, advantage: float, settings: GrpoSettings
) -> Terms:  # fmt: skip
    """Loss and KL of each token: -w min(r A, clip(r) A) + β k3, with r = π_new / π_old and
    k3 = π_start / π_new - log(π_start / π_new) - 1, which is never negative."""
    ratio = (new - old).exp()
    low, high = 1 - settings.clip_ratio, 1 + settings.clip_ratio
    gain = (ratio * advantage).minimum(ratio.clamp(low, high) * advantage)
    towards = start - new
    kl = towards.exp() - towards - 1
    clipped = (ratio < low) & (advantage < 0) | (ratio > high) & (advantage > 0)
    return Terms(-weights * gain + settings.beta * kl, kl, clipped)


def _learn(
    policy: Policy, descent: Descent, start: Sequence[Tensor], groups: Sequence[Sequence[Sample]], settings: GrpoSettings
) -> tuple[float, float, float, float | None, float | None, float | None, float | None, float, int]:  # fmt: skip
    """Reward, useful share, loss, KL, mismatch, ratio, truncated share, clipped share, tokens."""
    samples = [sample for group in groups for sample in group]
    if not samples:
        raise TrainingError("the rollouts returned no sample: check that the prompts can be answered")
    for sample in samples:
        check_sample(sample)
    reward = math.fsum(sample.reward for sample in samples) / len(samples)
    learned = [one for group in groups for one in _weighted(group, settings)]
    useful = sum(len({sample.reward for sample in group}) > 1 for group in groups) / len(groups)
    if not learned:
        # Nothing is better than anything else: no step. (The schedule goes on with the next.)
        return reward, useful, 0.0, None, None, None, None, 0.0, 0
    learned.sort(key=lambda one: (len(one.sample.row.tokens), one.sample.row.tokens))
    # Long rows a few at a time: what is kept for the gradient goes with their tokens.
    passes = [learned[i : i + settings.rows] for i in range(0, len(learned), settings.rows)]
    parts = [[each[i] for i in part] for each in passes for part in parts_of([one.sample.row for one in each])]
    fixed = [_fixed(policy, start, part, settings) for part in parts]
    loss, kl, clipped = 0.0, 0.0, 0.0
    for _ in range(settings.updates):
        loss, kl, clipped = _update(policy, descent, parts, fixed, settings)
    gaps = [gap for part in fixed for row in part.gaps for gap in row.tolist()]
    ratios = [math.exp(min(gap, 50.0)) for gap in gaps]
    tokens = (1 + settings.updates) * sum(len(one.sample.row.tokens) for one in learned)
    return (
        reward, useful, loss, kl, sum(map(abs, gaps)) / len(gaps), sum(ratios) / len(ratios),
        sum(ratio > settings.truncation for ratio in ratios) / len(ratios), clipped, tokens,
    )  # fmt: skip


def _weighted(group: Sequence[Sample], settings: GrpoSettings) -> list[Weighted]:
    """Distinct samples of a group with their advantages; none where all are 0 (as DAPO; Yu et al., 2025). Equal answers
    are computed once: constrained answers are short and often the same."""
    values = advantages([sample.reward for sample in group], settings.scale)
    counted = Counter((sample, value) for sample, value in zip(group, values, strict=True) if value and any(sample.row.loss))
    return [Weighted(sample, value, times) for (sample, value), times in counted.items()]


def _fixed(policy: Policy, start: Sequence[Tensor], part: Sequence[Weighted], settings: GrpoSettings) -> _Fixed:
    import torch

    rows = [one.sample.row for one in part]
    old = policy.reference(rows)
    with parameters_at(policy, start):
        first = policy.reference(rows) if settings.beta else old
    gaps = [of - torch.tensor(one.sample.logprobs, device=of.device) for of, one in zip(old, part, strict=True)]
    return _Fixed(old, first, [gap.exp().clamp(max=settings.truncation) for gap in gaps], gaps)


def _update(
    policy: Policy, descent: Descent, parts: Sequence[Sequence[Weighted]], fixed: Sequence[_Fixed], settings: GrpoSettings
) -> tuple[float, float, float]:  # fmt: skip
    """One step over all samples, part by part. Returns loss, mean KL and the share of clipped tokens."""
    everything = [one for part in parts for one in part]
    share = _shares(everything, settings)
    total = kl = clipped = 0.0
    for part, known in zip(parts, fixed, strict=True):
        news = policy.token_logprobs([one.sample.row for one in part])
        losses = []
        for one, new, old, start, weights in zip(part, news, known.old, known.start, known.weights, strict=True):
            terms = token_terms(new, old, start, weights, one.advantage, settings)
            losses.append(terms.loss.sum() * one.times * share(one))
            kl += one.times * float(terms.kl.detach().sum())
            clipped += one.times * float(terms.clipped.sum())
        total += descent.add(sum(losses[1:], losses[0]))
    descent.take()
    tokens = sum(one.times * len(one.sample.logprobs) for one in everything)
    return total, kl / tokens, clipped / tokens


def _shares(everything: Sequence[Weighted], settings: GrpoSettings) -> Callable[[Weighted], float]:
    """What a token of a sample counts in the mean."""
    samples = sum(one.times for one in everything)
    tokens = sum(one.times * len(one.sample.logprobs) for one in everything)
    if settings.aggregate == "grpo":
        return lambda one: 1 / (samples * len(one.sample.logprobs))
    if settings.aggregate == "bnpo":
        return lambda one: 1 / tokens
    longest = max(len(one.sample.logprobs) for one in everything)
    return lambda one: 1 / (samples * longest)


def _endless(count: int, seed: int) -> Iterator[int]:
    """Indices in random order, every one once before any comes again."""
    drawing = random.Random(seed)
    while True:
        yield from drawing.sample(range(count), count)
