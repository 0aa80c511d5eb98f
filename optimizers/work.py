"""What candidates cost to run, in tokens, by a measure that is the same in every run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .candidate import Candidate
from .context import Standing

SHARE = 0.25
"""Of the work of all passes before it, what a pass may do in a row that brings no gain."""


def work(standing: Standing) -> int:
    """Tokens that the model has to compute for a candidate's runs, about.

    What all its prompts begin with is computed once: where demonstrations are fixed, that is taken to be the shortest
    prompt; where they are chosen per input, nothing. How much a cache really had depends on what else ran, so it is not
    asked.
    """
    prompts = [outcome.prompt_tokens for outcome in standing.outcomes]
    decoded = sum(outcome.decoded_tokens for outcome in standing.outcomes)
    if standing.candidate.per_input:
        return sum(prompts) + decoded
    shared = min(prompts, default=0)
    return sum(prompts) - shared * max(0, len(prompts) - 1) + decoded


def total_work(standings: Iterable[Standing]) -> int:
    """Of several candidates; those that ask the same count once, by the longest run."""
    largest: dict[str, int] = {}
    for standing in standings:
        key = _question(standing.candidate)
        largest[key] = max(largest.get(key, 0), work(standing))
    return sum(largest.values())


def _question(candidate: Candidate) -> str:
    """Equal for candidates that ask the model the same: a compile remembers what it answered, and calibrations are all its
    own."""
    return candidate.uncalibrated().digest


class Allowance:
    """The work that a pass may do without a gain: `SHARE` of that of the passes before it. Where they did none, any."""

    def __init__(self, history: Sequence[Standing]) -> None:
        self._left = self._whole = SHARE * total_work(history) or math.inf
        self._asked = {_question(standing.candidate) for standing in history}

    def book(self, standing: Standing, gained: bool) -> None:
        """Count a candidate's runs, if they asked anything new; after a gain all is allowed again."""
        asked = _question(standing.candidate)
        spent = 0 if asked in self._asked else work(standing)
        self._asked.add(asked)
        self._left = self._whole if gained else self._left - spent

    @property
    def is_spent(self) -> bool:
        """Whether more than is allowed has brought nothing."""
        return self._left < 0
