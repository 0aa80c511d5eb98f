"""Few-shot demonstrations: labelled, bootstrapped, taught, and nearest to the input."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..errors import ModelError
from ..signatures.bridge import Module
from .balanced import balanced
from .bootstrap import ATTEMPTS, BATCH, DRAWS, best_of, bootstrap, passing
from .budget import OutOfBudget
from .candidate import Candidate, Demonstration, PredictorState, unique
from .context import EvaluationContext, Forecast, PassResult, Rollout, Standing
from .decisions import Decisions, may_lean
from .neighbours import WORDS, Neighbours
from .pools import labelled_pools, may_be_taught, taught_pools, traced_pools
from .racing import challenge, gains, joined, order_of, race
from .selection import CONFIDENCE

COUNTS = (4, 8)
"""Demonstrations per call that are tried."""
FEWER = COUNTS[0] // 2
LONG_CALL = 1500
"""Prompt tokens of a call with the nearest demonstrations from which on `FEWER` of them are tried, not more: they are what
costs most then, and a small model loses its way among them."""
LOOKED_AT = 12
"""Calls that tell how long those of a candidate are."""
_DRAWS = {"labelled": 2, "bootstrapped": 1, "taught": 1}
"""Kinds of fixed demonstrations, and how often they are drawn."""


class Demonstrations:
    """Choose demonstrations: none; labelled (random draws); bootstrapped (traces of the program or a teacher that pass the
    metric or come nearest to it; after Khattab et al., DSPy, 2023); taught (what other steps gave a predictor in a run, with
    the labels as its answers); or the labelled examples nearest to each input (Liu et al., 2022), by the vectors of the
    context's embedder, or where there is none by words.

    Where all that a program says is options, and these can lean towards those whose examples an input is near to, the
    nearest are shown only if that is a gain over their nearness, and no others are tried."""

    name = "demonstrations"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Race the nearest against the baseline on dev, then all other kinds against the best of those: what is far behind
        is told from a strong leader soonest."""
        labelled = labelled_pools(program, context)
        nearest, missing = _nearest(labelled, baseline, context)
        near = _by_nearness(program, baseline, nearest, context)
        if near.winner is not baseline:
            return near
        more = _runs_tell_more(program, labelled)
        attempts, kinds = min(ATTEMPTS, len(context.train)), 1 + sum(_DRAWS.values()) if labelled else 2
        context.expect(attempts * (DRAWS if more else 1) + (1 + kinds * len(COUNTS)) * len(context.dev))
        standings = _race_nearest(program, baseline, nearest, context)
        teacher = _drawn("labelled", labelled, COUNTS[0], baseline, context.seed)[0] if labelled else baseline
        rollouts = bootstrap(program, teacher, context, again=more)
        shown = best_of(rollouts, max(COUNTS)) if more else passing(rollouts)
        pools = {
            "labelled": labelled,
            "bootstrapped": traced_pools(program, shown),
            "taught": taught_pools(program, rollouts, shown, labelled, context),
        }
        standings = _race_fixed(program, baseline, pools, standings, context)
        notes = _notes(program, labelled, rollouts, shown)
        return PassResult(standings[0].candidate, tuple(joined(standings, near.standings)), (*missing, *notes))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """The candidates of `run`; bootstrapped demonstrations are taken to be as long as labelled ones."""
        labelled = labelled_pools(program, context)
        few, more = (_drawn("labelled", labelled, count, baseline, context.seed) for count in COUNTS)
        bootstrapped = [*few[:1], *more[:1]] or [baseline] * len(COUNTS)
        nearest, _ = _nearest(labelled, baseline, context)
        taught = bootstrapped if may_be_taught(program, labelled, context) else []
        attempts, again = min(ATTEMPTS, len(context.train)), _runs_tell_more(program, labelled)
        sure, possible = (baseline, *few, *nearest[:1]), (*more, *nearest[1:2], *bootstrapped, *taught)
        batch = attempts if again else min(BATCH, attempts)
        if may_lean(program, baseline, context):
            scored = Decisions().forecast(program, baseline, context).candidates
            sure, possible, batch = (baseline, *scored, *nearest[:1]), (*few, *possible), 0
        return Forecast(sure, possible, rollouts=batch, further=attempts * (DRAWS if again else 1) - batch)


