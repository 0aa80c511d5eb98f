"""Runs steps: rows through the decoder, logits to tokens."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ..models import Model
from .batch import Batch, build_batch
from .decoder import TorchDecoder
from .native import NativeDecoder, native_level, runs_natively
from .sampler import apply_masks, check_logits, draw
from .scheduler import Chunk
from .sequence import Sequence

class Decoder(Protocol):
    """A model with its page pool."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Compute a step: float32 [rows, hidden]."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, hidden] → float32 [rows, vocab]."""


def make_decoder(model: Model, num_pages: int, max_context: int) -> Decoder:
    """The fastest decoder this machine has for the model: the compiled one where it runs, else torch."""
    if native_level() and runs_natively(model):
        return NativeDecoder(model, num_pages, max_context)
    return TorchDecoder(model, num_pages, max_context)


LOGIT_ROWS = 128
"""Rows of logits held at once: 128 * 49152 float32 are 25 MB."""


class Runner:
    """Computes chunks with a decoder, delivers scores and draws tokens."""

    def __init__(self, model: Model, num_pages: int, max_context: int) -> None:
        self.decoder: Decoder = make_decoder(model, num_pages, max_context)
        self._mask_words = -(-model.spec.vocab_size // 32)

    @torch.inference_mode()
    def step(self, chunks: list[Chunk]) -> None:
        """Compute the chunks, deliver scores, and draw a token for each sequence that reached its end."""
        batch = build_batch(chunks)
        hidden = self.decoder.forward(batch)
        first_row = [part.row for part in batch.parts]
        self._deliver_scores(chunks, first_row, hidden)
        drawing = [
            (chunk.sequence, row + chunk.stop - chunk.start - 1)
            for chunk, row in zip(chunks, first_row, strict=True)
            if chunk.last and chunk.sequence.draws
        ]
        for begin in range(0, len(drawing), LOGIT_ROWS):
            self._draw(drawing[begin : begin + LOGIT_ROWS], hidden)

    def _draw(self, drawing: list[tuple[Sequence, int]], hidden: torch.Tensor) -> None:
        logits = self.decoder.logits(hidden[[row for _, row in drawing]])
        check_logits(logits)
        normalizer = _normalizers(logits)
        raw = logits.clone()
        self._mask(logits, [sequence for sequence, _ in drawing])
        for i, (sequence, _) in enumerate(drawing):
            token = draw(logits[i], sequence.request.sampling, len(sequence.tokens))
            sequence.accept(token, float(raw[i, token] - normalizer[i]))

    def _mask(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        constrained = [i for i, sequence in enumerate(sequences) if sequence.matcher is not None]
        masks = np.empty((len(constrained), self._mask_words), dtype=np.int32)
        for row, i in enumerate(constrained):
            matcher = sequences[i].matcher
            assert matcher is not None
            matcher.mask_into(masks[row])
        apply_masks(logits, masks, constrained)
        for i, sequence in enumerate(sequences):
            if getattr(sequence.step, "ignore_eos", False):
                logits[i, sorted(sequence.vocabulary.tokenizer.eos_ids)] = float("-inf")

    def _deliver_scores(self, chunks: list[Chunk], first_row: list[int], hidden: torch.Tensor) -> None:
        wanted = [
            (chunk.sequence, position, row + position - chunk.start)
            for chunk, row in zip(chunks, first_row, strict=True)
            for position in range(chunk.start, chunk.stop)
            if position in chunk.sequence.pending_scores
        ]
        for begin in range(0, len(wanted), LOGIT_ROWS):
            part = wanted[begin : begin + LOGIT_ROWS]
            logits = self.decoder.logits(hidden[[row for _, _, row in part]])
            check_logits(logits)
            normalizer = _normalizers(logits)
            for i, (sequence, position, _) in enumerate(part):
                sequence.add_score(position, float(logits[i, sequence.pending_scores[position]] - normalizer[i]))


def _normalizers(logits: torch.Tensor) -> list[torch.Tensor]:
    """Log-sum-exp of each row, one by one: over a whole batch torch adds in an order that depends on the batch."""
    return [row.logsumexp(dim=0) for row in logits]
