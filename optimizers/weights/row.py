"""One sequence to train on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of one call of a predictor, prompt and answer."""

    tokens: tuple[int, ...]
    loss: tuple[bool, ...]
    """For each token whether the model had to decide it: not the prompt, not what a grammar forced."""
    predictor: str = ""
    key: str = ""
    """Of the example it is from."""

    @property
    def decided(self) -> int:
        """Number of tokens with loss."""
        return sum(self.loss)
