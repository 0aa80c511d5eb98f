"""What preferences add to what labels have taught: SFT, then DPO or GRPO from there.

`sft` and `after` are scores of the programs that two compiles return, on test rows that are read once, after both; `p` is of
a one-sided paired sign-flip test that the gain is chance. The second compile keeps what the first returned where dev
does not say better: then both scores are the same.

    math_word         the calculation that solves a word problem (MAWPS), right if its result is. SFT on 300 problems with
                      their calculations; preferences on 1,150 others, of which only the result is used; 150 to choose by,
                      500 to test. Problems that are alike (MinHash 0.6) are on one side
    snips             600 rows to train on, for both, 150 to choose by, 500 to test: 1 if the intent and every slot are right
    facility_support  80 rows, 20 and 100: mean over urgency, sentiment and ten categories
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SIZES = {"snips": (600, 150), "facility_support": (80, 20)}
SETS = ("math_word", *SIZES)


class Task(NamedTuple):
    """labelled: train and dev of the first compile; asked: of the second."""

    signature: Any
    labelled: tuple[Any, Any]
    asked: tuple[Any, Any]
    test: Any
    metric: Callable[..., float]
    epochs: int = 3


def still_dpo(case: str) -> dict[str, Any]:
    """DPO on answers that the SFT adapter gives and the metric ranks."""
    from still.optimizers.prefer import Prefer

    return _measured(case, Prefer(examples=1200))


def still_grpo(case: str) -> dict[str, Any]:
    """GRPO with the metric as reward."""
    from still.optimizers.reinforce import Reinforce
    from still.optimizers.weights.grpo import GrpoSettings

    return _measured(case, Reinforce(GrpoSettings(steps=60, prompts=16, learning_rate=5e-5)))


def _measured(case: str, step: Any) -> dict[str, Any]:
    import still
    from still.optimizers.distil import Distil
    from still.optimizers.racing import paired_p_value
    from still.optimizers.weights.sft import SftSettings

    task = _task(case)
    distil, lm = Distil(settings=SftSettings(epochs=task.epochs)), still.LM()
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {"lm": lm, "ledger": Path(folder) / "ledger.duckdb", "progress": False}
        first = still.compile(still.Predict(task.signature), *task.labelled, task.metric, passes=[distil], **given)
        second = still.compile(first.program, *task.asked, task.metric, passes=[step], **given)
        scores = {"sft": _scores(first.program, task), "after": _scores(second.program, task)}
    means = {name: sum(found) / len(found) for name, found in scores.items()}
    return {**means, "p": paired_p_value(scores["after"], scores["sft"], 0), "tested": len(task.test),
            "dev": {row.name: row.score for row in second.report.rows},
            "notes": [*first.report.notes, *second.report.notes]}  # fmt: skip


def _scores(program: Any, task: Task) -> Sequence[float]:
    answers = program.batch(list(task.test), num_threads=16, disable_progress_bar=True, max_errors=len(task.test))
    pairs = zip(task.test, answers, strict=True)
    return [0.0 if answer is None else task.metric(example, answer) for example, answer in pairs]


def _task(case: str) -> Task:
    from still import Dataset

    if case == "math_word":
        from weights_calculations import calculations

        return Task(*calculations(), epochs=6)  # few rows: until dev gets no better
    import compile_sets
    import weights_sets

    own = case in weights_sets.SETS
    task: Any = (weights_sets if own else compile_sets).task_of(case)
    few, some = SIZES[case]
    inputs = list(task.signature.input_fields)
    known = [*task.train, *task.dev]
    train, dev, test = (Dataset(part, inputs=inputs) for part in (known[:few], known[few : few + some], list(task.test)))
    return Task(task.signature, (train, dev), (train, dev), test, task.metric, task.epochs if own else 3)


PREFERENCES: dict[str, Callable[[str], dict[str, Any]]] = {"still_dpo": still_dpo, "still_grpo": still_grpo}
