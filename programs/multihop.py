"""Answers to questions that take more than one document: search, read, search for what is missing, answer.

    python programs/multihop.py "Which algorithm ends a value where tokens run out?"     (or: still multihop ...)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import still
from still.programs.rag import CHUNK, DOCS, EXAMPLES, Answer, index, show

QUESTIONS = (
    "Which room implements the protocol that optimizers define?",
    "What ends a value where tokens run out, and which algorithm finds it?",
)


class MultiHopAnswer(still.Module):
    """Two searches by default, then a cited answer. Its prediction has `answer`, `passages`, and the hops' `queries`."""

    def __init__(self, corpus: still.Corpus, model: Any = "minilm", hops: int = 2, tokens: int = 900) -> None:
        super().__init__()
        self.hop = still.MultiHop(still.Retrieve(corpus, model, k=3, chunk_size=CHUNK), hops, tokens)
        self.pack = still.Pack(tokens)
        self.answer = still.Predict(Answer)
        self.answer.demos = EXAMPLES

    def forward(self, question: str) -> Any:
        found = self.hop(question=question)
        passages = self.pack(found.passages)
        answer = self.answer(passages=passages, question=question).answer
        return still.Prediction(answer=answer, passages=passages, queries=found.queries)


def run(questions: tuple[str, ...] = QUESTIONS, docs: Path = DOCS, folder: Path = Path(".still")) -> list[dict[str, Any]]:
    """Index `docs` into `folder` and answer the questions."""
    corpus = index(docs, folder)
    rows = []
    with still.context(lm=still.LM()):
        program = MultiHopAnswer(corpus)
        program.hop.find.prepare()
        for question in questions:
            prediction = program(question=question)
            rows.append({**show(question, prediction), "queries": prediction.queries})
            print(f"  asked next: {'; '.join(prediction.queries[1:])}")
    return rows


if __name__ == "__main__":
    run(tuple(sys.argv[1:]) or QUESTIONS)
