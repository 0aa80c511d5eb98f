"""The answer that most samples agree on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_jsonable_python


def majority(answers: Sequence[dict[str, Any]], fields: Sequence[str]) -> int:
    """Index of the first answer whose values of `fields` most answers share (Wang et al., Self-Consistency, 2023)."""
    keys = [
        json.dumps([to_jsonable_python(answer[name], fallback=repr) for name in fields], sort_keys=True)
        for answer in answers
    ]
    counts = Counter(keys)
    best = max(counts.values())
    return next(i for i, key in enumerate(keys) if counts[key] == best)
