"""Pairs to prefer by: of two answers to one prompt, which is better.

They come from sampled answers that the metric ranks, from a classifier's likeliest wrong options, or from the user.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from ...errors import TrainingError
from .row import Row


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to the same prompt, the better one first. `margin`: difference of their scores, above 0.

    Raises `TrainingError` for answers without decoded tokens, of different prompts, or that are the same.
    """

    chosen: Row
    rejected: Row
    margin: float = 1.0

    def __post_init__(self) -> None:
        for name, row in (("chosen", self.chosen), ("rejected", self.rejected)):
            if not any(row.loss):
                raise TrainingError(
                    f"{name} of the pair for {_key(row)} has no decoded token among its {len(row.tokens)}: there is "
                    "nothing to prefer; give an answer that is not empty"
                )
        if self.chosen.tokens == self.rejected.tokens:
            raise TrainingError(
                f"chosen and rejected of the pair for {_key(self.chosen)} are the same {len(self.chosen.tokens)} tokens: "
                "drop the pair, or give two answers that differ"
            )
        if prompt_of(self.chosen) != prompt_of(self.rejected):
            raise TrainingError(
                f"chosen and rejected of the pair for {_key(self.chosen)} have different prompts "
                f"({len(prompt_of(self.chosen))} and {len(prompt_of(self.rejected))} tokens): pair answers to one prompt"
            )
        if not (math.isfinite(self.margin) and self.margin > 0):
            raise TrainingError(f"margin={self.margin} of the pair for {_key(self.chosen)}: give a number above 0")


class Scored(NamedTuple):
    """A sampled answer and what the metric says of it."""

    row: Row
    score: float


def ranked_pairs(
    groups: Iterable[Sequence[Scored]], *, margin: float = 0.0, most: int = 2, seed: int = 0
) -> list[Pair]:  # fmt: skip
    """Pairs of the answers to each example (a group), by the metric.

    margin: a pair needs at least this difference of scores; ties never make one. most: pairs per example: those that
    differ most, and of these first the ones whose answers are not in a pair yet, else by `seed`. An answer that was drawn
    several times counts once, with its mean score. A group's pairs do not depend on the other groups, nor on the order
    of its answers.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise TrainingError(f"margin={margin}: give the least difference of scores, 0 or above")
    if most < 1:
        raise TrainingError(f"most={most} pairs per example: give at least 1")
    return distinct([pair for group in groups for pair in _pairs_of(_merged(group), margin, most, seed)])


def choice_pairs(
    options: Mapping[str, Row], scores: Mapping[str, float], label: str, *, most: int = 1, only_mistakes: bool = True
) -> list[Pair]:  # fmt: skip
    """The label against the likeliest wrong options of a constrained choice.

    options: the row of each option as the answer. scores: the model's log-probability of each. only_mistakes: no pair
    where the label is the likeliest, which is where there is nothing to learn; else the pairs are hard negatives, and
    without mistakes too. All margins are 1: right against wrong.
    """
    if label not in options:
        raise TrainingError(f"label {label!r} is not among the {len(options)} options: correct the label or add the option")
    if missing := [option for option in options if option not in scores]:
        raise TrainingError(f"option {missing[0]!r} has no score: give the log-probability of every option")
    if most < 1:
        raise TrainingError(f"most={most} pairs per example: give at least 1")
    # Sorted by name among equals, so that the order of the options changes nothing.
    wrong = sorted((option for option in options if option != label), key=lambda option: (-scores[option], option))
    if only_mistakes:
        wrong = [option for option in wrong if scores[option] >= scores[label]]
    return [Pair(options[label], options[option]) for option in wrong[:most]]


def given_pairs(records: Iterable[Mapping[str, Any]], to_row: Callable[[Mapping[str, Any], str], Row]) -> list[Pair]:
    """Pairs that a user has written: records with the texts `chosen` and `rejected` beside the inputs.

    to_row: makes the row of a record's inputs with a text as the answer. An optional `margin` is taken over. Raises
    `TrainingError` naming record and field for a text that is missing, empty, or the same on both sides.
    """
    pairs = []
    for i, record in enumerate(records):
        texts = [_text(i, record, name) for name in ("chosen", "rejected")]
        if texts[0] == texts[1]:
            raise TrainingError(f"record {i}: chosen and rejected are both {texts[0]!r}: drop it, or correct one of them")
        margin = record.get("margin", 1.0)
        if not isinstance(margin, (int, float)) or not margin > 0:
            raise TrainingError(f"record {i}: margin={margin!r}: give a number above 0, or leave it out")
        inputs = {key: value for key, value in record.items() if key not in ("chosen", "rejected", "margin")}
        pairs.append(Pair(to_row(inputs, texts[0]), to_row(inputs, texts[1]), float(margin)))
    return distinct(pairs)


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs in order, each once; of equal ones the first."""
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], Pair] = {}
    for pair in pairs:
        seen.setdefault((pair.chosen.tokens, pair.rejected.tokens), pair)
    return list(seen.values())


def prompt_of(row: Row) -> tuple[int, ...]:
    """The tokens before the first that was decoded."""
    return row.tokens[: row.loss.index(True)] if any(row.loss) else row.tokens


def _merged(group: Sequence[Scored]) -> list[Scored]:
    """Each distinct answer once, in an order of its own; answers that hold no decoded token are left out."""
    scores: dict[tuple[int, ...], list[float]] = {}
    rows: dict[tuple[int, ...], Row] = {}
    for row, score in group:
        if not math.isfinite(score):
            raise TrainingError(f"score={score} of an answer to {_key(row)}: a metric gives a number from 0 to 1")
        if any(row.loss):
            rows.setdefault(row.tokens, row)
            scores.setdefault(row.tokens, []).append(score)
    # fsum: the mean must not depend on the order of the draws.
    return [Scored(rows[tokens], math.fsum(scores[tokens]) / len(scores[tokens])) for tokens in sorted(rows)]


def _pairs_of(group: Sequence[Scored], margin: float, most: int, seed: int) -> list[Pair]:
    ordered = [(a, b) if a.score > b.score else (b, a) for a, b in combinations(group, 2)]
    apart = [(a, b) for a, b in ordered if a.score > b.score and a.score - b.score >= margin]
    # Seeded by the answers themselves: what other examples there are makes no difference.
    random.Random(f"{seed} {[scored.row.tokens for scored in group]}").shuffle(apart)
    used: dict[tuple[int, ...], int] = {}
    pairs: list[Pair] = []
    while apart and len(pairs) < most:
        best = min(apart, key=lambda ab: (ab[1].score - ab[0].score, sum(used.get(one.row.tokens, 0) for one in ab)))
        apart.remove(best)
        for one in best:
            used[one.row.tokens] = used.get(one.row.tokens, 0) + 1
        pairs.append(Pair(best[0].row, best[1].row, best[0].score - best[1].score))
    return pairs


def _text(index: int, record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise TrainingError(f"record {index}: {name}={value!r}: give the text of an answer that is not empty")
    return value


def _key(row: Row) -> str:
    return repr(row.key) if row.key else "an example without a key"
