"""Datasets: every way in gives exact values or an error that says where; splits depend on seed and content only."""

from __future__ import annotations

import csv
import datetime as dt
import enum
import json
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from typing import Annotated, Literal

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from still.compiler.canonical import canonical_json
from still.compiler.dataset import Dataset, example_digest
from still.errors import DatasetError
from still.signatures.bridge import Example


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(dataset):
    return [dict(example.items()) for example in dataset]


def numbered(n):
    return Dataset([{"q": f"question {i}", "a": str(i % 3)} for i in range(n)], inputs=["q"])


# --- csv and tsv


def test_csv_keeps_text_exactly_and_marks_inputs(tmp_path):
    path = write(tmp_path / "t.csv", '\ufeffid,body,team\r\n007,"a, ""b""\r\nc",x\r\n# 8, d ,\r\n')
    data = Dataset.read(path, inputs=["body"])
    assert rows(data) == [{"id": "007", "body": 'a, "b"\r\nc', "team": "x"}, {"id": "# 8", "body": " d ", "team": None}]
    assert dict(data[0].inputs().items()) == {"body": 'a, "b"\r\nc'}
    assert dict(data[0].labels().items()) == {"id": "007", "team": "x"}
    assert (data.columns, data.inputs, data.labels) == (("id", "body", "team"), ("body",), ("id", "team"))


def test_tsv_and_blank_lines_and_mixed_line_ends(tmp_path):
    path = write(tmp_path / "t.tsv", "a\tb\r\n1,5\t2\n\n3\t4\r")
    assert rows(Dataset.read(path, inputs=["a"])) == [{"a": "1,5", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('a,b\n1,"x\ny"\n3\n', ["line 4", "1 cells", "header 2"]),
        ("a,b\n1,2,3\n", ["line 2", "3 cells"]),
        ('a,b\n1,2\n"3,4\n5,6\n', ["line 3", "unexpected end"]),
        ('a,b\n1,"x" y\n', ["line 2"]),
        ("a,b\n1,\xe9\n".encode("latin-1"), ["line 2", "0xe9", "save as UTF-8"]),
        ("a,b\n1,2\n".encode("utf-16"), ["line 1", "save as UTF-8"]),
        ("a,b\n1,2\n".encode("utf-16-le"), ["NUL", "save as UTF-8"]),
        ("", ["empty"]),
        ("\ufeff", ["empty"]),
        ("a,b\n", ["a, b", "no rows"]),
        ("a,a\n1,2\n", ["'a'", "rename"]),
        ("a,\n1,2\n", ["column 2 has no name"]),
        ("a;b\n1;2\n", ["'a'", "separated by ';'"]),
    ],
)
def test_damaged_csv_names_file_place_and_remedy(tmp_path, content, parts):
    path = write(tmp_path / "bad.csv", content)
    with pytest.raises(DatasetError) as caught:
        Dataset.read(path, inputs=["a"])
    assert all(part in str(caught.value) for part in ["bad.csv", *parts]), caught.value


def test_csv_cell_longer_than_the_default_limit(tmp_path):
    long = "x" * 300_000
    assert Dataset.read(write(tmp_path / "t.csv", f"a,b\n{long},1\n"), inputs=["a"])[0].a == long


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)] * 2),
        min_size=1,
        max_size=6,
    )
)
def test_csv_round_trips_any_text(tmp_path, cells):
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *cells])
    assert rows(Dataset.read(path, inputs=["a"])) == [{"a": a or None, "b": b or None} for a, b in cells]


# --- json


def test_jsonl_keeps_python_values(tmp_path):
    records = [
        {"a": 1, "b": {"x": [1, {"y": None}]}},
        {"a": "1", "b": [1, "a", 2.5]},
        {"a": 10**30, "c": "2024-01-02\u2028"},
        {"a": True, "b": 1.0},
    ]
    text = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    for name in ("t.jsonl", "t.ndjson", "t.json"):
        data = Dataset.read(write(tmp_path / name, "\ufeff" + text), inputs=["a"])
        got = rows(data)
        assert got == [{"a": r["a"], "b": r.get("b"), "c": r.get("c")} for r in records]
        assert [type(row["a"]) for row in got] == [int, str, int, bool]


