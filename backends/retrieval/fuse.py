"""Fusing rankings: by ranks, or by normalized scores."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from ...errors import RetrievalError
from .hit import Hit

FuseBy = Literal["minmax", "zscore", "ranks"]
RANK_CONSTANT = 60


def fuse(
    rankings: Sequence[Sequence[Hit]],
    weights: Sequence[float] | None = None,
    by: FuseBy = "minmax",
    k: int | None = None,
    constant: int = RANK_CONSTANT,
) -> list[Hit]:
    """One ranking of several for the same query: the weighted sum of what each gives a document; ties by key.

    by: "ranks" gives 1 / (constant + place), reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009). "minmax" gives
    the score's place between the ranking's lowest and highest, 0 to 1 (Bruch, Gai and Ingber, 2023, compare the two).
    "zscore" gives its distance from the ranking's mean in standard deviations. A document that a ranking lacks gets from it
    what its last place gets, or 0 by ranks. By scores that are all equal, what is found gets 1, the rest 0. Weights are
    divided by their sum; without any they are equal.
    Raises `RetrievalError` for weights that are negative, all 0, or not one per ranking.
    """
    shares = _shares(weights, len(rankings))
    total: dict[str, float] = dict.fromkeys((hit.key for ranking in rankings for hit in ranking), 0.0)
    for ranking, share in zip(rankings, shares, strict=True):
        given, missing = _given(ranking, by, constant)
        for key in total:
            total[key] += share * given.get(key, missing)
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return [Hit(key, score) for key, score in ordered[:k]]


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or any(weight < 0 for weight in weights) or (count and sum(weights) <= 0):
        raise RetrievalError(f"weights={weights} for {count} rankings: give one number per ranking, at least 0, not all 0")
    return [weight / sum(weights) for weight in weights]


def _given(ranking: Sequence[Hit], by: FuseBy, constant: int) -> tuple[dict[str, float], float]:
    """(what each document gets, what one gets that is not there)."""
    if by == "ranks":
        return {hit.key: 1.0 / (constant + place) for place, hit in enumerate(ranking, 1)}, 0.0
    if by not in ("minmax", "zscore"):
        raise RetrievalError(f"by={by!r}: give 'minmax', 'zscore' or 'ranks'")
    if not ranking:
        return {}, 0.0
    scores = [hit.score for hit in ranking]
    low, high = min(scores), max(scores)
    if by == "minmax":
        # All equal: being found is all that the ranking says.
        given = {hit.key: (hit.score - low) / (high - low) if high > low else 1.0 for hit in ranking}
        return given, 0.0
    mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
    if not spread:  # as above
        return dict.fromkeys((hit.key for hit in ranking), 1.0), 0.0
    scaled = {hit.key: (hit.score - mean) / spread for hit in ranking}
    return scaled, min(scaled.values())
