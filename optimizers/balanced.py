"""Draws of examples that name as many labels as they can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def balanced(pool: Sequence[dict[str, Any]], count: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """The first `count` of a pool, passing over those whose values of `names` have been taken more often than others'."""
    rest = list(pool)
    shown: dict[tuple[str, str], int] = {}
    chosen: list[dict[str, Any]] = []
    while rest and len(chosen) < count:
        best = min(range(len(rest)), key=lambda i: sum(shown.get((f, str(rest[i].get(f))), 0) for f in names))
        demonstration = rest.pop(best)
        chosen.append(demonstration)
        for name in names:
            key = (name, str(demonstration.get(name)))
            shown[key] = shown.get(key, 0) + 1
    return chosen
