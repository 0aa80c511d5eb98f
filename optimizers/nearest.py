"""Demonstrations chosen per input: the labelled examples whose inputs are most like it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..signatures.fieldset import constraints
from ..signatures.json_members import ClosedSet, closed_sets
from .balanced import balanced
from .neighbours import WORDS, Neighbours
from .prototypes import Prototypes
from .similarity import Similarity, VectorSimilarity, WordSimilarity, read_rows, text_vectors

CHOICE = 3
"""Where they are balanced, they are chosen from so many times as many of the nearest."""


class NearestDemonstrations(list[dict[str, Any]]):
    """A pool of demonstrations, and a choice of `count_per_input` of them for each call, best match last; of 0, no choice.

    It is a list, so that code which copies or saves a predictor's `demos` keeps the whole pool. What is compared is the
    text of all input fields.
    """

    def __init__(
        self, pool: Iterable[dict[str, Any]], count_per_input: int, neighbours: Neighbours = WORDS
    ) -> None:
        super().__init__(pool)
        self.count_per_input = count_per_input
        self.neighbours = neighbours
        self._texts: dict[tuple[str, ...], _Texts] = {}
        self._similarities: dict[tuple[str, ...], Similarity] = {}
        self._prototypes: dict[tuple[str, ...], Prototypes] = {}
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> NearestDemonstrations:
        # The pool is only read: copies share the examples and need no second index until they are used.
        return NearestDemonstrations(self, self.count_per_input, self.neighbours)

    @property
    def about(self) -> str:
        """What a call is shown, for readers."""
        if not self.count_per_input:
            return f"each input is compared with {len(self)} demonstrations, {self.neighbours}"
        shown = f"the {self.count_per_input} nearest of {len(self)} demonstrations"
        return f"in their place each input is shown {shown}, {self.neighbours}"

    def select(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the closest demonstrations, the closest last: models attend most to what stands near the end.

        A demonstration with exactly these inputs is left out, so that a training example never sees its own label.
        """
        if not self.count_per_input:
            return []
        names = tuple(sorted(inputs))
        own = _text(inputs, names)
        same = self._texts_of(names).places(own)
        ranked = np.argsort(-self._similar(names).scores(own), kind="stable")
        others = (self[i] for i in ranked if i not in same)
        looked_at = self.count_per_input * (CHOICE if self.neighbours.balanced else 1)
        return self._chosen(list(islice(others, looked_at)), names)[::-1]

    def nearness(self, signature: Any, inputs: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
        """How near the input is to the demonstrations of each option (`Prototypes`), by closed set of the signature. A
        demonstration with exactly these inputs is left out. Empty without an embedder: words tell too little."""
        if self.neighbours.embedder is None:
            return {}
        names = tuple(sorted(inputs))
        own = _text(inputs, names)
        vector = text_vectors(self.neighbours.embedder).one(own)
        same = self._texts_of(names).places(own)
        return {
            closed.name: self._prototypes_of(closed, names).nearness(vector, same)
            for closed in closed_sets(constraints(signature))
        }

    def _prototypes_of(self, closed: ClosedSet, names: tuple[str, ...]) -> Prototypes:
        options = closed.constraint.options or ()
        key = closed.name, *options, *names
        with self._lock:
            if key not in self._prototypes:
                places = {option: index for index, option in enumerate(options)}
                labels = [places.get(closed.label_in(demo) or "") for demo in self]
                self._prototypes[key] = Prototypes(self.rows(names), labels, len(options))
            return self._prototypes[key]

    def rows(self, names: Sequence[str]) -> np.ndarray:
        """float32 [pool, d]: the vectors of the texts of these fields, by the embedder."""
        names = tuple(sorted(names))
        if self.neighbours.vectors is not None:
            kept = read_rows(self.neighbours.vectors, names)
            if kept is not None and len(kept) == len(self):
                return kept
        return text_vectors(str(self.neighbours.embedder)).pool(self._texts_of(names).texts)

    def _chosen(self, near: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
        if not self.neighbours.balanced:
            return near
        labels = [name for name in dict.fromkeys(name for demo in near for name in demo) if name not in names]
        place = {id(demo): rank for rank, demo in enumerate(near)}
        return sorted(balanced(near, self.count_per_input, labels), key=lambda demo: place[id(demo)])

    def _similar(self, names: tuple[str, ...]) -> Similarity:
        with self._lock:
            if names not in self._similarities:
                self._similarities[names] = (
                    WordSimilarity(self._texts_of(names).texts)
                    if self.neighbours.embedder is None
                    else VectorSimilarity(self.rows(names), text_vectors(self.neighbours.embedder))
                )
            return self._similarities[names]

    def _texts_of(self, names: tuple[str, ...]) -> _Texts:
        with self._lock:
            if names not in self._texts:
                self._texts[names] = _Texts([_text(demo, names) for demo in self])
            return self._texts[names]


class _Texts:
    """The texts of a pool's inputs, written once, and where each stands."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._places: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            self._places.setdefault(text, []).append(index)

    def places(self, text: str) -> list[int]:
        return self._places.get(text, [])


def _text(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return "\n".join(str(values.get(name, "")) for name in names)
