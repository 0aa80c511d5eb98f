"""`Passage`: a piece of text that was found, as programs pass it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

_NEEDED = frozenset({"id", "text"})


class Passage(BaseModel):
    """id: its key in its corpus. score: comparable within one search. source: where the text is from. document: the key of
    the document that it is part of, or all of; text is that document's from character `start` up to `end`."""

    model_config = ConfigDict(frozen=True)

    id: str
    text: str
    score: float = 0.0
    source: str = ""
    document: str = ""
    start: int = 0
    end: int | None = None


def read_passages(value: Any) -> list[Passage] | None:
    """The passages of a list, also where they are plain data (as in a demonstration from a file); else None."""
    if not isinstance(value, list | tuple) or not all(_is_passage(item) for item in value):
        return None
    return [item if isinstance(item, Passage) else Passage.model_validate(item) for item in value]


def _is_passage(item: Any) -> bool:
    if isinstance(item, Passage):
        return True
    return isinstance(item, dict) and _NEEDED <= item.keys() <= Passage.model_fields.keys()


def passages_text(passages: Sequence[Passage]) -> str:
    """What a prompt shows: a line per passage, under the number by which it is cited. Scores and ids, which vary from one
    search to another or mean nothing to a model, are left out: the same passages are the same prefix."""
    return "".join(f"\n[{number}] {' '.join(passage.text.split())}" for number, passage in enumerate(passages, 1))
