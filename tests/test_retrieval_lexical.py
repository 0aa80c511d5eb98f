"""BM25 against bm25s, and a corpus that changes."""

from __future__ import annotations

import bm25s
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.retrieval.corpus import Corpus, Document
from still.backends.retrieval.lexical import Lexical
from still.backends.retrieval.words import index_terms, term_sets
from still.errors import RetrievalError

TEXTS = ["red kettle with red lid", "blue kettle boils water", "water bottle", "lid of a bottle, blue", "garden hose"]
WORDS = ["red", "blue", "kettle", "kettles", "lid", "water", "Größe", "ÜBER", "日本", "the", "!", "the the", "water-hose"]
texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


def corpus_of(path, given_texts):
    corpus = Corpus(path)
    corpus.add(Document(str(i), text, metadata={"n": i}) for i, text in enumerate(given_texts))
    return corpus


def reference_scores(documents, query, k1, b):
    """What bm25s gives each document; nothing where no document or no query has a term, on which it fails."""
    if not any(term_sets(documents)) or not index_terms(query):
        return [0.0] * len(documents)
    reference = bm25s.BM25(method="lucene", k1=k1, b=b)
    reference.index(term_sets(documents), show_progress=False)
    return [float(score) for score in reference.get_scores(term_sets([query])[0])]


@settings(max_examples=12, deadline=None)
@given(
    st.lists(texts, min_size=1, max_size=12),
    st.lists(texts, min_size=1, max_size=4),
    st.floats(0, 3),
    st.floats(0, 1),
    st.integers(1, 14),
)
def test_scores_of_any_texts_equal_those_of_bm25s(tmp_path_factory, documents, queries, k1, b, k):
    corpus = corpus_of(tmp_path_factory.mktemp("c") / "c.duckdb", documents)
    half = len(documents) // 2
    condition = {"where": "(metadata->>'n')::INT >= $half", "parameters": {"half": half}}
    found = {
        (in_memory, chosen): Lexical(corpus, k1, b, in_memory).search(queries, k, **(condition if chosen else {}))
        for in_memory in (True, False)
        for chosen in (True, False)
    }
    for (_, chosen), rankings in found.items():
        for query, hits in zip(queries, rankings, strict=True):
            scores = reference_scores(documents, query, k1, b)
            allowed = [score for i, score in enumerate(scores) if score > 0 and (not chosen or i >= half)]
            best = sorted(allowed, reverse=True)[:k]
            assert [hit.score for hit in hits] == pytest.approx(best, rel=1e-5)
            assert [scores[int(hit.key)] for hit in hits] == pytest.approx(best, rel=1e-5)
            assert len({hit.key for hit in hits}) == len(hits)
            assert not chosen or all(int(hit.key) >= half for hit in hits)


def test_marks_are_parts_of_words_however_they_are_written():
    assert index_terms("Cafe\u0301 CAFÉ") == index_terms("Café CAFE\u0301") == ["café"] * 2
    assert index_terms("हिन्दी भाषा, q\u0302x") == ["हिन्दी", "भाषा", "q\u0302x"]
    assert index_terms("\u0301 e\u0301 a \u0301b") == []


def test_a_language_without_a_stemmer_is_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(RetrievalError, match=r"language='klingon': has no stemmer; give one of .*english.*german"):
        Corpus(tmp_path / "new" / "c.duckdb", language="klingon")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_query_finds_the_same_alone_and_in_a_batch(tmp_path, in_memory):
    corpus = corpus_of(tmp_path / "c.duckdb", TEXTS * 30)
    queries = ["red kettle", "", "lid lid water", "nothing of it", "the", "hose"] * 20
    operator = Lexical(corpus, in_memory=in_memory)
    batch = operator.search(queries, k=7)
    assert batch[:6] == [operator.search([query], k=7)[0] for query in queries[:6]]
    assert batch == batch[:6] * 20
    assert [hit.key for hit in batch[0]] == ["0", "5", "10", "15", "20", "25", "30"], "of equal documents the older"
    assert batch[1] == batch[3] == batch[4] == []


def test_update_and_delete_leave_what_a_new_corpus_has(tmp_path):
    changed, fresh = Corpus(tmp_path / "a.duckdb"), Corpus(tmp_path / "b.duckdb")
    changed.add(Document(str(i), text) for i, text in enumerate(TEXTS))
    assert changed.add([Document("1", "green kettle"), Document("2", TEXTS[2])]) == (0, 1, 1, 0)
    assert changed.delete(["0", "none"]) == 1
    fresh.add([Document("1", "green kettle"), *(Document(str(i), TEXTS[i]) for i in (2, 3, 4))])
    queries = ["green kettle", "blue bottle", ""]
    found = [{(h.key, round(h.score, 9)) for h in hits} for hits in Lexical(changed).search(queries)]
    assert found == [{(h.key, round(h.score, 9)) for h in hits} for hits in Lexical(fresh).search(queries)]


changes = st.lists(
    st.lists(st.tuples(st.sampled_from("abcde"), texts), min_size=1, max_size=4)
    | st.sets(st.sampled_from("abcde"), min_size=1),
    max_size=4,
)


@settings(max_examples=8, deadline=None)
@given(changes)
def test_any_history_leaves_what_a_new_corpus_has(tmp_path_factory, history):
    folder = tmp_path_factory.mktemp("c")
    changed, kept = Corpus(folder / "a.duckdb"), dict[str, str]()
    for change in history:
        if isinstance(change, set):
            assert changed.delete(sorted(change)) == len(change & kept.keys())
            kept = {key: text for key, text in kept.items() if key not in change}
            continue
        new = dict(change)
        expected = (
            len(new.keys() - kept.keys()),
            sum(key in kept and kept[key] != text for key, text in new.items()),
            sum(kept.get(key) == text for key, text in new.items()),
        )
        assert changed.add(Document(*pair) for pair in change) == (*expected, 0)
        kept |= new
    fresh = Corpus(folder / "b.duckdb")
    fresh.add(Document(*pair) for pair in kept.items())
    assert len(changed) == len(kept)
    for in_memory in (True, False):
        ((*a,), (*b,)) = (Lexical(c, in_memory=in_memory).search(["red kettle water"], 99)[0] for c in (changed, fresh))
        assert {hit.key: hit.score for hit in a} == pytest.approx({hit.key: hit.score for hit in b})


@pytest.mark.parametrize("settings", [{"k1": -1}, {"b": 1.5}, {"b": -0.1}])
def test_settings_that_mean_nothing_are_refused(tmp_path, settings):
    with pytest.raises(RetrievalError, match="k1 is at least 0"):
        Lexical(Corpus(tmp_path / "c.duckdb"), **settings)
    with pytest.raises(RetrievalError, match="k=0"):
        Lexical(Corpus(tmp_path / "c.duckdb")).search(["red"], k=0)


def test_another_language_has_its_own_stems(tmp_path):
    corpus = Corpus(tmp_path / "c.duckdb", language="german")
    corpus.add([Document("a", "Die Häuser stehen leer"), Document("b", "Ein Garten, ein Gartenhaus")])
    assert [hit.key for hit in Lexical(corpus).search(["Gärten"])[0]] == ["b"]
