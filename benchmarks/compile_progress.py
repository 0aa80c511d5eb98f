"""How far an optimizer has come: what is known of a cell that is cut off."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from compile_systems import Runner
from dspy.utils.callback import BaseCallback

EVERY = 10.0


class Progress(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Counts how often a program of one signature is run, and prints what compiling has cost so far, every ten seconds.

    Runs are counted, not calls of the metric: where there is no answer to score, it is not called. known: what is printed
    beside the cost.
    """

    def __init__(self, signature: Any, runner: Runner, known: dict[str, Any]) -> None:
        self._known = known
        self._outputs = list(signature.output_fields)
        self._runner = runner
        self._lock = threading.Lock()
        self._began = self._told = time.perf_counter()
        self.runs = 0

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Called by DSPy before any module is run."""
        if list(getattr(getattr(instance, "signature", None), "output_fields", ())) != self._outputs:
            return
        with self._lock:
            self.runs += 1
            now = time.perf_counter()
            if now - self._told >= EVERY:
                self._told = now
                cost = {"seconds": now - self._began, "tokens": self._runner.tokens(), "runs": self.runs}
                # Not sys.stdout: the optimizers' reports are kept away from that.
                print(json.dumps({**self._known, **cost}), file=sys.__stdout__, flush=True)
