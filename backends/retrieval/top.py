"""The best places of rows of scores, found by blocks.

k blocks whose highest scores reach a bound hold k scores that reach it. So the k-th highest of the blocks' maxima is a bound
for the k best scores, and it takes one pass over the scores instead of a selection among them.
"""

from __future__ import annotations

import numpy as np

WIDEST = 64


def padded(count: int) -> int:
    """`count` rounded up to whole blocks of any width."""
    return -(-count // WIDEST) * WIDEST


def block_width(count: int, k: int) -> int:
    """Scores per block, so that there are several times k blocks, where there can be."""
    width = WIDEST
    while width > 1 and count // width < 4 * k:
        width //= 2
    return width


def lower_bounds(scores: np.ndarray, k: int) -> np.ndarray:
    """Per row a bound that at least k of its scores reach; -inf where the row has no k scores. scores: [rows, padded(n)]."""
    rows, count = scores.shape
    width = block_width(count, k)
    maxima = scores.reshape(rows, count // width, width).max(axis=2)
    if maxima.shape[1] < k:
        return np.full(rows, -np.inf, dtype=scores.dtype)
    return np.asarray(np.partition(maxima, -k, axis=1)[:, -k])


def best(numbers: np.ndarray, places: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of candidates (row number, place, score), the k best of each row: by row, score falling, place rising."""
    order = np.lexsort((places, -scores, numbers))
    numbers, places, scores = numbers[order], places[order], scores[order]
    new = np.ones(len(numbers), dtype=bool)
    new[1:] = numbers[1:] != numbers[:-1]
    first = np.maximum.accumulate(np.where(new, np.arange(len(numbers)), 0))
    kept = np.arange(len(numbers)) - first < k
    return numbers[kept], places[kept], scores[kept]
