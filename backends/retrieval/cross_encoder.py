"""`CrossEncoder`: a sequence classifier over query and passage, read together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .encoder import batches, clean, fast_bf16, load_encoder
from .model_folder import find_folder, folder_digest

if TYPE_CHECKING:
    import torch


class CrossEncoder:
    """name: a folder or hub id of a transformer with a classification head (Nogueira and Cho, 2019).

    A score is the head's logit; with two labels the second's less the first's. Safe to call from several threads.
    """

    def __init__(self, name: str | PathLike[str]) -> None:
        self.folder = find_folder(name)
        self.name = fspath(name)
        self.digest = folder_digest(self.folder)
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CrossEncoder:
        return self

    def __repr__(self) -> str:
        return f"CrossEncoder({self.name!r})"

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One logit per text; a text that is too long is cut at its end."""
        import torch

        with self._lock:
            if self._loaded is None:
                self._loaded = load_encoder(self.folder, "AutoModelForSequenceClassification")
                self._loaded[0].enable_truncation(_length(self._loaded[1]), strategy="only_second")
            tokenizer, model = self._loaded
            encoded = tokenizer.encode_batch([(_cut(clean(query)), clean(text)) for text in texts])
            found = [0.0] * len(texts)
            order = sorted(range(len(texts)), key=lambda i: len(encoded[i].ids))
            for part in batches(order, [len(e.ids) for e in encoded]):
                given = _padded([encoded[i] for i in part], model)
                with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_bf16()):
                    logits = model(**given).logits.float()
                for i, row in zip(part, logits.tolist(), strict=True):
                    found[i] = self._score(row)
        return found

    def _score(self, logits: list[float]) -> float:
        if len(logits) > 2:
            raise ModelError(f"model folder {self.folder}: {len(logits)} labels; a reranker has one, or two")
        return logits[0] if len(logits) == 1 else logits[1] - logits[0]


def _length(model: Any) -> int:
    return min(512, int(getattr(model.config, "max_position_embeddings", 512) or 512))


def _cut(query: str, characters: int = 1000) -> str:
    # The tokenizer cuts the passage; a query that fills the window would leave it nothing.
    return query[:characters]


def _padded(encoded: Sequence[Any], model: Any) -> dict[str, torch.Tensor]:
    import torch

    width = max(len(e.ids) for e in encoded)
    pad = int(getattr(model.config, "pad_token_id", 0) or 0)

    def matrix(rows: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

    given = {
        "input_ids": matrix([list(e.ids) for e in encoded], pad),
        "attention_mask": matrix([list(e.attention_mask) for e in encoded], 0),
    }
    if getattr(model.config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = matrix([list(e.type_ids) for e in encoded], 0)
    return given
