"""The sets of the retrieval benchmark, read from the data folder."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("STILL_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))


@dataclass
class RankingSet:
    """Documents by key, queries by key, and per split the gains by document of each query."""

    documents: dict[str, str]
    queries: dict[str, str]
    gains: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def is_there(name: str) -> bool:
    return (DATA / name).is_dir()


def ranking_set(name: str) -> RankingSet:
    """scifact (train and test queries) or cranfield (test queries only)."""
    folder = DATA / name
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in map(json.loads, file)}
    queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl")}
    found = RankingSet(documents, queries)
    if name == "cranfield":
        for row in _rows(folder / "qrels.jsonl"):
            found.gains.setdefault("test", {}).setdefault(str(row["query"]), {})[str(row["doc"])] = float(row["score"])
        return found
    for split in ("train", "test"):
        for line in (folder / f"qrels_{split}.tsv").read_text("utf-8").splitlines()[1:]:
            query, document, score = line.split("\t")
            found.gains.setdefault(split, {}).setdefault(query, {})[document] = float(score)
    return found


@dataclass
class ReadingSet:
    """Paragraphs by key, and rows of question and acceptable answers."""

    documents: dict[str, str]
    rows: list[dict[str, Any]]


def reading_set(name: str) -> ReadingSet:
    """hotpotqa_mini (contexts of all questions pooled) or xquad_en (all paragraphs pooled)."""
    folder = DATA / name
    if name == "xquad_en":
        documents = {str(row["paragraph"]): row["context"] for row in _rows(folder / "paragraphs.jsonl")}
        rows = [
            {"question": row["question"], "answer": row["answers"][0], "answers": row["answers"], "group": row["paragraph"]}
            for row in _rows(folder / "test.jsonl")
        ]
        return ReadingSet(documents, rows)
    documents, rows = {}, []
    for number, row in enumerate(_rows(folder / "dev.jsonl")):
        for paragraph in row["context"]:
            documents[paragraph["title"]] = f"{paragraph['title']}: {''.join(paragraph['sentences'])}"
        rows.append({"question": row["question"], "answer": row["answer"], "answers": [row["answer"]], "group": number})
    return ReadingSet(documents, rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
