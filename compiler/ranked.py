"""Metrics of programs that return passages: recall, nDCG and reciprocal rank."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import MetricError
from ..signatures.bridge import Example
from . import ranking
from .metric import Metric, Score, short, value_of

Compare = Callable[[list[str], dict[str, float]], float]
"""Ids in the order in which they were found, and a gain by id."""


class RankedMetric(Metric):
    """Compares the ids of a prediction's passages, in order, with those an example says are relevant."""

    def __init__(self, name: str, passages: str, relevant: str, compare: Compare) -> None:
        self.name = name
        self._passages, self._relevant, self._compare = passages, relevant, compare

    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        """The score; its feedback names relevant passages that were not found."""
        gains = self._gains(example)
        found = _ids(value_of(prediction, self._passages, None), gains)
        missed = [key for key, gain in gains.items() if gain > 0 and key not in found]
        return Score(self._compare(found, gains), f"not found: {', '.join(missed[:5])}" if missed else "")

    def _gains(self, example: Example) -> dict[str, float]:
        given = example.get(self._relevant)
        if isinstance(given, str):
            given = _read(given)
        if isinstance(given, Mapping):
            return {str(key): self._gain(key, gain, example) for key, gain in given.items()}
        if not isinstance(given, Sequence | set | frozenset):
            raise MetricError(
                f"metric {self.name}: example {short(example)}: {self._relevant!r} is {given!r:.60}: give ids, "
                "or a gain by id"
            )
        return {str(key): 1.0 for key in given}

    def _gain(self, key: Any, gain: Any, example: Example) -> float:
        try:
            value = float(gain)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if math.isfinite(value):
            return value
        raise MetricError(
            f"metric {self.name}: example {short(example)}: {self._relevant!r} gives {key!r:.60} the gain {gain!r:.60}: "
            "give a number, 0 for what is not relevant"
        )


def _read(text: str) -> Any:
    """One id; or, as a cell of a csv holds them, ids or a gain by id as JSON."""
    if text.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):  # an id may begin so too
            return json.loads(text)
    return [text]


def _ids(passages: Any, wanted: Mapping[str, float]) -> list[str]:
    """Ids in order, each once: of passages, of their plain data as the ledger has it, or ids themselves.

    A passage that is a chunk counts as its document, unless the example names the chunk itself.
    """
    if not isinstance(passages, Sequence) or isinstance(passages, str):
        return []
    found: dict[str, None] = {}
    for item in passages:
        own, document = (_part(item, name) for name in ("id", "document"))
        found[str(own if own in wanted or not document else document)] = None
    return list(found)


def _part(item: Any, name: str) -> Any:
    if isinstance(item, Mapping):
        return item.get(name)
    return getattr(item, name, item if name == "id" else None)


def recall_at(k: int, relevant: str = "relevant", passages: str = "passages") -> Metric:
    """Share of the relevant passages among the first k. relevant: the label with ids, or with a gain by id."""
    _check(k)
    name = f"recall_at({k}, {relevant!r}, {passages!r})"
    return RankedMetric(name, passages, relevant, lambda found, gains: ranking.recall_at(found, _positive(gains), k))


def ndcg_at(k: int, relevant: str = "relevant", passages: str = "passages") -> Metric:
    """nDCG of the first k passages; see `ranking.ndcg_at`. relevant: the label with ids, or with a gain by id."""
    _check(k)
    name = f"ndcg_at({k}, {relevant!r}, {passages!r})"
    return RankedMetric(name, passages, relevant, lambda found, gains: ranking.ndcg_at(found, gains, k))


def mrr(relevant: str = "relevant", passages: str = "passages") -> Metric:
    """1 / place of the first relevant passage, or 0; the mean over examples is MRR."""
    name = f"mrr({relevant!r}, {passages!r})"
    return RankedMetric(name, passages, relevant, lambda found, gains: ranking.reciprocal_rank(found, _positive(gains)))


def _positive(gains: Mapping[str, float]) -> list[str]:
    return [key for key, gain in gains.items() if gain > 0]


def _check(k: int) -> None:
    if k < 1:
        raise MetricError(f"k={k}: give at least 1")