def _runs_tell_more(program: Module, labelled: Mapping[str, Any]) -> bool:
    """Whether a predictor has inputs or outputs that only a run shows, and no label."""
    return len(labelled) < len(program.named_predictors())


def _drawn(
    kind: str, pools: dict[str, list[Demonstration]], count: int, baseline: Candidate, seed: int
) -> list[Candidate]:
    """The baseline with balanced random draws of so many from each pool. Two of labelled ones: which examples are drawn
    matters more than how many."""
    found = []
    for draw in "ab"[: _DRAWS[kind]] if pools else "":
        name = f"{kind}-{count}{draw if _DRAWS[kind] > 1 else ''}"
        rng = random.Random(f"{seed}/{name}")
        shown = {each: tuple(_balanced(pool, count, rng)) for each, pool in pools.items()}
        states = {each: replace(_state(baseline, each), demonstrations=given, nearest=None) for each, given in shown.items()}
        found.append(_showing(baseline, name, kind, states))
    return found


def _state(baseline: Candidate, predictor: str) -> PredictorState:
    return baseline.states.get(predictor, PredictorState())


def _showing(baseline: Candidate, name: str, origin: str, states: Mapping[str, PredictorState]) -> Candidate:
    prefix = "" if baseline.name == "baseline" else f"{baseline.name}, "
    return Candidate(f"{prefix}{name}", origin, {**baseline.states, **states}, baseline.knobs)


def _nearest(
    pools: dict[str, list[Demonstration]], baseline: Candidate, context: EvaluationContext
) -> tuple[list[Candidate], tuple[str, ...]]:
    """The candidates, of `COUNTS` and `FEWER`, and why they are chosen by words though an embedder was asked for."""
    if not pools:
        return [], ()
    try:
        if context.embedder is not None:
            context.report(f"loading {context.embedder}")  # the first time it is fetched
        neighbours, missing = Neighbours.by(context.embedder), []
    except ModelError as error:
        neighbours, missing = WORDS, [f"nearest demonstrations are chosen by words: {error}"]
    found = []
    for count in (*COUNTS, FEWER):
        states = {
            name: replace(_state(baseline, name), demonstrations=tuple(pool), nearest=count, neighbours=neighbours)
            for name, pool in pools.items()
        }
        found.append(_showing(baseline, f"nearest-{count}", "nearest", states))
    return found, tuple(missing)


def _by_nearness(
    program: Module, baseline: Candidate, nearest: Sequence[Candidate], context: EvaluationContext
) -> PassResult:
    """The program decided without demonstrations, its options leaning towards those of like examples, or with a few of the
    nearest shown too where that is a gain, or with more. The baseline where nearness tells nothing."""
    if not nearest or not may_lean(program, baseline, context):
        return PassResult(baseline, ())
    best = Decisions().run(program, baseline, context)
    if best.winner is baseline or not all(state.leans for state in best.winner.states.values()):
        return PassResult(baseline, best.standings)
    none = best.winner.uncalibrated()
    few, more, fewer = (_decided_as(none, candidate) for candidate in nearest)
    standings, told = best.standings, [f"{best.standings[0].mean:.3f} by nearness alone"]
    with suppress(OutOfBudget):  # the best until then
        for before, shown in [(none, fewer)] if _is_long(program, few, context) else [(none, few), (few, more)]:
            raced, _ = challenge(program, before, shown, context)
            if raced.was_raced_away:  # all else the same, so before any calibration
                standings = (*standings, raced)
                told.append(f"{raced.mean:.3f} with {shown.demonstration_count} of the nearest, uncalibrated")
                break
            found = Decisions().run(program, shown, context)
            standings = (*standings, *found.standings)
            told.append(f"{found.standings[0].mean:.3f} with {shown.demonstration_count} of the nearest")
            if not gains(found.standings[0], best.standings[0], context.seed):
                break
            best = found
    note = f"demonstrations: {', '.join(told)}; no others were tried"
    return PassResult(best.winner, standings, (note,), best.calibrations)


def _is_long(program: Module, candidate: Candidate, context: EvaluationContext) -> bool:
    """Whether the candidate's calls are long, by the first few."""
    first = order_of(context)[:LOOKED_AT]
    return _call_tokens(Standing(candidate, tuple(context.evaluate(program, candidate, first)))) > LONG_CALL


