"""Datasets from several files, from pandas and from the hub: the same rows, or an error that says what to do."""

from __future__ import annotations

import datetime as dt
import json
import sys
import types
from decimal import Decimal
from typing import ClassVar

import duckdb
import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError
from still.compiler.dataset import Dataset
from still.compiler.hub import CONVERTED, choose_files
from still.errors import DatasetError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows(dataset):
    return [dict(example.items()) for example in dataset]


# --- several files


def test_several_files_and_patterns(tmp_path):
    write(tmp_path / "b.csv", "q,a\n3,x\n")
    write(tmp_path / "a.jsonl", '{"q": "1", "a": "y"}\n{"q": "2", "n": 5}\n')
    for path in ([tmp_path / "a.jsonl", str(tmp_path / "b.csv")], str(tmp_path / "*.*"), tmp_path / "**" / "[ab].*"):
        data = Dataset.read(path, inputs=["q"])
        assert rows(data) == [
            {"q": "1", "a": "y", "n": None},
            {"q": "2", "a": None, "n": 5},
            {"q": "3", "a": "x", "n": None},
        ]
    with pytest.raises(DatasetError, match=r"row 1 of .*b\.csv, field 'a': 'x' is not int"):
        data[2:].check({"a": int})
    assert [len(part) for part in data.split(1, 1, 1)] == [1, 1, 1]


def test_a_name_with_a_pattern_in_it_is_the_file_first(tmp_path):
    write(tmp_path / "1.csv", "q\nother\n")
    write(tmp_path / "[1].csv", "q\nthis\n")
    assert rows(Dataset.read(tmp_path / "[1].csv", inputs=["q"])) == [{"q": "this"}]


def test_several_files_that_cannot_be_read(tmp_path):
    good, empty = write(tmp_path / "a.csv", "q\n1\n"), write(tmp_path / "b.csv", "q\n")
    write(tmp_path / "c.csv", "q,q\n1,2\n")
    for path, part in (
        ([], "names no file"),
        ([good, good], "a.csv: is named twice"),
        ([good, empty], "b.csv: has columns q but no rows"),
        (tmp_path / "*.csv", "b.csv: has columns"),
        ([good, tmp_path / "c.csv"], "c.csv: two columns are named 'q'"),
        (tmp_path / "*.tsv", "no file matches"),
    ):
        with pytest.raises(DatasetError) as caught:
            Dataset.read(path, inputs=["q"])
        assert part in str(caught.value)


# --- pandas


class Column(list):
    def tolist(self):
        return list(self)


class Frame:
    """What is used of a DataFrame, so that the test needs no pandas."""

    def __init__(self, names, *columns):
        self.columns, self.cells = names, columns
        self.iloc = self

    def __getitem__(self, place):
        rows, column = place
        assert rows == slice(None)
        return Column(self.cells[column])

    def __len__(self):
        return len(self.cells[0])


class NaTType(dt.datetime):
    """pandas' missing time is a datetime that is unequal to itself."""

    def to_pydatetime(self, warn=True):
        raise AssertionError("a missing time has no value")


class Timestamp(dt.datetime):
    def to_pydatetime(self, warn=True):
        return dt.datetime(2024, 1, 2)


def test_frame_values_become_plain_values():
    nan, missing = float("nan"), NaTType(1, 1, 1)
    cells = {
        "text": (["x", nan], ["x", None]),
        "number": ([np.int64(3), np.float32(0.5)], [3, 0.5]),
        "holes": ([np.float64("nan"), Decimal("NaN")], [None, None]),
        "time": ([Timestamp(2024, 1, 2), missing], [dt.datetime(2024, 1, 2), None]),
        "nested": ([[np.bool_(True), nan], {"k": np.array([1, 2])}], [[True, None], {"k": [1, 2]}]),
        "kept": ([dt.date(2024, 1, 1), (1, "a")], [dt.date(2024, 1, 1), (1, "a")]),
    }
    data = Dataset.from_pandas(Frame(list(cells), *(given for given, _ in cells.values())), inputs=["text"])
    expected = [{name: values[i] for name, (_, values) in cells.items()} for i in range(2)]
    assert rows(data) == expected
    for got, wanted in zip(rows(data), expected, strict=True):
        assert [type(value) for value in got.values()] == [type(value) for value in wanted.values()]
    assert len(data.digest) == 64


