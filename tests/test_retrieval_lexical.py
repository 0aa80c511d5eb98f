"""BM25 against bm25s, and a corpus that changes."""

from __future__ import annotations

import bm25s
import pytest
from still.backends.retrieval.corpus import Corpus, Document
from still.backends.retrieval.lexical import Lexical
from still.backends.retrieval.words import term_sets

TEXTS = ["red kettle with red lid", "blue kettle boils water", "water bottle", "lid of a bottle, blue", "garden hose"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_scores_equal_those_of_bm25s(tmp_path, in_memory):
    corpus = Corpus(tmp_path / "c.duckdb")
    corpus.add(Document(str(i), text) for i, text in enumerate(TEXTS))
    reference = bm25s.BM25(method="lucene", k1=1.5, b=0.6)
    reference.index(term_sets(TEXTS), show_progress=False)
    for query in ("red kettle", "blue lid water", "hose"):
        expected = reference.get_scores(term_sets([query])[0])
        (found,) = Lexical(corpus, k1=1.5, b=0.6, in_memory=in_memory).search([query], k=5)
        assert {int(hit.key) for hit in found} == {i for i, score in enumerate(expected) if score > 0}
        assert [hit.score for hit in found] == pytest.approx([float(expected[int(hit.key)]) for hit in found], rel=1e-5)


def test_update_and_delete_leave_what_a_new_corpus_has(tmp_path):
    changed, fresh = Corpus(tmp_path / "a.duckdb"), Corpus(tmp_path / "b.duckdb")
    changed.add(Document(str(i), text) for i, text in enumerate(TEXTS))
    assert changed.add([Document("1", "green kettle"), Document("2", TEXTS[2])]) == (0, 1, 1, 0)
    assert changed.delete(["0", "none"]) == 1
    fresh.add([Document("1", "green kettle"), *(Document(str(i), TEXTS[i]) for i in (2, 3, 4))])
    queries = ["green kettle", "blue bottle", ""]
    found = [{(h.key, round(h.score, 9)) for h in hits} for hits in Lexical(changed).search(queries)]
    assert found == [{(h.key, round(h.score, 9)) for h in hits} for hits in Lexical(fresh).search(queries)]
