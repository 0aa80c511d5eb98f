"""What a compile may spend, and what it has spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..errors import StillError
from .context import Outcome


class OutOfBudget(Exception):  # noqa: N818 - not an error: a pass that meets it returns the best it has
    """Raised by `EvaluationContext.evaluate` before a batch that would begin beyond the budget."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a compile; None is no limit. Checked before every batch of examples, so that it is overshot by less than
    one batch (64 examples).

    calls, tokens: of language models, the teacher's included; tokens are prompt (cached or not) and decoded tokens. Rows
    taken from the ledger count with what they cost when they were run, so that a compile that was interrupted ends where
    an unbroken one does. seconds: wall time of this run; where the clock stops a compile depends on the machine.
    """

    seconds: float | None = None
    calls: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "calls", "tokens"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise StillError(f"budget: {name}={limit!r}: give a positive number, or leave it out")


@dataclass(slots=True)
class Spending:
    """Counts against a budget."""

    budget: Budget = field(default_factory=Budget)
    calls: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    stopped: str | None = None
    """The limit that was reached, in words; None while there is something left."""

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self.budget != Budget()

    def add(self, outcome: Outcome) -> None:
        """Count a finished example."""
        self.calls += outcome.calls
        self.tokens += outcome.prompt_tokens + outcome.decoded_tokens

    def check(self) -> None:
        """Raise `OutOfBudget` if a limit is reached."""
        spent = {"seconds": time.perf_counter() - self.started, "calls": self.calls, "tokens": self.tokens}
        for name, value in spent.items():
            limit = getattr(self.budget, name)
            if limit is not None and value >= limit:
                self.stopped = f"{limit:,g} {name}"
                raise OutOfBudget(f"the budget of {self.stopped} is spent")