def test_json_list(tmp_path):
    assert rows(Dataset.read(write(tmp_path / "t.json", ' [{"a": 1},\n {"a": 2}]'), inputs=["a"])) == [
        {"a": 1},
        {"a": 2},
    ]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("t.jsonl", '{"a": 1}\n\n{"a": 1,}\n', ["line 3", "not valid JSON", "column 9"]),
        ("t.jsonl", '{"a": 1}\n[1]\n', ["line 2", "[1]", "not an object"]),
        ("t.jsonl", '{"a": NaN}\n', ["line 1", "NaN"]),
        ("t.jsonl", '{"a": 1, "a": 2}\n', ["line 1", "'a'", "twice"]),
        ("t.jsonl", '{"a": "\\ud800"}\n', ["line 1", "surrogate"]),
        ("t.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ["line 2", "save as UTF-8"]),
        ("t.jsonl", "[" * 100_000, ["line 1"]),
        ("t.json", '[{"a": 1},\n {"a": }]', ["line 2 column 8"]),
        ("t.json", '[{"a": 1}, 2]', ["row 2", "not an object"]),
        ("t.json", "[]", ["empty"]),
        ("t.xlsx", "x", [".xlsx", ".csv", ".parquet"]),
    ],
)
def test_damaged_json_names_file_place_and_remedy(tmp_path, name, content, parts):
    path = write(tmp_path / name, content)
    with pytest.raises(DatasetError) as caught:
        Dataset.read(path, inputs=["a"])
    assert all(part in str(caught.value) for part in [name, *parts]), caught.value


# --- parquet and SQL


