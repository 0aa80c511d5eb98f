"""Exact search against brute force, fusion against its formulas, conditions that stay conditions."""

from __future__ import annotations

import hashlib
import inspect
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.retrieval import lexical as lexical_module
from still.backends.retrieval.corpus import Corpus, Document
from still.backends.retrieval.dense import Dense
from still.backends.retrieval.embedding import CallableEmbedder
from still.backends.retrieval.fuse import fuse
from still.backends.retrieval.hit import Hit
from still.backends.retrieval.lexical import Lexical
from still.backends.retrieval.rerank import reranker_of
from still.errors import RetrievalError

WORDS = ("kettle", "lid", "water", "hose", "bottle", "garden", "red", "blue")


def letters(texts):
    """Counts of a few words: many texts share a vector, so that ties are common."""
    return [[text.count(word) + 0.01 for word in WORDS] for text in texts]


def noise(texts):
    rows = [np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8) for text in texts]
    return np.array(rows, dtype=np.float32) - 127


def corpus_of(path, texts):
    corpus = Corpus(path)
    corpus.add(Document(f"k{i:03}", text, metadata={"n": i}) for i, text in enumerate(texts))
    return corpus


def brute(function, texts, query, k, keep):
    rows = np.array(function(texts), dtype=np.float64)
    vector = np.array(function([query])[0], dtype=np.float64)
    scores = rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)
    return sorted(((float(scores[i]), f"k{i:03}") for i in keep), reverse=True)[:k], {f"k{i:03}": scores[i] for i in keep}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=25),
    st.integers(1, 8),
    st.integers(0, 25),
)
@pytest.mark.parametrize("function", [letters, noise])
def test_dense_is_brute_force_with_the_filter_before_the_ranking(tmp_path_factory, function, texts, k, first):
    corpus = corpus_of(tmp_path_factory.mktemp("c") / "c.duckdb", texts)
    found = Dense(corpus, function).search(["red kettle", " "], k, "(metadata->>'n')::INT >= $first", {"first": first})
    expected, scores = brute(function, texts, "red kettle", k, range(first, len(texts)))
    assert [hit.score for hit in found[0]] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert [scores[hit.key] for hit in found[0]] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert found[0] == sorted(found[0], key=lambda hit: (-hit.score, hit.key))
    same = {text: {hit.score for hit in found[0] if texts[int(hit.key[1:])] == text} for text in texts}
    assert all(len(scores) <= 1 for scores in same.values())
    assert found[1] == []


def test_vectors_follow_the_corpus_and_texts_are_embedded_once(tmp_path):
    seen = []

    def counting(texts):
        seen.extend(texts)
        return letters(texts)

    corpus = corpus_of(tmp_path / "c.duckdb", ["red kettle", "blue lid", "red kettle"])
    dense = Dense(corpus, counting)
    assert [hit.key for hit in dense.search(["blue"], 1)[0]] == ["k001"]
    assert sorted(seen) == ["blue", "blue lid", "red kettle"]
    corpus.add([Document("k000", "blue blue"), Document("k001", "blue lid", metadata={"n": 9})])
    assert [hit.key for hit in dense.search(["blue"], 3)[0]] == ["k000", "k001", "k002"]
    assert sorted(seen) == ["blue", "blue", "blue blue", "blue lid", "red kettle"]
    corpus.delete(["k000"])
    assert [hit.key for hit in Dense(corpus, counting).search(["blue"], 3)[0]] == ["k001", "k002"]


def test_documents_that_come_while_others_are_embedded_are_found(tmp_path):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red kettle"])
    late = [Document("late", "blue lid")]

    def slow(texts):
        if late and "red kettle" in texts:
            corpus.add([late.pop()])  # what another process does meanwhile
        return letters(texts)

    assert [hit.key for hit in Dense(corpus, slow).search(["blue"], 1)[0]] == ["late"]


def test_a_text_that_two_embed_at_once_is_found_once(tmp_path):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red kettle", "blue lid"])
    others = []

    def racing(texts):
        if others:
            others.pop().update()  # what another process does meanwhile
        return letters(texts)

    one, other = Dense(corpus, racing), Dense(corpus, racing)
    others.append(other.vectors)
    one.vectors.update()
    with corpus.open(read_only=True) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT digest) FROM vectors").fetchall() == [(2, 2)]
    with corpus.open(read_only=False) as connection:
        connection.execute("INSERT INTO vectors SELECT * FROM vectors")
    assert [hit.key for hit in Dense(corpus, racing).search(["blue"])[0]] == ["k001", "k000"]


