"""Who compiles the programs: Still at O1 and O2, and DSPy's optimizers over llama.cpp's server and over our LM.

All start from one predictor with the set's signature, and the model that answers is also the one that proposes. DSPy's
adapter is its default, ChatAdapter, which asks again through JSONAdapter for what it cannot read. For
`dspy_..._schema_llamacpp` it is JSONAdapter, and the server was declared to take schemas, under which it decodes then.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compile_sets import Task
from typed_systems import SERVER_THREADS, STILL_THREADS, server_lm, still_lm, written

LIMITS = {
    "banking77": 64, "trec": 64, "sst2": 64, "snips": 192, "facility_support": 256, "math_word": 64,
}  # fmt: skip
"""Tokens an answer may have, of every system."""
PROPOSAL_TOKENS = 512
SHOWN = 8
"""Most demonstrations DSPy's optimizers may show, which is also what Still draws."""
ERRORS = 100_000
"""A small model's answers fail to parse by the hundreds: no run is given up for that."""


@dataclass
class Runner:
    """An LM with what its users need to know of it. proposer: the same model with room for longer texts. adapter: DSPy's,
    None for its default."""

    lm: Any
    proposer: Any
    threads: int
    adapter: Any = None
    _before: int = field(default=0)

    def reset(self) -> None:
        """Count tokens from here on."""
        self._before = computed(self.lm, self.proposer)

    def context(self, **settings: Any) -> Any:
        """What programs run in."""
        import dspy

        return dspy.context(lm=self.lm, adapter=self.adapter, max_history_size=10**7, **settings)

    def tokens(self) -> int:
        """Tokens the model has computed since the reset: read and not found in a cache, and written."""
        return computed(self.lm, self.proposer) - self._before


def computed(*lms: Any) -> int:
    """Tokens that LMs of one model have read (apart from what its cache had) and written so far."""
    import still
    from still.backends.meter import cached_tokens

    if isinstance(lms[0], still.LM):  # one engine, which counts for all of them
        return int(lms[0].local.engine.stats.prefilled_tokens) + written(lms[0])
    usages = [entry.get("usage") or {} for lm in lms for entry in lm.history]
    read = sum(int(usage.get("prompt_tokens") or 0) - cached_tokens(usage) for usage in usages)
    return read + sum(written(lm) for lm in lms)


def still_runner(limit: int) -> Runner:
    """Our engine; DSPy's programs run on it too."""
    lm = still_lm(limit)
    return Runner(lm, lm.copy(max_tokens=PROPOSAL_TOKENS), STILL_THREADS)


def server_runner(limit: int) -> Runner:
    """llama.cpp's server, reached over HTTP."""
    lm = server_lm(limit)
    return Runner(lm, lm.copy(max_tokens=PROPOSAL_TOKENS), SERVER_THREADS)


def schema_runner(limit: int) -> Runner:
    """The same, declared to DSPy as a server that takes schemas."""
    import dspy

    lm = server_lm(limit, schema=True)
    return Runner(lm, lm.copy(max_tokens=PROPOSAL_TOKENS), SERVER_THREADS, dspy.JSONAdapter())


def compile_still(level: Any, task: Task, runner: Runner) -> Any:
    """`still.compile` into a new ledger, so that nothing is known beforehand."""
    import still

    with tempfile.TemporaryDirectory() as folder:
        result = still.compile(
            still.Predict(task.signature), still.Dataset(task.train), still.Dataset(task.dev),
            _three(task),
            level=level, lm=runner.lm, ledger=Path(folder) / "ledger.duckdb", progress=False,
        )  # fmt: skip
    print(result, file=sys.stderr)
    return result.program


def compile_dspy(optimizer: str, task: Task, runner: Runner) -> Any:
    """One of DSPy's optimizers."""
    import dspy

    with runner.context(max_errors=ERRORS), _quiet():
        return _OPTIMIZERS[optimizer](dspy.Predict(task.signature), task, runner)


def _labeled(student: Any, task: Task, runner: Runner) -> Any:
    import dspy

    return dspy.LabeledFewShot(k=SHOWN).compile(student, trainset=task.train)


def _random_search(student: Any, task: Task, runner: Runner) -> Any:
    import dspy

    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=_three(task), max_bootstrapped_demos=4, max_labeled_demos=SHOWN, num_candidate_programs=4,
        num_threads=runner.threads, max_errors=ERRORS,
    )  # fmt: skip
    return optimizer.compile(student, trainset=task.train, valset=task.dev)


def _mipro(student: Any, task: Task, runner: Runner) -> Any:
    import dspy

    optimizer = dspy.MIPROv2(
        metric=_three(task), prompt_model=runner.proposer, task_model=runner.lm, auto="light",
        max_bootstrapped_demos=4, max_labeled_demos=SHOWN, num_threads=runner.threads, max_errors=ERRORS,
    )  # fmt: skip
    return optimizer.compile(student, trainset=task.train, valset=task.dev)


def _gepa(student: Any, task: Task, runner: Runner) -> Any:
    import dspy

    def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        score = task.metric(gold, pred)
        wanted = {name: gold.get(name) for name in task.signature.output_fields}
        return dspy.Prediction(score=score, feedback="Right." if score == 1 else f"Wrong: it should have been {wanted}.")

    optimizer = dspy.GEPA(
        metric=metric, auto="light", reflection_lm=runner.proposer, num_threads=runner.threads, seed=0,
    )  # fmt: skip
    return optimizer.compile(student, trainset=task.train, valset=task.dev)


def _three(task: Task) -> Callable[..., float]:
    return lambda example, prediction, trace=None: task.metric(example, prediction)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The optimizers report to stdout, which is where a cell's metrics go.
    with contextlib.redirect_stdout(sys.stderr):
        yield


_OPTIMIZERS: dict[str, Callable[[Any, Task, Runner], Any]] = {
    "labeled": _labeled,
    "rs": _random_search,
    "mipro": _mipro,
    "gepa": _gepa,
}

Compile = Callable[[Task, Runner], Any]


def _dspy(optimizer: str) -> Compile:
    return lambda task, runner: compile_dspy(optimizer, task, runner)


OURS = ("still_O1", "still_O2")
SYSTEMS: dict[str, tuple[Compile, Callable[[int], Runner]]] = {
    "still_O1": (lambda task, runner: compile_still("O1", task, runner), still_runner),
    "still_O2": (lambda task, runner: compile_still("O2", task, runner), still_runner),
    **{f"dspy_{name}_still": (_dspy(name), still_runner) for name in _OPTIMIZERS},
    **{f"dspy_{name}_llamacpp": (_dspy(name), server_runner) for name in _OPTIMIZERS},
    **{f"dspy_{name}_schema_llamacpp": (_dspy(name), schema_runner) for name in _OPTIMIZERS},
}
"""By name: how it compiles, and what it runs on."""
