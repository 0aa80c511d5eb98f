"""Metrics of rankings: plain functions over keys in the order they were found."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence


def recall_at(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant keys among the first k; 0 where none is relevant."""
    return len(set(found[:k]) & set(relevant)) / len(set(relevant)) if relevant else 0.0


def reciprocal_rank(found: Sequence[str], relevant: Collection[str]) -> float:
    """1 / place of the first relevant key, or 0; its mean over queries is MRR."""
    return next((1 / place for place, key in enumerate(found, 1) if key in relevant), 0.0)


def ndcg_at(found: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Normalized discounted cumulative gain of the first k, with linear gains, as trec_eval's ndcg_cut.

    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques (2002). A key counts once.
    """
    best = _dcg(sorted((gain for gain in gains.values() if gain > 0), reverse=True)[:k])
    return _dcg([max(gains.get(key, 0.0), 0.0) for key in dict.fromkeys(found)][:k]) / best if best else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))
