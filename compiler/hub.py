"""Hugging Face datasets: which files hold a split, how they are fetched, and the names of their class labels."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..backends.duck import fetch, literal_path
from ..backends.readers import Table, first_line, from_records, read_tables
from ..errors import DatasetError
from .frames import plain_value

CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps every public dataset as parquet files, config/split/0000.parquet."""
SUFFIXES = ((".parquet",), (".jsonl", ".ndjson"), (".csv", ".tsv"), (".json",))
"""What is read, best first: where a dataset has several kinds, the later ones are copies or notes."""
ALIASES = ({"train", "training"}, {"validation", "valid", "val", "dev"}, {"test", "testing", "eval", "evaluation"})

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHARD = re.compile(r"[-_]\d{5}-of-\d{5}.*$|[-_]\d{1,3}$")
_NO_CONFIG = "default"
_LISTS = ("List", "LargeList", "Sequence")


class Place(NamedTuple):
    """What a file's path says about what is in it."""

    path: str
    config: str
    label: str
    """The file's name without suffix and shard number, or the folder's where the file is only numbered."""
    folders: tuple[str, ...]


def read_hub(name: str, split: str, config: str | None = None, revision: str | None = None) -> Table:
    """The rows of one split of a hub dataset, or of a local folder of that name.

    Raises:
        DatasetError: it cannot be found or fetched, or has no such config or split.
    """
    if Path(name).is_dir():
        files = [file.relative_to(name).as_posix() for file in sorted(Path(name).rglob("*")) if file.is_file()]
        return _read(name, [str(Path(name, file)) for file in choose_files(files, split, config, name)])
    if not _NAME.fullmatch(name):
        raise DatasetError(f"hub dataset {name!r}: no such folder, and not a hub id of the form 'owner/name'; correct it")
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        return _asked(name, lambda: _by_files(name, split, config, revision))
    return _asked(name, lambda: _by_library(library, name, split, config, revision))


def _by_library(library: Any, name: str, split: str, config: str | None, revision: str | None) -> Table:
    rows = library.load_dataset(name, config, split=split, revision=revision)
    names = _by_column(rows.features)
    records = [{column: plain_value(value) for column, value in row.items()} for row in rows]
    if not records:
        raise DatasetError(f"hub dataset {name!r}: split {split!r} has no rows; choose another")
    return _with_names(from_records(records), names)


def _by_files(name: str, split: str, config: str | None, revision: str | None) -> Table:
    from huggingface_hub import HfApi, hf_hub_download

    branch: str | None = CONVERTED
    files = [] if revision else _converted(name, split, config)
    if not files:
        branch = revision
        listed = HfApi().list_repo_files(name, repo_type="dataset", revision=branch)
        files = choose_files(listed, split, config, name)
    return _read(name, [hf_hub_download(name, file, repo_type="dataset", revision=branch) for file in files])


