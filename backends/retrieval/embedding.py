"""Who makes vectors: an encoder model, or any callable."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ...errors import RetrievalError
from ..callable_identity import callable_digest

Kind = Literal["document", "query"]


@runtime_checkable
class Embedder(Protocol):
    """Maps texts to vectors. Two with the same digest make the same vectors."""

    @property
    def name(self) -> str:
        """What a reader calls it."""

    @property
    def digest(self) -> str:
        """Identity of what it computes."""

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> np.ndarray:
        """float32 [len(texts), dimension]."""


class CallableEmbedder:
    """A callable from a list of texts to a row per text: a function, or a `dspy.Embedder`. See `callable_digest`."""

    def __init__(self, function: Callable[[list[str]], Any]) -> None:
        self.function = function
        self.name, self.digest = callable_digest(function)

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> np.ndarray:
        """Raises `RetrievalError` where the answer is no matrix of finite numbers with a row per text."""
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        try:
            found = np.asarray(self.function(list(texts)), dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise RetrievalError(f"embedder {self.name}: its answer is no matrix of numbers ({error})") from error
        if found.ndim != 2 or len(found) != len(texts) or not found.shape[1]:
            raise RetrievalError(
                f"embedder {self.name}: {len(texts)} texts gave an array of shape {found.shape}, expected ({len(texts)}, d)"
            )
        return found


_models: dict[str, Embedder] = {}
_models_lock = threading.Lock()


def embedder_of(model: str | os.PathLike[str] | Embedder | Callable[[list[str]], Any]) -> Embedder:
    """The embedder behind a short name, a folder, a hub id, or a callable. A model is loaded once per process."""
    if isinstance(model, str | os.PathLike):
        from .encoder import SentenceEncoder

        name = os.fspath(model)
        with _models_lock:
            if name not in _models:
                _models[name] = SentenceEncoder(Path(name) if Path(name).is_dir() else name)
            return _models[name]
    if isinstance(model, Embedder):
        return model
    if callable(model):
        return CallableEmbedder(model)
    raise RetrievalError(f"embedder {model!r}: give a short name, a folder, a hub id or a callable")
