"""`Searcher`: the operators over one corpus, put together."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from ...errors import RetrievalError
from ...signatures.passage import Passage
from .chunk_set import ChunkSet
from .chunking import Chunking
from .corpus import Corpus
from .dense import Dense
from .embedding import Embedder, embedder_of
from .fuse import FuseBy, fuse
from .gather import Gather
from .held import COPIES, Held
from .hit import Hit
from .index import Index
from .lexical import Lexical
from .store import connect
from .tokens import tokens_of

Method = Literal["lexical", "dense", "fused"]
POOL = 100
"""Documents that each method hands to fusion, at least."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to search; what `Retrieve` declares as knobs. chunking: None for whole documents. parameters: as sorted pairs,
    lists as tuples, so that settings hash."""

    k: int = 10
    method: Method = "fused"
    fuse_by: FuseBy = "minmax"
    lexical_weight: float = 0.5
    k1: float = 1.2
    b: float = 0.75
    chunking: Chunking | None = None
    where: str = "true"
    parameters: tuple[tuple[str, Any], ...] = ()


class Searcher:
    """Searches of all copies of a module go through one of these. Concurrent single searches run as one batch.

    model: who makes vectors; None: nobody, and then the method is "lexical".
    """

    def __init__(
        self, corpus: Corpus, model: str | PathLike[str] | Embedder | Callable[[list[str]], Any] | None
    ) -> None:
        self.corpus = corpus
        self.embedder = None if model is None else embedder_of(model)
        self._lock = threading.Lock()
        self._parts: OrderedDict[Chunking | None, tuple[Index, Dense | None]] = OrderedDict()
        self._gather: Gather[tuple[str, Settings], list[Hit]] = Gather(self._run)

    def __deepcopy__(self, memo: dict[int, Any]) -> Searcher:
        return self  # candidates of a compile are copies of the module; they search one corpus

    def find(self, query: str, settings: Settings) -> list[Hit]:
        """One query's documents, best first."""
        return self._gather((query, settings))

    def find_many(self, queries: Sequence[str], settings: Settings) -> list[list[Hit]]:
        """Documents per query; the queries go through each operator together."""
        given = (settings.where, {name: _thawed(value) for name, value in settings.parameters})
        index, dense = self.part(settings.chunking)
        if dense is None or settings.method == "lexical":
            return Lexical(index, settings.k1, settings.b).search(queries, settings.k, *given)
        if settings.method == "dense":
            return dense.search(queries, settings.k, *given)
        depth = max(POOL, settings.k)
        weights = (settings.lexical_weight, 1.0 - settings.lexical_weight)
        rankings = zip(
            Lexical(index, settings.k1, settings.b).search(queries, depth, *given),
            dense.search(queries, depth, *given),
            strict=True,
        )
        return [fuse(pair, weights, settings.fuse_by, settings.k) for pair in rankings]

    def part(self, chunking: Chunking | None) -> tuple[Index, Dense | None]:
        """What is searched under a setting: the whole documents (None) or their chunks; and its vectors."""
        with self._lock:
            found = self._parts.pop(chunking, None)
            if found is None:
                index: Index = self.corpus
                if chunking is not None:
                    index = ChunkSet(self.corpus, chunking, tokens_of(self.embedder))
                found = index, None if self.embedder is None else Dense(index, self.embedder)
            self._parts[chunking] = found
            while len(self._parts) > COPIES:
                self._parts.popitem(last=False)
            return found

    def passages(self, hits: Sequence[Hit], chunking: Chunking | None) -> list[Passage]:
        """The texts of hits, in their order, with their scores; one that is gone since is left out."""
        with self.part(chunking)[0].open(read_only=True) as connection:
            sql = (
                "SELECT key, text, source, document, start, stop FROM documents WHERE key IN (SELECT unnest(?::VARCHAR[]))"
            )
            rows = connection.execute(sql, [[hit.key for hit in hits]]).fetchall()
        names = ("text", "source", "document", "start", "end")
        found = {key: dict(zip(names, rest, strict=True)) for key, *rest in rows}
        return [Passage(id=hit.key, score=hit.score, **found[hit.key]) for hit in hits if hit.key in found]

    def identity(self) -> dict[str, str]:
        """Digests of what decides the answers."""
        model = {} if self.embedder is None else {"embedder": self.embedder.digest}
        return {"corpus": corpus_digest(self.corpus), **model}

    def _run(self, asked: Sequence[tuple[str, Settings]]) -> list[list[Hit]]:
        together: OrderedDict[Settings, list[int]] = OrderedDict()
        for number, (_, settings) in enumerate(asked):
            together.setdefault(settings, []).append(number)
        found: list[list[Hit]] = [[] for _ in asked]
        for settings, numbers in together.items():
            for number, hits in zip(numbers, self.find_many([asked[n][0] for n in numbers], settings), strict=True):
                found[number] = hits
        return found


def freeze(parameters: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """Parameters as `Settings` has them. Raises `RetrievalError` for a value that is no plain one and no list of them."""
    return tuple((name, _frozen(name, value)) for name, value in sorted((parameters or {}).items()))


def _frozen(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(name, item) for item in value)
    try:
        hash(value)
    except TypeError as error:
        raise RetrievalError(
            f"parameters: {name!r} is {value!r:.60}; give text, a number, a date, or a list of them"
        ) from error
    return value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _read_digest(corpus: Index) -> str:
    total = hashlib.sha256(corpus.language.encode())
    with connect(corpus.path, read_only=True) as connection:
        for key, digest in connection.execute("SELECT key, digest FROM documents ORDER BY key").fetchall():
            total.update(f"\0{key}\0{digest}".encode())
    return total.hexdigest()


_DIGESTS = Held(_read_digest)


def corpus_digest(corpus: Corpus) -> str:
    """sha256 over the keys and contents of a corpus' documents, hex: the same for every file that has the same documents."""
    return _DIGESTS.get(corpus)