def _converted(name: str, split: str, config: str | None) -> list[str]:
    """The split's files on the branch of converted files; none where the hub has not, or not wholly, converted it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        files = HfApi().list_repo_files(name, repo_type="dataset", revision=CONVERTED)
        return choose_files(files, split, config, name, exact=True)
    except (RevisionNotFoundError, DatasetError):
        return []


def _asked(name: str, ask: Callable[[], Table]) -> Table:
    try:
        return ask()
    except DatasetError:
        raise
    except Exception as error:  # the clients raise their own, httpx's, the OS's and ValueErrors
        raise DatasetError(
            f"hub dataset {name!r}: cannot be fetched ({type(error).__name__}: {first_line(error)}). Check name, config, "
            "split and the network (HF_HUB_OFFLINE must not be set unless the dataset is in the hub's cache; a gated "
            "dataset needs `hf auth login`), or download its files and give their folder"
        ) from error


def choose_files(files: Sequence[str], split: str, config: str | None, name: str, exact: bool = False) -> list[str]:
    """Those of `files` (paths within the dataset) that hold `split`, of one config and one format.

    exact: they all are config/split/0000.parquet, so that no other word stands for the split.

    Raises:
        DatasetError: none does, or several configs do and `config` does not say which, or several names may mean the split.
    """
    shown = [file for file in files if not any(part.startswith((".", "_")) for part in PurePosixPath(file).parts)]
    places = [_place(file, exact) for file in shown]
    kinds = [[place for place in places if PurePosixPath(place.path).suffix.lower() in kind] for kind in SUFFIXES]
    if not any(kinds):
        raise DatasetError(f"hub dataset {name!r}: has no parquet, jsonl, csv or json files; convert it to one of these")
    if config or exact:
        # First of all: what another config has must not hide that this one has it by another word.
        wanted = _config([place for kind in kinds for place in kind], config, name)
        kinds = [[place for place in kind if place.config == wanted] for kind in kinds]
    found = next((matches for kind in kinds if (matches := _of_split(kind, split, exact))), [])
    if not found:
        labels = ", ".join(sorted({place.label for kind in kinds for place in kind})[:10])
        raise DatasetError(f"hub dataset {name!r}: no file is of split {split!r}; there are {labels}")
    wanted = _config(found, config, name)
    chosen = [place for place in found if place.config == wanted]
    several = sorted({place.label for place in chosen})
    if len(several) > 1 and not all(_is_part(place, split) for place in chosen):
        raise DatasetError(
            f"hub dataset {name!r}: split {split!r} may be {', '.join(several[:10])}; give one as split, or a folder's name"
        )
    return sorted(place.path for place in chosen)


def _config(places: Sequence[Place], config: str | None, name: str) -> str:
    """The config that is asked for, or the one to take where none is."""
    configs = sorted({place.config for place in places})
    wanted = config or (_NO_CONFIG if _NO_CONFIG in configs or len(configs) > 1 else configs[0])
    if wanted not in configs:
        asked = f"config {config!r} does not exist" if config else "it has several configs"
        raise DatasetError(f"hub dataset {name!r}: {asked}; pass config= one of {', '.join(configs)}")
    return wanted


def _place(file: str, exact: bool) -> Place:
    path = PurePosixPath(file)
    folders, label = list(path.parts[:-1]), _SHARD.sub("", path.stem)
    if label.isdigit() and folders:
        label = folders.pop()
    named = [folder for folder in folders if folder != "data" and not any(folder in words for words in ALIASES)]
    config = (folders if exact else named)[:1] or [_NO_CONFIG]
    return Place(file, config[0], label, tuple(folders))


def _is_part(place: Place, split: str) -> bool:
    """Whether a file is of the split by its own name or a folder's, which may hold several parts; but train/test.csv is no
    part of train.
    """
    other = any(place.label in words for words in ALIASES if split not in words)
    return place.label == split or (split in place.folders and not other)


def _of_split(places: Sequence[Place], split: str, exact: bool) -> list[Place]:
    """By the exact name first, then by a word in it, then by another word for it, as the hub's own library does."""
    if exact:
        return [place for place in places if place.label == split]
    aliases = next((words for words in ALIASES if split in words), {split})

    def words(place: Place) -> set[str]:
        return {word for part in (place.label, *place.folders) for word in re.split(r"[-_. ]", part.lower())}

    named = [place for place in places if _is_part(place, split)]
    worded = [place for place in places if split in words(place)]
    aliased = [place for place in places if aliases & words(place)]
    # A dataset that does not speak of splits has one, which is called train.
    one = not any(words(place) & known for place in places for known in ALIASES) and len({p.label for p in places}) == 1
    return named or worded or aliased or (list(places) if one and split == "train" else [])


def _read(name: str, paths: Sequence[str]) -> Table:
    table, _, _ = read_tables(paths)
    names = _class_names(paths[0]) if paths[0].endswith(".parquet") else {}
    return _with_names(table, names)


def _class_names(path: str) -> dict[str, Any]:
    """Per column what `_names` says, by the metadata that the hub's library writes into a parquet file."""
    import duckdb

    query = "SELECT value FROM parquet_kv_metadata($1) WHERE key = 'huggingface'::BLOB"
    with duckdb.connect(":memory:") as connection:
        _, found = fetch(connection.sql(query, params=[literal_path(path)]))
    try:
        return _by_column(json.loads(found[0][0])["info"]["features"]) if found else {}
    except (ValueError, KeyError, TypeError, AttributeError):  # written by another tool: the numbers stay numbers
        return {}


def _by_column(features: Mapping[str, Any]) -> dict[str, Any]:
    return {column: names for column, kind in features.items() if (names := _names(kind))}


def _names(kind: Any) -> Any:
    """The names of the class labels in a feature, which is an object of the hub's library or its JSON: a list of them, or a
    dict by member; None where it has no class labels. Those of a list are those of its items.
    """
    if isinstance(kind, list):  # as older versions wrote a list
        return _names(kind[0]) if len(kind) == 1 else None
    if isinstance(kind, dict) and not isinstance(kind.get("_type"), str):
        return _by_column(kind)
    name = kind["_type"] if isinstance(kind, dict) else type(kind).__name__
    if name == "ClassLabel":
        names = _part(kind, "names")
        return list(names) if isinstance(names, list | tuple) else None
    return _names(_part(kind, "feature")) if name in _LISTS else None


def _part(kind: Any, name: str) -> Any:
    return kind.get(name) if isinstance(kind, dict) else getattr(kind, name, None)


def _with_names(table: Table, names: Mapping[str, Any]) -> Table:
    for row in table.rows:
        row.update({column: _named(row[column], known) for column, known in names.items() if column in row})
    return table


def _named(value: Any, names: Any) -> Any:
    if names is None:
        return value
    if isinstance(value, list | tuple):
        return [_named(item, names) for item in value]
    if isinstance(names, dict):
        return {key: _named(item, names.get(key)) for key, item in value.items()} if isinstance(value, dict) else value
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return names[value] if 0 <= value < len(names) else None  # -1 says: not labelled
