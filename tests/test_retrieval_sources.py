"""Documents from files, folders, tables, queries and rows; what a corpus does with them, and when a process dies."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import duckdb
import pytest
import still
from still.backends.retrieval import corpus as corpus_module
from still.backends.retrieval import store as store_module
from still.backends.retrieval.html_text import html_text
from still.backends.retrieval.store import connect
from still.errors import RetrievalError


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return still.Corpus("c.duckdb")


def rows(corpus, columns="key, text, source, metadata::VARCHAR"):
    with connect(corpus.path, read_only=True) as connection:
        return connection.execute(f"SELECT {columns} FROM documents ORDER BY key").fetchall()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


PAGE = """<!doctype html><html><head><title>All
about kettles</title><style>p { color: red }</style></head><body><script>var x = "<p>no</p>";</script>
<nav><ul><li>Home<li>Shop &amp; more</ul></nav><h1>Kettles</h1><p>They <b>boil</b>
water.<p>Twice<br>a day.<h2>Care</h2><pre>a  b
  c</pre><table><tr><th>part<th>price<tr><td>lid<td>3</table><!-- hidden --></body></html>"""


def test_a_page_is_what_a_reader_sees():
    text, title = html_text(PAGE)
    assert title == "All about kettles"
    assert text == (
        "- Home\n- Shop & more\n\n# Kettles\n\nThey boil water.\n\nTwice\na day.\n\n## Care\n\na  b\n  c\n\n"
        "part | price\nlid | 3"
    )
    assert html_text("just text < 3 &lt;") == ("just text < 3 <", "")
    assert html_text("<head><title>t</title><p>open <b>ends") == ("open ends", "t")


def test_a_page_that_is_none_is_read_all_the_same():
    for page in ("kettle<![ x", "kettle<![ x>lid", f"kettle &#{'9' * 5000};"):
        assert html_text(page)[0].startswith("kettle")
    assert html_text("<h1>kettle</h1><![ x><p>lid") == ("# kettle\n\nlid", "")


def test_a_folder_is_read_kept_up_to_date_and_pruned(corpus, tmp_path):
    docs = tmp_path / "docs"
    write(docs / "a.md", "# A\r\n\r\nkettle")
    write(docs / "deep" / "b.html", "<title>B</title><p>lid &eacute;</p>")
    write(docs / "latin.txt", b"caf\xe9 \xff")
    write(docs / "wide.txt", "﻿träge".encode("utf-16"))
    write(docs / "empty.txt", b"")
    write(docs / ".git" / "c.md", "hidden")
    write(docs / "image.png", b"\x89PNG")
    assert corpus.read("docs") == (5, 0, 0, 0)
    assert rows(corpus, "key, text, source") == [
        ("docs/a.md", "# A\r\n\r\nkettle", "docs/a.md"),
        ("docs/deep/b.html", "lid é", "docs/deep/b.html"),
        ("docs/empty.txt", "", "docs/empty.txt"),
        ("docs/latin.txt", "caf� �", "docs/latin.txt"),
        ("docs/wide.txt", "﻿träge", "docs/wide.txt"),
    ]
    assert still.Lexical(corpus).search(["lid"], where="metadata->>'title' = 'B'")[0][0].key == "docs/deep/b.html"
    before = corpus.path.stat().st_mtime_ns
    assert corpus.read("./docs/", prune=True) == (0, 0, 5, 0)
    assert corpus.path.stat().st_mtime_ns == before
    corpus.add([{"key": "other", "text": "stays", "source": "docs2"}])
    (docs / "deep" / "b.html").unlink()
    write(docs / "a.md", "kettle, new")
    assert corpus.read("docs") == (0, 1, 3, 0)
    assert corpus.read("docs", prune=True) == (0, 0, 4, 1)
    assert [key for (key,) in rows(corpus, "key")] == [
        "docs/a.md", "docs/empty.txt", "docs/latin.txt", "docs/wide.txt", "other",
    ]  # fmt: skip


def test_pruning_deletes_only_what_the_call_would_read_and_is_gone(corpus, tmp_path):
    docs = tmp_path / "docs"
    for name in ("a.md", "a1.md", "a[1].md", ".notes.md"):
        write(docs / name, name)
    write(docs / "faq.csv", "question\nWhy?\n")
    corpus.add([still.Document("far", "stays", "/elsewhere/x.md"), still.Document("table", "stays", "tickets")])
    assert corpus.read(["docs", "docs/.notes.md"], text="question") == (5, 0, 0, 0)
    assert corpus.read("docs", prune=True) == (0, 0, 3, 0)
    assert corpus.read("docs/*.md", prune=True) == (0, 0, 3, 0)
    assert corpus.read("docs/a[1].md", prune=True) == (0, 0, 1, 0), "a file that is there is no pattern"
    (docs / "faq.csv").unlink()
    assert corpus.read("docs", prune=True).deleted == 0
    assert corpus.read("docs", text="question", prune=True).deleted == 1
    (docs / "a1.md").unlink()
    assert corpus.read(".", prune=True) == (0, 0, 2, 1)
    assert [key for (key,) in rows(corpus, "key")] == ["docs/.notes.md", "docs/a.md", "docs/a[1].md", "far", "table"]


def test_one_key_is_not_its_letters(corpus):
    corpus.add(still.Document(key, "text") for key in ("a", "b", "ab"))
    assert corpus.delete("ab") == 1
    assert rows(corpus, "key") == [("a",), ("b",)]


def test_a_cell_that_is_not_a_number_is_empty(corpus):
    assert corpus.add([{"key": "a", "text": float("nan")}]).added == 1
    assert corpus.sql("SELECT 'b' AS key, 'nan'::DOUBLE AS text", key="key").added == 1
    assert rows(corpus, "key, text") == [("a", ""), ("b", "")]


def test_tables_become_documents_with_metadata(corpus, tmp_path):
    write(tmp_path / "faq.csv", 'id,question,answer,lang\n007,How?,"So,\nthus.",en\n8,Why?,,de\n')
    write(tmp_path / "faq.jsonl", '{"id": 9, "question": "Who?", "answer": "Me.", "n": [1, {"a": null}]}\n')
    query = "SELECT 10 AS id, 'When?' AS question, 'Now.' AS answer, DATE '2024-02-01' AS day, 'nan'::DOUBLE AS x"
    duckdb.sql(query).write_parquet(str(tmp_path / "faq.parquet"))
    paths = ["faq.csv", "faq.jsonl", "faq.parquet"]
    assert corpus.read(paths, text=["question", "answer"], key="id") == (4, 0, 0, 0)
    assert [(k, t, s, json.loads(m)) for k, t, s, m in rows(corpus)] == [
        ("007", "How?\n\nSo,\nthus.", "faq.csv", {"lang": "en"}),
        ("10", "When?\n\nNow.", "faq.parquet", {"day": "2024-02-01", "x": None}),
        ("8", "Why?", "faq.csv", {"lang": "de"}),
        ("9", "Who?\n\nMe.", "faq.jsonl", {"n": [1, {"a": None}]}),
    ]
    assert corpus.read("faq.*", text=["question", "answer"], key="id", prune=True) == (0, 0, 4, 0)
    write(tmp_path / "faq.csv", "id,question,answer,lang\n8,Why?,Thus.,de\n")
    assert corpus.read("faq.*", text=["question", "answer"], key="id", prune=True) == (0, 1, 2, 1)
    assert corpus.read("faq.csv", text="answer") == (1, 0, 0, 0)
    assert rows(corpus, "key")[-1] == ("faq.csv:1",)


def test_queries_and_rows_become_documents(corpus, tmp_path):
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as shop:
        shop.execute("CREATE TABLE tickets AS SELECT i AS id, 'ticket ' || i AS body, i % 2 = 0 AS even FROM range(3) t(i)")
    query = {"query": "FROM tickets", "key": "id", "text": "body", "database": "shop.duckdb", "source": "tickets"}
    assert corpus.sql(**query) == (3, 0, 0, 0)
    assert corpus.sql(**{**query, "query": "FROM tickets WHERE even"}, prune=True) == (0, 0, 2, 1)
    assert corpus.add([{"key": 5, "text": None, "even": True}, still.Document("6", "six")]) == (2, 0, 0, 0)
    assert [(k, json.loads(m)) for k, _, _, m in rows(corpus)] == [
        ("0", {"even": True}), ("2", {"even": True}), ("5", {"even": True}), ("6", {}),
    ]  # fmt: skip
    assert corpus.sql("SELECT 'x' AS key, 'y' AS text", key="key") == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda c: c.read("nothing.md"), r"nothing.md: no such file"),
        (lambda c: c.read("*.md"), "no file matches"),
        (lambda c: c.read("bare"), r"bare has no file that ends in \.txt, \.md"),
        (lambda c: c.read("image.png"), r"cannot read \.png; use one of"),
        (lambda c: c.read([]), "names no file"),
        (lambda c: c.read("t.csv"), "is a table; say which column"),
        (lambda c: c.read("t.csv", text="body"), "row 1: has no column 'body', it has a, b"),
        (lambda c: c.read("t.csv", text="a", key="id"), "has no column 'id'"),
        (lambda c: c.read("t.csv", text="a", key="b"), "row 2: document 'three' has no key"),
        (lambda c: c.read("bad.csv", text="a"), "bad.csv: line 2 is not UTF-8"),
        (lambda c: c.read("empty.csv", text="a"), "empty.csv: is empty"),
        (lambda c: c.read("t.csv", text=[]), "name at least one column"),
        (lambda c: c.sql("SELEC 1", key="a"), "SELEC 1.*correct it"),
        (lambda c: c.sql("CREATE TABLE t (i INT)", key="a"), "query: has no column"),
        (lambda c: c.sql("SELECT 1 AS key, [2] AS text", key="key"), r"column 'text' is \[2\]: give text"),
        (lambda c: c.sql("SELECT 1 AS key, 't' AS text", key="key", prune=True), "needs source="),
        (lambda c: c.add([{"text": "t"}]), "number 1: has no column 'key'"),
        (lambda c: c.add([{"key": float("nan"), "text": "t"}]), "document 't' has no key"),
        (lambda c: c.add(["text"]), "number 1 is 'text'; give still.Document"),
        (lambda c: c.add([still.Document("", "text")]), "document 'text' has no key"),
        (lambda c: c.add([still.Document("k", b"bytes")]), "its text is b'bytes'"),
        (lambda c: c.add([still.Document("k\ud800", "t")]), "surrogate"),
        (lambda c: c.add([], batch=0), "batch=0"),
    ],
)
def test_what_cannot_be_read_is_named(corpus, tmp_path, read, message):
    (tmp_path / "bare").mkdir()
    write(tmp_path / "image.png", b"\x89PNG")
    write(tmp_path / "t.csv", "a,b\none,two\nthree,\n")
    write(tmp_path / "bad.csv", b"a\n\xff\n")
    write(tmp_path / "empty.csv", b"")
    with pytest.raises(RetrievalError, match=message):
        read(corpus)


def test_a_folder_or_file_without_permission_is_named(corpus, tmp_path, monkeypatch):
    write(tmp_path / "docs" / "locked" / "a.md", "text")
    write(tmp_path / "docs" / "b.md", "text")
    scan, read = os.scandir, type(tmp_path).read_bytes

    def scandir(path):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    def read_bytes(path):
        if path.name == "b.md":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(RetrievalError, match=r"docs/locked: cannot be read: Permission denied"):
        corpus.read("docs")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(tmp_path), "read_bytes", read_bytes)
    with pytest.raises(RetrievalError, match=r"docs/b.md: cannot be read: Permission denied"):
        corpus.read("docs")


def test_odd_texts_and_large_ones_are_kept(corpus):
    large = "Some words of a long document. " * 340_000
    odd = {"nul": "a\0b kettle", "half": "kettle \ud800", "blank": " \n", "emoji": "👩‍👩‍👧 kettle", "large": large}
    assert corpus.add(still.Document(key, text, metadata={"x": float("inf")}) for key, text in odd.items()).added == 5
    kept = dict(rows(corpus, "key, text"))
    assert kept == {**odd, "half": "kettle ?"}
    assert {hit.key for hit in still.Lexical(corpus).search(["kettle"])[0]} == {"nul", "half", "emoji"}
    assert corpus.add(still.Document(key, text, metadata={"x": float("inf")}) for key, text in odd.items()).unchanged == 5
    assert still.Lexical(corpus).search(["long document"])[0][0].key == "large"


def test_batches_are_transactions(corpus, monkeypatch):
    def failing():
        yield from (still.Document(str(i), "text") for i in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.add(failing(), batch=2)
    assert len(corpus) == 4
    monkeypatch.setattr(corpus_module, "BATCH_CHARACTERS", 8)
    with pytest.raises(KeyboardInterrupt):
        corpus.add(failing())
    assert len(corpus) == 4


KILLED = """
import sys, still
corpus = still.Corpus(sys.argv[1])
first = len(corpus)
for start in range(first, 10**6, 20):
    corpus.add(still.Document(str(i), f"kettle number{i}") for i in range(start, start + 20))
    print("added", flush=True)
