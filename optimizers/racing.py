"""Racing: compare candidates on the same examples and stop spending on those that are beaten.

After each block of examples every candidate is tested against the leader on the examples both have seen. The test is a
one-sided paired sign-flip permutation test (Fisher, 1935), valid for any score distribution; the error rate is divided by
the number of comparisons the race can make (Bonferroni; after each block whoever leads may beat any other but the first), so
the chance that a candidate as good as the leader is ever called beaten stays below `ERROR_RATE`. Races: Maron & Moore, 1994;
with paired tests: Birattari et al., F-race, 2002.

A candidate need not be beaten to be given up: one that is behind, and would hardly overtake the leader even if it were as
good from here on, is not run further (stochastic curtailment: Lan, Simon and Halperin, 1982). What that risks is the lead of
a candidate about as good as the one that is kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np

from ..signatures.bridge import Module
from .budget import OutOfBudget
from .candidate import Candidate
from .context import UNFINISHED, EvaluationContext, Outcome, Standing

ERROR_RATE = 0.05
"""Chance that a race drops a candidate that is as good as the one that beat it."""
HOPELESS = 0.15
"""A candidate is given up where, as good as the leader from here on, it would end ahead with less than this chance."""
LUCK = 0.1
"""A better candidate is a gain where by chance it would be as much better with less than this probability."""
FLIPS = 20_000


def race(program: Module, candidates: Sequence[Candidate], context: EvaluationContext) -> list[Standing]:
    """Run `candidates` against each other on dev; return their standings, best first.

    The first candidate is what the others are compared with in the report: it is never dropped. Survivors have seen every
    dev example; a dropped one has seen some whole blocks. Ties go to the candidate with fewer
    demonstrations, then to one that shows the same to every input, to one with fewer knobs turned, to the one named first.
    Where the budget runs out, the candidates that have seen most are compared.
    """
    blocks = blocks_of(order_of(context))
    outcomes: dict[int, list[Outcome]] = {i: [] for i in range(len(candidates))}
    dropped: dict[int, str] = {}
    threshold = ERROR_RATE / max(1, (len(candidates) - 1) ** 2 * (len(blocks) - 1))
    with suppress(OutOfBudget):
        for number, block in enumerate(blocks):
            for i, candidate in enumerate(candidates):
                # Candidate by candidate: all examples of one share its demonstrations, which are then computed once.
                if i not in dropped:
                    outcomes[i].extend(context.evaluate(program, candidate, block))
            if number < len(blocks) - 1:
                _drop(candidates, outcomes, dropped, threshold, len(context.dev), context.seed)
    _drop_unfinished(outcomes, dropped)
    standings = [Standing(c, tuple(outcomes[i]), dropped.get(i)) for i, c in enumerate(candidates)]
    return ranked(standings)


def ranked(standings: Iterable[Standing]) -> list[Standing]:
    """The best first, in the order of `race`."""
    return sorted(standings, key=lambda s: (s.dropped is not None, -s.mean, *size(s.candidate)))


def joined(first: Sequence[Standing], others: Iterable[Standing]) -> list[Standing]:
    """These, and those of the others that are of other candidates."""
    digests = {standing.candidate.digest for standing in first}
    return [*first, *(standing for standing in others if standing.candidate.digest not in digests)]


def size(candidate: Candidate) -> tuple[int, bool, int]:
    """How simple a candidate is: of two that are as good the smaller is kept."""
    return candidate.demonstration_count, candidate.per_input, len(candidate.knobs)


def challenge(
    program: Module, best: Candidate, candidate: Candidate, context: EvaluationContext
) -> tuple[Standing, bool]:
    """Race a candidate against the best so far: its standing, and whether it came out first."""
    standings = race(program, [best, candidate], context)
    return next(s for s in standings if s.candidate is candidate), standings[0].candidate is candidate


def measure(program: Module, candidate: Candidate, context: EvaluationContext) -> Standing:
    """Run one candidate on all of dev; outcomes are in the order of races."""
    return Standing(candidate, tuple(context.evaluate(program, candidate, order_of(context))))


def order_of(context: EvaluationContext) -> list[int]:
    """The order in which races see dev."""
    order = list(range(len(context.dev)))
    random.Random(context.seed).shuffle(order)
    return order


def _drop_unfinished(outcomes: dict[int, list[Outcome]], dropped: dict[int, str]) -> None:
    """Leave out who has seen less than others when the budget ran out: their means are not of the same examples."""
    most = max(len(seen) for i, seen in outcomes.items() if i not in dropped)
    for i, seen in outcomes.items():
        if i not in dropped and len(seen) < most:
            dropped[i] = f"{UNFINISHED} after {len(seen)} examples"


def paired_p_value(better: Sequence[float], worse: Sequence[float], seed: int) -> float:
    """One-sided p-value that `better` only looks better than `worse`; both score the same examples in the same order."""
    differences = np.subtract(better, worse)
    observed = differences.sum()
    differences = differences[differences != 0.0]
    if observed <= 0.0 or differences.size == 0:
        return 1.0
    signs = np.random.default_rng(seed).integers(0, 2, size=(FLIPS, differences.size), dtype=np.int8) * 2 - 1
    extreme = int((signs @ differences >= observed - 1e-9).sum())
    return (extreme + 1) / (FLIPS + 1)


def gains(better: Standing, worse: Standing, seed: int, luck: float = LUCK) -> bool:
    """Whether a candidate is better by more than luck, on the examples that both have seen."""
    seen = min(len(better.outcomes), len(worse.outcomes))
    ahead, behind = ([outcome.score for outcome in standing.outcomes[:seen]] for standing in (better, worse))
    return paired_p_value(ahead, behind, seed) < luck


def chance_to_lead(behind: Sequence[float], leader: Sequence[float], remaining: int, seed: int) -> float:
    """Chance that `behind` has at least the leader's sum after `remaining` more examples, if it is as good there: each of
    its differences is one of those seen so far, with a sign of chance. Both score the same examples in the same order."""
    differences = np.subtract(behind, leader)
    if differences.sum() >= 0.0:
        return 1.0
    rng = np.random.default_rng(seed)
    to_come = rng.choice(differences, size=(FLIPS // 10, remaining)) * rng.choice([-1.0, 1.0], size=(FLIPS // 10, remaining))
    return float((to_come.sum(axis=1) >= -differences.sum() - 1e-9).mean())


def blocks_of(order: Sequence[int]) -> list[Sequence[int]]:
    """Eight blocks, but none under 12 examples: a test on fewer can hardly reject anything."""
    count = max(1, min(8, len(order) // 12))
    bounds = [round(i * len(order) / count) for i in range(count + 1)]
    return [order[a:b] for a, b in pairwise(bounds)]


def _drop(
    candidates: Sequence[Candidate],
    outcomes: dict[int, list[Outcome]],
    dropped: dict[int, str],
    threshold: float,
    size: int,
    seed: int,
) -> None:
    alive = [i for i in outcomes if i not in dropped]
    scores = {i: [o.score for o in outcomes[i]] for i in alive}
    leader = max(alive, key=lambda i: (sum(scores[i]), -i))
    for i in alive:
        if i == 0:
            continue
        seen, first = len(scores[i]), candidates[leader].name
        if (p := paired_p_value(scores[leader], scores[i], seed)) < threshold:
            dropped[i] = f"beaten by {first} on {seen} examples (p={p:.2g} < {threshold:.2g})"
        elif (chance := chance_to_lead(scores[i], scores[leader], size - seen, seed)) < HOPELESS:
            dropped[i] = f"behind {first} after {seen} examples, with a chance of {chance:.0%} to overtake it"
