"""Bootstrapping: runs of the program on training examples, and which of them are worth being shown."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from ..signatures.bridge import Module
from .candidate import Candidate
from .context import EvaluationContext, Rollout

ATTEMPTS = 48
"""Training examples that are run at most."""
BATCH = 16
"""Of these, how many at a time where only those that pass are wanted."""
DRAWS = 3
"""Runs of an example at most: the first as the program is asked, the others drawn at a temperature."""
WANTED = 16
"""Runs that pass, after which no more are made."""


def bootstrap(program: Module, teacher: Candidate, context: EvaluationContext, *, again: bool) -> list[Rollout]:
    """The best run of each training example by the metric, none where the budget is spent.

    again: run all, and draw those anew that did not pass, as long as few did (as STaR does: Zelikman, Wu, Mu and Goodman,
    2022, who hint at the answer instead). It is worth its cost only where a run says what labels do not: elsewhere there
    are enough once `WANTED` have passed.
    """
    order = list(range(len(context.train)))
    random.Random(f"{context.seed}/bootstrap").shuffle(order)
    order = order[:ATTEMPTS]
    if not again:
        return _until_enough(program, teacher, context, order)
    best = context.rollouts(program, teacher, order)
    for draw in range(1, DRAWS):
        failed = [i for i, rollout in enumerate(best) if rollout.score < 1.0]
        if not failed or len(best) - len(failed) >= WANTED:
            break
        drawn = replace(teacher, name=f"{teacher.name}, draw {draw}", draw=draw)
        runs = context.rollouts(program, drawn, [order[i] for i in failed])
        if not runs:
            break
        for i, run in zip(failed, runs, strict=True):
            best[i] = max(best[i], run, key=lambda rollout: rollout.score)
    return best


def _until_enough(
    program: Module, teacher: Candidate, context: EvaluationContext, order: Sequence[int]
) -> list[Rollout]:
    found: list[Rollout] = []
    for begin in range(0, len(order), BATCH):
        runs = context.rollouts(program, teacher, order[begin : begin + BATCH])
        found += runs
        if not runs or len(passing(found)) >= WANTED:
            break
    return found


def passing(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those that the metric finds perfect."""
    return [rollout for rollout in rollouts if rollout.score >= 1.0]


def best_of(rollouts: Sequence[Rollout], count: int) -> list[Rollout]:
    """Those that pass; where they are fewer than `count`, and the metric has degrees, also the best of the others that are
    above the median."""
    found = passing(rollouts)
    middle = median(rollout.score for rollout in rollouts) if rollouts else 1.0
    others = sorted((r for r in rollouts if middle < r.score < 1.0), key=lambda rollout: -rollout.score)
    return [*found, *others[: max(0, count - len(found))]]
