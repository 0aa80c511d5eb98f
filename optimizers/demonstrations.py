"""Few-shot demonstrations: labelled, bootstrapped, taught, and nearest to the input."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..errors import ModelError
from ..signatures.bridge import Example, Module
from ..signatures.layout import is_complete
from .balanced import balanced
from .bootstrap import ATTEMPTS, BATCH, DRAWS, best_of, bootstrap, passing
from .candidate import Candidate, Demonstration, PredictorState, asked_signature, unique
from .context import EvaluationContext, Forecast, PassResult, Rollout, Standing
from .neighbours import WORDS, Neighbours
from .racing import challenge, gains, race
from .selection import CONFIDENCE
from .taught import lessons

COUNTS = (4, 8)
"""Demonstrations per call that are tried."""
FEWER = COUNTS[0] // 2
LONG_CALL = 1500
"""Prompt tokens of a call with the nearest demonstrations from which on `FEWER` of them are tried, not more: they are what
costs most then, and a small model loses its way among them."""
_DRAWS = {"labelled": 2, "bootstrapped": 1, "taught": 1}
"""Kinds of fixed demonstrations, and how often they are drawn."""


class Demonstrations:
    """Choose demonstrations: none; labelled (random draws); bootstrapped (traces of the program or a teacher that pass the
    metric or come nearest to it; after Khattab et al., DSPy, 2023); taught (what other steps gave a predictor in a run, with
    the labels as its answers); or the labelled examples nearest to each input (Liu et al., 2022), by the vectors of the
    context's embedder, or where there is none by words."""

    name = "demonstrations"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Race the nearest against the baseline on dev, then all other kinds against the best of those: what is far behind
        is told from a strong leader soonest."""
        labelled = labelled_pools(program, context)
        more = _runs_tell_more(program, labelled)
        attempts, kinds = min(ATTEMPTS, len(context.train)), 1 + sum(_DRAWS.values()) if labelled else 2
        context.expect(attempts * (DRAWS if more else 1) + (1 + kinds * len(COUNTS)) * len(context.dev))
        nearest, missing = _nearest(labelled, baseline, context)
        standings = _race_nearest(program, baseline, nearest, context)
        teacher = _drawn("labelled", labelled, COUNTS[0], baseline, context.seed)[0] if labelled else baseline
        rollouts = bootstrap(program, teacher, context, again=more)
        shown = best_of(rollouts, max(COUNTS)) if more else passing(rollouts)
        pools = {
            "labelled": labelled,
            "bootstrapped": _traced_pools(program, shown),
            "taught": _taught_pools(program, rollouts, shown, labelled, context),
        }
        standings = _race_fixed(program, baseline, pools, standings, context)
        notes = _notes(program, labelled, rollouts, shown)
        return PassResult(standings[0].candidate, tuple(standings), (*missing, *notes))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """The candidates of `run`; bootstrapped demonstrations are taken to be as long as labelled ones."""
        labelled = labelled_pools(program, context)
        few, more = (_drawn("labelled", labelled, count, baseline, context.seed) for count in COUNTS)
        bootstrapped = [*few[:1], *more[:1]] or [baseline] * len(COUNTS)
        nearest, _ = _nearest(labelled, baseline, context)
        taught = bootstrapped if _may_be_taught(program, labelled, context) else []
        attempts, again = min(ATTEMPTS, len(context.train)), _runs_tell_more(program, labelled)
        sure = attempts if again else min(BATCH, attempts)
        return Forecast(
            (baseline, *few, *nearest[:1]), (*more, *nearest[1:2], *bootstrapped, *taught),
            rollouts=sure, further=attempts * (DRAWS if again else 1) - sure,
        )  # fmt: skip


def labelled_pools(program: Module, context: EvaluationContext) -> dict[str, list[Demonstration]]:
    """Training examples per predictor, for predictors whose inputs and outputs are all columns of the dataset."""
    pools: dict[str, list[Demonstration]] = {}
    for name, predictor in program.named_predictors():
        signature = predictor.signature
        needed = [*signature.input_fields, *signature.output_fields]
        if not set(signature.input_fields) <= context.input_fields:
            continue  # fed by another predictor: a column of the same name would not be what it sees
        pool = [_pick(example, needed) for example in context.train if all(f in example for f in needed)]
        if pool:
            pools[name] = pool
    return pools


def _runs_tell_more(program: Module, labelled: Mapping[str, Any]) -> bool:
    """Whether a predictor has inputs or outputs that only a run shows, and no label."""
    return len(labelled) < len(program.named_predictors())


def _pick(example: Example, names: Iterable[str]) -> Demonstration:
    return {name: example[name] for name in names}


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


def _taught_pools(
    program: Module,
    rollouts: Sequence[Rollout],
    shown: Sequence[Rollout],
    labelled: Iterable[str],
    context: EvaluationContext,
) -> dict[str, list[Demonstration]]:
    """Demonstrations from all traces, with labels for answers, for predictors whose inputs are no columns; the others get
    those of the runs that are shown."""
    signatures = {name: signature for name, signature in _signatures(program).items() if name not in labelled}
    pools = _pools(lessons(rollouts, signatures, context), signatures)
    return {**_traced_pools(program, shown), **pools} if pools else {}


def _may_be_taught(program: Module, labelled: Iterable[str], context: EvaluationContext) -> bool:
    labels = set(context.train[0].keys() if context.train else ()) - context.input_fields
    return any(
        name not in labelled and set(signature.output_fields) <= labels
        for name, signature in _signatures(program).items()
    )


def _signatures(program: Module) -> dict[str, Any]:
    return {name: asked_signature(predictor) for name, predictor in program.named_predictors()}


def _traced_pools(program: Module, rollouts: Iterable[Rollout]) -> dict[str, list[Demonstration]]:
    """The calls in these runs, by predictor."""
    signatures = _signatures(program)
    steps = (step for rollout in rollouts for step in rollout.trace if step.predictor in signatures)
    return _pools(((step.predictor, {**step.inputs, **step.outputs}) for step in steps), signatures)


def _pools(calls: Iterable[tuple[str, Demonstration]], signatures: dict[str, Any]) -> dict[str, list[Demonstration]]:
    """Demonstrations of these calls, by predictor; a call that was made twice (in a loop, say) once.

    Of a call's values those of the predictor's fields are kept, and a call without a value for each of them is left out: a
    prompt would leave it out. So is one with a value that has no JSON form, which ledger and artifact could not keep.
    """
    pools: dict[str, dict[str, Demonstration]] = {}
    for name, values in calls:
        demonstration = {field: values.get(field) for field in signatures[name].fields}
        if is_complete(signatures[name], values) and _is_plain(demonstration):
            pools.setdefault(name, {}).setdefault(repr(demonstration), demonstration)
    return {name: list(pool.values()) for name, pool in pools.items()}


def _is_plain(values: Demonstration) -> bool:
    try:
        to_jsonable_python(values)
    except PydanticSerializationError:
        return False
    return True


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
