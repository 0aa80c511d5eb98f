"""Runs steps: owns the decoder and the tensors of the page pool."""

from __future__ import annotations

import numpy as np
import torch

from ..models import Model
from .batch import build_batch
from .decoder import Decoder
from .pages import PAGE_SIZE
from .sampler import apply_masks, check_logits, draw
from .scheduler import Chunk
from .sequence import Sequence

LOGIT_ROWS = 128
"""Rows of logits held at once: 128 * 49152 float32 are 25 MB."""


class Runner:
    """The model and its KV tensors. Keys and values are bf16 beside int8 weights, float32 beside float32 ones."""

    def __init__(self, model: Model, num_pages: int, max_context: int) -> None:
        spec = model.spec
        self.decoder = Decoder(model, max_context)
        self.dtype = torch.float32 if model.quantization == "fp32" else torch.bfloat16
        shape = (spec.num_layers, num_pages * PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
        # empty, not zeros: the operating system then hands out memory only for pages that are really used
        self.pool = (torch.empty(shape, dtype=self.dtype), torch.empty(shape, dtype=self.dtype))
        self._mask_words = -(-spec.vocab_size // 32)

    @torch.inference_mode()
    def step(self, chunks: list[Chunk]) -> None:
        """Compute the chunks, deliver scores, and draw a token for each sequence that reached its end."""
        batch = build_batch(chunks)
        hidden = self.decoder.forward(batch.tokens, batch.positions, batch.slots, self.pool, batch.attention)
        self._deliver_scores(chunks, batch.first_row, hidden)
        drawing = [
            (chunk.sequence, row + chunk.stop - chunk.start - 1)
            for chunk, row in zip(chunks, batch.first_row, strict=True)
            if chunk.last and chunk.sequence.draws
        ]
        for begin in range(0, len(drawing), LOGIT_ROWS):
            self._draw(drawing[begin : begin + LOGIT_ROWS], hidden)

    def _draw(self, drawing: list[tuple[Sequence, int]], hidden: torch.Tensor) -> None:
        logits = self.decoder.logits(hidden[[row for _, row in drawing]])
        check_logits(logits)
        normalizer = logits.logsumexp(dim=-1)
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
            logprobs = logits.log_softmax(dim=-1)
            for i, (sequence, position, _) in enumerate(part):
                sequence.add_score(position, float(logprobs[i, sequence.pending_scores[position]]))