def _decided_as(decided: Candidate, shown: Candidate) -> Candidate:
    """These demonstrations, with what is scored as in `decided`."""
    states = {name: replace(state, fields=decided.states[name].fields) for name, state in shown.states.items()}
    return replace(shown, states=states)


def _race_nearest(
    program: Module, baseline: Candidate, nearest: Sequence[Candidate], context: EvaluationContext
) -> list[Standing]:
    """Race the nearest demonstrations, more of them only where few of them bring a gain: no two inputs share theirs,
    so that they are what costs most. Where calls are long with few of them, fewer are tried in place of more. The best
    comes first, or the baseline where a selection would keep that."""
    if not nearest:
        return race(program, [baseline], context)
    few, more, fewer = nearest
    standings = race(program, [baseline, few], context)
    none, some = (next(s for s in standings if s.candidate is each) for each in (baseline, few))
    if not _is_kept(some, none, context):
        return [none, some]
    if not gains(some, none, context.seed):
        return standings
    found, leads = challenge(program, few, fewer if _call_tokens(some) > LONG_CALL else more, context)
    return [found, *standings] if leads else [*standings, found]


def _race_fixed(
    program: Module,
    baseline: Candidate,
    pools: dict[str, dict[str, list[Demonstration]]],
    standings: list[Standing],
    context: EvaluationContext,
) -> list[Standing]:
    """Race draws from the pools of each kind against the best so far, more demonstrations only of kinds of which fewer hold
    out, and are better than none. The best comes first."""
    none = next(s for s in standings if s.candidate is baseline)
    kinds = set(pools)
    for count in COUNTS:
        asked = [(kind, pool, count, baseline, context.seed) for kind, pool in pools.items() if kind in kinds]
        drawn = [candidate for one in asked for candidate in _drawn(*one)]
        raced = race(program, unique([standings[0].candidate, *drawn]), context)
        standings = [*raced, *standings]
        kinds = {s.candidate.origin for s in raced if _is_kept(s, none, context)}
    return standings


def _call_tokens(standing: Standing) -> float:
    """Prompt tokens of a call, on average."""
    calls = sum(outcome.calls for outcome in standing.outcomes)
    return sum(outcome.prompt_tokens for outcome in standing.outcomes) / max(1, calls)


def _is_kept(standing: Standing, none: Standing, context: EvaluationContext) -> bool:
    """Whether these demonstrations held out, and a selection would keep them rather than none. Upon others nothing is
    built."""
    return standing.dropped is None and gains(standing, none, context.seed, 1.0 - CONFIDENCE)


def _balanced(pool: Sequence[Demonstration], count: int, rng: random.Random) -> list[Demonstration]:
    """Draw `count`, preferring output values not shown yet, so that a small prompt names as many labels as it can."""
    rest = list(pool)
    rng.shuffle(rest)
    # Calls of one predictor need not have been given the same inputs.
    return balanced(rest, count, list(dict.fromkeys(name for demonstration in pool for name in demonstration)))


def _notes(
    program: Module,
    labelled: Mapping[str, Any],
    rollouts: Sequence[Rollout],
    shown: Sequence[Rollout],
) -> tuple[str, ...]:
    """What kinds were left out, and why."""
    notes = (
        [] if labelled else ["no predictor has all its fields in the dataset: labelled and nearest demonstrations left out"]
    )
    if rollouts and not passing(rollouts):
        notes.append(f"none of {len(rollouts)} training examples gave a trace that passed the metric")
    if others := sorted(rollout.score for rollout in shown if rollout.score < 1.0):
        notes.append(f"bootstrapped from {len(others)} runs too that did not pass, of {others[0]:.2f} to {others[-1]:.2f}")
    return (*notes, *_uncalled(program, rollouts, shown))


def _uncalled(program: Module, rollouts: Sequence[Rollout], shown: Sequence[Rollout]) -> list[str]:
    """Why a predictor was given no demonstrations of its own, where others were."""
    called = {step.predictor for rollout in rollouts for step in rollout.trace}
    passed = {step.predictor for rollout in shown for step in rollout.trace}
    notes = []
    for name in [name for name, _ in program.named_predictors() if passed and name not in passed]:
        why = f"never called in {len(rollouts)} runs" if name not in called else "called in no run that passed the metric"
        notes.append(f"predictor {name!r} was {why}: no demonstrations bootstrapped for it")
    return notes
