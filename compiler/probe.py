"""Timing a few calls: what one example of each kind of candidate costs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..optimizers.budget import Spending
from ..optimizers.candidate import Candidate
from ..optimizers.context import Outcome
from ..signatures.bridge import Example
from .conclusion import BASELINE
from .context import make_context
from .evaluation import Evaluator
from .identity import program_digest
from .job import refuse_total_failure
from .ledger import Ledger
from .progress import ProgressBar
from .task import Task

PROBED = 8
"""Examples per kind of candidate, side by side, after one alone."""
TEACHER_PROBED = 2
"""Of a teacher, which may be paid for."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Runs of the program on an example, with the LM calls, prompt and decoded tokens, and seconds they take. computed:
    tokens that are not shared with an earlier prompt."""

    example_runs: int = 0
    calls: int = 0
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.example_runs + other.example_runs,
            self.calls + other.calls,
            self.tokens + other.tokens,
            self.computed + other.computed,
            self.seconds + other.seconds,
        )


    def at_most(self, other: Cost) -> Cost:
        """The larger of the two, number by number."""
        return Cost(*(max(getattr(self, name), getattr(other, name)) for name in Cost.__slots__))


@dataclass(frozen=True, slots=True)
class Rate:
    """Cost of the first example of a candidate, which computes what the others share, and of one of those on average."""

    first: Cost
    others: Cost
    """Of all of them together, `others.example_runs` many."""

    def of(self, count: int) -> Cost:
        """Cost of `count` examples."""
        if count < 1:
            return Cost()
        others = self.others if self.others.example_runs else self.first
        share = (count - 1) / others.example_runs
        return self.first + Cost(
            count - 1,
            round(share * others.calls),
            round(share * others.tokens),
            round(share * others.computed),
            share * others.seconds,
        )


class Probe:
    """Runs candidates of a task on a few examples, one candidate of a kind."""

    def __init__(self, task: Task, ledger: Ledger) -> None:
        self._task = task
        self.runs, self.seconds = 0, 0.0
        self.context = make_context(task, program_digest(task.program), ledger, "estimate", ProgressBar(False), Spending())
        self._rates: dict[str, Rate] = {}

    def cost(self, candidate: Candidate, count: int) -> Cost:
        """Of running it on `count` dev examples."""
        key = kind(candidate)
        if key not in self._rates:
            self._rates[key] = self._measure(self.context.evaluator, candidate, list(self._task.dev)[: PROBED + 1])
        return self._rates[key].of(count)

    def teacher_cost(self, count: int) -> Cost:
        """Of `count` runs with the teacher."""
        if self._task.proposer is None:
            return self.cost(BASELINE, count)
        if count and "teacher" not in self._rates:
            shown = list(self._task.train)[: TEACHER_PROBED + 1]
            self._rates["teacher"] = self._measure(self.context.teacher, BASELINE, shown)
        return self._rates["teacher"].of(count) if count else Cost()

    def asking_cost(self, count: int, tokens: int) -> Cost:
        """Of `count` questions of so many tokens to the teacher, at the speed of its runs."""
        if not count:
            return Cost()
        run = self.teacher_cost(2)
        return Cost(0, count, count * tokens, count * tokens, count * tokens * run.seconds / max(1, run.tokens))

    def _measure(self, evaluator: Evaluator, candidate: Candidate, examples: list[Example]) -> Rate:
        warm, seconds = self._timed(evaluator, candidate, examples[:1])
        rest, rest_seconds = self._timed(evaluator, candidate, examples[1:])
        refuse_total_failure([*warm, *rest])
        return Rate(_sum(warm, seconds), _sum(rest, rest_seconds))

    def _timed(self, evaluator: Evaluator, candidate: Candidate, examples: list[Example]) -> tuple[list[Outcome], float]:
        started = time.perf_counter()
        outcomes = evaluator.evaluate(candidate, examples, "dev") if examples else []
        seconds = time.perf_counter() - started
        self.runs += len(outcomes)
        self.seconds += seconds
        return outcomes, seconds


def kind(candidate: Candidate) -> str:
    """What decides what a candidate costs: its demonstrations' number and choice, how it decides, and its knobs."""
    states = [
        (
            name, len(s.demonstrations) if s.nearest is None else 0, s.nearest or 0, str(s.neighbours),
            repr(sorted(s.fields.items())),
        )
        for name, s in sorted(candidate.states.items())
    ]
    return repr((states, sorted(candidate.knobs.items())))


def _sum(outcomes: list[Outcome], seconds: float) -> Cost:
    tokens = sum(o.prompt_tokens + o.decoded_tokens + o.metric_tokens for o in outcomes)
    return Cost(
        example_runs=len(outcomes),
        calls=sum(o.calls + o.metric_calls for o in outcomes),
        tokens=tokens,
        computed=tokens - sum(o.cached_tokens for o in outcomes),
        seconds=seconds,
    )
