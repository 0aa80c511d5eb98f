"""What a model prefers among options before it has seen any input."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..signatures.executor import Completion
from ..signatures.plan import Decode, Plan, Turn

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Inputs without content."""


class ContextPrior:
    """Takes out a model's preference for some options: contextual calibration (Zhao, Wallace, Feng, Klein and Singh,
    Calibrate Before Use, 2021). A plan is run once on inputs without content, and each option's bias becomes minus the log
    of its mean probability there. Only for plans without demonstrations and without a fitted calibration. Thread-safe; a
    plan is measured once.
    """

    def __init__(self, run: Callable[[Plan, Sequence[str]], list[Completion]]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._known: dict[str, Plan] = {}

    def is_known(self, plan: Plan) -> bool:
        """Whether `correct` answers at once."""
        return not _needs_prior(plan) or plan.digest in self._known

    def correct(self, plan: Plan) -> Plan:
        """The plan with a bias for every output that is scored."""
        if not _needs_prior(plan):
            return plan
        with self._lock:
            if plan.digest not in self._known:
                self._known[plan.digest] = _biased(plan, self._run(plan, CONTENT_FREE))
            return self._known[plan.digest]


def _needs_prior(plan: Plan) -> bool:
    shown = sum(turn.role == "assistant" for turn in plan.turns) > 1
    scored = [step.scoring for step in plan.decodes if step.scoring is not None]
    return bool(scored) and bool(plan.slots) and not shown and not any(scoring.bias for scoring in scored)


def _biased(plan: Plan, runs: Sequence[Completion]) -> Plan:
    parts = tuple(_with_bias(part, runs) if isinstance(part, Decode) else part for part in plan.turns[-1].parts)
    return Plan((*plan.turns[:-1], Turn(plan.turns[-1].role, parts)))


def _with_bias(step: Decode, runs: Sequence[Completion]) -> Decode:
    if step.scoring is None:
        return step
    from .engine import option_probabilities

    shares = [option_probabilities(list(run.scores[step.field].values())) for run in runs]
    means = [math.fsum(column) / len(runs) for column in zip(*shares, strict=True)]
    return replace(step, scoring=replace(step.scoring, bias=tuple(-math.log(max(mean, 1e-12)) for mean in means)))
