"""What callers hand to the engine and get back.

A request is a prompt followed by steps: text that is fixed (`Forced`, optionally scored), text that is sampled
(`Decode`) and one text out of several (`Choose`). One typed program call is one request, so that its field markers cost a
prefill and no round trip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import EngineError

END = -1
"""In place of a token, at the end of an option to choose from: the model ends its answer there."""


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

    closing: further tokens that may be spent on the end: where `max_tokens` are drawn and the grammar is not complete, the
    shortest text that completes it is appended, if it takes no more than these.
    """

    max_tokens: int
    grammar: str | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    closing: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise EngineError(f"max_tokens={self.max_tokens}: give at least 1")
        if any(not text for text in self.stop):
            raise EngineError("stop contains an empty string: it would stop at once; remove it")

    @property
    def longest(self) -> int:
        """Tokens the step may come to, its end included."""
        return self.max_tokens + self.closing


@dataclass(frozen=True, slots=True)
class Choose:
    """One of several texts, each given as tokens: the model's log-probability of every one is computed, exactly, and the
    best is taken (at a temperature above 0 one is drawn). `END` may stand for the end of the answer.

    bias: added to the options' log-probabilities, which are then divided by `temperature`: a calibration. threshold: where
    no option has this probability among the options, `otherwise` is taken, the index of an option. drawn_at: the temperature
    at which one is drawn, 0 for the best; None: that of the request.
    """

    options: tuple[tuple[int, ...], ...]
    bias: tuple[float, ...] = ()
    temperature: float = 1.0
    threshold: float = 0.0
    otherwise: int | None = None
    drawn_at: float | None = None

    def __post_init__(self) -> None:
        if not self.options:
            raise EngineError("nothing to choose from: give at least one option")
        if self.bias and len(self.bias) != len(self.options):
            raise EngineError(f"{len(self.bias)} biases for {len(self.options)} options: give one for each")
        if not self.temperature > 0:
            raise EngineError(f"temperature={self.temperature} of a choice: give a number above 0")

    @property
    def longest(self) -> int:
        """Tokens of the longest option."""
        return max(map(len, self.options))

    def probabilities(self, logprobs: Sequence[float]) -> list[float]:
        """Of the options, given the model's log-probabilities, with the calibration applied."""
        return option_probabilities(logprobs, self.bias, self.temperature)


def option_probabilities(logprobs: Sequence[float], bias: Sequence[float] = (), temperature: float = 1.0) -> list[float]:
    """Softmax over (log-probability + bias) / temperature; no bias is a bias of 0."""
    values = [(value + add) / temperature for value, add in zip(logprobs, bias or [0.0] * len(logprobs), strict=True)]
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


Step = Forced | Decode | Choose


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
    """`"forced"`, `"grammar"`, `"eos"`, `"stop"`, `"chosen"`, or where the tokens ran out: `"closed"` if the text was
    brought to an end that the grammar allows, else `"length"`."""
    logprobs: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    """Of a choice: the natural log-probability of each option, as the model has it."""
    drawn_tokens: int = 0
    """Tokens that cost a decode step, an end-of-sequence token included; the rest of `tokens` was appended."""
    scored_tokens: int = 0
    """Tokens that went through the model to score options."""


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
    """Tokens that were appended without a decode step: the grammar left no choice, or they were scored before."""
    scored_tokens: int
    """Tokens that went through the model to score options."""
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
