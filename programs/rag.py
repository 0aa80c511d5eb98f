"""Answers about a folder of documents, with the passages they are from.

    python programs/rag.py "How is a corpus searched?"        (or: still rag ...)

cuts the files into sections, keeps them in one DuckDB file beside an index and vectors, finds the sections that belong to a
question by words and by meaning, has the language model judge the best of them, and answers from what fits into the prompt.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import still

DOCS = Path(__file__).resolve().parents[1] / "docs"
QUESTIONS = (
    "What does the artifact folder contain?",
    "When is a candidate dropped from a race?",
    "How large is a page of the KV cache?",
)
_HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
LONGEST = 1200
"""Characters of a section; longer ones are cut between paragraphs."""


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
        self.find = still.Retrieve(corpus, model, k=4, **rerank)
        self.pack = still.Pack(tokens)
        self.answer = still.Predict(Answer)
        self.answer.demos = EXAMPLES

    def forward(self, question: str) -> Any:
        passages = self.pack(self.find(question).passages)
        return still.Prediction(answer=self.answer(passages=passages, question=question).answer, passages=passages)


def sections(text: str) -> Iterator[str]:
    """The parts of a Markdown text, each under its heading, none much longer than `LONGEST`."""
    starts = [0, *(found.start() for found in _HEADING.finditer(text)), len(text)]
    for begin, end in itertools.pairwise(starts):
        part = text[begin:end].strip()
        heading = found[1] if (found := _HEADING.match(part)) else ""
        body = _HEADING.sub("", part, count=1).strip() if heading else part
        held = ""
        for paragraph in re.split(r"\n\s*\n", body):
            if held and len(held) + len(paragraph) > LONGEST:
                yield f"{heading}: {held}" if heading else held
                held = ""
            held = f"{held}\n\n{paragraph}".strip()
        if held:
            yield f"{heading}: {held}" if heading else held


def index(folder: Path, path: Path) -> still.Corpus:
    """A corpus of the Markdown and text files in a folder; sections that are there already cost nothing.

    Raises `DatasetError` for a folder without such files.
    """
    files = sorted(file for pattern in ("*.md", "*.txt") for file in folder.rglob(pattern))
    if not files:
        raise still.errors.DatasetError(f"{folder} has no .md or .txt files: give a folder of documents")
    corpus = still.Corpus(path)
    corpus.add(
        still.Document(f"{file.relative_to(folder)}#{number}", text, str(file.relative_to(folder)))
        for file in files
        for number, text in enumerate(sections(file.read_text("utf-8", errors="replace")), 1)
    )
    return corpus


def show(question: str, prediction: Any) -> dict[str, Any]:
    """Print an answer and the sources it cites; returns them as plain data."""
    cited = prediction.answer.passages(prediction.passages)
    print(f"\n{question}\n  {prediction.answer.text}")
    for number, passage in zip(prediction.answer.citations, cited, strict=True):
        print(f"  [{number}] {passage.id}: {' '.join(passage.text.split())[:90]} …")
    return {
        "question": question,
        "answer": prediction.answer.value,
        "citations": [passage.id for passage in cited],
        "passages": [passage.id for passage in prediction.passages],
    }


def run(questions: tuple[str, ...] = QUESTIONS, docs: Path = DOCS, folder: Path = Path(".still")) -> list[dict[str, Any]]:
    """Index `docs` into `folder` and answer the questions."""
    corpus = index(docs, folder / "rag.duckdb")
    print(f"{len(corpus)} sections of {docs}", flush=True)
    with still.context(lm=still.LM()):
        program = Rag(corpus)
        return [show(question, program(question=question)) for question in questions]


if __name__ == "__main__":
    run(tuple(sys.argv[1:]) or QUESTIONS)
