"""What a source of weights offers, whatever its file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import ModelError
from .spec import DecoderSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenizerFiles:
    """Everything a `Tokenizer` is built from."""

    json: str
    """Text of a `tokenizer.json`."""
    bos_id: int | None
    add_bos: bool
    """Whether the model expects `bos_id` before a bare text."""
    eos_ids: tuple[int, ...]
    """Ids that end an answer; the first is what a chat template calls `eos_token`."""
    chat_template: str | None


class Checkpoint(Protocol):
    """Weights as a file holds them, read tensor by tensor.

    Part names are those of `DecoderSpec.part_shapes` and `outer_shapes`; q and k rows are in "rotate half" order.
    """

    @property
    def spec(self) -> DecoderSpec: ...

    def read(self, part: str) -> torch.Tensor:
        """One tensor as fp32, owned by the caller. Raises ModelError naming tensor and file."""
        ...

    def tokenizer(self) -> TokenizerFiles: ...


END_MARKERS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"}
)
"""Control tokens that end a turn or a document in every family that has them."""


def expect_shape(source: Any, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ModelError(f"{source}: tensor {name!r} has shape {list(shape)}, expected {list(expected)}")
