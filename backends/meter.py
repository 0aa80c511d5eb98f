"""Counts what a piece of program code spends on the LM, whichever way it calls it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

_meters: ContextVar[tuple[Meter, ...]] = ContextVar("still_meters", default=())


@dataclass(slots=True)
class Meter:
    """LM calls and tokens inside a `with metered()` block."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, prompt_tokens: int, cached_tokens: int, decoded_tokens: int) -> None:
        """Count one call."""
        with self._lock:
            self.calls += 1
            self.prompt_tokens += prompt_tokens
            self.cached_tokens += cached_tokens
            self.decoded_tokens += decoded_tokens


@contextmanager
def metered() -> Iterator[Meter]:
    """Count the calls of this thread (and of tasks it starts) until the block ends. Blocks may be nested."""
    meter = Meter()
    token = _meters.set((*_meters.get(), meter))
    try:
        yield meter
    finally:
        _meters.reset(token)


def count_call(prompt_tokens: int, cached_tokens: int, decoded_tokens: int) -> None:
    """Add a call to every meter that is running here."""
    for meter in _meters.get():
        meter.add(prompt_tokens, cached_tokens, decoded_tokens)
