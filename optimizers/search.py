"""Joint search: instructions, demonstrations, decisions and knobs together, proposals guided by a model of what works."""

from __future__ import annotations

from itertools import cycle, islice

from ..signatures.bridge import Module
from .candidate import Candidate
from .context import PERFECT, EvaluationContext, Forecast, PassResult, Standing, is_perfect
from .guide import TRIALS, Guide
from .racing import challenge, gains, race, size
from .space import difference, make_space
from .work import Allowance

PATIENCE = 8
"""Combinations without a gain after which the search ends; those of one knob, tried first, do not count."""


class Search:
    """Combine what earlier passes found, predictor by predictor, with the knobs of the program.

    What is tried next says a `Guide`; each proposal is raced against the best so far, so that a bad one costs a block of
    examples.
    """

    name = "search"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Try up to `TRIALS` combinations; stop early when `PATIENCE` of them in a row bring nothing, or when those that
        brought nothing since the last gain are more work than `work.Allowance` has."""
        space = make_space(program, baseline, context.history)
        if space.size < 2:
            return PassResult(baseline, (), ("nothing to combine: one state per predictor, and no knobs",))
        # The starting point by its own name: combined anew it would be another candidate with the same content.
        start = best = race(program, [baseline], context)[0]
        if is_perfect(best.outcomes):
            return PassResult(baseline, (best,), (f"search: {PERFECT}",))
        found: list[Standing] = []
        since, allowance = 0, Allowance(context.history)
        context.expect(TRIALS * len(context.dev))
        guide = Guide(space, best, context.history, context.seed)
        for values in guide.propose():
            candidate = space.candidate(values, f"search {len(found)}: {difference(space, values)}")
            standing, leads = challenge(program, best.candidate, candidate, context)
            if not standing.outcomes:
                break  # the budget is spent
            guide.learn(standing)
            found.append(standing)
            gained = leads and gains(standing, best, context.seed)
            allowance.book(standing, gained)
            since = 0 if gained else since + (not guide.is_alone(candidate))
            if gained:
                best = standing
            elif leads and size(candidate) <= size(best.candidate):
                best = standing  # ahead by an example or two, which is no reason to go on, nor for more demonstrations
            if len(found) == TRIALS or since > PATIENCE or allowance.is_spent:
                break
        return PassResult(best.candidate, (best, *(s for s in (start, *found) if s is not best)))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """As many combinations as are tried at most: the start, each with one knob turned to another of its values."""
        space = make_space(program, baseline, context.history)
        turned = [space.candidate(values, difference(space, values)) for _, values in space.turned()]
        trials = int(min(space.size, TRIALS)) if space.size >= 2 else 0
        return Forecast((baseline,), tuple(islice(cycle([baseline, *turned]), max(0, trials - 1))))
