"""What callers hand to the engine and get back.

A request is a prompt followed by steps: text that is fixed (`Forced`, optionally scored) and text that is sampled
(`Decode`). One typed program call is one request, so that its field markers cost a prefill and no round trip.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import EngineError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.

    The same request with the same `seed` draws the same tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise EngineError(f"temperature={self.temperature}: give a number from 0 to 10")
        if not 0.0 < self.top_p <= 1.0:
            raise EngineError(f"top_p={self.top_p}: give a number above 0, at most 1")
        if self.top_k < 0:
            raise EngineError(f"top_k={self.top_k}: give 0 (off) or a positive integer")
        if not 0.0 <= self.min_p < 1.0:
            raise EngineError(f"min_p={self.min_p}: give a number from 0 to below 1")


@dataclass(frozen=True, slots=True)
class Forced:
    """Tokens appended as they are. With `score`, their log-probabilities come back."""

    tokens: tuple[int, ...]
    score: bool = False


@dataclass(frozen=True, slots=True)
class Decode:
    """Sampled text: up to `max_tokens` tokens, until the grammar is complete, a stop string appears, or end-of-sequence.

    `grammar` is an llguidance Lark grammar. A stop string is cut off the returned text. With `ignore_eos` the
    end-of-sequence tokens are never drawn (only sensible without a grammar, to decode a fixed length).
    """

    max_tokens: int
    grammar: str | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise EngineError(f"max_tokens={self.max_tokens}: give at least 1")
        if any(not text for text in self.stop):
            raise EngineError("stop contains an empty string: it would stop at once; remove it")


Step = Forced | Decode


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to run: prompt token ids, then the steps in order, on the model or on one of its adapters."""

    prompt: tuple[int, ...]
    steps: tuple[Step, ...]
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str | None = None
    """Name of a LoRA adapter that the engine knows; None: the model as it is."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one step. `logprobs` are natural logs under the unmasked, temperature-1 distribution: of every
    decoded token, and of forced tokens that were to be scored."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    """`"forced"`, `"grammar"`, `"eos"`, `"stop"` or `"length"`."""
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    """Prompt and forced tokens."""
    cached_tokens: int
    """Of those, how many were found in the cache."""
    decoded_tokens: int
    """Tokens that cost a decode step."""
    jumped_tokens: int
    """Tokens the grammar left no choice about, appended without a decode step."""
    seconds: float
    """From submission to completion, waiting included."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request: one `StepResult` per step."""

    steps: tuple[StepResult, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """The decoded text of all `Decode` steps, joined."""
        return "".join(step.text for step in self.steps if step.finish_reason != "forced")
