"""Probabilities that mean what they say: prior correction and temperature for scored options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .context import Bin

TEMPERATURES = np.geomspace(0.1, 20.0, 100)
FOLDS = 5
BINS = 10
WEIGHTS = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""Of nearness that are tried: it differs by some 0.1 between two options, log-probabilities by several."""
RIDGES = (0.1, 1.0, 10.0)
"""That are tried: how unlikely large biases are held to be."""
LEAST = 1e-12
"""No label is held to be less likely than that."""

Scores = Sequence[Mapping[str, float]]
"""Of each input, a number by option."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """bias: by option, added to its log-probability, as is `nearness` times how near the input is to the option's examples;
    the sum is divided by `temperature`."""

    bias: Mapping[str, float]
    temperature: float = 1.0
    nearness: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As output fields keep it."""
        near = {"nearness": self.nearness} if self.nearness else {}
        bias = {option: round(value, 6) for option, value in self.bias.items()}
        return {"bias": bias, "temperature": round(self.temperature, 6), **near}


def prior_correction(scores: Scores, prior: Mapping[str, float], ridge: float) -> dict[str, float]:
    """Bias per option that brings the mean probability of each option, over these inputs, to that of `prior`.

    A language model prefers some options whatever the input (Zhao et al., Calibrate Before Use, 2021); the mean over a
    batch of inputs shows which, without labels (Zhou et al., Batch Calibration, 2024). Of few inputs for many options the
    mean is mostly chance: so large biases are held to be unlikely, and the more so the larger `ridge` (that is one over
    their variance; at 0 the means are met exactly). Solved by Newton's method: the objective is concave.
    """
    options = list(scores[0])
    logprobs = _matrix(scores, options)
    target = np.array([prior[option] for option in options])
    weight = max(ridge, 1e-6) / len(scores)
    bias = np.zeros(len(options))

    def objective(bias: Floats) -> float:
        return float(target @ bias - _log_sum_exp(logprobs + bias).mean() - weight / 2 * bias @ bias)

    for _ in range(100):
        shares = _softmax(logprobs + bias)
        mean = shares.mean(axis=0)
        curvature = np.diag(mean + weight) - shares.T @ shares / len(scores)
        step = np.linalg.solve(curvature, target - mean - weight * bias)
        while objective(bias + step) < objective(bias) and np.abs(step).max() > 1e-9:
            step /= 2
        bias += step
        if np.abs(step).max() < 1e-7:
            break
    return dict(zip(options, (bias - bias.mean()).tolist(), strict=True))


def smoothed_prior(labels: Sequence[str], options: Sequence[str]) -> dict[str, float]:
    """Share of each option among the labels, with one more label of every option (Laplace)."""
    counts = dict.fromkeys(options, 1.0)
    for label in labels:
        counts[label] += 1.0
    total = sum(counts.values())
    return {option: count / total for option, count in counts.items()}


def fit_temperature(scores: Scores, labels: Sequence[str], bias: Mapping[str, float]) -> float:
    """Temperature with the highest likelihood of the labels (Guo et al., On Calibration, 2017)."""
    options = list(scores[0])
    values = _matrix(scores, options) + np.array([bias.get(option, 0.0) for option in options])
    right = values[np.arange(len(labels)), [options.index(label) for label in labels]]
    losses = [np.minimum(_log_sum_exp(values / t) - right / t, -math.log(LEAST)).mean() for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def fit(scores: Scores, labels: Sequence[str], prior: Mapping[str, float], ridge: float) -> Calibration:
    """Prior correction on the inputs, then the temperature on the labels."""
    bias = prior_correction(scores, prior, ridge)
    return Calibration(bias, fit_temperature(scores, labels, bias))


def leaning(scores: Scores, nearness: Scores, weight: float) -> list[dict[str, float]]:
    """Scores with `weight` times the nearness of the input to each option's examples."""
    return [
        {option: score + weight * near[option] for option, score in row.items()}
        for row, near in zip(scores, nearness, strict=True)
    ]


def settle(
    scores: Scores, labels: Sequence[str], prior: Mapping[str, float], nearness: Scores | None = None
) -> tuple[float, float]:
    """The ridge, and where `nearness` is given the weight of it, under which held-out labels are likeliest.

    What examples with like inputs say and what the model says are taken as independent evidence, so their logarithms are
    added, weighted (a product of experts: Hinton, 2002).
    """
    options = list(scores[0])
    correct = [options.index(label) for label in labels]

    def loss(settings: tuple[float, float]) -> float:
        ridge, weight = settings
        leant = leaning(scores, nearness, weight) if nearness is not None else scores
        likely = cross_fitted(leant, labels, prior, ridge)
        return float(-np.log(np.maximum(likely[np.arange(len(labels)), correct], LEAST)).mean())

    return min(product(RIDGES, WEIGHTS if nearness is not None else (0.0,)), key=loss)


def cross_fitted(scores: Scores, labels: Sequence[str], prior: Mapping[str, float], ridge: float) -> Floats:
    """Probabilities [examples, options], each example's by a calibration fitted on the other folds."""
    options = list(scores[0])
    found = np.zeros((len(scores), len(options)))
    folds = min(FOLDS, len(scores))
    for fold in range(folds):
        kept = [i for i in range(len(scores)) if i % folds != fold] or list(range(len(scores)))
        held = [i for i in range(len(scores)) if i % folds == fold]
        calibration = fit([scores[i] for i in kept], [labels[i] for i in kept], prior, ridge)
        found[held] = probabilities([scores[i] for i in held], calibration)
    return found


def probabilities(scores: Scores, calibration: Calibration | None = None) -> Floats:
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


def _matrix(scores: Scores, options: Sequence[str]) -> Floats:
    return np.array([[row[option] for option in options] for row in scores], dtype=np.float64)


def _log_sum_exp(values: Floats) -> Floats:
    top = values.max(axis=1)
    sums: Floats = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    return sums


def _softmax(values: Floats) -> Floats:
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares
