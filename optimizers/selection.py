"""How good the best of many really is, and whether it can be told from the program as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .context import Standing

RESAMPLES = 2000
CONFIDENCE = 0.8
"""A candidate replaces the baseline if what is picked on a resample beats it on the rest in this share of resamples."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The score to expect of what was picked, with a 95 % interval, and how often it beats the baseline."""

    score: float
    low: float
    high: float
    confidence: float
    candidates: int


def select(baseline: Standing, others: Sequence[Standing], seed: int) -> Selection:
    """Bootstrap bias corrected selection (BBC-CV: Tsamardinos, Greasidou and Borboudakis, 2018).

    The best of many candidates looks better on the examples it was picked by than it is. So: draw examples with
    replacement, pick the candidate that is best on them, and score it on the examples that were not drawn. A candidate that
    a race dropped while it was behind could have been picked too, had chance favoured it: where it was not run, it counts
    as being like the best. Others that have not seen all that the baseline has are left out. All standings list their
    outcomes in the same order of examples.
    """
    others, count = [s for s in others if s is not baseline], len(baseline.outcomes)
    complete = [baseline, *(s for s in others if len(s.outcomes) == count)]
    best = max(complete, key=lambda s: s.mean)
    compared = [*complete, *(s for s in others if len(s.outcomes) < count and _is_behind(s, best))]
    filled = [(*s.outcomes[:count], *best.outcomes[len(s.outcomes) : count]) for s in compared]
    scores = np.array([[outcome.score for outcome in outcomes] for outcomes in filled])
    rng = np.random.default_rng(seed)
    held_out: list[float] = []
    wins: list[float] = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)
        rest = drawn == 0
        if not rest.any():
            continue
        # Ties go to the first: the baseline, then the simpler.
        picked = int(np.argmax((scores @ drawn).round(9)))
        gained = scores[picked, rest].mean() - scores[0, rest].mean()
        held_out.append(float(scores[picked, rest].mean()))
        wins.append(0.5 if gained == 0 else float(gained > 0))
    if not held_out:  # a single example: nothing can be held out
        return Selection(float(scores[:, 0].max()), 0.0, 1.0, 0.0, len(compared))
    low, high = np.percentile(held_out, [2.5, 97.5])
    return Selection(float(np.mean(held_out)), float(low), float(high), float(np.mean(wins)), len(compared))


def _is_behind(dropped: Standing, best: Standing) -> bool:
    seen = best.outcomes[: len(dropped.outcomes)]
    return dropped.dropped is not None and bool(seen) and dropped.mean < sum(o.score for o in seen) / len(seen)
