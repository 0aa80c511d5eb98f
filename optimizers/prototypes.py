"""How near a text is to the examples of each option of a closed set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Prototypes:
    """Linear discriminant analysis (Fisher, 1936): each option's examples lie around their mean, all in the same directions.

    A direction in which examples of one option differ much tells little. Of few examples it is hardly known which these are:
    their covariance is drawn towards one that is the same in all directions, by as much as `DRAWN` times `d` more examples
    would draw it (after Friedman, Regularized Discriminant Analysis, 1989). So of few it is the distance to their mean.

    rows: float32 [examples, d], of length 1. labels: of each example, the index of its option, or None.
    """

    def __init__(self, rows: NDArray[np.float32], labels: Sequence[int | None], options: int) -> None:
        self._rows, self._labels, self._options = rows, labels, options
        known = [index for index, label in enumerate(labels) if label is not None]
        own = np.array([labels[index] for index in known], dtype=np.intp)
        given = rows[known].astype(np.float64)
        counts = np.bincount(own, minlength=options)
        sums = np.zeros((options, rows.shape[1]))
        np.add.at(sums, own, given)
        means = sums / np.maximum(counts, 1)[:, None]
        self._has_examples = counts > 0
        self._directions = means @ _precision(given - means[own])
        self._offsets = (self._directions * means).sum(axis=1) / 2

    def nearness(self, vector: NDArray[np.float32], without: Sequence[int] = ()) -> tuple[float, ...]:
        """How near a vector [d] is to each option's examples, those in `without` left out: its log-likelihood among them,
        but for a factor and what is the same for all options. An option that has none is neither near nor far: it gets the
        mean of the others."""
        if any(self._labels[index] is not None for index in without):
            kept = [index for index in range(len(self._labels)) if index not in without]
            rest = Prototypes(self._rows[kept], [self._labels[index] for index in kept], self._options)
            return rest.nearness(vector)
        known = self._has_examples
        found = self._directions @ vector.astype(np.float64) - self._offsets
        found[~known] = found[known].mean() if known.any() else 0.0
        return tuple(float(value) for value in found)


def _precision(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse [d, d] of the covariance of residuals [examples, d], times their mean variance: the identity where they
    differ as much in all directions, or not at all."""
    count, size = residuals.shape
    scatter = residuals.T @ residuals
    variance = float(np.trace(scatter)) / size / max(1, count)
    if variance < EMPTY:
        return np.eye(size)
    drawn = scatter + DRAWN * size * variance * np.eye(size)
    return np.asarray(np.linalg.inv(drawn) * (variance * (count + DRAWN * size)))


DRAWN = 8
"""With less, 100 to 300 examples tell less than the distance to their means; with more, 1,000 tell hardly more."""
EMPTY = 1e-9
"""A variance below is rounding: rows of length 1 have one of up to 1/d."""
