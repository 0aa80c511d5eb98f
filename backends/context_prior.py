"""What a model prefers among options before it has seen any input."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from ..signatures.plan import Decode, Part, Plan
from ..signatures.values import value_text

TEXTS = 4
"""Inputs without content per size."""
MOST_WORDS = 256
COMMON = (
    "the of and to a in is it you that he was for on are with as I his they be at one have this from or had by but some "
    "what there we can out other were all your when up use word how said an each she which do their time if will way "
    "about many then them would write like so these her long make thing see him two has look more day could go come did "
    "my no most number who over know than call first people may down side been now find any new work part take get place"
)
"""English words about nothing."""
WORDS = tuple(COMMON.split())

Sizes = tuple[tuple[str, int], ...]
"""Words of each input, rounded to a power of two."""
Biases = tuple[tuple[str, tuple[float, ...]], ...]
"""By the name of the step that is scored, one for each option."""
Scores = Mapping[str, Sequence[float]]
"""Of one run: log-probabilities of the options, by the name of the step that is scored."""


class ContextPrior:
    """Takes out a model's preference for some options: contextual calibration (Zhao, Wallace, Feng, Klein and Singh,
    Calibrate Before Use, 2021). An option's bias becomes minus the log of its mean probability on inputs without content.

    Those are random common words, about as many as the input has (after Fei, Hou, Chen and Bosselut, Mitigating Label
    Biases for In-context Learning, 2023, who take words of the task's own data): what a model prefers after a word or two
    is not what it prefers after a page. Only for plans without demonstrations and without a fitted calibration. Thread-safe;
    a plan is measured once for each size. Of what `run` gets answered only scores are looked at: an answer to words without
    content need not be one that its type takes, and is cut off after the last that is scored.
    """

    def __init__(self, run: Callable[[Plan, Sequence[Mapping[str, str]]], list[Scores]]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._known: dict[tuple[str, Sizes], Biases] = {}

    def is_known(self, plan: Plan, inputs: Mapping[str, object]) -> bool:
        """Whether `correct` answers at once."""
        return not _needs_prior(plan) or (_measured(plan).digest, sizes(plan, inputs)) in self._known

    def correct(self, plan: Plan, inputs: Mapping[str, object]) -> Plan:
        """The plan with a bias for every output that is scored."""
        if not _needs_prior(plan):
            return plan
        measured = _measured(plan)
        key = measured.digest, sizes(plan, inputs)
        with self._lock:
            if key not in self._known:
                self._known[key] = _biases(measured, self._run(measured, without_content(key[1])))
            biases = self._known[key]
        return _with(biases, plan)


def sizes(plan: Plan, inputs: Mapping[str, object]) -> Sizes:
    """How long a plan's inputs are; one that is missing has no words."""
    return tuple((name, _rounded(len(value_text(inputs.get(name, ""), name).split()))) for name in plan.slots)


def without_content(sizes: Sizes) -> list[dict[str, str]]:
    """`TEXTS` inputs of these sizes that say nothing, the same in every process."""
    return [{name: _words(count, f"{name}/{i}") for name, count in sizes} for i in range(TEXTS)]


@lru_cache(maxsize=1024)
def _words(count: int, seed: str) -> str:
    draw = random.Random(f"{count}/{seed}")
    return " ".join(draw.choice(WORDS) for _ in range(count))


def _rounded(words: int) -> int:
    return min(MOST_WORDS, 2 ** round(math.log2(words))) if words else 0


def _needs_prior(plan: Plan) -> bool:
    shown = sum(turn.role == "assistant" for turn in plan.turns) > 1
    scored = [step.scoring for step in plan.decodes if step.scoring is not None]
    return bool(scored) and bool(plan.slots) and not shown and not any(scoring.bias for scoring in scored)


def _measured(plan: Plan) -> Plan:
    """What of a plan an option's bias depends on: no call's own constraints, and nothing after the last scored output."""
    return _until_scored(plan.origin or plan)


@lru_cache(maxsize=256)
def _until_scored(plan: Plan) -> Plan:
    answer = plan.turns[-1].parts
    last = max(i for i, part in enumerate(answer) if isinstance(part, Decode) and part.scoring is not None)
    return plan.answering(answer[: last + 1])


def _biases(plan: Plan, runs: Sequence[Scores]) -> Biases:
    return tuple((step.name, _bias([run[step.name] for run in runs])) for step in plan.decodes if step.scoring is not None)


def _bias(runs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    from .engine import option_probabilities

    shares = [option_probabilities(scores) for scores in runs]
    means = [math.fsum(column) / len(runs) for column in zip(*shares, strict=True)]
    return tuple(-math.log(max(mean, 1e-12)) for mean in means)


@lru_cache(maxsize=256)
def _with(biases: Biases, plan: Plan) -> Plan:
    known = dict(biases)

    def part_with(part: Part) -> Part:
        if not isinstance(part, Decode) or part.scoring is None:
            return part
        return replace(part, scoring=replace(part.scoring, bias=known[part.name]))

    return plan.answering(tuple(map(part_with, plan.turns[-1].parts)), plan.origin)
