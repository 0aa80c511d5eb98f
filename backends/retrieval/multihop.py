"""`MultiHop`: search again for what the first passages leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import StringConstraints

from ...signatures.bridge import Prediction
from ...signatures.knob import Knob, offer
from ...signatures.module import Module
from ...signatures.passage import Passage
from ...signatures.predict import Predict
from ...signatures.signature import Input, Output, Signature
from .pack import Pack
from .retrieve import Retrieve


class NextQuery(Signature):
    """Name what has to be looked up next to answer the question."""

    passages: list[Passage] = Input()
    question: str = Input()
    query: Annotated[str, StringConstraints(max_length=100)] = Output()


class MultiHop(Module):
    """Searches for the question, then for what an LM that has seen the passages asks for next.

    The knob `hops` counts the searches; 1 is a plain search. Passages of all hops are merged by turns, the first hop's
    first, each document once. A later search is for the question and the new query together: the new query of a small model
    alone is often beside the point. Source: Khattab et al., Baleen (2021); Press et al., self-ask (2023).
    """

    hops = Knob(range=(1, 8), default=2)

    def __init__(self, find: Retrieve, hops: int = 2, tokens: int = 800) -> None:
        super().__init__()
        self.hops = hops
        self.find = find
        self.pack = Pack(tokens)
        self.next: Any = Predict(NextQuery)
        offer(self, "hops", sorted({1, 2, 3, hops}))

    def forward(self, question: str) -> Any:
        """A prediction with `passages` (at most the k of `find` per hop) and `queries`."""
        queries = [question]
        found = [self.find(question).passages]
        for _ in range(self.hops - 1):
            seen = self.pack(merged(found))
            query = self.next(passages=seen, question=question).query
            queries.append(query)
            found.append(self.find(f"{question} {query}").passages)
        return Prediction(passages=merged(found), queries=queries)

    async def aforward(self, question: str) -> Any:
        """Async twin of `forward`."""
        queries = [question]
        found = [(await self.find.acall(question)).passages]
        for _ in range(self.hops - 1):
            seen = self.pack(merged(found))
            query = (await self.next.acall(passages=seen, question=question)).query
            queries.append(query)
            found.append((await self.find.acall(f"{question} {query}")).passages)
        return Prediction(passages=merged(found), queries=queries)


def merged(rankings: Sequence[Sequence[Passage]]) -> list[Passage]:
    """The first of each ranking, then the second of each, and so on; a document that comes again is left out."""
    longest = max((len(ranking) for ranking in rankings), default=0)
    by_turns = [ranking[place] for place in range(longest) for ranking in rankings if place < len(ranking)]
    first: dict[str, Passage] = {}
    for passage in by_turns:
        first.setdefault(passage.id, passage)
    return list(first.values())
