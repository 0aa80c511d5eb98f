"""`Hit`: what every operator returns per query."""

from __future__ import annotations

from typing import NamedTuple


class Hit(NamedTuple):
    """A document found: its key, and a score that is comparable within one query and one operator."""

    key: str
    score: float
