"""Counts what a piece of program code spends on the LM, whichever way it calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from ..signatures.bridge import context, settings

_METERS = "still_meters"
"""A setting of dspy's, because dspy hands those on to the threads it starts (`dspy.Parallel`, `dspy.asyncify`)."""

OURS = "still/"
"""How the names of `still.LM`s begin."""


@dataclass(frozen=True, slots=True)
class LMCall:
    """One request to a language model. seconds: None where whoever counted it did not see it begin."""

    model: str
    prompt_tokens: int
    cached_tokens: int
    decoded_tokens: int
    seconds: float | None = None
    module: Any = None
    """The innermost module that was running, a predictor mostly."""


@dataclass(slots=True)
class Meter:
    """LM calls inside a `with metered()` block, and their tokens."""

    log: list[LMCall] = field(default_factory=list, repr=False)

    @property
    def calls(self) -> int:
        """Number of calls."""
        return len(self.log)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, cached ones too."""
        return sum(call.prompt_tokens for call in self.log)

    @property
    def cached_tokens(self) -> int:
        """Of those, tokens that a cache had."""
        return sum(call.cached_tokens for call in self.log)

    @property
    def decoded_tokens(self) -> int:
        """Tokens written."""
        return sum(call.decoded_tokens for call in self.log)


@contextmanager
def metered(meter: Meter | None = None, *, alone: bool = False) -> Iterator[Meter]:
    """Count the calls of this thread, and of tasks and dspy's threads that it starts, until the block ends.

    meter: count on this one (default: a new one). Blocks may be nested: a call counts on every meter around it, or with
    `alone`, on this one and those inside only.
    """
    meter = Meter() if meter is None else meter
    outer = () if alone else settings.get(_METERS, ())
    with context(**{_METERS: (*outer, meter)}, **_counter()):
        yield meter


def _counter() -> dict[str, Any]:
    """Settings that have requests to LMs that are not ours counted."""
    if not settings.track_usage or settings.usage_tracker is not None:
        return {"usage_tracker": UsageCounter(settings.usage_tracker)}
    # dspy will start a tracker per call of a program, but not where there is one: ours is there only while an LM is asked.
    callbacks = settings.callbacks or []
    return {"callbacks": callbacks if _COUNTING in callbacks else [*callbacks, _COUNTING]}


def counting() -> AbstractContextManager[Any]:
    """Count the requests in the block to LMs that are not ours, on all meters around it."""
    return cast(AbstractContextManager[Any], context(usage_tracker=UsageCounter(settings.usage_tracker)))


class UsageCounter:
    """dspy tells it of every answer of an LM that is not from its cache. Ours count themselves, all others here."""

    def __init__(self, outer: Any = None) -> None:
        # Of several of these around each other one counts.
        self._outer: Any = outer._outer if isinstance(outer, UsageCounter) else outer

    def __deepcopy__(self, memo: dict[int, Any]) -> UsageCounter:
        return self  # dspy copies trackers for its threads: what those spend counts too

    def add_usage(self, lm: str, usage: dict[str, Any]) -> None:
        """Count one answer, and pass it on to a tracker that was there before."""
        if not lm.startswith(OURS):
            count_call(lm, usage.get("prompt_tokens") or 0, cached_tokens(usage), usage.get("completion_tokens") or 0)
        if self._outer is not None:
            self._outer.add_usage(lm, usage)

    def get_total_tokens(self) -> dict[str, Any]:
        """What an outer tracker has counted."""
        return self._outer.get_total_tokens() if self._outer is not None else {}


def cached_tokens(usage: Mapping[str, Any]) -> int:
    """Prompt tokens that a server's cache had, by what it says an answer cost."""
    details = usage.get("prompt_tokens_details") or {}
    details = details if isinstance(details, dict) else vars(details)
    return usage.get("cached_tokens") or details.get("cached_tokens") or 0


def count_call(
    model: str, prompt_tokens: int, cached_tokens: int, decoded_tokens: int, seconds: float | None = None
) -> None:
    """Add a call to every meter that is running here."""
    modules = settings.get("caller_modules") or (None,)
    call = LMCall(model, prompt_tokens, cached_tokens, decoded_tokens, seconds, modules[-1])
    for meter in settings.get(_METERS, ()):
        meter.log.append(call)  # threads may: list.append is atomic


class _Counting:
    """A callback of dspy's: `counting` around every request to an LM."""

    def __init__(self) -> None:
        self._running: dict[str, AbstractContextManager[Any]] = {}

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._running[call_id] = counting()
        self._running[call_id].__enter__()

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._running.pop(call_id).__exit__(None, None, None)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return _ignore


def _ignore(**_: Any) -> None: ...


_COUNTING = _Counting()
