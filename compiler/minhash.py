"""Which of many sets are probably alike: MinHash signatures, and the pairs that locality-sensitive hashing finds.

A. Broder, "On the resemblance and containment of documents", 1997; the bands are those of J. Leskovec, A. Rajaraman and
J. Ullman, "Mining of Massive Datasets", chapter 3. What is found here is a candidate: the caller computes its Jaccard
similarity exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 128
MISSES = 1e-3
"""A pair that is just as similar as the threshold is overlooked with at most this probability; a closer pair less."""
CROWD = 32
"""Up to so many sets that look alike are compared each with each."""
_NEIGHBOURS = 8
_SLACK = 0.15  # four standard deviations of a similarity estimated from 128 permutations
_CHUNK = 1 << 14

Indices = NDArray[np.intp]


def candidate_pairs(
    sets: Iterable[Collection[str]], threshold: float, sides: Sequence[int], seed: int = 0
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of sets whose Jaccard similarity may be `threshold` or more; none of them is empty.

    In a crowd of more than `CROWD` sets that look alike not every pair is listed (a thousand rows made from one
    template have half a million): each set meets its neighbours, and the first ones of each of the `sides`, which say
    for each set where it comes from.
    """
    if len(sides) < 2:
        return []
    signatures = _signatures(sets, len(sides), seed)
    origin = np.asarray(sides, np.intp)
    rows = _rows_per_band(threshold)
    codes = []
    for start in range(0, PERMUTATIONS - rows + 1, rows):
        for members in _buckets(signatures[:, start : start + rows]):
            first, second = _pairs(members, origin)
            codes.append(np.minimum(first, second) * len(sides) + np.maximum(first, second))
    if not codes:
        return []
    first, second = np.divmod(np.unique(np.concatenate(codes)), len(sides))
    likely = _likely(signatures, first, second, threshold)
    return list(zip(first[likely].tolist(), second[likely].tolist(), strict=True))


def _signatures(sets: Iterable[Collection[str]], count: int, seed: int) -> NDArray[np.uint64]:
    """For each set and each of the hash functions x -> (a x + b) mod 2^64, upper half, the least value in the set."""
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 1 << 64, size=(2, PERMUTATIONS, 1), dtype=np.uint64)
    a |= np.uint64(1)
    signatures = np.full((count, PERMUTATIONS), np.iinfo(np.uint64).max, np.uint64)
    for row, items in zip(signatures, sets, strict=True):
        # crc32, since Python's own hash of a text differs from process to process.
        hashes = np.fromiter((zlib.crc32(item.encode("utf-8", "surrogatepass")) for item in items), np.uint64, len(items))
        for start in range(0, len(hashes), _CHUNK):
            part = (a * hashes[start : start + _CHUNK] + b) >> np.uint64(32)
            np.minimum(row, part.min(axis=1), out=row)
    return signatures


def _rows_per_band(threshold: float) -> int:
    """The longest band with which a pair at the threshold still collides in one of them, but for `MISSES`."""
    for rows in range(PERMUTATIONS, 1, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISSES:
            return rows
    return 1


def _buckets(band: NDArray[np.uint64]) -> list[Indices]:
    """Index groups of two and more equal rows of `band`."""
    weights = np.random.default_rng(0).integers(0, 1 << 64, size=band.shape[1], dtype=np.uint64)
    keys = (band * weights).sum(axis=1, dtype=np.uint64)  # two rows that share a key by accident do not survive later
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    return [group for group in np.split(order, edges) if len(group) > 1]


def _pairs(members: Indices, origin: Indices) -> tuple[Indices, Indices]:
    if len(members) <= CROWD:
        upper = np.triu_indices(len(members), 1)
        return members[upper[0]], members[upper[1]]
    sides = np.unique(origin[members])
    heads = np.concatenate([members[origin[members] == side][:_NEIGHBOURS] for side in sides])
    firsts = [members[:-step] for step in range(1, _NEIGHBOURS + 1)] + [np.repeat(heads, len(members))]
    seconds = [members[step:] for step in range(1, _NEIGHBOURS + 1)] + [np.tile(members, len(heads))]
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    return first[first != second], second[first != second]


def _likely(signatures: NDArray[np.uint64], first: Indices, second: Indices, threshold: float) -> NDArray[np.bool_]:
    """Where the share of equal minima, an estimate of the similarity, does not speak against the pair."""
    likely = np.zeros(len(first), np.bool_)
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        likely[part] = (signatures[first[part]] == signatures[second[part]]).mean(axis=1) >= threshold - _SLACK
    return likely
