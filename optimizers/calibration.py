"""Probabilities that mean what they say: prior correction and temperature for scored options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .context import Bin

TEMPERATURES = np.geomspace(0.1, 20.0, 200)
FOLDS = 5
BINS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """bias: by option, added to its log-probability; the sum is divided by `temperature`."""

    bias: Mapping[str, float]
    temperature: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As output fields keep it."""
        return {"bias": {k: round(v, 6) for k, v in self.bias.items()}, "temperature": round(self.temperature, 6)}


def prior_correction(scores: Sequence[Mapping[str, float]], prior: Mapping[str, float]) -> dict[str, float]:
    """Bias per option that makes the mean probability of each option, over these inputs, that of `prior`.

    A language model prefers some options whatever the input (Zhao et al., Calibrate Before Use, 2021); the mean over a
    batch of inputs shows which, without labels (Zhou et al., Batch Calibration, 2024). Solved by iterative scaling.
    """
    options = list(scores[0])
    logprobs = _matrix(scores, options)
    target = np.array([prior[option] for option in options])
    bias = np.zeros(len(options))
    for _ in range(200):
        mean = _softmax(logprobs + bias).mean(axis=0)
        step = np.log(target) - np.log(np.maximum(mean, 1e-12))
        bias += step
        if np.abs(step).max() < 1e-6:
            break
    return dict(zip(options, (bias - bias.mean()).tolist(), strict=True))


def smoothed_prior(labels: Sequence[str], options: Sequence[str]) -> dict[str, float]:
    """Share of each option among the labels, with one more label of every option (Laplace)."""
    counts = dict.fromkeys(options, 1.0)
    for label in labels:
        counts[label] += 1.0
    total = sum(counts.values())
    return {option: count / total for option, count in counts.items()}


def fit_temperature(scores: Sequence[Mapping[str, float]], labels: Sequence[str], bias: Mapping[str, float]) -> float:
    """Temperature with the highest likelihood of the labels (Guo et al., On Calibration, 2017)."""
    options = list(scores[0])
    values = _matrix(scores, options) + np.array([bias.get(option, 0.0) for option in options])
    rows, columns = np.arange(len(labels)), np.array([options.index(label) for label in labels])
    losses = [-np.log(np.maximum(_softmax(values / t)[rows, columns], 1e-12)).mean() for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def fit(scores: Sequence[Mapping[str, float]], labels: Sequence[str], prior: Mapping[str, float]) -> Calibration:
    """Prior correction on the inputs, then the temperature on the labels."""
    bias = prior_correction(scores, prior)
    return Calibration(bias, fit_temperature(scores, labels, bias))


def cross_fitted(scores: Sequence[Mapping[str, float]], labels: Sequence[str], prior: Mapping[str, float]) -> Floats:
    """Probabilities [examples, options], each example's by a calibration fitted on the other folds."""
    options = list(scores[0])
    found = np.zeros((len(scores), len(options)))
    folds = min(FOLDS, len(scores))
    for fold in range(folds):
        kept = [i for i in range(len(scores)) if i % folds != fold] or list(range(len(scores)))
        held = [i for i in range(len(scores)) if i % folds == fold]
        calibration = fit([scores[i] for i in kept], [labels[i] for i in kept], prior)
        found[held] = probabilities([scores[i] for i in held], calibration)
    return found


def probabilities(scores: Sequence[Mapping[str, float]], calibration: Calibration | None = None) -> Floats:
    """Probabilities [examples, options] under a calibration, or the model's own."""
    options = list(scores[0])
    if calibration is None:
        return _softmax(_matrix(scores, options))
    bias = np.array([calibration.bias.get(option, 0.0) for option in options])
    return _softmax((_matrix(scores, options) + bias) / calibration.temperature)


def calibration_error(likely: Floats, correct: Sequence[int]) -> float:
    """Expected calibration error (Naeini et al., 2015): over ten bins of confidence, the mean gap between confidence and
    accuracy. likely: [examples, options]; correct: the right option's index."""
    bins = reliability(likely, correct)
    return sum(abs(b.confidence - b.accuracy) * b.count for b in bins) / len(likely)


def reliability(likely: Floats, correct: Sequence[int]) -> tuple[Bin, ...]:
    """The reliability diagram's bins that are not empty (DeGroot and Fienberg, 1983), ten of equal width."""
    confidence, right = likely.max(axis=1), likely.argmax(axis=1) == np.asarray(correct)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(float(confidence[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
        for b in range(BINS)
        if (bins == b).any()
    )


def _matrix(scores: Sequence[Mapping[str, float]], options: Sequence[str]) -> Floats:
    return np.array([[row[option] for option in options] for row in scores], dtype=np.float64)


def _softmax(values: Floats) -> Floats:
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares
