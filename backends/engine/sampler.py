"""From logits to a token: masking, then greedy or seeded sampling."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import EngineError
from .request import Sampling

Masks = NDArray[np.int32]
"""Bit masks of allowed tokens, [rows, ceil(vocab / 32)], bit set = allowed."""


class Picks(NamedTuple):
    """For each row of logits: the best allowed token, and the log-sum-exp over all tokens (natural log)."""

    tokens: list[int]
    normalizers: list[float]


def pick(logits: torch.Tensor, masks: Masks) -> Picks:
    """Greedy choice for float32 logits [rows, vocab]. The reference of the compiled decoder's `still_pick`."""
    best = logits.masked_fill(~allowed(masks, logits.shape[1]), float("-inf")).argmax(dim=-1)
    # Row by row: over a whole batch torch adds in an order that depends on the batch.
    return Picks(best.tolist(), [float(row.logsumexp(dim=0)) for row in logits])


def allowed(masks: Masks, vocab: int) -> torch.Tensor:
    """Unpack bit masks to bool [rows, vocab]."""
    # In bytes of 8 tokens: both machines we run on put the lowest of a word's bytes first.
    bits = np.unpackbits(masks.view(np.uint8), axis=1, count=vocab, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)


def check_normalizers(normalizers: list[float]) -> None:
    """Raise `EngineError` if logits were NaN or infinite, which shows in the log-sum-exp."""
    if not all(map(math.isfinite, normalizers)):
        raise EngineError("the model produced logits that are not numbers: its weights are damaged or of another model")


def draw(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Draw one token from float32 logits [vocab] (masked entries are -inf).

    `position` is the index of the token in its sequence: with the seed it fixes the random number, so the draw does not
    depend on what else is in the batch.
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    scores = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < scores.numel():
        kth = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    probabilities = torch.softmax(scores.double(), dim=-1)
    if sampling.min_p:
        probabilities = probabilities.masked_fill(probabilities < sampling.min_p * probabilities.max(), 0.0)
    if sampling.top_p < 1.0:
        probabilities = _nucleus(probabilities, sampling.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    # Philox is counter-based: (seed, position) is the whole state, nothing is carried from step to step.
    uniform = np.random.Generator(np.random.Philox(key=sampling.seed & (2**64 - 1), counter=position)).random()
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    # Where the product was rounded up to the whole mass, nothing is beyond it.
    return index if index < len(cumulative) else int(probabilities.nonzero()[-1])


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches `top_p` (Holtzman et al., 2020)."""
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(0, order, ordered)