@pytest.mark.parametrize(
    ("frame", "part"),
    [
        ([{"a": 1}], "frame is a list"),
        (Frame(["a", 1], [1], [2]), "column name 1 is no text"),
        (Frame(["a", "a"], [1], [2]), "'a'; rename"),
        (Frame(["a", "b"], [], []), "a, b but no rows"),
        (Frame(["A"], [1]), "did you mean 'A'"),
    ],
)
def test_frames_that_are_none(frame, part):
    with pytest.raises(DatasetError, match=part):
        Dataset.from_pandas(frame, inputs=["a"])


def test_pandas_itself():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "text": ["x", float("nan")],
            "string": pd.array(["x", None], dtype="string"),
            "whole": pd.array([1, None], dtype="Int64"),
            "truth": pd.array([True, None], dtype="boolean"),
            "when": pd.to_datetime(["2024-01-02", None]),
            "span": pd.to_timedelta(["1h", None]),
            "kind": pd.Categorical(["p", None]),
        },
        index=[7, 7],
    )
    first = ["x", "x", 1, True, dt.datetime(2024, 1, 2), dt.timedelta(hours=1), "p"]
    got = [list(row.values()) for row in rows(Dataset.from_pandas(frame, inputs=["text"]))]
    assert got == [first, [None] * 7]
    assert [type(value) for value in got[0]] == [type(value) for value in first]


# --- the hub


NAMES = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "q": {"_type": "Value"}}}}


def parquet(path, query, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = f", KV_METADATA {{huggingface: '{json.dumps(metadata)}'}}" if metadata else ""
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet{options})")
    return path


