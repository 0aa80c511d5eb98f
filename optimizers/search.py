"""Joint search: instructions, demonstrations, decisions and knobs together, proposals guided by a model of what works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from ..signatures.bridge import Module
from .candidate import Candidate
from .context import PERFECT, EvaluationContext, Forecast, PassResult, Standing, is_perfect
from .racing import challenge, gains, race, size
from .space import Space, difference, distributions, make_space
from .work import total_work, work

TRIALS = 24
"""Combinations that are tried at most."""
ASKED = 4 * TRIALS
"""Proposals asked for at most: some have been measured."""
PATIENCE = 8
"""Trials without a gain after which the search ends."""
STARTUP = 6
"""Combinations drawn at random where fewer than that have been measured."""
SHARE = 0.5
"""Of the work of all passes before it, what the search may do without a gain."""


class Search:
    """Combine what earlier passes found, predictor by predictor, with the knobs of the program.

    Proposals come from a tree-structured Parzen estimator (Bergstra et al., 2011; through optuna), which models which values
    go with good scores; each is raced against the best so far, so that a bad one costs a block of examples.
    """

    name = "search"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Try up to `TRIALS` combinations; stop early when `PATIENCE` of them in a row bring nothing, or when those that
        brought nothing since the last gain come to `SHARE` of the work of the passes before."""
        space = make_space(program, baseline, context.history)
        if space.size < 2:
            return PassResult(baseline, (), ("nothing to combine: one state per predictor, and no knobs",))
        # The starting point by its own name: combined anew it would be another candidate with the same content.
        best = race(program, [baseline], context)[0]
        if is_perfect(best.outcomes):
            return PassResult(baseline, (best,), (f"search: {PERFECT}",))
        start, study, found = best, _study(context.seed), dict[str, Standing]()
        dimensions = distributions(space)
        told = _told(study, space, dimensions, start, context.history)
        known = {space.candidate(space.first, "").digest: start, **told}
        since, wasted, affordable = 0, 0, SHARE * total_work(context.history) or math.inf
        context.expect(TRIALS * len(context.dev))
        for _ in range(ASKED):
            trial = study.ask(dimensions)
            values = space.settled(trial.params)
            candidate = space.candidate(values, f"search {len(found)}: {difference(space, values)}")
            standing = known.get(candidate.digest) or found.get(candidate.digest)
            if standing is not None:
                study.tell(trial, _value(standing, start))
                continue
            standing, leads = challenge(program, best.candidate, candidate, context)
            found[candidate.digest] = standing
            study.tell(trial, _value(standing, start))
            since, wasted = since + 1, wasted + work(standing)
            if leads and gains(standing, best, context.seed):
                best, since, wasted = standing, 0, 0
            elif leads and size(candidate) <= size(best.candidate):
                best = standing  # ahead by an example or two, which is no reason to go on, nor for more demonstrations
            if len(found) == TRIALS or since > PATIENCE or wasted > affordable:
                break
        return PassResult(best.candidate, (best, *(s for s in found.values() if s is not best)))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """As many combinations as are tried at most: the start, each with one knob turned to another of its values."""
        space = make_space(program, baseline, context.history)
        turned = [
            space.candidate(values, f"{path}={value}")
            for path, knob in space.knobs.items()
            for value in (knob.choices if knob.choices is not None else knob.range or ())
            if (values := space.settled({**space.first, path: value})) != space.first
        ]
        trials = int(min(space.size, TRIALS)) if space.size >= 2 else 0
        return Forecast((baseline,), tuple(islice(cycle([baseline, *turned]), max(0, trials - 1))))


def _study(seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _told(
    study: Any, space: Space, dimensions: dict[str, Any], start: Standing, history: Sequence[Standing]
) -> dict[str, Standing]:
    """Tell a study what earlier passes measured, as far as it lies in the space; return that, by the digest it has there."""
    import optuna

    told: dict[str, Standing] = {}
    # Of one that was measured twice, the longer run.
    for standing in {s.candidate.digest: s for s in sorted(history, key=lambda s: len(s.outcomes))}.values():
        values = space.values(standing.candidate)
        if values is not None and standing.outcomes:
            value = _value(standing, start)
            study.add_trial(optuna.create_trial(params=values, distributions=dimensions, value=value))
            told[space.candidate(values, "").digest] = standing
    return told


def _value(standing: Standing, start: Standing) -> float:
    """What a candidate scores more than the start on the examples it has seen: those seen before it was dropped may have
    been easy ones."""
    pairs = list(zip(standing.outcomes, start.outcomes, strict=False))
    return sum(own.score - other.score for own, other in pairs) / max(1, len(pairs))
