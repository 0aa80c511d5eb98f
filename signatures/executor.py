"""What runs a plan: the protocol that backends implement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol, runtime_checkable

from .plan import Plan


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """Trained weights to answer with: a LoRA adapter as a PEFT folder, known by its content wherever it lies."""

    digest: str
    """sha256, hex, of configuration and weights."""
    path: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. temperature 0: the likeliest. top_k 0 and top_p 1: no cut. seed None: 0.

    max_tokens: upper limit per decode step, on top of the step's own. adapter: None for the model as it is.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    adapter: AdapterFolder | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a completion cost, answers that were refused included: tokens of the prompt (of them cached), decoded by the
    model, forced by the grammar, and read to score options."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    forced_tokens: int = 0
    scored_tokens: int = 0
    calls: int = 1
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """What both cost together."""
        return Usage(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class FieldCost:
    """Tokens of one output: decoded by the model, appended without it, and read to score options."""

    decoded_tokens: int = 0
    forced_tokens: int = 0
    scored_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: a value of its type and the text it was read from, per output field.

    scores: natural log-probability of each option's text, as the model has it, per output that was scored; probabilities: of
    each option, as its type declares it, after calibration (of equal ones, as 1 and True, their sum). truncated: outputs
    that ran out of tokens and were brought to an end.
    """

    values: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    probabilities: dict[str, dict[Any, float]] = field(default_factory=dict)
    truncated: tuple[str, ...] = ()
    costs: dict[str, FieldCost] = field(default_factory=dict)


@runtime_checkable
class Executor(Protocol):
    """Runs plans. An LM with these methods gets plans instead of messages."""

    def execute(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None, n: int = 1
    ) -> list[Completion]:
        """Return `n` completions. Raises `ConstraintError` when no valid answer came after bounded retries."""

    async def aexecute(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None, n: int = 1
    ) -> list[Completion]:
        """Like `execute`, without blocking the event loop."""


@runtime_checkable
class DemonstrationSource(Protocol):
    """Demonstrations that depend on the input; a predictor's `demos` may be one."""

    def select(self, inputs: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The demonstrations for this input, in the order in which they are shown."""


@runtime_checkable
class NearnessSource(DemonstrationSource, Protocol):
    """Demonstrations that tell of options that are scored which of them the input is near to."""

    def nearness(self, signature: Any, inputs: Mapping[str, Any]) -> Mapping[str, Sequence[float]]:
        """How near the input is to the demonstrations of each option, in order; by closed set ("kind", "address.country").
        Empty where that cannot be told."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of an output while it is written. The pieces of a field joined are its text.

    attempt: above 1, validation refused what was written before, and this is a new answer from the beginning.
    """

    field: str
    text: str
    attempt: int = 1


@runtime_checkable
class Streamer(Protocol):
    """An executor that shows text while it is written."""

    def stream_plan(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None
    ) -> Iterator[Piece | Completion]:
        """Yield pieces, and at the end the completion. Closing the iterator cancels the request."""

    def astream_plan(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None
    ) -> AsyncIterator[Piece | Completion]:
        """Async twin of `stream_plan`."""
