"""An LM that answers by a function instead of a model: tests of the compiler decide what a prompt is worth."""

from __future__ import annotations

import threading

from still import LM
from still.signatures.executor import Completion, Usage


class ScriptedLM(LM):
    """`answer(plan, inputs)` returns the output values. Counts its calls."""

    def __init__(self, answer, name="scripted"):
        super().__init__(f"{name}-for-tests")
        self.answer, self.calls = answer, 0
        self.lock = threading.Lock()
        self.identity = name

    @property
    def digest(self):
        return self.identity

    def execute(self, plan, inputs, sampling=None, n=1):
        from still.backends.meter import count_call

        with self.lock:
            self.calls += 1
        count_call(self.model, 10, 4, 2, 0.01)
        values = self.answer(plan, inputs)
        return [Completion(dict(values), {}, Usage(prompt_tokens=10, cached_tokens=4, decoded_tokens=2))] * n


def demonstrations(plan):
    """Number of demonstrations a plan shows."""
    return sum(turn.role == "assistant" for turn in plan.turns) - 1
