"""How good rankings are, and how fast they come."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from retrieval_sets import RankingSet, ranking_set

K = 10
KEPT = Path(".still") / "benchmarks" / "corpora"
"""Corpora with their vectors, so that every cell need not embed anew; building has a cell of its own."""


def corpus_of(name: str, data: RankingSet) -> Any:
    import still

    corpus = still.Corpus(KEPT / f"{name}.duckdb")
    corpus.add(still.Document(key, text) for key, text in data.documents.items())
    return corpus


def quality(name: str, system: str) -> dict[str, Any]:
    """nDCG@10, MRR and recall@100 on the test queries."""
    from still.compiler import ranking

    data = ranking_set(name)
    corpus = corpus_of(name, data)
    find, extra = _module(system, corpus, data)
    gains = data.gains["test"]
    queries = [data.queries[key] for key in gains]
    found = [[hit.key for hit in hits] for hits in _hits(find, queries)]
    pairs = list(zip(found, gains.values(), strict=True))
    return {
        "ndcg10": fmean(ranking.ndcg_at(keys, gain, K) for keys, gain in pairs),
        "mrr": fmean(ranking.reciprocal_rank(keys, [k for k, g in gain.items() if g > 0]) for keys, gain in pairs),
        "recall100": fmean(ranking.recall_at(keys, [k for k, g in gain.items() if g > 0], 100) for keys, gain in pairs),
        "queries": len(queries),
        **extra,
    }


def _hits(find: Any, queries: Sequence[str]) -> Any:
    from dataclasses import replace

    return find.searcher.find_many(queries, replace(find._settings(None), k=100))


def _module(system: str, corpus: Any, data: RankingSet) -> tuple[Any, dict[str, Any]]:
    import still

    if system == "bm25":
        return still.Retrieve(corpus, None, k=K), {}
    method = "dense" if system == "dense" else "fused"
    find = still.Retrieve(corpus, k=K, method=method, tune={"k": ()})
    return (find, {}) if system != "compiled" else _compiled(find, data)


def _compiled(find: Any, data: RankingSet) -> tuple[Any, dict[str, Any]]:
    """Knobs tuned on the train queries: half to look at, half to choose by."""
    import still
    from still.optimizers.search import Search
    from still.signatures.knob import knob_values

    rows = [{"query": data.queries[key], "relevant": gain} for key, gain in data.gains["train"].items()]
    train = still.Dataset(rows, inputs=["query"])
    train, dev, _ = train.split(train=0.2, dev=0.8, test=0, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = still.compile(
            find, train, dev, still.ndcg_at(K), passes=[Search()], ledger=Path(folder) / "ledger.duckdb", progress=False
        )
    knobs = {name: value for name, value in knob_values(result.program).items() if name != "k"}
    return result.program, {"knobs": json.dumps(knobs), "compile_seconds": time.perf_counter() - began}


def speed(case: str, system: str) -> dict[str, Any]:
    """Queries per second of a batch (best of five), documents per second of a build, and the process' peak memory."""
    data = ranking_set("scifact")
    return {**_SPEED[case](system, data), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _lexical_speed(system: str, data: RankingSet) -> dict[str, Any]:
    import still
    from still.backends.retrieval.words import term_sets

    texts, queries = list(data.documents.values()), list(data.queries.values())
    if system in ("still", "still_sql"):
        find = still.Lexical(corpus_of("scifact", data), in_memory=system == "still")
        return _rate(lambda: find.search(queries, K), len(queries))
    if system == "bm25s":
        import bm25s

        index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        index.index(term_sets(texts), show_progress=False)
        return _rate(lambda: index.retrieve(term_sets(queries), k=K, show_progress=False), len(queries))
    from rank_bm25 import BM25Okapi

    okapi, few = BM25Okapi(term_sets(texts)), queries[:100]
    numbers = list(range(len(texts)))
    return _rate(lambda: [okapi.get_top_n(terms, numbers, K) for terms in term_sets(few)], len(few))


def _dense_speed(system: str, data: RankingSet, copies: int = 1) -> dict[str, Any]:
    import numpy as np
    import still
    from still.backends.retrieval.vector_index import VectorIndex, unit

    dense = still.Dense(corpus_of("scifact", data))
    rows = unit(dense.vectors.matrix().rows)
    queries = unit(dense.vectors.embed_queries(list(data.queries.values())))
    if copies > 1:
        noise = np.random.default_rng(0).normal(0, 0.02, (len(rows) * copies, rows.shape[1]))
        rows = unit(np.concatenate([rows] * copies) + noise.astype(np.float32))
    if system == "still":
        index = VectorIndex(rows)
        return {**_rate(lambda: index.search(queries, K), len(queries)), "vectors": len(rows)}
    import faiss

    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    return {**_rate(lambda: flat.search(queries, K), len(queries)), "vectors": len(rows)}


def _build_speed(system: str, data: RankingSet) -> dict[str, Any]:
    import still

    texts = list(data.documents.values())
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if system == "bm25s":
            import bm25s
            from still.backends.retrieval.words import term_sets

            index = bm25s.BM25(method="lucene")
            index.index(term_sets(texts), show_progress=False)
            index.save(folder)
        else:
            corpus = still.Corpus(Path(folder) / "corpus.duckdb")
            corpus.add(still.Document(key, text) for key, text in data.documents.items())
            if system == "still_vectors":
                still.Dense(corpus).vectors.update()
        return {"documents_per_second": len(texts) / (time.perf_counter() - began)}


def _rate(run: Callable[[], Any], count: int, times: int = 5) -> dict[str, float]:
    run()  # what is loaded lazily
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return {"queries_per_second": count / best}


_SPEED: dict[str, Callable[[str, RankingSet], dict[str, Any]]] = {
    "lexical": _lexical_speed,
    "dense": _dense_speed,
    "dense_100k": lambda system, data: _dense_speed(system, data, copies=20),
    "build": _build_speed,
}
