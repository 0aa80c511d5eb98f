"""One run of a program: called the way it was written, with every predictor call on record."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from ..optimizers.context import PredictorTrace
from ..signatures.bridge import LMError, LMInvalidRequestError, LMUnsupportedFeatureError, Module
from ..signatures.prediction import Prediction as ScoredPrediction

_NAME = "_still_name"


class Trace(list[Any]):
    """What `dspy.settings.trace` is during a run; `calls` has the calls of the program's predictors.

    Inputs and outputs are copied when a call ends: a loop goes on appending to the list it passes, and a program may put the
    last touch to a prediction before it returns it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[PredictorTrace] = []

    def append(self, step: Any) -> None:
        """Called by a predictor, in any thread that dspy's context reached."""
        super().append(step)
        predictor, inputs, prediction = step
        name = name_of(predictor)
        if name is not None:
            outputs = dict(prediction.items())
            scores = prediction.completion.scores if isinstance(prediction, ScoredPrediction) else {}
            self.calls.append(PredictorTrace(name, _snapshot(inputs), _snapshot(outputs), scores))

    def extend(self, steps: Iterable[Any]) -> None:
        """What dspy's BestOfN and Refine do: they keep a trace per attempt, and hand on that of the best."""
        for step in steps:
            self.append(step)


def name_predictors(program: Module) -> Module:
    """Have predictors know their names, in place: a program may copy them before it calls them. Returns the program."""
    for name, predictor in program.named_predictors():
        vars(predictor)[_NAME] = name
    return program


def name_of(module: Any) -> str | None:
    """The name that `name_predictors` gave to a predictor; None for other modules."""
    return None if module is None else vars(module).get(_NAME)


def call(program: Module, inputs: Mapping[str, Any]) -> Any:
    """Call a program; one that has only `aforward`, or whose `forward` is a coroutine, in an event loop of its own."""
    if _has(program, "aforward") and not _has(program, "forward"):
        return _settled(program.acall(**inputs))
    answer = program(**inputs)
    return _settled(answer) if inspect.iscoroutine(answer) else answer


def is_unreached(error: BaseException | None) -> bool:
    """Whether a run failed on the way to its LM (network, key, limit of the provider), not by what was asked or answered."""
    while error is not None:
        asked = isinstance(error, LMInvalidRequestError | LMUnsupportedFeatureError)
        if not asked and isinstance(error, LMError | ConnectionError | TimeoutError):
            return True
        error = error.__cause__
    return False


def _has(program: Module, method: str) -> bool:
    # Not hasattr(program, ...): dspy would log that forward should not be called directly.
    return hasattr(type(program), method) or method in vars(program)


def _settled(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1, thread_name_prefix="still-loop") as thread:  # in a notebook, a loop runs here already
        return thread.submit(copy_context().run, asyncio.run, coroutine).result()


def _snapshot(values: Mapping[str, Any]) -> dict[str, Any]:
    taken = {}
    for name, value in values.items():
        try:
            taken[name] = copy.deepcopy(value)
        except Exception:  # an object of the user's that cannot be copied: as it is
            taken[name] = value
    return taken
