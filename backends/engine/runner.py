"""Runs steps: rows through the decoder, logits to tokens."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ...errors import EngineError
from ..models import Model
from .batch import Batch, build_batch
from .decoder import TorchDecoder
from .kernels import library, native_level
from .native import NativeDecoder, runs_natively
from .options import token_logprob
from .sampler import Masks, Picks, allowed, check_normalizers, draw
from .scheduler import Chunk, Plan
from .sequence import Sequence


class Decoder(Protocol):
    """A model with its page pool."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Compute a step: float32 [rows, hidden]."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, hidden] → float32 [rows, vocab]."""

    def pick(self, logits: torch.Tensor, masks: Masks) -> Picks:
        """Best allowed token and log-sum-exp of each row of logits."""

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole pages (source, target) of all layers, one pair after the other."""


def make_decoder(model: Model, num_pages: int, max_context: int) -> Decoder:
    """The fastest decoder this machine has for the model: the compiled one where it runs, else torch. Warns where it was
    not built and could have been."""
    if runs_natively(model):
        if native_level():
            return NativeDecoder(model, num_pages, max_context)
        if library() is None and sys.platform == "linux":
            warnings.warn(NOT_BUILT, RuntimeWarning, stacklevel=2)
    return TorchDecoder(model, num_pages, max_context)


NOT_BUILT = (
    "Still was installed without its compiled decoder and runs on torch, many times slower: install gcc or clang with "
    "OpenMP and the headers of Python (python3-dev), then install Still again"
)


LOGIT_ROWS = 128
"""Rows of logits held at once: 128 * 49152 float32 are 25 MB."""


@dataclass(slots=True)
class Computed:
    """A step's hidden states, and who draws from which of their rows; several sequences may draw from one row."""

    hidden: torch.Tensor
    drawing: list[tuple[Sequence, int]]


class Runner:
    """Computes chunks with a decoder, delivers scores and draws tokens."""

    def __init__(self, model: Model, num_pages: int, max_context: int) -> None:
        self.decoder: Decoder = make_decoder(model, num_pages, max_context)
        self._mask_words = -(-model.spec.vocab_size // 32)

    @torch.inference_mode()
    def compute(self, plan: Plan) -> Computed:
        """Copy the plan's pages, compute its chunks and deliver scores."""
        if plan.copies:
            self.decoder.copy_pages(plan.copies)
        if not plan.chunks:
            return Computed(torch.empty(0, 0), [])
        batch = build_batch(plan.chunks)
        hidden = self.decoder.forward(batch)
        first_row = [part.row for part in batch.parts]
        self._deliver_scores(plan.chunks, first_row, hidden)
        drawing = [
            (chunk.sequence, row + chunk.stop - chunk.start - 1)
            for chunk, row in zip(plan.chunks, first_row, strict=True)
            if chunk.last and chunk.sequence.draws
        ]
        return Computed(hidden, drawing)

    @torch.inference_mode()
    def draw(self, computed: Computed) -> None:
        """Draw a token for each sequence that reached its end."""
        drawing = computed.drawing
        for begin in range(0, len(drawing), LOGIT_ROWS):
            self._draw(drawing[begin : begin + LOGIT_ROWS], computed.hidden)

    def _draw(self, drawing: list[tuple[Sequence, int]], hidden: torch.Tensor) -> None:
        logits = self.decoder.logits(hidden[[row for _, row in drawing]])
        masks = self._masks([sequence for sequence, _ in drawing])
        tokens, normalizers = self.decoder.pick(logits, masks)
        check_normalizers(normalizers)
        for i, (sequence, _) in enumerate(drawing):
            if sequence.node is not None:
                sequence.spread(logits[i], normalizers[i])
            if sequence.node is not None or sequence.error is not None:
                continue
            sampling, token = sequence.request.sampling, tokens[i]
            if sampling.temperature:
                visible = allowed(masks[i : i + 1], logits.shape[1])[0]
                token = draw(logits[i].masked_fill(~visible, float("-inf")), sampling, len(sequence.tokens))
            with answerable(sequence):
                sequence.accept(token, float(logits[i, token]) - normalizers[i])

    def _masks(self, sequences: list[Sequence]) -> Masks:
        """What each sequence's grammar allows next; everything where there is none."""
        masks = np.full((len(sequences), self._mask_words), -1, dtype=np.int32)
        for row, sequence in zip(masks, sequences, strict=True):
            if sequence.matcher is not None:
                with answerable(sequence):
                    sequence.matcher.mask_into(row)
            elif getattr(sequence.step, "ignore_eos", False):
                for token in sequence.vocabulary.tokenizer.eos_ids:
                    row[token // 32] &= ~np.int32(1 << token % 32) if token % 32 < 31 else np.int32(0x7FFFFFFF)
        return masks

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
            everything = np.full((len(part), self._mask_words), -1, dtype=np.int32)
            _, normalizers = self.decoder.pick(logits, everything)
            check_normalizers(normalizers)
            for i, (sequence, position, _) in enumerate(part):
                token = sequence.pending_scores[position]
                eos_ids = sequence.vocabulary.tokenizer.eos_ids
                with answerable(sequence):
                    sequence.add_score(position, token_logprob(token, logits[i], normalizers[i], eos_ids))


@contextmanager
def answerable(sequence: Sequence) -> Iterator[None]:
    """An `EngineError` in here is the sequence's own: the others of its batch go on."""
    try:
        yield
    except EngineError as error:
        sequence.error = error
