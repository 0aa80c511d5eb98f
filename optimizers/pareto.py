"""Pareto fronts: of candidates over examples, and of points with several qualities."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .context import Standing


def pick_parent(standings: Sequence[Standing], seed: int) -> Standing:
    """Draw a candidate by the number of examples it is among the best on (Agrawal et al., GEPA, 2025, algorithm 2).

    Only candidates that have seen as many examples as the first take part. Those that another one matches on every
    example and beats on some are left out.
    """
    complete = [s for s in standings if len(s.outcomes) == len(standings[0].outcomes)]
    front = [s for s in complete if not any(_dominates(other, s) for other in complete)]
    wins = [sum(_is_best(s, i, front) for i in range(len(s.outcomes))) for s in front]
    return random.Random(seed).choices(front, weights=[win + 1e-9 for win in wins])[0]


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point matches in every number and beats in one; more is better. Of equal points
    the first stands for all."""
    return [
        i
        for i, point in enumerate(points)
        if not any(_beats(other, point) or (j < i and tuple(other) == tuple(point)) for j, other in enumerate(points))
    ]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _scores(standing: Standing) -> list[float]:
    return [outcome.score for outcome in standing.outcomes]


def _dominates(one: Standing, other: Standing) -> bool:
    return _beats(_scores(one), _scores(other))


def _is_best(standing: Standing, example: int, front: Sequence[Standing]) -> bool:
    return standing.outcomes[example].score >= max(s.outcomes[example].score for s in front)
