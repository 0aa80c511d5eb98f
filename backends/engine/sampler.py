"""From logits to a token: masking, then greedy or seeded sampling."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import EngineError
from .request import Sampling

_BITS = torch.arange(32, dtype=torch.int32)


def apply_masks(logits: torch.Tensor, masks: NDArray[np.int32], rows: list[int]) -> None:
    """Set disallowed logits to -inf in place.

    logits: float32 [batch, vocab]; masks: int32 [len(rows), ceil(vocab / 32)], bit set = allowed; rows: which batch rows.
    """
    if not rows:
        return
    bits = (torch.from_numpy(masks)[:, :, None] >> _BITS).bitwise_and_(1).to(torch.bool)
    allowed = bits.view(len(rows), -1)[:, : logits.shape[1]]
    index = torch.tensor(rows)
    logits[index] = logits[index].masked_fill_(~allowed, float("-inf"))


def check_logits(logits: torch.Tensor) -> None:
    """Raise `EngineError` if a row (float32 [batch, vocab]) holds NaN or nothing finite."""
    best = logits.amax(dim=-1)
    if not bool(torch.isfinite(best).all()):
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
    return min(index, int(probabilities.nonzero()[-1]))


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches `top_p` (Holtzman et al., 2020)."""
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(0, order, ordered)
