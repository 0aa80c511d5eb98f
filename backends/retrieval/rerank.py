"""Reranking: passages in the order of a model that reads query and passage together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...errors import RetrievalError
from ...signatures.passage import Passage
from ..callable_identity import callable_digest

DEPTH = 20
"""Candidates by default: a cross-encoder of the smallest kind takes seconds for a hundred on a CPU."""


@runtime_checkable
class Reranker(Protocol):
    """Scores texts for a query; higher is better. Scores are comparable within one query."""

    @property
    def digest(self) -> str:
        """Identity of what it computes."""

    def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """One number per text."""


class CallableReranker:
    """A function of a query and texts that returns a number per text."""

    def __init__(self, function: Callable[[str, list[str]], Any]) -> None:
        self.function = function
        self.name, self.digest = callable_digest(function)

    def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """What the function says."""
        found: Sequence[float] = self.function(query, list(texts))
        return found


def reranker_of(model: str | PathLike[str] | Reranker | Callable[[str, list[str]], Any] | None) -> Any:
    """The reranker behind "lm", a folder, a hub id, or a callable; None of None."""
    if model is None or isinstance(model, Reranker):
        return model
    if model == "lm":
        from .relevance import LMReranker

        return LMReranker()
    if isinstance(model, str | PathLike):
        from .cross_encoder import CrossEncoder

        return CrossEncoder(model)
    if callable(model):
        return CallableReranker(model)
    raise RetrievalError(f"reranker {model!r}: give 'lm', a folder or hub id of a cross-encoder, or a callable")


def rerank(
    reranker: Reranker, query: str, passages: Sequence[Passage], depth: int = DEPTH, weight: float = 1.0
) -> list[Passage]:
    """The first `depth` passages by the reranker's scores, which they carry then; the others follow as they were, with the
    lowest of these scores. Equal scores keep their order.

    weight: below 1, the reranker has this share, and the scores the passages came with the rest, each scaled to 0 to 1: a
    weak judge improves a good search only as one voice of two.
    Raises `RetrievalError` where the scores are not one finite number per passage.
    """
    head = list(passages[:depth])
    if not head or not query.strip():
        return list(passages)
    try:
        scores = np.asarray(reranker.scores(query, [passage.text for passage in head]), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RetrievalError(f"reranker {reranker!r}: its answer is no list of numbers ({error})") from error
    if scores.shape != (len(head),) or not np.isfinite(scores).all():
        raise RetrievalError(f"reranker {reranker!r}: {len(head)} passages gave scores {scores!r:.80}: one number each")
    if weight < 1:
        scores = weight * _scaled(scores) + (1 - weight) * _scaled(np.array([passage.score for passage in head]))
    order = np.argsort(-scores, kind="stable")
    best = [head[i].model_copy(update={"score": float(scores[i])}) for i in order]
    lowest = float(scores.min())
    return [*best, *(passage.model_copy(update={"score": lowest}) for passage in passages[depth:])]


def _scaled(scores: np.ndarray) -> np.ndarray:
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)
