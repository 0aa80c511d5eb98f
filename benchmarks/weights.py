"""Weights: what an adapter learns in minutes on a CPU, and what it saves.

    python benchmarks/weights.py               three sets at O0, O2 and O3, and training throughput: hours
    python benchmarks/weights.py --sets trec --systems still_O0 still_O3
    python benchmarks/weights.py --quick       trec at O0 and O3, and throughput
    python benchmarks/weights.py --cached      print what has been measured, measure nothing
    python benchmarks/weights.py --json        rows as the last line

`test` is the score on 500 test rows, read once at the end; `prompt_tokens` what a test row's prompt has; `train_seconds` the
wall time of training steps, `compile_seconds` of all of the compile. O3 here is the pass `distil` alone, on all train rows
(with labels it does not need what O2 found); O2 chooses among 100 train and 100 dev rows, as in compile.py. Case throughput:
tokens a second of LoRA training on trec's rows, prompts included, beside trl's SFTTrainer with the same adapter, batch
size and number format. Cases NAME_preferred: what DPO and GRPO add to SFT (see `weights_preferences.py`).
Cases NAME_settings: what the defaults were chosen by. `others` is the share of the processors that other programs took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from cells import cached, command_line, measure, print_metric, watched
from compile_sets import is_there
from typed_systems import version_of
from weights_preferences import PREFERENCES
from weights_preferences import SETS as PREFERRED
from weights_sets import SETS, task_of
from weights_settings import SETS as SETTINGS_SETS
from weights_settings import SETTINGS
from weights_speed import SPEEDS

SYSTEMS = ("still_O0", "still_O2", "still_O3")
ALL = (*SETS, "throughput", "preferences", "settings")
TIMEOUT = 3 * 3600
O2_ROWS = 100


def run_cell(case: str, system: str) -> dict[str, Any]:
    """Measure one cell."""
    if case == "throughput":
        return SPEEDS[system]()
    if system in SETTINGS:
        return SETTINGS[system](case.removesuffix("_settings"))
    if system in PREFERENCES:
        return PREFERENCES[system](case.removesuffix("_preferred"))
    import still

    task = task_of(case)
    program, lm = still.Predict(task.signature), still.LM()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.duckdb"
        with watched() as compiling:
            compiled, trained = _compiled(program, task, system, lm, ledger)
        row = still.evaluate(compiled, task.test, task.metric, lm=None if compiled is not program else lm, ledger=ledger)
        _, ((prompt,),) = still.Ledger(ledger).query("SELECT avg(prompt_tokens) FROM evaluations WHERE split = 'test'")
    return {
        "test": row.score, "failures": row.failures, "prompt_tokens": prompt,
        **trained, "compile_seconds": compiling.seconds, "others": compiling.others,
    }  # fmt: skip


def _compiled(program: Any, task: Any, system: str, lm: Any, ledger: Path) -> tuple[Any, dict[str, Any]]:
    import still
    from still.optimizers.distil import Distil
    from still.optimizers.tuning import RECORD
    from still.optimizers.weights.lora import Lora
    from still.optimizers.weights.sft import SftSettings

    if system == "still_O0":
        return program, {}
    if system == "still_O2":
        few = [still.Dataset(list(rows)[:O2_ROWS], inputs=rows.inputs) for rows in (task.train, task.dev)]
        return still.compile(program, *few, task.metric, level="O2", lm=lm, ledger=ledger).program, {}
    lora = Lora(r=task.rank, alpha=2 * task.rank)
    distil = Distil(lora, SftSettings(epochs=task.epochs), held_out=task.test)
    result = still.compile(program, task.train, task.dev, task.metric, level="O3", passes=[distil], lm=lm, ledger=ledger)
    (record,) = [json.loads(file.read_text("utf-8")) for file in ledger.parent.glob(f"training/*/{RECORD}")]
    told = {"train_seconds": record["seconds"], "train_tokens": record["tokens"], "train_rows": record["rows"]}
    return result.program, {**told, "dev_scores": record["scores"]}


def main() -> None:
    parser = command_line(__doc__, "the quick selection")
    parser.add_argument("--sets", nargs="+", default=list(ALL), choices=ALL, metavar="SET")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, metavar="SYSTEM")
    parser.add_argument("--cached", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(*options.cell)), flush=True)
        return
    rows = []
    for case, system in _cells(options):
        made = version_of("still_O0") or ""
        if options.cached:
            row = cached(Path(__file__), case, system, made)
        else:
            row = measure(Path(__file__), case, system, made, options.fresh, TIMEOUT)
        if row is not None:
            rows.append(row)
            print(case, system, row["metrics"], flush=True)
    for metric in ("test", "prompt_tokens", "train_seconds", "tokens_per_second", "sft", "after", "p", "dev"):
        having = [row for row in rows if metric in row["metrics"]]
        if having:
            print_metric(having, metric)
    if options.json:
        print(json.dumps(rows))


def _cells(options: argparse.Namespace) -> list[tuple[str, str]]:
    sets, systems = (["trec", "throughput"], ["still_O0", "still_O3"]) if options.quick else (options.sets, options.systems)
    found = []
    for case in sets:
        if case == "throughput":
            found += [(case, system) for system in SPEEDS]
        elif case == "settings":
            found += [(f"{name}_settings", system) for name in SETTINGS_SETS if is_there(name) for system in SETTINGS]
        elif case == "preferences":
            found += [(f"{name}_preferred", system) for name in PREFERRED if is_there(name) for system in PREFERENCES]
        elif is_there(case):
            found += [(case, system) for system in systems]
        else:
            print(f"{case}: its data is not here; set STILL_DATA to the folder that has it")
    return found


if __name__ == "__main__":
    main()
