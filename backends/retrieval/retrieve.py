"""`Retrieve`: search as a module of a program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, cast

from ...errors import RetrievalError
from ...signatures.bridge import Prediction
from ...signatures.knob import Knob, offer
from ...signatures.module import Module
from ...signatures.passage import Passage
from .chunk_set import ChunkSet
from .chunking import ChunkBy, Chunking
from .corpus import Corpus
from .embedding import Embedder
from .hit import Hit
from .model_folder import DEFAULT_EMBEDDER
from .rerank import DEPTH, Reranker, rerank, reranker_of
from .searcher import Method, Searcher, Settings, freeze

K1 = (0.9, 1.2, 1.5, 2.0)
B = (0.4, 0.6, 0.75, 0.9)
LEXICAL_WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
RERANK_WEIGHTS = (0.2, 0.5, 1.0)
"""What the compiler tries: scores change little between two of them."""
LM_WEIGHT = 0.2
"""A small language model alone is a bad judge: SmolLM2-135M's order of ten documents took nDCG@10 on 60 training queries of
scifact from 0.651 to 0.422, and with this share to 0.665."""
_FUSION = ("method", "fuse_by", "lexical_weight")


class Retrieved(Prediction):  # type: ignore[misc]  # dspy ships no types
    """What `Retrieve` returns: a prediction with one field."""

    passages: list[Passage]


class Retrieve(Module):
    """Finds the passages of a corpus that belong to a query.

        find = still.Retrieve(still.Corpus("docs.duckdb"), k=3)
        for passage in find("how do I descale a kettle?").passages: ...

    model: who makes vectors (a short name, a folder, a hub id, a callable); None: BM25 alone.
    reranker: a folder or hub id of a cross-encoder, "lm" for the program's language model, or a callable (query, texts) ->
    scores. where, parameters: a condition in SQL over key, source and metadata, and the values of its names; a call may
    give other values.

    The knobs: k; method, "lexical" (BM25 with k1 and b), "dense" (cosine) or "fused"; for the last lexical_weight, 0 to 1,
    and fuse_by; rerank_depth, how many of the best go through the reranker, and rerank_weight, its share in their order
    (the search has the rest; 0.2 for "lm" unless you say otherwise); chunk_size, tokens of a chunk (0: whole documents),
    with chunk_overlap and chunk_by, see `Chunking`. Tokens are the embedder's; without one that has a tokenizer, pieces of
    words of at most five letters. The chunks of each setting are cut, and embedded, when it is searched first.
    Knobs passed to the constructor are where the compiler starts; tune says which it may change, and to what:
    {"k": (3, 5), "method": ()} leaves the method alone. Without it k and chunk_size (unless 0) may be halved
    and doubled, and what else has an effect may take a few values that are in use; chunk_overlap and chunk_by stay, since
    each setting takes as long as building the corpus.
    """

    k = Knob(range=(1, 1000), default=5)
    method: Knob[str] = Knob(choices=("fused", "lexical", "dense"))
    fuse_by: Knob[str] = Knob(choices=("minmax", "zscore", "ranks"))
    lexical_weight = Knob(range=(0.0, 1.0), default=0.5)
    rerank_depth = Knob(range=(0, 1000), default=0)
    rerank_weight = Knob(range=(0.0, 1.0), default=1.0)
    k1 = Knob(range=(0.0, 5.0), default=1.2)
    b = Knob(range=(0.0, 1.0), default=0.75)
    chunk_size = Knob(range=(0, 100_000), default=0)
    chunk_overlap = Knob(range=(0.0, 0.5), default=0.0)
    chunk_by: Knob[str] = Knob(choices=("recursive", "sentence", "tokens"))

    def __init__(
        self,
        corpus: Corpus,
        model: str | PathLike[str] | Embedder | Callable[[list[str]], Any] | None = DEFAULT_EMBEDDER,
        *,
        reranker: str | PathLike[str] | Reranker | Callable[[str, list[str]], Any] | None = None,
        where: str = "true",
        parameters: Mapping[str, Any] | None = None,
        tune: Mapping[str, Sequence[Any]] | None = None,
        **knobs: Any,
    ) -> None:
        super().__init__()
        self.searcher = Searcher(corpus, model)
        self.reranker = reranker_of(reranker)
        self.where, self.parameters = where, freeze(parameters)
        if reranker is not None:
            self.rerank_depth = DEPTH
        if isinstance(reranker, str) and reranker == "lm":
            self.rerank_weight = LM_WEIGHT
        if model is None:
            self.method = "lexical"
        for name, value in knobs.items():
            if not isinstance(getattr(type(self), name, None), Knob):
                raise RetrievalError(f"argument {name!r} is no knob of Retrieve: {', '.join(_knob_names(type(self)))}")
            setattr(self, name, value)
        if model is None and self.method != "lexical":
            raise RetrievalError(f"method={self.method!r} needs vectors: pass model=")
        if reranker is None and self.rerank_depth:
            raise RetrievalError(f"rerank_depth={self.rerank_depth} needs a reranker: pass reranker=")
        self._offer(tune or {}, lexical_only=model is None)

    def _offer(self, tune: Mapping[str, Sequence[Any]], lexical_only: bool) -> None:
        choices: dict[str, Sequence[Any]] = {
            "k": sorted({max(1, self.k // 2), self.k, min(1000, 2 * self.k)}),
            "k1": sorted({*K1, self.k1}),
            "b": sorted({*B, self.b}),
            "lexical_weight": sorted({*LEXICAL_WEIGHTS, self.lexical_weight}),
            "rerank_depth": sorted({0, 5, 10, DEPTH, self.rerank_depth}) if self.reranker is not None else (),
            "rerank_weight": sorted({*RERANK_WEIGHTS, self.rerank_weight}) if self.reranker is not None else (),
            "chunk_size": sorted({max(1, self.chunk_size // 2), self.chunk_size, min(100_000, 2 * self.chunk_size)}),
            "chunk_overlap": (),
            "chunk_by": (),
        }
        if not self.chunk_size:
            choices["chunk_size"] = ()
        if lexical_only:
            choices.update(dict.fromkeys(_FUSION, ()))
        for name, offered in {**choices, **tune}.items():
            offer(self, name, offered)

    def __call__(self, query: str, parameters: Mapping[str, Any] | None = None) -> Retrieved:
        """Search; a blank query finds nothing. Raises `RetrievalError` for an unreadable corpus or a bad condition."""
        return cast(Retrieved, super().__call__(query=query, parameters=parameters))

    async def acall(self, query: str, parameters: Mapping[str, Any] | None = None) -> Retrieved:
        """Like a call, without blocking the event loop."""
        return cast(Retrieved, await super().acall(query=query, parameters=parameters))

    def forward(self, query: str, parameters: Mapping[str, Any] | None = None) -> Retrieved:
        """Implementation of a call; call the object instead."""
        return self._found(query, parameters)

    def _found(self, query: str, parameters: Mapping[str, Any] | None) -> Retrieved:
        settings = self._settings(parameters)
        return Retrieved(passages=self._reranked(query, self.searcher.find(query, settings), settings))

    async def aforward(self, query: str, parameters: Mapping[str, Any] | None = None) -> Retrieved:
        """Implementation of `acall`."""
        return await asyncio.to_thread(self._found, query, parameters)

    def many(self, queries: Sequence[str], parameters: Mapping[str, Any] | None = None) -> list[list[Passage]]:
        """Passages per query; all queries of a call go through each operator together."""
        settings = self._settings(parameters)
        found = self.searcher.find_many(queries, settings)
        return [self._reranked(query, hits, settings) for query, hits in zip(queries, found, strict=True)]

    def prepare(self, progress: bool = True) -> None:
        """Cut and embed now what the first search would have to; a bar is drawn where stderr is a terminal."""
        index, dense = self.searcher.part(self._chunking())
        if isinstance(index, ChunkSet):
            index.update(progress)
        if dense is not None and self.method != "lexical":
            dense.vectors.update(progress=progress)

    def identity(self) -> dict[str, str]:
        """Digests of corpus and models, for ledger and artifact."""
        reranker = {} if self.reranker is None else {"reranker": self.reranker.digest}
        return {**self.searcher.identity(), **reranker, "where": f"{self.where} {self.parameters}"}

    def _chunking(self) -> Chunking | None:
        if not self.chunk_size:
            return None
        return Chunking(self.chunk_size, float(self.chunk_overlap), cast(ChunkBy, self.chunk_by))

    def _settings(self, parameters: Mapping[str, Any] | None) -> Settings:
        depth = self.rerank_depth if self.reranker is not None else 0
        return Settings(
            k=max(self.k, depth),
            method=cast(Method, self.method),
            fuse_by=cast(Any, self.fuse_by),
            lexical_weight=float(self.lexical_weight),
            k1=float(self.k1),
            b=float(self.b),
            chunking=self._chunking(),
            where=self.where,
            parameters=self.parameters if parameters is None else freeze({**dict(self.parameters), **parameters}),
        )

    def _reranked(self, query: str, hits: Sequence[Hit], settings: Settings) -> list[Passage]:
        passages = self.searcher.passages(hits, settings.chunking) if hits else []
        if self.reranker is not None and self.rerank_depth:
            passages = rerank(self.reranker, query, passages, self.rerank_depth, float(self.rerank_weight))
        return passages[: self.k]


def _knob_names(kind: type) -> list[str]:
    return sorted(name for name in dir(kind) if isinstance(getattr(kind, name, None), Knob))