def test_blank_documents_are_neither_embedded_nor_found(tmp_path):
    seen = []

    def watching(texts):
        seen.extend(texts)
        return letters(texts)

    corpus = corpus_of(tmp_path / "c.duckdb", ["red", "", " \n\t\x0b\x1c\x85\u2003\u2028", "\n!"])
    assert [hit.key for hit in Dense(corpus, watching).search(["red lid"])[0]] == ["k000", "k003"]
    assert sorted(seen) == ["\n!", "red", "red lid"]


def test_another_model_or_dimension_is_refused(tmp_path):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red", "blue"])
    Dense(corpus, letters).search(["red"])
    with pytest.raises(RetrievalError, match=r"made with .*letters.*noise"):
        Dense(corpus, noise).search(["red"])
    with pytest.raises(RetrievalError, match="8 dimensions"):
        Dense(corpus, letters).search_vectors(np.ones((1, 5), dtype=np.float32))

    def growing(texts):
        return [[1.0] * (3 + ("new" in text)) for text in texts]

    changing = Corpus(tmp_path / "d.duckdb")
    changing.add([Document("a", "old")])
    dense = Dense(changing, growing)
    dense.search(["old"])
    changing.add([Document("b", "new")])
    with pytest.raises(RetrievalError, match="holds vectors of 3 dimensions"):
        dense.search(["old"])


@pytest.mark.parametrize("answer", [[[1.0], [2.0]], [1.0], "no", [[float("nan")]], [["x"]]])
def test_what_is_no_matrix_of_vectors_is_refused(tmp_path, answer):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red"])
    with pytest.raises(RetrievalError, match="embedder"):
        Dense(corpus, lambda texts: answer).search(["red"])


def test_an_empty_corpus_finds_nothing(tmp_path):
    corpus = Corpus(tmp_path / "c.duckdb")
    assert Dense(corpus, letters).search(["red", ""]) == [[], []]
    assert Lexical(corpus).search(["red", ""]) == [[], []]


ESCAPES = [
    "true) UNION ALL SELECT 0 WHERE (true",
    "true; DROP TABLE documents",
    "true) ORDER BY (doc",
    "true) GROUP BY (doc",
    "key IN (SELECT content FROM read_text('/etc/hostname'))",
    "nonsense = 1",
    "key = $missing",
    "(",
]


@pytest.mark.parametrize("where", ESCAPES)
@pytest.mark.parametrize("operator", [Lexical, lambda corpus: Dense(corpus, letters)])
def test_a_condition_cannot_be_more_than_that(tmp_path, where, operator):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red", "blue"])
    with pytest.raises(RetrievalError, match="where="):
        operator(corpus).search(["red"], where=where)
    assert len(corpus) == 2


def test_values_of_a_condition_stay_values(tmp_path):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red", "red red"])
    given = {"key": "x' OR key = 'k001"}
    for operator in (Lexical(corpus), Dense(corpus, letters)):
        assert operator.search(["red"], where="key = $key", parameters=given) == [[]]
        assert [h.key for h in operator.search(["red"], where="key = $key", parameters={"key": "k001"})[0]] == ["k001"]


MOVED = [Document("k003", "red lid", metadata={"n": 3}), Document("k002", "red", metadata={"n": 2, "new": True})]
"""Written in this order they get each other's numbers; a new key that is lower moves all rows."""


@pytest.mark.parametrize("step", ["matrix", "rows_where"])
def test_a_condition_holds_for_vectors_while_documents_are_written(tmp_path, monkeypatch, step):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red"] * 4)
    dense = Dense(corpus, letters)
    real = getattr(dense.vectors, step)

    def then_others_write(*arguments):
        found = real(*arguments)
        corpus.add([*MOVED, Document("a", "red", metadata={"n": 0})])
        return found

    monkeypatch.setattr(dense.vectors, step, then_others_write)
    assert [hit.key for hit in dense.search(["red"], 9, "(metadata->>'n')::INT = 3")[0]] == ["k003"]


def test_a_condition_holds_for_words_while_documents_are_written(tmp_path, monkeypatch):
    corpus = corpus_of(tmp_path / "c.duckdb", ["red"] * 4)
    real = lexical_module._HELD.get

    def then_others_write(index):
        found = real(index)
        corpus.add(MOVED)
        return found

    monkeypatch.setattr(lexical_module._HELD, "get", then_others_write)
    assert [hit.key for hit in Lexical(corpus).search(["red"], 9, "(metadata->>'n')::INT = 3")[0]] == ["k003"]


