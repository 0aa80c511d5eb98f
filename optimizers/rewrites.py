"""Instructions and layouts to try without a teacher: rewrites and ablations of what the program says."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import ConstraintError
from ..signatures.bridge import Example
from ..signatures.fieldset import constraints, in_place

WORDS = 4
"""Words shown for an option."""
MAX_OPTIONS = 20
"""A list of words for more options than this is longer than what it explains."""
_WORD = re.compile(r"[a-z][a-z'-]{2,}")


def rewrites(signature: Any, train: Sequence[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, changes), the likeliest to help first; changes are `instructions`, `fields`, or both, of a predictor.

    words: the instructions with the words that tell each option from the others in the training data. plain: what goes in
    and what comes out in one sentence. bare: no instructions at all. short: outputs are not described, only their names
    and the grammar say what they are; without options, without formats: only those of closed sets, only the others. last
    first: the inputs, or the outputs, in the opposite order.
    """
    inputs, outputs = _listed(signature.input_fields), _listed(signature.output_fields)
    for output, hint in _hints(signature, train):
        yield f"words for {output}", {"instructions": f"{signature.instructions.strip()}\n\n{hint}"}
    yield "plain", {"instructions": f"Read the {inputs} and give the {outputs}."}
    yield "bare", {"instructions": " "}  # dspy would fill in a default for an empty text
    yield "short", _undescribed(signature.output_fields)
    closed = [output for output, constraint in constraints(signature).items() if constraint.options is not None]
    if 0 < len(closed) < len(signature.output_fields):
        yield "without options", _undescribed(closed)
        yield "without formats", _undescribed(output for output in signature.output_fields if output not in closed)
    for what, fields in (("outputs", signature.output_fields), ("inputs", signature.input_fields)):
        if len(fields) > 1:
            yield f"{what} last first", {"fields": {name: {"place": i} for i, name in enumerate(reversed(in_place(fields)))}}


def _undescribed(outputs: Iterable[str]) -> dict[str, Any]:
    return {"fields": {output: {"describe": False} for output in outputs}}


def _listed(names: Iterable[str]) -> str:
    words = [name.replace("_", " ") for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _hints(signature: Any, train: Sequence[Example]) -> Iterator[tuple[str, str]]:
    for output, constraint in constraints(signature).items():
        options = constraint.options
        if options is None or not 2 <= len(options) <= MAX_OPTIONS:
            continue
        texts: dict[str, Counter[str]] = {option: Counter() for option in options}
        for example in train:
            try:
                label = constraint.render(example[output])
            except (ConstraintError, KeyError):
                continue
            said = " ".join(str(example[name]) for name in signature.input_fields if name in example)
            texts[label].update(set(_WORD.findall(said.lower())))
        lines = [f"{option}: {', '.join(words)}" for option, words in _distinctive(texts).items() if words]
        if len(lines) >= 2:
            yield output, f"Words that speak for a {output.replace('_', ' ')}:\n" + "\n".join(lines)


def _distinctive(texts: dict[str, Counter[str]]) -> dict[str, list[str]]:
    """The words most typical of each group: log-odds against the rest with an informative Dirichlet prior, in standard
    deviations (Monroe, Colaresi and Quinn, Fightin' Words, 2008)."""
    whole = sum(texts.values(), Counter())
    mass, total = 10.0, whole.total() or 1
    found: dict[str, list[str]] = {}
    for group, counts in texts.items():
        rest = whole - counts
        ranked = []
        for word, count in counts.items():
            prior = mass * whole[word] / total
            # Where a group says nothing but this word, the odds would be without end.
            here = (count + prior) / max(counts.total() + mass - count - prior, 1e-12)
            there = (rest[word] + prior) / max(rest.total() + mass - rest[word] - prior, 1e-12)
            deviation = math.sqrt(1 / (count + prior) + 1 / (rest[word] + prior))
            score = (math.log(here) - math.log(max(there, 1e-12))) / deviation
            if count >= 2 and score > 1.0:
                ranked.append((-score, word))
        found[group] = [word for _, word in sorted(ranked)[:WORDS]]
    return found
