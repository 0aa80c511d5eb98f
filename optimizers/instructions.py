"""Instructions: rewrites and ablations, and with a teacher, proposals and reflection on failures."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from ..signatures.bridge import Example, Module
from ..signatures.fieldset import special_fields
from .brief import brief
from .budget import OutOfBudget
from .candidate import Candidate, PredictorState, current_state, unique
from .context import PERFECT, EvaluationContext, Forecast, Outcome, PassResult, Standing, is_perfect
from .credit import blame, called, draw_predictor
from .pareto import pick_parent
from .proposals import Failure, proposals
from .racing import challenge, gains, joined, measure, race
from .rewrites import rewrites
from .work import SHARE, Allowance

PROPOSALS = 4
"""Instructions that a teacher proposes for each predictor at first."""
ROUNDS = 6
"""Reflections that follow, each on the failures of one candidate of the Pareto front."""
PRACTICE = 24
"""Train examples that are run for a teacher to see what goes wrong, drawn anew for each round."""


class Instructions:
    """Try other instructions, predictor by predictor, on top of the demonstrations that won.

    First the rewrites of `rewrites.py`, one after the other. Where demonstrations are chosen per input each costs as much as
    those did: those that bring no gain end it when they are more work than `work.Allowance` has. With a teacher
    (any dspy.LM) its proposals follow, and then reflection: in each round a candidate is drawn from the Pareto front over
    dev, the teacher sees what went wrong with it on train examples (the metric's feedback) and writes other instructions,
    which are kept if they race well (after Agrawal et al., GEPA, 2025). In a program of several predictors each round is for
    one of them, drawn by what it lost (`credit.py`), and the teacher is shown what that one was asked and what it answered.
    """

    name = "instructions"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Race all proposals, then reflect while there is a teacher."""
        outcomes = context.evaluate(program, baseline, range(len(context.dev)))
        if is_perfect(outcomes):
            return PassResult(baseline, (measure(program, baseline, context),), (f"instructions: {PERFECT}",))
        standings, notes = _rewritten(program, baseline, context, called(outcomes))
        failed: list[str] = []
        if context.proposer is not None and any(_lowered(baseline.apply(program))):
            with suppress(OutOfBudget):  # what came before it is kept
                standings = self._proposed(program, baseline, standings, context, called(outcomes), failed)
                for number in range(ROUNDS):
                    standings = self._reflect(program, standings, context, number, failed)
        if failed:
            notes = (*notes, f"the teacher failed {len(failed)} times to propose instructions; first: {failed[0]:.300}")
        return PassResult(standings[0].candidate, tuple(standings), notes)

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """The rewrites, and for each proposal and reflection the candidate it starts from, and what is practised."""
        made = _rewrites(program, baseline, context, frozenset())
        asked = 0 if context.proposer is None else PROPOSALS * len(list(_lowered(program))) + ROUNDS
        practised = math.ceil((ROUNDS + 1) * min(PRACTICE, len(context.train)) / len(context.dev)) if asked else 0
        # All of it only may be: there is nothing to try where every example is all right.
        return Forecast((baseline,), (*made, *(baseline,) * (asked + practised)), asked=asked)

    def _proposed(
        self,
        program: Module,
        baseline: Candidate,
        standings: list[Standing],
        context: EvaluationContext,
        used: frozenset[str],
        failed: list[str],
    ) -> list[Standing]:
        """What the teacher proposes, having seen what went wrong at first, raced against the best rewrite."""
        made, told = [], brief(program, context.train, context.input_fields)
        examples, outcomes = _practised(program, baseline, context, "proposals")
        for name, predictor in _used(program, baseline, used):
            failures = _failures(name, examples, outcomes)
            asked = proposals(predictor.signature, failures, context, PROPOSALS, context.seed, told, failed)
            for i, text in enumerate(_said(asked, context)):
                made.append(changed(baseline, name, predictor, f"proposal {i + 1}", {"instructions": text}))
        context.expect((len(made) + ROUNDS) * len(context.dev))
        return joined(race(program, unique([standings[0].candidate, *made]), context), standings)

    def _reflect(
        self, program: Module, standings: Sequence[Standing], context: EvaluationContext, number: int, failed: list[str]
    ) -> list[Standing]:
        """One round: new instructions for one predictor of one candidate, raced against the best."""
        parent, draw = pick_parent(standings, context.seed + number), f"reflection/{number}"
        examples, outcomes = _practised(program, parent.candidate, context, draw)
        if is_perfect(outcomes):
            return list(standings)
        predictors = dict(_lowered(parent.candidate.apply(program)))
        name = draw_predictor(list(predictors), blame(examples, outcomes), f"{context.seed}/{draw}")
        predictor, failures = predictors[name], _failures(name, examples, outcomes)
        seed, told = context.seed * 1000 + number, brief(program, context.train, context.input_fields)
        texts = list(_said(proposals(predictor.signature, failures, context, 1, seed, told, failed), context))
        made = [changed(parent.candidate, name, predictor, f"reflection {number + 1}", {"instructions": t}) for t in texts]
        known = {standing.candidate.digest for standing in standings}
        if not made or made[0].digest in known:
            return list(standings)
        return joined(race(program, [standings[0].candidate, *made], context), standings)


def _practised(
    program: Module, candidate: Candidate, context: EvaluationContext, draw: str
) -> tuple[list[Example], list[Outcome]]:
    """Runs on a draw of train examples: what a teacher learns from it may not have seen the examples that choose."""
    every = range(len(context.train))
    indices = random.Random(f"{context.seed}/{draw}").sample(every, min(PRACTICE, len(every)))
    return [context.train[i] for i in indices], context.practise(program, candidate, indices)


def _said(texts: Iterator[str], context: EvaluationContext) -> Iterator[str]:
    """What the teacher says, asked while there is budget. Raises `OutOfBudget` where there is none."""
    while True:
        context.report("asking the teacher")
        if (text := next(texts, None)) is None:
            return
        yield text


def _rewritten(
    program: Module, baseline: Candidate, context: EvaluationContext, used: frozenset[str]
) -> tuple[list[Standing], tuple[str, ...]]:
    """Race the rewrites one after the other, each against the best so far, which comes first; and what was left out."""
    made = _rewrites(program, baseline, context, used)
    context.expect(len(made) * len(context.dev))
    standings = [measure(program, baseline, context)]
    allowance = Allowance(context.history)
    for number, candidate in enumerate(made):
        if allowance.is_spent:
            left = f"instructions: {len(made) - number} of {len(made)} rewrites left out"
            return standings, (f"{left}: those before had brought no gain for {SHARE:.0%} of all work",)
        found, leads = challenge(program, standings[0].candidate, candidate, context)
        if not found.outcomes:
            break  # the budget is spent
        # Ahead by an example or two it is kept, but it is no reason to go on.
        allowance.book(found, leads and gains(found, standings[0], context.seed))
        standings = [found, *standings] if leads else [*standings, found]
    return standings, ()


def _rewrites(
    program: Module, baseline: Candidate, context: EvaluationContext, used: frozenset[str]
) -> list[Candidate]:
    """The likeliest of every predictor first."""
    made = [
        [
            changed(baseline, name, predictor, what, changes)
            for what, changes in rewrites(predictor.signature, context.train)
        ]
        for name, predictor in _used(program, baseline, used)
    ]
    in_turn = [one for turn in zip_longest(*made) for one in turn if one is not None]
    return [one for one in unique([baseline, *in_turn]) if one is not baseline]


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


def _used(program: Module, baseline: Candidate, used: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """The predictors that instructions can be written for; without those that no run calls, where that is known."""
    return ((name, p) for name, p in _lowered(baseline.apply(program)) if not used or name in used)


def _lowered(program: Module) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in program.named_predictors() if not special_fields(p.signature))


def _failures(name: str, examples: Sequence[Example], outcomes: Sequence[Outcome]) -> list[Failure]:
    """What went wrong in runs that called this predictor, with its own last call where the program has several."""
    return [
        Failure(example, outcome, next((step for step in reversed(outcome.trace) if step.predictor == name), None))
        for example, outcome in zip(examples, outcomes, strict=True)
        if outcome.score < 1.0 and (not outcome.trace or name in called([outcome]))
    ]
