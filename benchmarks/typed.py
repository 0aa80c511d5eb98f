"""Typed answers from a 135M model: valid, right, fast? DSPy over llama.cpp's server, DSPy over our LM, and Still.

    python benchmarks/typed.py             four sets, 60 rows each
    python benchmarks/typed.py --quick     two of them, without the server that was declared to DSPy (under ten minutes)
    python benchmarks/typed.py --json      rows as the last line
    python benchmarks/typed.py --show trec still_O0    print some answers of a cell

`valid` is the share of rows with an answer of the declared types, `accuracy` what `typed_sets.py` says, `seconds` the wall
time of all rows after one more as a warm-up (starting server or engine is not counted), `decoded_tokens` what was written.
`others` is the share of the machine's processors that other programs took meanwhile, where that can be told: times of
a machine that is not at rest say little, and least of all the server's, whose threads wait for each other in a loop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cells import command_line, measure, print_metric, print_ratios, watched
from typed_sets import LIMITS, SETS, is_there, rows_of
from typed_systems import SYSTEMS, version_of

ROWS = 60
QUICK = ("trec", "snips")
NOT_QUICK = "dspy_schema_llamacpp"


def run_cell(case: str, system: str, show: int = 0) -> dict[str, Any]:
    """Measure one cell. case: a set's name and a number of rows, as in "trec_60"."""
    name, count = case.rsplit("_", 1)
    warm, *rows = rows_of(name, int(count))
    made = SYSTEMS[system](LIMITS[name])
    made.run([warm])
    made.decoded_tokens()
    with watched() as watch:
        answers = made.run(rows)
    valid, points = 0, 0.0
    for row, answer in zip(rows, answers, strict=True):
        valid += _is_valid(row, answer)
        points += row.judge(answer) if _is_valid(row, answer) else 0.0
    for row, answer in list(zip(rows, answers, strict=True))[:show]:
        print(f"{row.inputs}\n  -> {answer}")
    for failure in made.failures[:show]:
        print("failed:", failure)
    return {
        "valid": valid / len(rows), "accuracy": points / len(rows), "seconds": watch.seconds, "rows": len(rows),
        "decoded_tokens": made.decoded_tokens(), "others": watch.others,
    }  # fmt: skip


def _is_valid(row: Any, answer: Any) -> bool:
    """Whether there is an answer, and every output is of its declared type, bounds included."""
    if answer is None:
        return False
    from pydantic import TypeAdapter, ValidationError

    try:
        for name, field in row.signature.output_fields.items():
            TypeAdapter(field.rebuild_annotation()).validate_python(getattr(answer, name), strict=True)
    except (ValidationError, AttributeError):
        return False
    return True


def main() -> None:
    parser = command_line(__doc__, "two sets, five systems")
    parser.add_argument("--show", nargs=2, metavar=("SET", "SYSTEM"), help="print some answers of a cell")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(*options.cell)), flush=True)
        return
    if options.show:
        print(run_cell(f"{options.show[0]}_12", options.show[1], show=12))
        return
    rows = []
    for name in QUICK if options.quick else SETS:
        if not is_there(name):
            print(f"{name}: its data is not here; set STILL_DATA to the folder that has it")
            continue
        for system in SYSTEMS:
            made = version_of(system)
            if made is not None and not (options.quick and system == NOT_QUICK):
                measured = measure(Path(__file__), f"{name}_{ROWS}", system, made, options.fresh)
                rows.append({**measured, "case": name})
                print(name, system, rows[-1]["metrics"], flush=True)
    for metric in ("valid", "accuracy", "decoded_tokens"):
        print_metric(rows, metric)
    print_ratios(rows, "still_O0")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
