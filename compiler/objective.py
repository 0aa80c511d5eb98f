"""What a compile is to make good: quality, latency, or both."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from ..errors import StillError
from ..optimizers.candidate import Candidate
from ..optimizers.context import Standing
from ..optimizers.pareto import front
from ..optimizers.racing import measure
from ..optimizers.work import work
from .context import CompileContext

GOALS = ("quality", "latency")
TIMED = 8
"""Train examples a candidate is timed on, one after the other, after one that warms it up."""
CANDIDATES = 16
"""Candidates that are timed at most: the program as it is, what won, and of the rest those than which none is better and
less work, then the best."""
FASTER = 0.05
"""Share by which a candidate must be faster than the program as it is, to be taken for its latency alone."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Latencies in seconds by candidate digest, and those candidates that no other beats in both; fastest first."""

    latencies: Mapping[str, float] = field(default_factory=dict)
    front: tuple[Standing, ...] = ()
    completed: tuple[Standing, ...] = ()
    """Those that a race had dropped and that have seen all of dev now."""


def as_objective(objective: Any) -> tuple[str, ...]:
    """ "quality", "latency", or both in a sequence: the first decides what is returned. Raises `StillError`."""
    goals = (objective,) if isinstance(objective, str) else tuple(objective)
    if not goals or len(set(goals)) < len(goals) or not set(goals) <= set(GOALS):
        raise StillError(f'objective={objective!r}: use "quality", "latency", or both: ("quality", "latency")')
    return goals


def time_candidates(standings: Sequence[Standing], winner: Candidate, context: CompileContext) -> Timed:
    """Time candidates, and measure those on all of dev that a race had dropped and that are too fast to be left out.

    standings: the program as it is first; those that a race dropped have seen some of dev only. Latency is the wall time of
    one run of the program with nothing beside it: the median of `TIMED` train examples. Each candidate has other examples
    than the one before, because what the engine has computed for one it would not compute again for the next.
    """
    baseline, *others = standings
    promising = {s.candidate.digest for s in _front(standings, {s.candidate.digest: _work_each(s) for s in standings})}
    ranked = sorted(
        others, key=lambda s: (s.candidate.digest != winner.digest, s.candidate.digest not in promising, -s.mean)
    )
    chosen = [baseline, *ranked[: CANDIDATES - 1]]
    order = list(range(len(context.train)))
    random.Random(f"{context.seed}/latency").shuffle(order)
    latencies: dict[str, float] = {}
    for number, standing in enumerate(chosen):
        picked = [order[(number * (TIMED + 1) + i) % len(order)] for i in range(TIMED + 1)]
        _, *seconds = context.evaluator.timed(standing.candidate, [context.train[i] for i in picked])
        latencies[standing.candidate.digest] = median(seconds)
    complete = [s for s in chosen if len(s.outcomes) == len(context.dev)]
    completed: list[Standing] = []
    for standing in chosen:
        seen = len(standing.outcomes)
        # Compared on the examples that it has seen.
        others = [replace(s, outcomes=s.outcomes[:seen]) for s in (*complete, *completed)]
        if standing not in complete and standing in _front([*others, standing], latencies):
            completed.append(measure(context.evaluator.program, standing.candidate, context))
    found = _front([*complete, *completed], latencies)
    return Timed(latencies, tuple(sorted(found, key=lambda s: latencies[s.candidate.digest])), tuple(completed))


def fastest(baseline: Standing, timed: Timed) -> Candidate:
    """The fastest of the front that scores no lower on dev than the program as it is; that itself if it is about as fast."""
    limit = timed.latencies[baseline.candidate.digest] * (1 - FASTER)
    for standing in timed.front:
        if standing.mean >= baseline.mean and timed.latencies[standing.candidate.digest] <= limit:
            return standing.candidate
    return baseline.candidate


def _work_each(standing: Standing) -> float:
    return work(standing) / max(1, len(standing.outcomes))


def _front(standings: Sequence[Standing], latencies: Mapping[str, float]) -> list[Standing]:
    points = [(s.mean, -latencies[s.candidate.digest]) for s in standings]
    return [standings[i] for i in front(points)]
