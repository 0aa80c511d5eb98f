"""How much of what a question needs is in the chunks that are found, and how much else.

Measures: Smith and Troynikov, "Evaluating Chunking Strategies for Retrieval" (2024), in characters as their code has them:
recall is the share of the reference spans that the found chunks cover, IoU that intersection over the found chunks' length
and what was missed. The k chunks closest to the question by MiniLM's vectors, over all texts of the set together.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from retrieval_sets import DATA

FOUND = 5
SIZE = 200
Span = tuple[int, int]


def chunked(system: str, names: Sequence[str]) -> dict[str, Any]:
    """Recall and IoU over the questions on some of the texts (all without names), for chunks of at most `SIZE` tokens."""
    import numpy as np
    from still.backends.retrieval.encoder import SentenceEncoder
    from still.backends.retrieval.vector_index import VectorIndex, unit

    folder = DATA / "chunking_eval"
    texts = {path.stem: path.read_text("utf-8") for path in sorted((folder / "corpora").glob("*.md"))}
    texts = {name: text for name, text in texts.items() if not names or name in names}
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["corpus_id"] in texts]
    encoder = SentenceEncoder()
    split = _SYSTEMS[system](encoder)
    began = time.perf_counter()
    spans = [(name, span) for name, text in texts.items() for span in split(text)]
    seconds = time.perf_counter() - began
    vectors = encoder.embed([texts[name][first:last] for name, (first, last) in spans])
    queries = encoder.embed([row["question"] for row in rows], "query")
    numbers, places, _ = VectorIndex(unit(np.asarray(vectors))).search(unit(np.asarray(queries)), FOUND)
    found: list[list[tuple[str, Span]]] = [[] for _ in rows]
    for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
        found[number].append(spans[place])
    scores = [_scores(row, chunks) for row, chunks in zip(rows, found, strict=True)]
    return {
        "recall": fmean(recall for recall, _ in scores),
        "iou": fmean(iou for _, iou in scores),
        "chunks": len(spans),
        "mean_characters": fmean(last - first for _, (first, last) in spans),
        "megabytes_per_second": sum(map(len, texts.values())) / seconds / 1e6,
        "questions": len(rows),
    }


def _scores(row: dict[str, Any], chunks: Sequence[tuple[str, Span]]) -> tuple[float, float]:
    wanted = _union([(reference["start_index"], reference["end_index"]) for reference in row["references"]])
    own = _union([span for name, span in chunks if name == row["corpus_id"]])
    met = sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in itertools.product(wanted, own))
    whole = sum(last - first for first, last in wanted)
    read = sum(last - first for _, (first, last) in chunks)
    return met / whole, met / (read + whole - met)


def _union(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


def _still(by: Any) -> Callable[[Any], Callable[[str], list[Span]]]:
    def made(encoder: Any) -> Callable[[str], list[Span]]:
        from still.backends.retrieval.chunking import Chunking, cut
        from still.backends.retrieval.tokens import tokens_of

        return lambda text: cut(text, Chunking(SIZE, by=by), tokens_of(encoder))

    return made


def _published(encoder: Any) -> Callable[[str], list[Span]]:
    """The splitter of the study: LangChain's recursive one with its separators, sizes in the same tokens."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(
        chunk_size=SIZE,
        chunk_overlap=0,
        length_function=_counter(encoder),
        add_start_index=True,
        separators=["\n\n", "\n", ".", "?", "!", " ", ""],
    )

    def split(text: str) -> list[Span]:
        documents = splitter.create_documents([text])
        starts = [document.metadata["start_index"] for document in documents]
        return [(first, first + len(document.page_content)) for first, document in zip(starts, documents, strict=True)]

    return split


def _chonkie(encoder: Any) -> Callable[[str], list[Span]]:
    from chonkie import RecursiveChunker

    chunker = RecursiveChunker(tokenizer=_counter(encoder), chunk_size=SIZE)
    return lambda text: [(chunk.start_index, chunk.end_index) for chunk in chunker.chunk(text)]


def _counter(encoder: Any) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(encoder.folder) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


_SYSTEMS = {
    "recursive": _still("recursive"),
    "sentence": _still("sentence"),
    "tokens": _still("tokens"),
    "langchain": _published,
    "chonkie": _chonkie,
}
