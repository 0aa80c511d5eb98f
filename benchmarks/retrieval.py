"""Retrieval: how good the rankings are, how fast they come, and what a small model reads out of them.

    python benchmarks/retrieval.py            everything (an hour or two the first time: vectors, compiles)
    python benchmarks/retrieval.py --quick    scifact, speed on it, and one reading set at O0
    python benchmarks/retrieval.py --json     rows as the last line

Cases scifact and cranfield: nDCG@10, MRR and recall@100 of BM25, MiniLM, both fused with the default knobs, and (scifact)
a compile of the knobs on the train queries. Cases lexical, dense, dense_100k and build: queries or documents per second and
peak memory, beside bm25s, rank-bm25 and faiss' exact index. Cases chunking_eval (all five texts) and chunking_small (the
three short ones): recall and IoU of chunks of 200 tokens, beside LangChain's recursive splitter with the settings of the
study the set is from, and chonkie's. Cases hotpotqa_mini and xquad_en: EM and F1 of a program that
retrieves from all paragraphs and reads, at O0, O1, O2 and O3 (weights alone).
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cells import command_line, measure
from retrieval_sets import is_there
from rich.console import Console
from rich.table import Table

QUALITY = {"scifact": ("bm25", "dense", "fused", "compiled"), "cranfield": ("bm25", "dense", "fused")}
SPEED = {
    "lexical": ("still", "still_sql", "bm25s", "rank_bm25"),
    "dense": ("still", "faiss"),
    "dense_100k": ("still", "faiss"),
    "build": ("still", "bm25s", "still_vectors"),
}
CHUNKS: dict[str, tuple[str, ...]] = {
    "chunking_eval": (),
    "chunking_small": ("chatlogs", "state_of_the_union", "wikitexts"),
}
"""Texts of a case; none are all."""
CHUNKERS = ("recursive", "sentence", "tokens", "langchain", "chonkie")
READING = {"hotpotqa_mini": 100, "xquad_en": 150}
QUICK_READING = {"xquad_en": 40}
LEVELS = ("O0", "O1", "O2", "O3")
PACKAGES = {
    "bm25s": "bm25s",
    "rank_bm25": "rank-bm25",
    "faiss": "faiss-cpu",
    "langchain": "langchain-text-splitters",
    "chonkie": "chonkie",
}


def cells(quick: bool) -> list[tuple[str, str]]:
    """(case, system) of every cell."""
    quality = {"scifact": QUALITY["scifact"]} if quick else QUALITY
    found = [(case, system) for case, systems in quality.items() if is_there(case) for system in systems]
    if is_there("scifact"):
        found += [(case, system) for case, systems in SPEED.items() for system in systems]
    if is_there("chunking_eval"):
        found += [("chunking_small" if quick else "chunking_eval", system) for system in CHUNKERS]
    reading, levels = (QUICK_READING, LEVELS[:1]) if quick else (READING, LEVELS)
    return found + [(f"{name}_{count}", level) for name, count in reading.items() if is_there(name) for level in levels]


def run_cell(case: str, system: str) -> dict[str, Any]:
    if case in QUALITY:
        from retrieval_ranking import quality

        return quality(case, system)
    if case in SPEED:
        from retrieval_ranking import speed

        return speed(case, system)
    if case in CHUNKS:
        from retrieval_chunks import chunked

        return chunked(system, CHUNKS[case])
    from retrieval_reading import read

    return read(case, system)


def main() -> None:
    parser = command_line(__doc__, "the quick selection")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(*options.cell)), flush=True)
        return
    rows = []
    for case, system in cells(options.quick):
        try:
            made = version(PACKAGES.get(system, "still"))
        except PackageNotFoundError:
            print(f"{system}: not installed")
            continue
        rows.append(measure(Path(__file__), case, system, made, options.fresh))
        print(case, system, rows[-1]["metrics"], flush=True)
    for metric in ("ndcg10", "queries_per_second", "documents_per_second", "peak_mb", "recall", "iou", "em", "f1"):
        _print(rows, metric)
    if options.json:
        print(json.dumps(rows))


def _print(rows: list[dict[str, Any]], metric: str) -> None:
    having = [row for row in rows if metric in row["metrics"]]
    if not having:
        return
    systems = list(dict.fromkeys(row["system"] for row in having))
    table = Table(metric, *systems, box=None, pad_edge=False)
    for case in dict.fromkeys(row["case"] for row in having):
        values = {row["system"]: row["metrics"][metric] for row in having if row["case"] == case}
        table.add_row(case, *(f"{values[s]:.3f}" if s in values else "-" for s in systems))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
