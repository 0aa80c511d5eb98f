"""What an engine has answered in one compile, so that candidates that ask the same cost nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from ..signatures.bridge import context, settings

if TYPE_CHECKING:
    from .engine import Choose, Request, Result, StepResult
    from .engine.request import Step

_RECALL = "still_recall"
"""A setting of dspy's, because dspy hands those on to the threads it starts."""

Decoder = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class Recall:
    """Results of finished requests, by what was asked: model, prompt, steps and sampling, but no calibration of choices.

    A calibration acts on the scores that a result has. So a request that differs from a known one in calibrations alone has
    the known result with other decisions; only if one of these turns before the last step has the rest to be computed anew.
    An engine's result does not depend on what else it runs, so this changes no answer. A result that is taken from here
    counts as it did at first, with a prompt that was cached: budgets come out the same, whatever was at hand.
    """

    _known: dict[bytes, Result] = field(default_factory=dict)

    def find(self, model: str, request: Request, decode: Decoder) -> Result | None:
        """The result of a request as if it had been run, or None."""
        known = self._known.get(_key(model, request))
        steps = None if known is None else _decided(request, known.steps, decode)
        if known is None or steps is None:
            return None
        usage = replace(known.usage, cached_tokens=known.usage.prompt_tokens, scored_tokens=0, seconds=0.0)
        return replace(known, steps=steps, usage=usage)

    def keep(self, model: str, request: Request, result: Result) -> None:
        """Remember a result."""
        self._known.setdefault(_key(model, request), result)


@contextmanager
def recalling(recall: Recall | None) -> Iterator[None]:
    """Use it for the calls of this thread, and of tasks and dspy's threads that it starts; None: no recall."""
    with context(**{_RECALL: recall}):
        yield


def current_recall() -> Recall | None:
    """The one of the innermost block around."""
    return cast("Recall | None", settings.get(_RECALL, None))


def _key(model: str, request: Request) -> bytes:
    sampling = request.sampling
    if sampling.temperature == 0.0:  # greedy: the seed draws nothing
        sampling = replace(sampling, seed=0)
    asked = (model, request.adapter, request.prompt, [_plain(step) for step in request.steps], sampling)
    return hashlib.sha256(repr(asked).encode()).digest()


def _plain(step: Step) -> object:
    from .engine import Choose

    return step.options if isinstance(step, Choose) else step


def _decided(request: Request, known: Sequence[StepResult], decode: Decoder) -> tuple[StepResult, ...] | None:
    """The steps under the request's calibrations; None where a decision turns on which later steps depend."""
    from .engine import Choose
    from .engine.options import choose

    steps, position = [], len(request.prompt)
    for number, (step, result) in enumerate(zip(request.steps, known, strict=True)):
        if isinstance(step, Choose) and len(step.options) > 1:
            index = choose(step, result.scores, request.sampling, position)
            taken = _tokens(step, index)
            if taken != result.tokens:
                if number < len(known) - 1:
                    return None
                result = replace(result, tokens=taken, text=decode(taken))
        steps.append(result)
        position += len(result.tokens)
    return tuple(steps)


def _tokens(step: Choose, index: int) -> tuple[int, ...]:
    from .engine import END

    return tuple(token for token in step.options[index] if token != END)
