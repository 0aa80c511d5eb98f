"""What the defaults of LoRA and SFT were chosen by: one changed at a time, 600 rows of a set, 300 to choose by.

Each system is a setting; `default` changes nothing. `dev` is the best epoch's score, as training keeps it. trec asks for a
label, snips for an object of quoted values.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETS = ("trec", "snips")
ROWS = 600
CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "r4": {"r": 4, "alpha": 8},
    "r64": {"r": 64, "alpha": 128},
    "rslora": {"rslora": True, "alpha": 16},
    "attention_only": {"targets": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "dropout": {"dropout": 0.05},
    "rate_3e-4": {"learning_rate": 3e-4},
    "rate_3e-3": {"learning_rate": 3e-3},
    "batch_8": {"batch": 8},
    "batch_32": {"batch": 32},
}


def _measured(case: str, change: dict[str, Any]) -> dict[str, Any]:
    import still
    from still.optimizers.distil import RECORD, Distil
    from still.optimizers.weights.lora import Lora
    from still.optimizers.weights.sft import SftSettings
    from weights_sets import task_of

    task = task_of(case)
    train = still.Dataset(list(task.train)[:ROWS], inputs=task.train.inputs)
    of_lora = {key: value for key, value in change.items() if key in Lora.__dataclass_fields__}
    of_sft = {key: value for key, value in change.items() if key not in of_lora}
    step = Distil(Lora(**of_lora), SftSettings(**of_sft))
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.duckdb"
        still.compile(
            still.Predict(task.signature), train, task.dev, task.metric, passes=[step], lm=still.LM(), ledger=ledger,
            progress=False,
        )  # fmt: skip
        (record,) = [json.loads(file.read_text("utf-8")) for file in ledger.parent.glob(f"training/*/{RECORD}")]
    return {"dev": max(record["scores"]), "dev_scores": record["scores"], "train_seconds": record["seconds"]}


def _of(change: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    return lambda case: _measured(case, change)


SETTINGS: dict[str, Callable[[str], dict[str, Any]]] = {name: _of(change) for name, change in CHANGES.items()}
