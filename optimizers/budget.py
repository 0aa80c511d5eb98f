"""What a compile may spend, and what it has spent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..backends.meter import Meter
from ..errors import StillError
from .context import Outcome


class OutOfBudget(Exception):  # noqa: N818 - not an error: a pass that meets it returns the best it has
    """Raised by `EvaluationContext.evaluate` before a batch that would begin beyond the budget."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a compile; None is no limit. Checked before every batch of examples, so that it is overshot by less than
    one batch (64 examples).

    calls, tokens: of language models, those of a teacher and of a judge included; tokens are prompt (cached or not) and
    decoded tokens. Rows taken from the ledger count with what they cost when they were run, so that a compile that was
    interrupted ends where an unbroken one does. seconds: wall time of this run; where the clock stops a compile depends on
    the machine.
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
    asked: Meter = field(default_factory=Meter)
    """What passes ask LMs themselves, outside of any example: a teacher's proposals."""

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self.budget != Budget()

    @property
    def all_calls(self) -> int:
        """Calls so far, of whatever kind."""
        return self.calls + self.asked.calls

    @property
    def all_tokens(self) -> int:
        """Prompt and decoded tokens so far, of whatever kind."""
        return self.tokens + self.asked.prompt_tokens + self.asked.decoded_tokens

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def add(self, outcome: Outcome) -> None:
        """Count a finished example."""
        self.calls += outcome.calls + outcome.metric_calls
        self.tokens += outcome.prompt_tokens + outcome.decoded_tokens + outcome.metric_tokens

    def add_kept(self, tokens: Sequence[int]) -> None:
        """Count requests whose answer was kept, by the tokens each took when it was made."""
        self.calls += len(tokens)
        self.tokens += sum(tokens)

    def spent(self) -> dict[str, float]:
        """Seconds, calls and tokens so far."""
        return {"seconds": self.elapsed, "calls": self.all_calls, "tokens": self.all_tokens}

    def check(self) -> None:
        """Raise `OutOfBudget` if a limit is reached."""
        for name, value in self.spent().items():
            limit = getattr(self.budget, name)
            if limit is not None and value >= limit:
                self.stopped = f"{limit:,g} {name}"
                raise OutOfBudget(f"the budget of {self.stopped} is spent")
