"""`LMReranker`: the program's own language model as a judge of relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Literal

from ...errors import RetrievalError
from ...signatures.bridge import settings
from ...signatures.executor import Executor
from ...signatures.layout import lower
from ...signatures.signature import Input, Output, Signature

PASSAGE_CHARACTERS = 2000
"""How much of a passage is judged: one that is much longer should have been cut into chunks."""


class Relevance(Signature):
    """Does the passage help to answer the query?"""

    query: str = Input()
    passage: str = Input()
    helps: Literal["yes", "no"] = Output(decide="score")


class LMReranker:
    """Scores a passage by how much likelier "yes" is than "no" (Liang et al., 2022, HELM's pointwise relevance).

    The query stands before the passage, so that all passages of a query share their prefix; they are judged together. The LM
    is the one a program runs on, or the one given; it has to be a `still.LM`.
    """

    def __init__(self, lm: Any = None) -> None:
        self.lm = lm
        self._plan = lower(Relevance)
        self.digest = f"lm {self._plan.digest}"

    def __deepcopy__(self, memo: dict[int, Any]) -> LMReranker:
        return self

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Natural log of the odds. Raises `RetrievalError` without an LM that runs plans."""
        lm = self.lm or settings.lm
        if not isinstance(lm, Executor):
            raise RetrievalError(f"reranker 'lm': {lm!r:.60} cannot score options: configure a still.LM")

        def judge(text: str) -> float:
            (done,) = lm.execute(self._plan, {"query": query, "passage": text[:PASSAGE_CHARACTERS]})
            found = {option.strip(): score for option, score in done.scores["helps"].items()}
            return found["yes"] - found["no"]

        # As many calls at once as there are passages: the engine puts them into one batch. Each thread has the context of
        # the caller, where calls are counted.
        with ThreadPoolExecutor(max(1, len(texts))) as threads:
            jobs = [threads.submit(copy_context().run, judge, text) for text in texts]
            found = [job.result() for job in jobs]
        return [score if math.isfinite(score) else 0.0 for score in found]


