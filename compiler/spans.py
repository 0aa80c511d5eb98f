"""Named values found in a text (slots, entities), as lists of items or as a dict of slots."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DatasetError
from .comparisons import identity, item_f1, plain_value
from .metric import Score

_NAMES = ("name", "type", "label", "slot")
_VALUES = ("value", "text")
_QUOTES = "\"'`“”‘’«»"
_ARTICLES = ("the ", "a ", "an ")


@dataclass(frozen=True, slots=True)
class Span:
    """One item: what it is, its value, and where it stands, if that is known."""

    name: str
    value: Any
    place: tuple[int, int] | None = None

    def key(self, placed: bool) -> Hashable:
        """Equal for items that count as the same."""
        value = fold_text(self.value) if isinstance(self.value, str) else self.value
        return self.name, identity(value), self.place if placed else None

    def __str__(self) -> str:
        where = f" at {self.place[0]}-{self.place[1]}" if self.place else ""
        return f"{self.name}={self.value!r:.80}{where}"


def fold_text(text: str) -> str:
    """Text without case, extra white space, quotes and punctuation at its end, and a leading article.

    Unlike `squad_normalize` it keeps what is inside: "$3.50" is not "350", and "-5" is not "5".
    """
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    # A space too: many corpora have one before punctuation, and inside of quotes.
    folded = folded.strip(_QUOTES + " ").rstrip(".,;:!? " + _QUOTES) or folded
    return next((folded.removeprefix(article) for article in _ARTICLES if folded.startswith(article)), folded)


def read_spans(value: Any) -> list[Span]:
    """Items of a list of dicts or objects, or of a dict from names to a value, to several, or to None.

    Raises DatasetError for anything else.
    """
    plain = plain_value(value)
    if plain is None:
        return []
    if isinstance(plain, dict):
        return [Span(name, item) for name, found in plain.items() for item in _several(found)]
    if isinstance(plain, list):
        return [span for item in plain if (span := _span(item)).value is not None]
    raise DatasetError("is neither a list of items with a name and a value nor a dict of slots")


def span_scores(expected: Sequence[Span], given: Sequence[Span]) -> Score:
    """Micro F1 over the items; places count where every item on both sides has one."""
    placed = all(span.place for span in (*expected, *given))
    return item_f1(_keyed(expected, placed), _keyed(given, placed))


def _keyed(spans: Sequence[Span], placed: bool) -> list[tuple[Hashable, str]]:
    return [(span.key(placed), str(span)) for span in spans]


def _several(found: Any) -> list[Any]:
    return [item for item in (found if isinstance(found, list) else [found]) if item is not None]


def _span(item: Any) -> Span:
    if not isinstance(item, dict):
        raise DatasetError(f"has an item {item!r:.80}, which is no dict with a name and a value")
    name = next((item[key] for key in _NAMES if key in item), None)
    if not isinstance(name, str):
        raise DatasetError(f"has an item {item!r:.80} without a text as its {', '.join(_NAMES[:-1])} or {_NAMES[-1]}")
    if not any(key in item for key in _VALUES):
        raise DatasetError(f"has an item {item!r:.80} without a {' or '.join(_VALUES)}")
    return Span(name, next(item[key] for key in _VALUES if key in item), _place(item))


def _place(item: Mapping[str, Any]) -> tuple[int, int] | None:
    place = item["span"] if "span" in item else [item.get("start"), item.get("end")]
    if place is None or place == [None, None]:
        return None
    if not isinstance(place, list) or len(place) != 2 or any(type(edge) is not int for edge in place):
        raise DatasetError(f"has an item {item!r:.80} whose start and end are not two whole numbers")
    return place[0], place[1]
