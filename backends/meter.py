"""Counts what a piece of program code spends on the LM, whichever way it calls it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..signatures.bridge import context, settings

_METERS = "still_meters"
"""A setting of dspy's, because dspy hands those on to the threads it starts (`dspy.Parallel`, `dspy.asyncify`)."""


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
    """Count the calls of this thread, and of tasks and dspy's threads that it starts, until the block ends. Blocks may be
    nested."""
    meter = Meter()
    with context(**{_METERS: (*settings.get(_METERS, ()), meter)}):
        yield meter


def count_call(prompt_tokens: int, cached_tokens: int, decoded_tokens: int) -> None:
    """Add a call to every meter that is running here."""
    for meter in settings.get(_METERS, ()):
        meter.add(prompt_tokens, cached_tokens, decoded_tokens)
