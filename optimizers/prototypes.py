"""How near a text is to the examples of each option of a closed set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Prototypes:
    """The mean vector of each option's examples, of length 1 (Snell, Swersky and Zemel, Prototypical Networks, 2017).

    rows: float32 [examples, d], of length 1. labels: of each example, the index of its option, or None.
    """

    def __init__(self, rows: np.ndarray, labels: Sequence[int | None], options: int) -> None:
        self._rows, self._labels = rows, labels
        self._sums = np.zeros((options, rows.shape[1]), dtype=np.float32)
        for row, label in zip(rows, labels, strict=True):
            if label is not None:
                self._sums[label] += row

    def nearness(self, vector: np.ndarray, without: Sequence[int] = ()) -> tuple[float, ...]:
        """The cosine of a vector [d] to each option's examples, those in `without` left out. An option that has none is
        neither near nor far: it gets the mean of the others."""
        sums = self._sums
        if any(self._labels[index] is not None for index in without):
            sums = sums.copy()
            for index in without:
                if (label := self._labels[index]) is not None:
                    sums[label] -= self._rows[index]
        lengths = np.linalg.norm(sums, axis=1)
        known = lengths > EMPTY
        found = (sums @ vector) / np.where(known, lengths, 1.0)
        found[~known] = found[known].mean() if known.any() else 0.0
        return tuple(float(value) for value in found)


EMPTY = 1e-4
"""A sum of vectors of length 1 is no shorter, unless they cancel; what is left of one that was taken out is rounding."""