def test_parquet_values_are_python_values(tmp_path):
    path = tmp_path / "it's [odd] *.parquet"
    write(tmp_path / "it's o 1.parquet", "a file that the name would match as a pattern")
    plain = tmp_path / "p.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"""COPY (SELECT '007' AS id, 3::TINYINT AS n, {{'k': 1, 'l': ['x', NULL]}} AS s, DATE '2024-01-02' AS d,
            TIMESTAMPTZ '2024-01-02 03:04:05.000006+02' AS z, 1.25::DECIMAL(9, 2) AS m, NULL AS none) TO '{plain}'"""
        )
    plain.rename(path)
    (row,) = rows(Dataset.read(path, inputs=["id"]))
    zone = dt.timezone(dt.timedelta(hours=2))
    assert row == {
        "id": "007",
        "n": 3,
        "s": {"k": 1, "l": ["x", None]},
        "d": dt.date(2024, 1, 2),
        "z": dt.datetime(2024, 1, 2, 3, 4, 5, 6, zone),
        "m": Decimal("1.25"),
        "none": None,
    }


def test_damaged_parquet_and_missing_files(tmp_path):
    for path in (write(tmp_path / "t.parquet", "nope"), tmp_path / "none.parquet", tmp_path):
        with pytest.raises(DatasetError, match=path.name):
            Dataset.read(path, inputs=["a"])


def test_sql_over_a_database_and_over_a_file(tmp_path):
    database = tmp_path / "d.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS i, 'q' || range AS q FROM range(5)")
    data = Dataset.sql("SELECT * FROM t WHERE i > 2 ORDER BY i", inputs=["q"], database=database)
    assert rows(data) == [{"i": 3, "q": "q3"}, {"i": 4, "q": "q4"}]
    assert len(Dataset.sql("SELECT 1 AS a, 2 AS b", inputs=["a"])) == 1
    for query in ("SELECT * FROM t WHERE false", "SELEC 1", "INSERT INTO t VALUES (9, 'x')", "SELECT 1 AS a, 2 AS a"):
        with pytest.raises(DatasetError):
            Dataset.sql(query, inputs=["q"], database=database)
    with duckdb.connect(str(database)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(5,)]


# --- construction and the sequence


def test_inputs_must_be_columns(tmp_path):
    path = write(tmp_path / "t.csv", "Body,team\nx,y\n")
    with pytest.raises(
        DatasetError, match=r"t\.csv: input 'boddy' has no column; did you mean 'Body'\? There are Body, team"
    ):
        Dataset.read(path, inputs=["boddy"])
    for wrong in ("Body", [], ["Body", "Body"]):
        with pytest.raises(DatasetError, match="inputs"):
            Dataset.read(path, inputs=wrong)


def test_from_dicts_and_examples():
    data = Dataset([{"q": 1}, {"q": 2, "labels": "x"}], inputs=["q"])
    assert rows(data) == [{"q": 1, "labels": None}, {"q": 2, "labels": "x"}]
    examples = [Example(q=1, a=2).with_inputs("q"), Example(q=3, a=4).with_inputs("q")]
    assert Dataset(examples).inputs == ("q",)
    assert Dataset(examples, inputs=["a"]).inputs == ("a",)
    turned = Example(a=5, q=6).with_inputs("q", "a")
    assert Dataset([Example(q=1, a=2).with_inputs("a", "q"), turned]).inputs == ("q", "a")
    for bad in ([], [Example(q=1)], [{"q": 1}], [examples[0], Example(q=1, a=1).with_inputs("a")], [{1: 2}], ["x"]):
        with pytest.raises(DatasetError):
            Dataset(bad)


def test_is_an_immutable_sequence():
    data = numbered(5)
    assert len(data) == 5
    assert data[-1] == list(data)[4]
    assert data.index(data[2]) == 2
    assert isinstance(data[1:3], Dataset)
    assert rows(data[::-2]) == [rows(data)[i] for i in (4, 2, 0)]
    before = data.digest
    data[0].q = "changed"
    for example in data:
        example["q"] = "changed"
    assert data[0].q == "question 0"
    assert numbered(5).digest == before == data.digest
    with pytest.raises(IndexError):
        data[5]
    with pytest.raises(TypeError):
        data[0] = 1
    assert len(data[5:]) == 0


# --- check


class Color(enum.Enum):
    RED = "red"


class Item(BaseModel):
    name: str
    tags: set[str] = set()


def test_check_types_text(tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        cells = ["007", "3", "true", "", "2024-01-02", "red", '["a","b"]', '{"name": "n"}', "2", "as is", "0.5"]
        csv.writer(file).writerows([list("abcdefghijk"), cells])
    raw = Dataset.read(path, inputs=["a"])
    kinds = {"a": str, "b": int, "c": bool, "d": str | None, "e": dt.date, "f": Color, "g": list[str], "h": Item}
    kinds |= {"i": Literal[1, 2], "k": Annotated[float, Field(ge=0, le=1)]}
    typed = raw.check(kinds)
    assert list(rows(typed)[0].values()) == [
        *("007", 3, True, None, dt.date(2024, 1, 2), Color.RED, ["a", "b"], Item(name="n"), 2, "as is", 0.5)
    ]
    assert rows(raw)[0]["b"] == "3"
    assert typed.inputs == ("a",)
    assert raw.check({}).digest == raw.digest


def test_check_names_file_row_field_value_and_type(tmp_path):
    lines = ["id,n"] + [f"{i},{'x' if i > 2 else i}" for i in range(1, 11)]
    data = Dataset.read(write(tmp_path / "t.csv", "\n".join(lines)), inputs=["id"])
    with pytest.raises(DatasetError) as caught:
        data.check({"n": int})
    message = str(caught.value)
    assert "t.csv" in message
    assert "row 3, field 'n': 'x' is not int" in message
    assert "row 7" in message
    assert "row 8" not in message
    assert "3 more" in message
    with pytest.raises(DatasetError, match=r"row 10, field 'n'"):
        data[9:].check({"n": int})
    with pytest.raises(DatasetError, match=r"field 'ns' has no column; did you mean 'n'"):
        data.check({"ns": int})


def test_check_of_empty_cells_and_unsuitable_types():
    data = Dataset([{"q": None, "s": "NULL"}], inputs=["q"])
    with pytest.raises(DatasetError, match=r"is empty, expected str \(declare `str \| None`"):
        data.check({"q": str})
    assert data.check({"q": str | None, "s": str})[0].s == "NULL"
    with pytest.raises(DatasetError, match="field 'q': pydantic cannot check"):
        data.check({"q": type("Odd", (), {})})


# --- split, sample, duplicates


@given(st.integers(3, 60), st.integers(0, 5), st.booleans())
@settings(deadline=None, max_examples=40)
def test_split_is_a_partition_that_depends_on_the_seed(n, seed, stratified):
    data = numbered(n)
    options = {"train": 0.5, "dev": 0.25, "test": 0.25} if n > 3 else {"train": 1, "dev": 1, "test": 1}
    options["stratify"] = "a" if stratified else None
    splits = data.split(seed=seed, **options)
    parts = [example.q for part in splits for example in part]
    assert sorted(parts) == sorted(example.q for example in data)
    again = numbered(n).split(seed=seed, **options)
    assert [part.digest for part in splits] == [part.digest for part in again]


def test_split_sizes():
    data = numbered(10)
    assert [len(part) for part in data.split()] == [6, 2, 2]
    assert [len(part) for part in data.split(7, 2, 1)] == [7, 2, 1]
    assert [len(part) for part in data.split(0.5, 3, 0)] == [5, 3, 0]
    assert [len(part) for part in data.split(0.1, 0.1, 0.1)] == [1, 1, 1]
    assert [len(part) for part in numbered(7).split(1 / 3, 1 / 3, 1 / 3)] in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    seeds = {data.split(seed=seed).train.digest for seed in range(5)}
    assert len(seeds) == 5


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ((0.9, 0.2, 0.2), "1.3"),
        ((8, 2, 2), "needs 12 rows, there are 10"),
        ((0.6, 0.02, 0.2), "dev=0.02 of 10 rows is empty"),
        ((1.5, 0.2, 0.2), "train=1.5"),
        ((-1, 2, 2), "train=-1"),
        ((True, 2, 2), "train=True"),
        ((0.98, 0.01, 0.01), "dev=0.01"),
        ((float("nan"), 1, 1), "train=nan"),
    ],
)
def test_impossible_splits(sizes, part):
    with pytest.raises(DatasetError, match=part):
        numbered(10).split(*sizes)


def test_stratified_split_keeps_proportions():
    data = Dataset([{"q": i, "a": "rare" if i % 10 == 0 else "common"} for i in range(200)], inputs=["q"])
    for seed in range(5):
        for part, rare in zip(data.split(0.5, 0.25, 0.25, seed=seed, stratify="a"), (10, 5, 5), strict=True):
            assert abs(Counter(example.a for example in part)["rare"] - rare) <= 1
    with pytest.raises(DatasetError, match="stratify by 'b'"):
        data.split(stratify="b")


def test_split_is_the_same_in_another_process():
    code = (
        "from still.compiler.dataset import Dataset\n"
        "data = Dataset([{'q': f'question {i}', 'a': str(i % 3)} for i in range(20)], inputs=['q'])\n"
        "print([part.digest for part in data.split(seed=3, stratify='a')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str([part.digest for part in numbered(20).split(seed=3, stratify="a")])


def test_sample():
    data = numbered(10)
    picked = [example.q for example in data.sample(4, seed=1)]
    assert len(set(picked)) == 4
    assert picked == [example.q for example in data.sample(4, seed=1)]
    assert picked != [example.q for example in data.sample(4, seed=2)]
    for n in (0, 11):
        with pytest.raises(DatasetError, match=f"sample {n} of 10"):
            data.sample(n, seed=0)


def test_duplicates_and_overlap_compare_normalized_inputs():
    data = Dataset(
        [{"q": q, "a": i} for i, q in enumerate(["Ｈi  there", "x", "hi THERE ", "X", "y", 1])], inputs=["q"]
    )
    assert data.duplicates() == [(0, 2), (1, 3)]
    other = Dataset([{"q": "y\n"}, {"q": "z"}, {"q": "1"}], inputs=["q"])
    assert data.overlap(other) == [4]
    assert other.overlap(data) == [0]


# --- digests and display


def test_example_digest_looks_at_content():
    assert example_digest(Example(a=1, b="x")) == example_digest(Example(b="x", a=1))
    digests = {
        example_digest(Example(base))
        for base in (
            {"a": 1},
            {"a": 1.0},
            {"a": True},
            {"a": "1"},
            {"a": None},
            {"a": [1]},
            {"b": 1},
            {"a": float("nan")},
        )
    }
    assert len(digests) == 8
    assert example_digest(Example(a=1, b=2).with_inputs("a")) != example_digest(Example(a=1, b=2).with_inputs("b"))
    assert len(example_digest(Example(a="\ud800"))) == 64


def test_canonical_json_of_rich_values():
    value = {
        "m": Item(name="n", tags={"b", "a", "c"}),
        "d": dt.date(2024, 1, 2),
        "c": Color.RED,
        "t": (1, 2),
        3: {2, 1},
    }
    assert canonical_json(value) == (
        '{"3":[1,2],"c":"red","d":"2024-01-02","m":{"name":"n","tags":["a","b","c"]},"t":[1,2]}'
    )
    with pytest.raises(DatasetError, match="no JSON form"):
        canonical_json({"x": object()})


def test_repr_and_html_are_short_and_escaped():
    data = Dataset([{"q": f"<b>{i}</b>" + "x" * 500, "a&": i} for i in range(50)], inputs=["q"])
    assert repr(data) == "Dataset(50 rows from rows; inputs: q; labels: a&)"
    text = data._repr_html_()
    assert "<b>" not in text
    assert "&lt;b&gt;0" in text
    assert "a&amp;" in text
    assert text.count("<tr>") == 6
    assert len(text) < 2000
