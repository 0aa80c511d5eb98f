"""Compiled programs of a 135M model: better, sooner, for fewer tokens? Still at O1 and O2, and DSPy's optimizers.

    python benchmarks/compile.py                       six sets, all systems: hours, filled cell by cell over several runs
    python benchmarks/compile.py --sets trec sst2 --systems still_O1 dspy_rs_still
    python benchmarks/compile.py --cached              print what has been measured, measure nothing
    python benchmarks/compile.py --quick               trec: our systems anew, peers as they were measured before
    python benchmarks/compile.py --record              also keep what is measured in compile_measured.jsonl
    python benchmarks/compile.py --json                rows as the last line

`test` is the score on 100 test rows, read once at the end; `dev_rows` and `train_rows` are what was compiled with. `seconds`
is the wall time of compiling (starting server or engine and one call before it are not counted), `tokens` what the model
computed for it: prompt tokens that no cache had, and tokens written. `test_seconds` is the wall time of the test rows,
`others` the share of the machine's processors that other programs took meanwhile, `instructions` what the machine's
processor has, as our engine calls it: seconds of rows that differ there do not compare. `runs` is how often DSPy's
optimizers ran the program on a row. `ended` says why there is no program to test: an optimizer raises where it cannot read
what the model wrote for it, or it was cut off, and the rest is how far it had come. A row with `day` is from
compile_measured.jsonl, measured on that day.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cells import cached, command_line, measure, print_metric, print_ratios, record, recorded, watched
from compile_progress import Progress
from compile_sets import SETS, Task, is_there, task_of
from compile_systems import LIMITS, OURS, SYSTEMS, Compile, Runner
from typed_systems import version_of

TIMEOUT = 4 * 3600


def run_cell(case: str, system: str) -> dict[str, Any]:
    """Measure one cell: a set and a system."""
    import dspy
    from still.backends.engine.kernels import LEVELS, native_level

    task = task_of(case)
    compile_, run_on = SYSTEMS[system]
    runner = run_on(LIMITS[case])
    _answer(_predictor(task), task.test[0], runner)
    runner.reset()
    measured: dict[str, Any] = {
        "train_rows": len(task.train), "dev_rows": len(task.dev), "instructions": LEVELS[native_level()],
    }  # fmt: skip
    progress = Progress(task.signature, runner, measured)
    with watched() as compiling, dspy.context(callbacks=[progress]):
        program, ended = _compiled(compile_, task, runner)
    measured |= {"seconds": compiling.seconds, "tokens": runner.tokens(), "others": compiling.others}
    if system not in OURS:
        measured["runs"] = progress.runs
    if ended:
        return {**measured, "ended": ended}
    with watched() as testing:
        test, failed = _score(program, task, runner)
    return {"test": test, **measured, "test_seconds": testing.seconds, "failed": failed, "test_rows": len(task.test)}


def _compiled(compile_: Compile, task: Task, runner: Runner) -> tuple[Any, str]:
    """The compiled program, or None and why there is none."""
    from dspy.utils.exceptions import AdapterParseError

    try:
        return compile_(task, runner), ""
    except AdapterParseError as error:
        asked = getattr(error.signature, "__name__", "the model")
        return None, f"the optimizer raised {type(error).__name__} at an answer to {asked}"


def _predictor(task: Task) -> Any:
    import dspy

    return dspy.Predict(task.signature)


def _score(program: Any, task: Task, runner: Runner) -> tuple[float, int]:
    """Mean over the test rows, and how many have no answer; those count 0."""
    with ThreadPoolExecutor(runner.threads) as pool:
        answers = list(pool.map(lambda example: _answer(program, example, runner), task.test))
    scores = [0.0 if answer is None else task.metric(row, answer) for row, answer in zip(task.test, answers, strict=True)]
    return sum(scores) / len(scores), answers.count(None)


def _answer(program: Any, example: Any, runner: Runner) -> Any:
    try:
        with runner.context():
            return program(**example.inputs())
    except Exception:  # whatever it is, there is no answer
        return None


def main() -> None:
    parser = command_line(__doc__, "trec, ours anew, peers as measured before")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, metavar="SET")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--cached", action="store_true", help="measure nothing")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds a cell may take, test rows included")
    parser.add_argument("--record", action="store_true", help="keep the rows in compile_measured.jsonl too")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(*options.cell)), flush=True)
        return
    rows = _rows(["trec"] if options.quick else options.sets, options)
    for metric in ("test", "tokens"):
        print_metric(rows, metric)
    print_ratios(rows, "still_O1")
    if options.json:
        print(json.dumps(rows))


def _rows(sets: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in sets:
        if not is_there(name):
            print(f"{name}: its data is not here; set STILL_DATA to the folder that has it")
            continue
        for system in options.systems:
            row = _row(name, system, options)
            if row is not None:
                rows.append(row)
                print(name, system, row["metrics"], row.get("day", ""), flush=True)
    return rows


def _row(name: str, system: str, options: argparse.Namespace) -> dict[str, Any] | None:
    script, made = Path(__file__), version_of(system)
    if options.cached or (options.quick and system not in OURS):
        return (cached(script, name, system, made) if made else None) or recorded(script, name, system)
    if made is None:
        return None
    row = measure(script, name, system, made, options.fresh or options.quick, options.timeout)
    if options.record and "error" not in row["metrics"]:
        record(script, row, made)
    return row


if __name__ == "__main__":
    main()
