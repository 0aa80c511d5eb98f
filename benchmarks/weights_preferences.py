"""What preferences add to what labels have taught: SFT, then DPO or GRPO from there, on the same rows.

`sft` and `after` are scores on the test rows, which are read once, after both trainings; `p` is of a one-sided paired
sign-flip test that the gain is chance. What dev chose does not matter here: both adapters are tested.

    snips             600 rows to train on, 150 to choose by, 500 to test: 1 if the intent and every slot are right
    facility_support  80 rows, 20 and 100: mean over urgency, sentiment and ten categories
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = {"snips": (600, 150), "facility_support": (80, 20)}


def still_dpo(case: str) -> dict[str, Any]:
    """DPO on answers that the SFT adapter gives and the metric ranks."""
    from still.optimizers.prefer import Prefer

    return _measured(case, Prefer())


def still_grpo(case: str) -> dict[str, Any]:
    """GRPO with the metric as reward."""
    from still.optimizers.reinforce import Reinforce
    from still.optimizers.weights.grpo import GrpoSettings

    return _measured(case, Reinforce(GrpoSettings(steps=40)))


def _measured(case: str, step: Any) -> dict[str, Any]:
    import still
    from still.optimizers.distil import Distil
    from still.optimizers.racing import paired_p_value

    signature, train, dev, test, metric = _task(case)
    program, lm = still.Predict(signature), still.LM()
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.duckdb"
        result = still.compile(program, train, dev, metric, passes=[Distil(), step], lm=lm, ledger=ledger, progress=False)
        places = {"sft": _made(ledger, "scores"), "after": _made(ledger, "told")}
        for name, place in places.items():
            answers = _answers(program, place, test, lm)
            scores[name] = [metric(example, answer) for example, answer in zip(test, answers, strict=True)]
    means = {name: sum(found) / len(found) for name, found in scores.items()}
    return {**means, "p": paired_p_value(scores["after"], scores["sft"], 0), "tested": len(test),
            "dev": {row.name: row.score for row in result.report.rows}, "notes": list(result.report.notes)}  # fmt: skip


def _made(ledger: Path, key: str) -> Path:
    """The folder of the adapter whose training has left a record with this key."""
    from still.optimizers.distil import RECORD

    (place,) = [file.parent for file in ledger.parent.glob(f"training/*/{RECORD}") if key in json.loads(file.read_text())]
    return place / "best"


def _answers(program: Any, place: Path, test: Any, lm: Any) -> list[Any]:
    import dspy
    from still.optimizers.candidate import Candidate
    from still.optimizers.distil import _bare
    from still.optimizers.tuning import with_adapter

    bare = _bare(program, Candidate("baseline", "baseline"))
    tuned = with_adapter(bare, place, place.parent.name).apply(program)
    with dspy.context(lm=lm):
        return tuned.batch(list(test), num_threads=16, disable_progress_bar=True, max_errors=len(test))  # type: ignore[no-any-return]


def _task(case: str) -> tuple[Any, Any, Any, Any, Any]:
    import compile_sets
    import weights_sets
    from still import Dataset

    task: Any = (weights_sets if case in weights_sets.SETS else compile_sets).task_of(case)
    few, some = SIZES[case]
    inputs = list(task.signature.input_fields)
    known = [*task.train, *task.dev]
    parts = known[:few], known[few : few + some], list(task.test)
    return task.signature, *(Dataset(part, inputs=inputs) for part in parts), task.metric


PREFERENCES: dict[str, Callable[[str], dict[str, Any]]] = {"still_dpo": still_dpo, "still_grpo": still_grpo}
