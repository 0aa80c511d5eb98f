"""Answers about a folder of documents, with the passages they are from.

    python programs/rag.py "How is a corpus searched?"        (or: still rag ...)

keeps the files in one DuckDB file, cuts them into chunks beside an index and vectors, finds the chunks that belong to a
question by words and by meaning, has the language model judge the best of them, and answers from what fits into the prompt.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import still

DOCS = Path(__file__).resolve().parents[1] / "docs"
QUESTIONS = (
    "What does the artifact folder contain?",
    "When is a candidate dropped from a race?",
    "How large is a page of the KV cache?",
)
CHUNK = 200
"""Tokens of a chunk: the embedder reads 256, a small model's prompt has room for a few of them."""


class Answer(still.Signature):
    """Answer the question in one short sentence with what the passages say."""

    passages: list[still.Passage] = still.Input()
    question: str = still.Input()
    answer: still.Cited[str] = still.Output()


_SHOP = (
    "Opening hours: the workshop is open from 9 to 17 on weekdays, and closed on public holidays.",
    "Repairs: a new inner tube costs 12 euros and takes 20 minutes. A service of the brakes takes a day.",
    "Guarantee: frames are guaranteed for ten years, all other parts for two.",
)
EXAMPLES = [
    {
        "passages": [still.Passage(id=str(i), text=text) for i, text in enumerate(order)],
        "question": question,
        "answer": still.Cited[str].model_validate(answer),
    }
    for order, question, answer in (
        (_SHOP, "What does an inner tube cost?", "A new inner tube costs 12 euros [2]"),
        (_SHOP[::-1], "When is the workshop open?", "It is open from 9 to 17 on weekdays [3]"),
    )
]
"""Demonstrations of the form of an answer: a small model that has not seen it goes on and on."""


class Rag(still.Module):
    """Find, rerank, pack, answer. Its prediction has `answer` and the `passages` that it was given."""

    def __init__(self, corpus: still.Corpus, model: Any = "minilm", reranker: Any = "lm", tokens: int = 700) -> None:
        super().__init__()
        rerank = {} if reranker is None else {"reranker": reranker, "rerank_depth": 8}
        self.find = still.Retrieve(corpus, model, k=4, chunk_size=CHUNK, **rerank)
        self.pack = still.Pack(tokens)
        self.answer = still.Predict(Answer)
        self.answer.demos = EXAMPLES

    def forward(self, question: str) -> Any:
        passages = self.pack(self.find(question).passages)
        return still.Prediction(answer=self.answer(passages=passages, question=question).answer, passages=passages)


def index(docs: Path, folder: Path) -> still.Corpus:
    """The corpus of a folder of .txt, .md and .html files, kept in `folder` under a name of its own, and brought up to date.

    Raises `RetrievalError` for a folder without such files.
    """
    name = hashlib.sha256(str(docs.resolve()).encode()).hexdigest()[:8]
    corpus = still.Corpus(folder / f"documents-{name}.duckdb")
    corpus.read(docs.resolve(), prune=True)
    return corpus


def show(question: str, prediction: Any) -> dict[str, Any]:
    """Print an answer and the sources it cites; returns them as plain data."""
    cited = prediction.answer.passages(prediction.passages)
    print(f"\n{question}\n  {prediction.answer.text}")
    for number, passage in zip(prediction.answer.citations, cited, strict=True):
        place = f"{Path(passage.source).name}, characters {passage.start} to {passage.end}"
        print(f"  [{number}] {place}: {' '.join(passage.text.split())[:80]} …")
    return {
        "question": question,
        "answer": prediction.answer.value,
        "citations": [passage.id for passage in cited],
        "passages": [passage.id for passage in prediction.passages],
    }


def run(questions: tuple[str, ...] = QUESTIONS, docs: Path = DOCS, folder: Path = Path(".still")) -> list[dict[str, Any]]:
    """Index `docs` into `folder` and answer the questions."""
    corpus = index(docs, folder)
    print(f"{len(corpus)} documents in {docs}", flush=True)
    with still.context(lm=still.LM()):
        program = Rag(corpus)
        program.find.prepare()
        return [show(question, program(question=question)) for question in questions]


if __name__ == "__main__":
    run(tuple(sys.argv[1:]) or QUESTIONS)