def test_a_local_folder_reads_like_a_hub_dataset(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", "SELECT 'a' AS q, 1 AS label", NAMES)
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", "SELECT 'b' AS q, 0 AS label", NAMES)
    parquet(tmp_path / "data" / "train_extra-00000-of-00001.parquet", "SELECT 'c' AS q, -1 AS label", NAMES)
    write(tmp_path / "data" / "validation.csv", "q,label\nd,1\n")
    write(tmp_path / "README.md", "train")
    found = Dataset.from_hub(str(tmp_path), split="train", inputs=["q"])
    assert rows(found) == [{"q": "a", "label": "yes"}, {"q": "b", "label": "no"}]
    assert rows(Dataset.from_hub(str(tmp_path), split="train_extra", inputs=["q"])) == [{"q": "c", "label": None}]
    assert rows(Dataset.from_hub(str(tmp_path), split="dev", inputs=["q"])) == [{"q": "d", "label": "1"}]
    with pytest.raises(DatasetError, match=r"\(train\): input 'Q' has no column; did you mean 'q'"):
        Dataset.from_hub(str(tmp_path), split="train", inputs=["Q"])


def test_class_labels_in_lists_and_objects_get_their_names(tmp_path):
    names = {"names": ["O", "PER"], "_type": "ClassLabel"}
    features = {
        "q": [{"dtype": "string", "_type": "Value"}],  # as older versions wrote a list
        "old": [names],
        "tags": {"feature": names, "length": -1, "_type": "Sequence"},
        "deep": {"feature": {"feature": names, "_type": "List"}, "_type": "LargeList"},
        "one": {"kind": names, "_type": {"dtype": "int64", "_type": "Value"}},
        "many": {"feature": {"kind": names}, "_type": "Sequence"},
        "odd": None,
        "label": names,
    }
    query = (
        "SELECT ['a'] AS q, [1, -1] AS old, [0, 1, NULL] AS tags, [[1], []] AS deep, {'kind': 1, '_type': 1} AS one, "
        "{'kind': [1, 0]} AS many, 1 AS odd, 1 AS label"
    )
    parquet(tmp_path / "train.parquet", query, {"info": {"features": features}})
    assert rows(Dataset.from_hub(str(tmp_path), split="train", inputs=["q"])) == [
        {
            "q": ["a"],
            "old": ["PER", None],
            "tags": ["O", "PER", None],
            "deep": [["PER"], []],
            "one": {"kind": "PER", "_type": 1},
            "many": {"kind": ["PER", "O"]},
            "odd": 1,
            "label": "PER",
        }
    ]


@pytest.mark.parametrize(
    ("files", "split", "config", "chosen"),
    [
        (["default/train/0000.parquet", "default/test/0000.parquet"], "test", None, ["default/test/0000.parquet"]),
        (["a/train/0.parquet", "b/train/0.parquet"], "train", "b", ["b/train/0.parquet"]),
        (["a/train-00000-of-00001.parquet", "train.parquet"], "train", None, ["train.parquet"]),
        (["my-train.jsonl", "my-dev.jsonl"], "validation", None, ["my-dev.jsonl"]),
        (["all.jsonl", "info.json"], "train", None, ["all.jsonl"]),
        (["meta.parquet", "test.csv", "train.csv"], "test", None, ["test.csv"]),
        ([".cache/train.csv", "train.csv"], "train", None, ["train.csv"]),
        (["a/train/0.parquet", "b/train/0.parquet"], "train", None, "several configs; pass config= one of a, b"),
        (["all.jsonl"], "test", None, "no file is of split 'test'; there are all"),
        (["a/test.csv", "b/testing.csv"], "test", "b", ["b/testing.csv"]),
        (["a/test.csv", "b/train.csv"], "test", "b", "no file is of split 'test'; there are train"),
        (["a/test.csv", "b/test.csv"], "test", "c", "config 'c' does not exist; pass config= one of a, b"),
        (["train/a.csv", "train/b.csv", "train/test.csv"], "train", None, ["train/a.csv", "train/b.csv"]),
        (["test_a.csv", "test_b.csv", "train.csv"], "test", None, "split 'test' may be test_a, test_b; give one"),
        (["val.csv", "dev.csv", "train.csv"], "validation", None, "split 'validation' may be dev, val; give one"),
        (["cola/train.csv", "cola/test.csv"], "cola", None, "split 'cola' may be test, train; give one"),
        (["train.py", "README.md"], "train", None, "has no parquet, jsonl, csv or json files"),
    ],
)
def test_which_files_hold_a_split(files, split, config, chosen):
    if isinstance(chosen, list):
        assert choose_files(files, split, config, "o/n") == chosen
        return
    with pytest.raises(DatasetError) as caught:
        choose_files(files, split, config, "o/n")
    assert chosen in str(caught.value) and "'o/n'" in str(caught.value)


def test_on_the_branch_of_converted_files_only_exact_names_count():
    files = [f"default/{split}/0000.parquet" for split in ("train", "test_a", "test_b")]
    files += ["test/train/0000.parquet", "other/validation/0000.parquet"]
    assert choose_files(files, "train", None, "o/n", exact=True) == ["default/train/0000.parquet"]
    assert choose_files(files, "train", "test", "o/n", exact=True) == ["test/train/0000.parquet"]
    for split in ("test", "dev", "validation"):  # without a config, that of another is not taken
        with pytest.raises(DatasetError, match=f"no file is of split '{split}'; there are test_a, test_b, train"):
            choose_files(files, split, None, "o/n", exact=True)


class Hub:
    """A hub of folders: branch -> folder. `missing` is what it raises for another branch."""

    def __init__(self, monkeypatch, branches, missing=None):
        self.branches, self.asked = branches, []
        response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
        self.missing = missing or RevisionNotFoundError("no such revision", response=response)
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def list_repo_files(self, name, repo_type, revision):
        assert (name, repo_type) == ("owner/name", "dataset")
        self.asked.append(revision)
        if revision not in self.branches:
            raise self.missing
        folder = self.branches[revision]
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]

    def download(self, name, file, repo_type, revision):
        return str(self.branches[revision] / file)


