"""Rows with equal inputs, and rows with nearly equal ones."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from ..errors import DatasetError
from ..signatures.bridge import Example
from .canonical import canonical_json, to_jsonable
from .minhash import candidate_pairs

THRESHOLD = 0.8
SHORT_WORDS = 20
"""Texts with fewer words are compared by characters: one other word changes too many of their word pairs."""
WORD_SHINGLE = 2
CHARACTER_SHINGLE = 3

_WORD = re.compile(r"\w+")
K = TypeVar("K", bound=Hashable)


class Near(NamedTuple):
    """Two rows, by 0-based index, whose inputs are nearly equal."""

    first: int
    second: int
    similarity: float
    """From 0 to 1: see `similarity`."""


def normalized_inputs(example: Example) -> str:
    """Canonical JSON of an example's inputs with text in NFKC, case-folded and its white space collapsed."""
    return canonical_json(_normalize(to_jsonable(example.inputs())))


def equal_groups(keys: Sequence[K]) -> list[tuple[int, ...]]:
    """The indices of equal keys together, single ones too, in order of first appearance."""
    groups: dict[K, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [tuple(group) for group in groups.values()]


def similarity(first: str, second: str) -> float:
    """How alike two rows are, given as `normalized_inputs`: the Jaccard similarity of their least similar input.

    The shingles of a text are its sequences of 2 words, or of 3 characters where the shorter of the two texts has fewer
    than 20 words. The least similar input decides because two questions on one long document are two examples.
    """
    ours, theirs = _texts(first), _texts(second)
    if ours.keys() != theirs.keys():
        return 0.0
    return min((_alike(ours[name], theirs[name]) for name in ours), default=1.0)


def near_pairs(
    keys: Sequence[str], threshold: float = THRESHOLD, sides: Sequence[int] | None = None, seed: int = 0
) -> list[Near]:
    """Pairs of rows, given as `normalized_inputs`, with a `similarity` of `threshold` or more, the most similar first.

    Of rows with equal inputs (on the same one of the `sides`, which may say what split each row is of) only the first
    is compared, and equal ones are no pair. Candidates come from MinHash, so a pair is overlooked now and then
    (`minhash.MISSES`), but what is reported was computed exactly.

    Raises:
        DatasetError: the threshold is not above 0 and at most 1.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise DatasetError(f"threshold={threshold!r} is no similarity: give a number above 0 and at most 1, such as 0.8")
    origin = [0] * len(keys) if sides is None else list(sides)
    firsts = [group[0] for group in equal_groups(list(zip(keys, origin, strict=True)))]
    distinct = [keys[index] for index in firsts]
    found = []
    for i, j in _candidates(distinct, threshold, [origin[index] for index in firsts], seed):
        if distinct[i] != distinct[j] and (value := similarity(distinct[i], distinct[j])) >= threshold:
            found.append(Near(firsts[i], firsts[j], value))
    return sorted(found, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def near_rows(ours: Sequence[str], theirs: Sequence[str], threshold: float = THRESHOLD) -> list[int]:
    """The indices of `ours` that make a near pair with one of `theirs`."""
    border = len(ours)
    pairs = near_pairs([*ours, *theirs], threshold, [0] * border + [1] * len(theirs))
    met = {ours[pair.first] for pair in pairs if pair.first < border <= pair.second}
    return [index for index, key in enumerate(ours) if key in met]


def linked_groups(keys: Sequence[str], pairs: Sequence[Near]) -> list[tuple[int, ...]]:
    """Indices that equal keys or a chain of near pairs connect, together; single ones too."""
    leader = list(range(len(keys)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = index = leader[leader[index]]
        return index

    for group in equal_groups(keys):
        for index in group[1:]:
            leader[find(index)] = find(group[0])
    for pair in pairs:
        leader[find(pair.second)] = find(pair.first)
    return equal_groups([find(index) for index in range(len(keys))])


def _candidates(keys: Sequence[str], threshold: float, sides: Sequence[int], seed: int) -> list[tuple[int, int]]:
    """Candidates by one input alone: a pair must be similar in every one, so the one that says most will do."""
    rows = [_texts(key) for key in keys]
    names = sorted({name for row in rows for name in row})
    if not names:
        return []
    columns = {name: [row.get(name, "") for row in rows] for name in names}
    texts = max(columns.values(), key=lambda column: (len(set(column)), sum(map(len, column))))
    return sorted({*_by_words(texts, threshold, sides, seed), *_by_characters(texts, threshold, sides, seed)})


def _by_words(texts: Sequence[str], threshold: float, sides: Sequence[int], seed: int) -> list[tuple[int, int]]:
    chosen = [index for index, text in enumerate(texts) if not _is_short(text)]
    sets = (_word_shingles(texts[index]) for index in chosen)
    found = candidate_pairs(sets, threshold, [sides[index] for index in chosen], seed)
    return [(chosen[i], chosen[j]) for i, j in found]


def _by_characters(texts: Sequence[str], threshold: float, sides: Sequence[int], seed: int) -> list[tuple[int, int]]:
    short = [_is_short(text) for text in texts]
    if not any(short):
        return []
    sizes = [len(_character_shingles.__wrapped__(text)) for text in texts]  # long ones are not worth keeping
    # Two sets of similarity s have sizes in a ratio of s at least: longer texts cannot be like any short one.
    most = max(size for size, is_short in zip(sizes, short, strict=True) if is_short) / threshold
    chosen = [index for index, size in enumerate(sizes) if short[index] or size <= most]
    sets = (_character_shingles(texts[index]) for index in chosen)
    found = candidate_pairs(sets, threshold, [sides[index] for index in chosen], seed)
    return [(chosen[i], chosen[j]) for i, j in found if short[chosen[i]] or short[chosen[j]]]


def _alike(first: str, second: str) -> float:
    if first == second:
        return 1.0
    shingles = _character_shingles if _is_short(first) or _is_short(second) else _word_shingles
    ours, theirs = shingles(first), shingles(second)
    common = len(ours & theirs)
    return common / (len(ours) + len(theirs) - common)


# A row meets several others. The third cache is small: the shingles of a long document are some hundred kilobytes.
@functools.lru_cache(maxsize=1 << 13)
def _texts(key: str) -> dict[str, str]:
    values = json.loads(key)
    return {name: value if isinstance(value, str) else canonical_json(value) for name, value in values.items()}


@functools.lru_cache(maxsize=1 << 13)
def _is_short(text: str) -> bool:
    return len(_WORD.findall(text)) < SHORT_WORDS


@functools.lru_cache(maxsize=1 << 10)
def _word_shingles(text: str) -> frozenset[str]:
    words = _WORD.findall(text)
    return frozenset(" ".join(words[i : i + WORD_SHINGLE]) for i in range(len(words) - WORD_SHINGLE + 1))


@functools.lru_cache(maxsize=1 << 13)
def _character_shingles(text: str) -> frozenset[str]:
    return frozenset(text[i : i + CHARACTER_SHINGLE] for i in range(max(len(text) - CHARACTER_SHINGLE + 1, 1)))


def _normalize(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, list):
        return [_normalize(item) for item in value]
    if isinstance(value, dict):
        return {key: _normalize(item) for key, item in value.items()}
    return value