"""


def test_a_killed_process_leaves_whole_batches(tmp_path):
    path = tmp_path / "c.duckdb"
    before = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == process.stdout.readline() == b"added\n"
        time.sleep(random.uniform(0, 0.1))  # somewhere in the third batch or a later one
        process.kill()
        process.wait()
        corpus = still.Corpus(path)
        count = len(corpus)
        assert count % 20 == 0 and count >= before + 40
        found = still.Lexical(corpus).search(["kettle"], k=10**6)[0]
        assert len(found) == count
        with connect(path, read_only=True) as connection:
            (postings,) = connection.execute("SELECT count(*) FROM postings").fetchone()
        assert postings == 2 * count
        before = count


def test_a_corpus_that_another_process_has_just_made_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "c.duckdb"
    real = store_module.connect

    def connect_later(aside, *, read_only):
        monkeypatch.setattr(store_module, "connect", real)
        still.Corpus(path).add([still.Document("a", "text")])
        return real(aside, read_only=read_only)

    monkeypatch.setattr(store_module, "connect", connect_later)
    assert len(still.Corpus(path)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.duckdb"]
    path.unlink()
    monkeypatch.setattr(store_module, "connect", connect_later)
    with pytest.raises(RetrievalError, match="language='english', not 'german'"):
        still.Corpus(path, language="german")


def test_a_file_that_is_something_else_or_in_use_is_refused(tmp_path):
    path = tmp_path / "c.duckdb"
    still.Corpus(path, language="german")
    with pytest.raises(RetrievalError, match="language='german', not 'english'"):
        still.Corpus(path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE meta SET value = '0' WHERE name = 'format'")
    with pytest.raises(RetrievalError, match="format 0, this Still has format"):
        still.Corpus(path, language="german")
    with duckdb.connect(str(tmp_path / "d.duckdb")) as connection:
        connection.execute("CREATE TABLE t (i INT)")
    with pytest.raises(RetrievalError, match="no corpus"):
        still.Corpus(tmp_path / "d.duckdb")
    (tmp_path / "e.duckdb").write_text("no database")
    with pytest.raises(RetrievalError, match="cannot be opened"):
        still.Corpus(tmp_path / "e.duckdb")
    code = "import duckdb, sys\nwith duckdb.connect(sys.argv[1]):\n    print('open', flush=True)\n    sys.stdin.read()"
    still.Corpus(tmp_path / "f.duckdb")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "f.duckdb")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"open\n"
    with pytest.raises(RetrievalError, match=r"f\.duckdb: cannot be opened .*end the process"):
        still.Corpus(tmp_path / "f.duckdb")
    holder.communicate()
    assert len(still.Corpus(tmp_path / "f.duckdb")) == 0
