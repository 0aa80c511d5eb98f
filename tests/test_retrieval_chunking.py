"""Chunks: exact offsets, sizes, coverage, and sets of them that follow their documents."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import still
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.retrieval import chunk_set as chunk_set_module
from still.backends.retrieval.chunk_set import ChunkSet
from still.backends.retrieval.chunking import Chunking, cut
from still.backends.retrieval.tokens import ModelTokens, PlainTokens, count_between, tokens_of
from still.errors import RetrievalError


@pytest.fixture(scope="session")
def model_tokens(model_fp32):
    """The default model's tokenizer: byte pairs, so that one character may be several tokens."""
    return ModelTokens(model_fp32.tokenizer.json)


texts = st.text(st.sampled_from("abz.!? \n#é日。👩\u0301\t\r\0") | st.characters(codec="utf-8"), max_size=200)
chunkings = st.builds(
    Chunking, st.integers(1, 30), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from(["recursive", "sentence", "tokens"])
)


@settings(max_examples=80, deadline=None)
@given(texts, chunkings, st.booleans())
def test_chunks_are_parts_of_the_text_within_their_size_that_leave_nothing_out(model_tokens, text, chunking, plain):
    tokens = PlainTokens() if plain else model_tokens
    starts = tokens.starts(text)
    spans = cut(text, chunking, tokens)
    covered = set()
    for first, last in spans:
        part = text[first:last]
        assert part and part == part.strip()
        indivisible = len({start for start in starts if first <= start < last}) <= 1
        assert count_between(starts, first, last) <= chunking.size or indivisible
        covered.update(range(first, last))
    assert all(text[i].isspace() for i in set(range(len(text))) - covered)
    assert spans == sorted(spans) and len(set(spans)) == len(spans)
    for (_, last), (first, _) in itertools.pairwise(spans):
        shared = count_between(starts, first, last) if first < last else 0
        assert shared <= round(chunking.size * chunking.overlap)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=300))
