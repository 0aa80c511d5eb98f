"""What the defaults of LoRA and SFT were chosen by: one changed at a time, 600 rows of a set, 300 to choose by.

Each system is a setting; `base` is the defaults with batches of 16, as for more rows. `dev` is the score after three epochs.
trec asks for a label, snips for an object of quoted values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SETS = ("trec", "snips")
ROWS = 600
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "r4": {"r": 4, "alpha": 8},
    "r64": {"r": 64, "alpha": 128},
    "rslora": {"rslora": True, "alpha": 16},
    "attention_only": {"targets": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "dropout": {"dropout": 0.05},
    "rate_5e-4": {"learning_rate": 5e-4},
    "rate_1e-3": {"learning_rate": 1e-3},
    "rate_4e-3": {"learning_rate": 4e-3},
    "batch_8": {"batch": 8},
    "batch_8_r64": {"batch": 8, "r": 64, "alpha": 128},
    "batch_32": {"batch": 32},
}


def _measured(case: str, change: dict[str, Any]) -> dict[str, Any]:
    import still
    from still.optimizers.bare import bare_candidate
    from still.optimizers.candidate import Candidate
    from still.optimizers.distil_rows import training_rows
    from still.optimizers.tuning import with_adapter
    from still.optimizers.weights.lora import Lora
    from still.optimizers.weights.sft import SftSettings, train_sft
    from still.optimizers.weights.student import Student
    from weights_sets import task_of

    task, lm = task_of(case), still.LM()
    program = still.Predict(task.signature)
    bare = bare_candidate(program, Candidate("baseline", "baseline"))
    given: Any = SimpleNamespace(train=task.train, input_fields=set(task.train.inputs), lm=lm)
    rows, _ = training_rows(program, bare, bare, given, range(ROWS))
    of_lora = {key: value for key, value in change.items() if key in Lora.__dataclass_fields__}
    of_sft = {"batch": 16, **{key: value for key, value in change.items() if key not in of_lora}}
    with tempfile.TemporaryDirectory() as folder:
        # Not by still.compile: it would measure the untrained program first, which takes longer than the training.
        student = Student.open(lm.local.model, Lora(**of_lora))
        record = train_sft(student, rows, SftSettings(**of_sft), folder=Path(folder))
        trained = with_adapter(bare, Path(folder) / "best", "trained").apply(program)
        row = still.evaluate(trained, task.dev, task.metric, lm=lm, ledger=Path(folder) / "ledger.duckdb", progress=False)
    return {"dev": row.score, "train_seconds": record.seconds, "tokens_per_second": record.tokens_per_second}


def _of(change: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    return lambda case: _measured(case, change)


SETTINGS: dict[str, Callable[[str], dict[str, Any]]] = {name: _of(change) for name, change in CHANGES.items()}
