"""One call of a plan, until its answer is valid."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConstraintError
from ..signatures.executor import Completion, Sampling, Usage
from ..signatures.plan import Plan
from .meter import count_call
from .prompt import Prompter
from .recall import Recall
from .steps import Refusal, answer_text, to_completion, to_request, usage_of

if TYPE_CHECKING:
    from .engine import Request, Result

MAX_ATTEMPTS = 3
"""Tries for an answer that the grammar lets pass and validation does not."""
RETRY_TEMPERATURE = 0.7


@dataclass(slots=True)
class Call:
    """Its requests, one after the other: an answer that validation refuses is shown to the model with the reason, which
    then answers again: warmer, or a small model would only repeat itself. What is scored is chosen as before, or the value
    would not be the likeliest."""

    plan: Plan
    inputs: Mapping[str, Any]
    sampling: Sampling
    sample: int
    prompter: Prompter
    model: str
    digest: str
    recall: Recall | None = None
    """What has been answered already."""
    refusals: tuple[Refusal, ...] = ()
    started: float = field(default_factory=time.perf_counter)
    _asked: float = 0.0
    _spent: Usage = field(default_factory=lambda: Usage(calls=0))

    def __post_init__(self) -> None:
        self._asked = self.started

    def request(self) -> Request:
        """The next request to make."""
        seed = (self.sampling.seed or 0) * 1_000_003 + self.sample
        sampling = replace(self.sampling, seed=seed)
        choosing = self.sampling.temperature if self.refusals else None
        if attempt := len(self.refusals):
            warm = max(sampling.temperature, RETRY_TEMPERATURE)
            sampling = replace(sampling, temperature=warm, seed=seed + 7919 * attempt)
        request = to_request(self.plan, self.inputs, sampling, self.prompter, self.refusals, choosing)
        return request if sampling.adapter is None else replace(request, adapter=sampling.adapter.digest)

    def known(self, request: Request) -> Result | None:
        """The request's result, if it has been answered already."""
        return None if self.recall is None else self.recall.find(self.digest, request, self.prompter.decode)

    def read(self, request: Request, result: Result) -> Completion | None:
        """The completion, or None if it is to be asked for again. Raises `ConstraintError` when there were enough tries."""
        if self.recall is not None:
            self.recall.keep(self.digest, request, result)
        usage = result.usage
        asked, self._asked = self._asked, time.perf_counter()
        seconds = self._asked - asked
        count_call(self.model, usage.prompt_tokens, usage.cached_tokens, usage.decoded_tokens, seconds)
        self._spent += usage_of(result)
        try:
            completion = to_completion(self.plan, result)
        except ConstraintError as error:
            if len(self.refusals) + 1 == MAX_ATTEMPTS:
                raise
            self.refusals += (Refusal(answer_text(self.plan, result), str(error)),)
            return None
        return replace(completion, usage=replace(self._spent, seconds=time.perf_counter() - self.started))