scores = st.floats(-100, 100, allow_nan=False)
rankings = st.lists(
    st.dictionaries(st.sampled_from("abcdefgh"), scores, max_size=6).map(
        lambda found: sorted((Hit(key, score) for key, score in found.items()), key=lambda hit: -hit.score)
    ),
    min_size=1,
    max_size=3,
)


@given(rankings, st.data())
def test_fusion_is_its_formula(lists, data):
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(lists), max_size=len(lists)))
    ranked = fuse(lists, weights, "ranks", constant=7)
    for key, score in ranked:
        parts = [
            w / (7 + 1 + [h.key for h in hits].index(key)) if key in {h.key for h in hits} else 0
            for hits, w in zip(lists, weights, strict=True)
        ]
        assert score == pytest.approx(sum(parts) / sum(weights))
    for by in ("ranks", "minmax", "zscore"):
        found = fuse(lists, weights, by)
        assert {hit.key for hit in found} == {hit.key for hits in lists for hit in hits}
        assert found == sorted(found, key=lambda hit: (-hit.score, hit.key))
        assert fuse(lists, weights, by, k=2) == found[:2]
    assert all(-1e-9 <= hit.score <= 1 + 1e-9 for hit in fuse(lists, weights, "minmax"))


def test_normalized_scores_by_hand():
    a = [Hit("x", 3.0), Hit("y", 2.0), Hit("z", 1.0)]
    b = [Hit("y", 10.0), Hit("w", 0.0)]
    assert fuse([a, b], [1, 3]) == [Hit("y", 0.25 * 0.5 + 0.75), Hit("x", 0.25), Hit("w", 0.0), Hit("z", 0.0)]
    spread = (2 / 3) ** 0.5
    by_key = {hit.key: hit.score for hit in fuse([a, b], by="zscore")}
    expected = {"x": 0.5 / spread - 0.5, "y": 0.5, "z": -0.5 / spread - 0.5, "w": -0.5 / spread - 0.5}
    assert by_key == pytest.approx(expected)
    for by in ("minmax", "zscore"):
        alone = fuse([[Hit("z", 3.0)], [Hit("a", 1.0)]], [3, 1], by)
        assert alone == [Hit("z", 0.75), Hit("a", 0.25)], "to be found counts more than to be missing"


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0]])
def test_weights_that_say_nothing_are_refused(weights):
    with pytest.raises(RetrievalError, match="weights"):
        fuse([[], []], weights)


def test_a_callable_that_changes_is_another_model():
    first = CallableEmbedder(letters)
    assert first.digest == CallableEmbedder(letters).digest != CallableEmbedder(noise).digest


class Model:
    def __init__(self, name):
        self.name, self.seen, self.loaded, self.batch_size = name, [], None, 1

    def vectors(self, texts):
        return letters(texts)

    def __call__(self, texts):
        return letters(texts)


def over(inner, factor=1):
    return lambda texts: np.array(inner(texts)) * factor


def cut(texts, size=8):
    return [row[:size] for row in letters(texts)]


HOLDERS = {
    "method": lambda name: Model(name).vectors,
    "object": Model,
    "closed over a value": lambda name: over(letters, name),
    "closed over a function": lambda name: over({"a": letters, "b": noise}[name]),
    "closed over an object": lambda name: over(Model(name)),
    "closed over a method": lambda name: over(Model(name).vectors),
    "partial by name": lambda name: partial(cut, size=name),
    "partial": lambda name: partial(cut, name),
    "partial of a method": lambda name: partial(Model(name).vectors),
}


@pytest.mark.parametrize("make", list(HOLDERS.values()), ids=list(HOLDERS))
def test_callables_of_one_source_are_told_apart_by_what_they_hold(make):
    first, again, other = (CallableEmbedder(make(name)).digest for name in ("a", "a", "b"))
    assert first == again != other
    assert reranker_of(make("a")).digest == reranker_of(make("a")).digest != reranker_of(make("b")).digest


def test_what_a_callable_remembers_does_not_count_and_a_digest_does():
    used, fresh, other = Model("a"), Model("a"), Model("a")
    used.seen.append("text")
    used.loaded, used.batch_size = object(), 64
    other.digest = "2"
    assert CallableEmbedder(used).digest == CallableEmbedder(fresh).digest
    assert CallableEmbedder(used.vectors).digest == CallableEmbedder(fresh.vectors).digest
    assert CallableEmbedder(fresh.vectors).digest != CallableEmbedder(other.vectors).digest
    plain = f"{letters.__module__}.letters\0{inspect.getsource(letters)}"
    assert CallableEmbedder(letters).digest == hashlib.sha256(plain.encode()).hexdigest(), "as it was before"
