"""Retrieve, then read: questions over pooled paragraphs, answered by the default model at each level."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import still
from retrieval_ranking import KEPT
from retrieval_sets import reading_set
from still.optimizers.distil import Distil


class Read(still.Signature):
    """Answer the question with a few words copied from the passages."""

    passages: list[still.Passage] = still.Input()
    question: str = still.Input()
    answer: str = still.Output()


class Reader(still.Module):
    """Find, pack, answer."""

    def __init__(self, corpus: still.Corpus) -> None:
        super().__init__()
        self.find = still.Retrieve(corpus, k=2, tune={"k": (1, 2, 4), "k1": (), "b": ()})
        self.pack = still.Pack(600)
        self.read = still.Predict(Read, max_tokens=24)

    def forward(self, question: str) -> Any:
        passages = self.pack(self.find(question).passages)
        return still.Prediction(answer=self.read(passages=passages, question=question).answer, passages=passages)


def read(case: str, level: str) -> dict[str, Any]:
    """EM and F1 (best over the acceptable answers) on the rows for testing; the others are for compiling.

    case: a set's name and a number of test rows, as in "xquad_en_100". Questions on one paragraph stay on one side.
    """
    name, count = case.rsplit("_", 1)
    data = reading_set(name)
    corpus = still.Corpus(KEPT / f"{name}.duckdb")
    corpus.add(still.Document(key, text) for key, text in data.documents.items())
    groups = sorted({row["group"] for row in data.rows})
    held = set(groups[::2])
    test = [row for row in data.rows if row["group"] in held][: int(count)]
    known = [row for row in data.rows if row["group"] not in held]
    lm, program = still.LM(), Reader(corpus)
    metrics: dict[str, Any] = {}
    if level == "O3":
        metrics, program = _distilled(program, known, lm)
    elif level != "O0":
        rows = [{"question": row["question"], "answer": row["answer"]} for row in known]
        dataset = still.Dataset(rows, inputs=["question"])
        train, dev, _ = dataset.split(train=60, dev=40, test=len(rows) - 100, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            ledger = Path(folder) / "ledger.duckdb"
            result = still.compile(program, train, dev, "f1", level=level, lm=lm, ledger=ledger, progress=False)  # type: ignore[arg-type]
            metrics = {"winner": result.report.winner, "compile_seconds": round(result.report.seconds, 1)}
            program = result.program
    return {**_scores(program, test, lm), **metrics}


def _distilled(program: Any, known: list[dict[str, Any]], lm: Any) -> tuple[dict[str, Any], Any]:
    """Weights learn from the rows but 40 to choose by, at most 300 of them."""
    rows = [{"question": row["question"], "answer": row["answer"]} for row in known]
    few = min(300, len(rows) - 40)
    train, dev, _ = still.Dataset(rows, inputs=["question"]).split(train=few, dev=40, test=len(rows) - few - 40, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.duckdb"
        result = still.compile(program, train, dev, "f1", passes=[Distil()], lm=lm, ledger=ledger, progress=False)  # type: ignore[arg-type]
        kept = result.save(KEPT / "reader.still")
    told = {"winner": result.report.winner, "compile_seconds": round(result.report.seconds, 1), "train_rows": len(train)}
    return told, still.load(kept, program=program)


def _scores(program: Any, test: list[dict[str, Any]], lm: Any) -> dict[str, Any]:
    from concurrent.futures import ThreadPoolExecutor

    def answer(row: dict[str, Any]) -> tuple[float, float]:
        with still.context(lm=lm):
            given = program(question=row["question"])
        example = [still.Example(question=row["question"], answer=a).with_inputs("question") for a in row["answers"]]
        exact, f1 = still.normalized("answer"), still.f1("answer")
        return max(exact(e, given) for e in example), max(f1(e, given) for e in example)

    with ThreadPoolExecutor(32) as threads:
        pairs = list(threads.map(answer, test))
    return {
        "em": sum(em for em, _ in pairs) / len(pairs),
        "f1": sum(f1 for _, f1 in pairs) / len(pairs),
        "rows": len(pairs),
    }
