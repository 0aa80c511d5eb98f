"""`Rewrite`: a question in the words of the documents that answer it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import StringConstraints

from ...signatures.bridge import Prediction
from ...signatures.knob import Knob
from ...signatures.module import Module
from ...signatures.predict import Predict
from ...signatures.signature import Input, Output, Signature


class RewriteQuery(Signature):
    """Write a short search query that finds documents which answer the question."""

    question: str = Input()
    query: Annotated[str, StringConstraints(max_length=150)] = Output()


class Rewrite(Module):
    """Makes a search query of a question (Ma et al., 2023, rewrite-retrieve-read).

    The knob `mode`: "off" leaves the question as it is and calls no LM; "append" searches for question and rewriting
    together, so that a bad rewriting costs little; "replace" for the rewriting alone.
    """

    mode: Knob[str] = Knob(choices=("off", "append", "replace"))

    def __init__(self, mode: str = "append") -> None:
        super().__init__()
        self.mode = mode
        self.rewrite: Any = Predict(RewriteQuery)

    def forward(self, question: str) -> Any:
        """A prediction with `query`."""
        if self.mode == "off" or not question.strip():
            return Prediction(query=question)
        return Prediction(query=self._joined(question, self.rewrite(question=question).query))

    async def aforward(self, question: str) -> Any:
        """Async twin of `forward`."""
        if self.mode == "off" or not question.strip():
            return Prediction(query=question)
        return Prediction(query=self._joined(question, (await self.rewrite.acall(question=question)).query))

    def _joined(self, question: str, query: str) -> str:
        return query if self.mode == "replace" else f"{question} {query}"
