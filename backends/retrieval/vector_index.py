"""`VectorIndex`: unit vectors, and the exact largest cosines among them."""

from __future__ import annotations

import numpy as np

from .encoder import fast_bf16
from .top import best, block_width, padded

BLOCK = 1 << 25
"""Scores in memory at once: queries of a block times documents."""

_LOWEST = -4.0
"""Below every cosine, however it was rounded."""


class VectorIndex:
    """Every vector is compared, in two steps: products of low precision (bf16 where the CPU has it) leave the few rows that
    can be among the best, given how far rounding can move a product of unit vectors; those are multiplied again in fp32.
    So the result is exact, does not depend on the batch, and equal rows have equal scores.
    """

    def __init__(self, rows: np.ndarray) -> None:
        """rows: float32 [n, d], of length 1 (or 0)."""
        import torch

        self.rows = rows
        dtype = torch.bfloat16 if fast_bf16() else torch.float32
        # Two factors and a result rounded to 8 bits are off by at most 1.5 / 256; two results are compared, and a bound.
        self._slack = 2.0**-6 if fast_bf16() else 1e-5
        self._coarse = torch.zeros(padded(len(rows)), rows.shape[1], dtype=dtype)
        self._coarse[: len(rows)] = torch.from_numpy(rows)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query numbers, row numbers, cosines) of the k best rows of each query: by query, cosine falling, row rising.

        queries: float32 [m, d], of length 1 (or 0).
        """
        step = max(1, BLOCK // max(1, len(self.rows)))
        found = [self._search(queries[begin : begin + step], k, begin) for begin in range(0, len(queries), step)]
        numbers, places, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return numbers, places, scores

    def _search(self, queries: np.ndarray, k: int, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        numbers, places = self._candidates(queries, k)
        scores = np.empty(len(places), dtype=np.float32)
        borders = np.searchsorted(numbers, np.arange(len(queries) + 1)).tolist()
        for query, begin, end in zip(queries, borders, borders[1:], strict=False):
            # Row by row (a matrix product would round a row by its place).
            np.einsum("ij,j->i", self.rows[places[begin:end]], query, out=scores[begin:end])
        numbers, places, scores = best(numbers, places, scores, k)
        return numbers + first, places, scores

    def _candidates(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(query numbers, rows): a superset of the k best rows of each query."""
        import torch

        width = block_width(len(self.rows), k)
        with torch.inference_mode():
            scores = torch.from_numpy(queries).to(self._coarse.dtype) @ self._coarse.T
            scores[:, len(self.rows) :] = -torch.inf
            blocks = scores.view(len(queries), -1, width)
            maxima = blocks.amax(dim=2).float().numpy()
            # The rest is small, and torch's threads would cost more than they save.
            bounds = np.full(len(queries), _LOWEST, dtype=np.float32)
            if maxima.shape[1] >= k:
                np.maximum(bounds, np.partition(maxima, -k, axis=1)[:, -k] - self._slack, out=bounds)  # padding is below
            numbers, at = np.nonzero(maxima >= bounds[:, None])
            close = blocks[torch.from_numpy(numbers), torch.from_numpy(at)].float().numpy()
        which, offsets = np.nonzero(close >= bounds[numbers, None])
        return numbers[which], at[which] * width + offsets


def unit(rows: np.ndarray) -> np.ndarray:
    """float32 rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(lengths == 0, 1, lengths), dtype=np.float32)