def test_hub_prefers_converted_files_and_falls_back(tmp_path, monkeypatch):
    parquet(tmp_path / "c" / "default" / "train" / "0000.parquet", "SELECT 'converted' AS q, 1 AS label", NAMES)
    parquet(tmp_path / "p" / "default" / "partial-train" / "0000.parquet", "SELECT 'beginning' AS q, 1 AS label")
    main = write(tmp_path / "m" / "train.jsonl", '{"q": "main", "label": 1}\n').parent
    write(tmp_path / "m" / "test.jsonl", '{"q": "test", "label": 0}\n')
    write(tmp_path / "old" / "train.jsonl", '{"q": "old", "label": 1}\n')

    def read(hub, split="train", **options):
        return [row["q"] for row in rows(Dataset.from_hub("owner/name", split=split, inputs=["q"], **options))]

    both = Hub(monkeypatch, {CONVERTED: tmp_path / "c", None: main, "v1": tmp_path / "old"})
    assert (read(both), both.asked) == (["converted"], [CONVERTED])
    assert read(both, "test") == ["test"]
    assert read(both, revision="v1") == ["old"]
    assert read(Hub(monkeypatch, {CONVERTED: tmp_path / "p", None: main})) == ["main"]
    plain = Hub(monkeypatch, {None: main})
    assert (read(plain), plain.asked) == (["main"], [CONVERTED, None])


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("offline"),
        httpx.ConnectError("no route"),
        ValueError("odd"),
    ],
)
def test_hub_that_cannot_be_reached_names_dataset_and_remedy(monkeypatch, error):
    hub = Hub(monkeypatch, {}, missing=error)
    with pytest.raises(DatasetError, match=r"'owner/name'.*network.*HF_HUB_OFFLINE.*give their folder") as caught:
        Dataset.from_hub("owner/name", split="train", inputs=["q"])
    assert caught.value.__cause__ is error
    assert hub.asked == [CONVERTED]


def test_hub_name_that_is_none():
    with pytest.raises(DatasetError, match=r"'not a name/x/y': no such folder, and not a hub id"):
        Dataset.from_hub("not a name/x/y", split="train", inputs=["q"])


class ClassLabel:
    names = ("no", "yes")


class List:
    feature = ClassLabel()


class Loaded(list):
    features: ClassVar = {"q": object(), "label": ClassLabel(), "tags": List(), "parts": {"kind": [ClassLabel()]}}


def test_the_datasets_library_where_there_is_one(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        if options["split"] == "none":
            raise ValueError("Unknown split")
        first = {"q": "a", "label": np.int64(1), "tags": [0, np.int64(1)], "parts": {"kind": [1]}}
        second = {"q": "b", "label": -1, "tags": [], "parts": None}
        return Loaded([] if options["split"] == "empty" else [first, second])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = Dataset.from_hub("owner/name", split="train", inputs=["q"], config="c", revision="r")
    assert rows(found) == [
        {"q": "a", "label": "yes", "tags": ["no", "yes"], "parts": {"kind": ["yes"]}},
        {"q": "b", "label": None, "tags": [], "parts": None},
    ]
    assert asked == [(("owner/name", "c"), {"split": "train", "revision": "r"})]
    for split, part in (("none", "ValueError: Unknown split"), ("empty", "'empty' has no rows")):
        with pytest.raises(DatasetError, match=part):
            Dataset.from_hub("owner/name", split=split, inputs=["q"])