def test_tokens_are_as_many_as_the_models(model_tokens, text):
    counted = len(model_tokens.starts(text))
    exact = model_tokens._tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).offsets
    assert counted == sum(-(-max(b - a, 1) // 16) for a, b in exact)


def test_structure_decides_where_a_text_is_cut():
    sections = ["# One\n\nFirst words here. Second words here.", "## Two\n\nThird words.\n\nFourth words, and more of them."]
    text = "\n\n".join(sections)
    tokens = PlainTokens()

    def parts(size, by="recursive", overlap=0.0):
        return [text[a:b] for a, b in cut(text, Chunking(size, overlap, by), tokens)]

    assert parts(100) == [text]
    assert parts(20) == sections
    assert parts(7) == [
        "# One\n\nFirst words here.", "Second words here.", "## Two\n\nThird words.", "Fourth words, and", "more of them.",
    ]  # fmt: skip
    assert all(part[-1] in ".e" and not part.startswith("words") for part in parts(11, "sentence"))
    assert parts(12, "sentence", 0.5)[1].startswith("First words here.")
    long = "word " * 50
    assert [b - a for a, b in cut(long, Chunking(20, by="tokens"), tokens)] == [99, 99, 49]
    assert cut(long, Chunking(20, 0.5, "tokens"), tokens)[1] == (50, 149)


def test_a_large_text_is_cut():
    text = "Some words in a line.\n" * 50_000 + "x" * 500_000 + " " * 500_000 + "." * 500_000 + "\n" * 500_000
    spans = cut(text, Chunking(500), PlainTokens())
    assert spans[0][0] == 0 and spans[-1][1] == len(text.rstrip())
    assert re.fullmatch(r"(Some words in a line\.\n?)+", text[slice(*spans[0])])


@pytest.mark.parametrize(("size", "overlap", "by"), [(0, 0, "tokens"), (9, 0.6, "tokens"), (9, -0.1, "tokens"), (9, 0, "x")])
def test_settings_that_mean_nothing_are_refused(size, overlap, by):
    with pytest.raises(RetrievalError, match="size of at least 1"):
        Chunking(size, overlap, by)


def letters(texts):
    return [[text.lower().count(letter) + 0.1 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


GUIDE = "# Kettle\n\nBoil water in it. It takes three minutes.\n\n# Hose\n\nA garden hose is long.\n\n# Bottle\n\nWash hot."


@pytest.fixture
def corpus(tmp_path):
    made = still.Corpus(tmp_path / "c.duckdb")
    made.add([still.Document("guide", GUIDE, "guide.md", {"lang": "en"}), still.Document("note", "Buy a hose.", "note.md")])
    return made


@pytest.mark.parametrize("method", ["lexical", "dense", "fused"])
def test_passages_are_chunks_with_their_place_in_the_document(corpus, method):
    find = still.Retrieve(corpus, letters, k=9, method=method, chunk_size=9)
    passages = find("garden hose").passages
    documents = {"guide": GUIDE, "note": "Buy a hose."}
    assert {p.document for p in passages} == {"guide", "note"}
    for passage in passages:
        assert passage.text == documents[passage.document][passage.start : passage.end]
        assert passage.id.startswith(f"{passage.document}#") and passage.source == f"{passage.document}.md"
    limited = still.Retrieve(corpus, letters, k=9, chunk_size=9, method=method, where="metadata->>'lang' = 'en'")
    assert {p.document for p in limited("garden hose").passages} == {"guide"}


def test_sets_of_chunks_lie_side_by_side_and_follow_their_documents(corpus):
    small, large = (still.Retrieve(corpus, letters, k=50, chunk_size=size) for size in (6, 30))
    question = "hose"
    assert len(small(question).passages) > len(large(question).passages)
    corpus.add([still.Document("note", "Sell the hose. Sell the kettle. Sell the bottle and the garden.", "note.md")])
    corpus.delete(["guide"])
    for find in (small, large):
        texts = [p.text for p in find(question).passages]
        assert texts and all(text.startswith("Sell") or "garden" in text for text in texts)
    fresh = still.Corpus(corpus.path.with_name("fresh.duckdb"))
    fresh.add([still.Document("note", "Sell the hose. Sell the kettle. Sell the bottle and the garden.", "note.md")])
    found = still.Retrieve(fresh, letters, k=50, chunk_size=6)(question).passages
    assert small(question).passages == found
    assert corpus.forget_chunks() == 2
    assert small(question).passages == found


def test_only_documents_that_changed_are_cut_anew(corpus):
    chunks = corpus.chunks(Chunking(6))
    assert chunks.update() == 2 and chunks.update() == 0
    corpus.add([still.Document("note", "Other words.", "note.md"), still.Document("blank", " \n")])
    assert chunks.update() == 2 and chunks.update() == 0
    assert still.Lexical(chunks).search(["words"])[0][0].key == "note#1"
    assert len(chunks) == len(corpus.chunks(Chunking(6)))


def test_documents_that_come_while_others_are_cut_are_found(corpus):
    late = [still.Document("late", "Words of a latecomer.")]

    class Slow(PlainTokens):
        def starts(self, text):
            if late:
                corpus.add([late.pop()])  # what another process does meanwhile
            return super().starts(text)

    chunks = ChunkSet(corpus, Chunking(30), Slow())
    assert [hit.key for hit in still.Lexical(chunks).search(["latecomer"])[0]] == ["late#1"]


def test_a_set_that_another_process_has_just_made_is_used(corpus, monkeypatch):
    one, other = corpus.chunks(Chunking(6)), corpus.chunks(Chunking(6))
    real = chunk_set_module.connect

    def connect_later(path, *, read_only):
        if not read_only:
            monkeypatch.setattr(chunk_set_module, "connect", real)
            assert other.update() == 2
        return real(path, read_only=read_only)

    monkeypatch.setattr(chunk_set_module, "connect", connect_later)
    assert one.update() == 0 and len(one) == len(other) > 2


def test_threads_of_different_settings_search_one_file(corpus):
    """Each setting is written to the file by the first thread that needs it, while others read."""
    finders = [still.Retrieve(corpus, letters, k=3, chunk_size=size) for size in (4, 8)]
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda i: finders[i % 2](f"hose {i % 4}").passages, range(16)))
    assert found == [finders[i % 2](f"hose {i % 4}").passages for i in range(16)]


def test_the_compiler_tunes_the_size(tmp_path, tiny_lm):
    """Words say nothing about these documents, sentences do."""
    from still.optimizers.search import Search

    corpus = still.Corpus(tmp_path / "c.duckdb")
    corpus.add([still.Document("wrong", "red lid. blue cup."), still.Document("right", "red cup. blue lid.")])
    tune = {"k": (), "k1": (), "b": (), "chunk_size": (1, 3), "chunk_overlap": (0.0, 0.4)}
    find = still.Retrieve(corpus, None, k=1, chunk_size=1, tune=tune)
    rows = [{"query": "red cup", "relevant": "right"}, {"query": "blue lid", "relevant": "right"}]
    data = still.Dataset(rows * 4, inputs=["query"])
    result = still.compile(
        find, data, data, still.mrr(), passes=[Search()], lm=tiny_lm, ledger=tmp_path / "l.duckdb", progress=False
    )
    assert (find.chunk_size, result.program.chunk_size) == (1, 3)
    assert [p.text for p in result.program("red cup").passages] == ["red cup."]


def test_a_metric_counts_chunks_as_their_document():
    chunks = [still.Passage(id=f"{d}#{n}", text="", document=d) for d, n in (("a", 1), ("a", 2), ("b", 1))]
    example = still.Example(query="q", relevant=["b"]).with_inputs("query")
    assert still.mrr()(example, still.Prediction(passages=chunks)) == 0.5
    exact = still.Example(query="q", relevant=["a#2"]).with_inputs("query")
    assert still.mrr()(exact, still.Prediction(passages=[p.model_dump() for p in chunks])) == 0.5


def test_tokens_are_the_embedders_where_it_has_a_tokenizer(tmp_path, model_fp32, monkeypatch):
    class Folder:
        folder = tmp_path

    assert isinstance(tokens_of(Folder()), PlainTokens) and isinstance(tokens_of(letters), PlainTokens)
    (tmp_path / "tokenizer.json").write_text(model_fp32.tokenizer.json, "utf-8")
    assert isinstance(tokens_of(Folder()), ModelTokens)
    monkeypatch.chdir(tmp_path)
    assert isinstance(tokens_of(letters), PlainTokens), "a file that happens to be here is not the model's"
