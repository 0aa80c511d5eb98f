"""Which combination a search tries next: a model of what goes with good scores, told everything that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, permutations
from typing import Any

from .candidate import Candidate
from .context import Standing
from .racing import gains
from .space import Space, Values, distributions

TRIALS = 24
"""Combinations that are tried at most."""
ALONE = TRIALS // 2
"""Of these, knobs turned alone at most."""
ASKED = 4 * TRIALS
"""Proposals asked for at most: some have been measured."""
STARTUP = 6
"""Combinations drawn at random where fewer than that have been measured."""


class Guide:
    """Proposes combinations of a space, by a tree-structured Parzen estimator (Bergstra et al., 2011; through optuna).

    First every knob is turned alone. What does harm by itself is not combined with anything, be it a knob that loses to the
    start or a part that an earlier pass has seen lose to what the start has in its place: an interaction seldom makes good
    a part that does harm (effect heredity: Hamada and Wu, 1992), and each of its combinations would cost a block of examples
    to say so.
    """

    def __init__(self, space: Space, start: Standing, history: Sequence[Standing], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)
        self._space, self._start, self._seed = space, start, seed
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._dimensions = distributions(space)
        self._known: dict[str, float] = {}
        """What combinations are worth, by their digest in the space."""
        self._harm: dict[tuple[str, Any], float] = {}
        """What does harm alone: by knob or dimension and its value, what that is worth."""
        self._alone: dict[str, tuple[str, Any]] = {}
        """What is turned in combinations of one knob alone, by digest."""
        self._learn_history(history)
        for path, values in islice(space.turned(), ALONE):
            self._alone[self._digest(values)] = path, values[path]
            self._study.enqueue_trial(values)

    def propose(self) -> Iterator[Values]:
        """Combinations of which nothing is known yet. Each is to be answered by `learn` before the next is asked for."""
        for _ in range(ASKED):
            trial = self._study.ask(self._dimensions)
            values = self._space.settled(trial.params)
            digest = self._digest(values)
            worth = self._known.get(digest, self._harm_in(values))
            if worth is None:
                yield values
                worth = self._known[digest]
            self._study.tell(trial, worth)

    def learn(self, standing: Standing) -> None:
        """What came of a combination that was proposed."""
        digest = standing.candidate.digest
        worth = self._known[digest] = self._worth(standing)
        if digest in self._alone and standing.dropped is not None and worth < 0.0:
            self._harm[self._alone[digest]] = worth

    def is_alone(self, candidate: Candidate) -> bool:
        """Whether it is one of those of which a knob was turned alone."""
        return candidate.digest in self._alone

    def _digest(self, values: Values) -> str:
        return self._space.candidate(values, "").digest

    def _harm_in(self, values: Values) -> float | None:
        """What the most harmful of these values is worth; None where none does harm."""
        return min((self._harm[one] for one in values.items() if one in self._harm), default=None)

    def _learn_history(self, history: Sequence[Standing]) -> None:
        """Tell what earlier passes measured, as far as it lies in the space."""
        import optuna

        measured = self._measured(history)
        for values, standing in measured:
            worth = self._known[self._digest(values)] = self._worth(standing)
            trial = optuna.create_trial(params=values, distributions=self._dimensions, value=worth)
            self._study.add_trial(trial)
        self._known[self._digest(self._space.first)] = 0.0
        for (values, standing), (others, other) in permutations(measured, 2):
            changed = [key for key in values if values[key] != others[key]]
            if len(changed) == 1 and others[changed[0]] == self._space.first[changed[0]]:
                self._learn_part((changed[0], values[changed[0]]), standing, other)

    def _measured(self, history: Sequence[Standing]) -> list[tuple[Values, Standing]]:
        """What earlier passes measured that lies in the space; of what was measured twice, the longer run."""
        longest = {s.candidate.digest: s for s in sorted(history, key=lambda s: len(s.outcomes)) if s.outcomes}
        found = [(self._space.values(standing.candidate), standing) for standing in longest.values()]
        return [(values, standing) for values, standing in found if values is not None]

    def _learn_part(self, part: tuple[str, Any], standing: Standing, other: Standing) -> None:
        """A part in the place of the start's, nothing else being different: it does harm where it is worse beyond luck."""
        if gains(other, standing, self._seed):
            self._harm[part] = min(self._harm.get(part, 0.0), _mean_difference(standing, other))

    def _worth(self, standing: Standing) -> float:
        """What a candidate scores more than the start on the examples it has seen: those seen before it was dropped may
        have been easy ones."""
        return _mean_difference(standing, self._start)


def _mean_difference(standing: Standing, other: Standing) -> float:
    """On the examples that both have seen."""
    pairs = list(zip(standing.outcomes, other.outcomes, strict=False))
    return sum(own.score - theirs.score for own, theirs in pairs) / max(1, len(pairs))
