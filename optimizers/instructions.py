"""Instructions: rewrites and ablations, and with a teacher, proposals and reflection on failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..signatures.bridge import Example, Module
from ..signatures.fieldset import special_fields
from .candidate import Candidate, PredictorState, current_state
from .context import PERFECT, EvaluationContext, Forecast, Outcome, PassResult, Standing, is_perfect
from .credit import blame, called, draw_predictor
from .pareto import pick_parent
from .proposals import Failure, proposals
from .racing import measure, race
from .rewrites import rewrites

PROPOSALS = 4
"""Instructions that a teacher proposes for each predictor at first."""
ROUNDS = 6
"""Reflections that follow, each on the failures of one candidate of the Pareto front."""


class Instructions:
    """Try other instructions, predictor by predictor, on top of the demonstrations that won.

    Without a teacher: the rewrites of `rewrites.py`. With one (any dspy.LM): its proposals too, and then reflection: in each
    round a candidate is drawn from the Pareto front over examples, the teacher sees what went wrong with it (the metric's
    feedback) and writes new instructions, which are kept if they race well (after Agrawal et al., GEPA, 2025). In a program
    of several predictors each round is for one of them, drawn by what it lost (`credit.py`), and the teacher is shown what
    that one was asked and what it answered.
    """

    name = "instructions"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Race all proposals, then reflect while there is a teacher."""
        outcomes = context.evaluate(program, baseline, range(len(context.dev)))
        if is_perfect(outcomes):
            return PassResult(baseline, (measure(program, baseline, context),), (f"instructions: {PERFECT}",))
        candidates = [baseline, *self._first(program, baseline, context, outcomes)]
        rounds = ROUNDS if context.proposer is not None else 0
        context.expect((len(candidates) + rounds) * len(context.dev))
        standings = race(program, unique(candidates), context)
        for number in range(rounds):
            standings = self._reflect(program, standings, context, number)
        return PassResult(standings[0].candidate, tuple(standings))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """The rewrites, and for each proposal and reflection the candidate it starts from."""
        predictors = list(_lowered(baseline.apply(program)))
        made = [
            changed(baseline, name, predictor, what, changes)
            for name, predictor in predictors
            for what, changes in rewrites(predictor.signature, context.train)
        ]
        asked = 0 if context.proposer is None else PROPOSALS * len(predictors) + ROUNDS
        # All of it only may be: there is nothing to try where every example is all right.
        return Forecast((baseline,), (*unique(made), *(baseline,) * asked), asked=asked)

    def _first(
        self, program: Module, baseline: Candidate, context: EvaluationContext, outcomes: Sequence[Outcome]
    ) -> Iterator[Candidate]:
        used = called(outcomes)
        for name, predictor in _lowered(baseline.apply(program)):
            if used and name not in used:
                continue  # other instructions would change nothing
            for what, changes in rewrites(predictor.signature, context.train):
                yield changed(baseline, name, predictor, what, changes)
            if context.proposer is not None:
                failures = _failures(name, context.dev, outcomes)
                told = proposals(predictor.signature, context.train, failures, context.proposer, PROPOSALS, context.seed)
                for i, text in enumerate(told):
                    yield changed(baseline, name, predictor, f"proposal {i + 1}", {"instructions": text})

    def _reflect(
        self, program: Module, standings: Sequence[Standing], context: EvaluationContext, number: int
    ) -> list[Standing]:
        """One round: new instructions for one predictor of one candidate, raced against the best."""
        parent = pick_parent(standings, context.seed + number)
        # In the race's order the outcomes' examples are not those of dev: look them up again, which costs nothing.
        outcomes = context.evaluate(program, parent.candidate, range(len(context.dev)))
        predictors = dict(_lowered(parent.candidate.apply(program)))
        name = draw_predictor(list(predictors), blame(context.dev, outcomes), f"{context.seed}/reflection/{number}")
        predictor, failures = predictors[name], _failures(name, context.dev, outcomes)
        told = proposals(predictor.signature, context.train, failures, context.proposer, 1, context.seed * 1000 + number)
        made = [changed(parent.candidate, name, predictor, f"reflection {number + 1}", {"instructions": t}) for t in told]
        known = {standing.candidate.digest for standing in standings}
        if not made or made[0].digest in known:
            return list(standings)
        best = race(program, [standings[0].candidate, *made], context)
        rest = [s for s in standings[1:] if s.candidate.digest not in {b.candidate.digest for b in best}]
        return [*best, *rest]


def unique(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drop candidates that equal an earlier one."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.digest, candidate)
    return list(first.values())


def changed(base: Candidate, name: str, predictor: Any, what: str, changes: dict[str, Any]) -> Candidate:
    """`base` with changes to the state of one predictor."""
    state = base.states.get(name, current_state(predictor))
    fields = {**state.fields}
    for output, settings in changes.get("fields", {}).items():
        fields[output] = {**fields.get(output, {}), **settings}
    new: PredictorState = replace(state, fields=fields, instructions=changes.get("instructions", state.instructions))
    owner = "" if name == "self" else f"{name} "
    prefix = "" if base.name == "baseline" else f"{base.name}, "
    return Candidate(f"{prefix}{owner}{what}", "instructions", {**base.states, name: new}, base.knobs)


def _lowered(program: Module) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in program.named_predictors() if not special_fields(p.signature))


def _failures(name: str, dev: Sequence[Example], outcomes: Sequence[Outcome]) -> list[Failure]:
    """What went wrong in runs that called this predictor, with its own last call where the program has several."""
    return [
        Failure(example, outcome, next((step for step in reversed(outcome.trace) if step.predictor == name), None))
        for example, outcome in zip(dev, outcomes, strict=True)
        if outcome.score < 1.0 and (not outcome.trace or name in called([outcome]))
    ]
