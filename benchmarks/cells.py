"""Benchmark cells: one (case, system) measurement each, in a process of its own, cached by content.

A cell's script is run as `SCRIPT --cell CASE SYSTEM` and prints its metrics as one JSON object on its last line. The result
is kept in .still/benchmarks under a digest of the sources (this file and those whose names begin with the script's), the
case, the system and its version, so that a long table can be filled over several runs and a changed benchmark is measured
anew. What took hours is also kept in the repository, in SCRIPT_measured.jsonl: a row a cell, with the day and the versions.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CACHE = Path(".still") / "benchmarks"
TIMEOUT = 1800
Row = dict[str, Any]


def command_line(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The options that benchmarks of cells have in common. quick: what `--quick` selects."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs=2, metavar=("CASE", "SYSTEM"), help="measure one cell and print its metrics")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--fresh", action="store_true", help="measure again what is cached")
    parser.add_argument("--json", action="store_true", help="print the rows as the last line")
    return parser


def measure(script: Path, case: str, system: str, version: str, fresh: bool = False, timeout: float = TIMEOUT) -> Row:
    """Return the row of a cell, from the cache or a new process; `metrics` holds `error` where it failed, and `ended`
    where it came to no result, beside what the cell had printed last when it was cut off."""
    known = None if fresh else cached(script, case, system, version)
    if known is not None:
        return known
    try:
        metrics = _run(script, case, system, timeout)
    except subprocess.TimeoutExpired as error:
        metrics = _last_printed((error.stdout or b"").decode()) or {}
        return {"case": case, "system": system, "metrics": {**metrics, "ended": f"cut off after {timeout:.0f} s"}}
    row = {"case": case, "system": system, "metrics": metrics}
    if "error" not in row["metrics"]:
        CACHE.mkdir(parents=True, exist_ok=True)
        _file(script, case, system, version).write_text(json.dumps(row), "utf-8")
    return row


def cached(script: Path, case: str, system: str, version: str) -> Row | None:
    """The row of a cell that has been measured, else None."""
    file = _file(script, case, system, version)
    if not file.is_file():
        return None
    row: Row = json.loads(file.read_text("utf-8"))
    return row


def _file(script: Path, case: str, system: str, version: str) -> Path:
    own = [Path(__file__), *sorted(script.parent.glob(f"{script.stem}*.py"))]
    sources = "".join(path.read_text("utf-8") for path in own)
    key = hashlib.sha256("\0".join((sources, case, system, version)).encode()).hexdigest()[:16]
    return CACHE / f"{script.stem}-{case}-{system}-{key}.json"


def recorded(script: Path, case: str, system: str) -> Row | None:
    """The row of a cell as the repository has it, measured on the day it names; None where it has none."""
    return _recorded(_record_file(script)).get((case, system))


def record(script: Path, row: Row, version: str) -> None:
    """Put the row of a cell into the repository's file, in the place of an earlier one."""
    file = _record_file(script)
    kept = {**row, "version": version, "day": datetime.date.today().isoformat()}
    rows = {**_recorded(file), (row["case"], row["system"]): kept}
    file.write_text("".join(f"{line}\n" for line in sorted(map(json.dumps, rows.values()))), "utf-8")


def _record_file(script: Path) -> Path:
    return script.with_name(f"{script.stem}_measured.jsonl")


def _recorded(file: Path) -> dict[tuple[str, str], Row]:
    rows = map(json.loads, file.read_text("utf-8").splitlines() if file.is_file() else ())
    return {(row["case"], row["system"]): row for row in rows}


def _run(script: Path, case: str, system: str, timeout: float) -> dict[str, Any]:
    command = [sys.executable, str(script), "--cell", case, system]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    metrics = _last_printed(done.stdout)
    if done.returncode or not metrics:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return metrics


def _last_printed(output: str) -> dict[str, Any] | None:
    lines = [line for line in output.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    return json.loads(lines[-1]) if lines else None


def print_ratios(rows: Sequence[Row], ours: str, metric: str = "seconds") -> None:
    """Print a table: per case the metric of each system, and how many times ours is better (less is better)."""
    cells = {(row["case"], row["system"]): row["metrics"] for row in rows}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    table = Table("case", *systems, *(f"{s} / {ours}" for s in systems if s != ours), box=None, pad_edge=False)
    for case in cases:
        mine = cells.get((case, ours), {}).get(metric)
        values = [cells.get((case, s), {}).get(metric) for s in systems]
        shown = ["-" if v is None else f"{v:.2f}" for v in values]
        ratios = [
            "-" if v is None or mine is None else f"{v / mine:.2f} x"
            for s, v in zip(systems, values, strict=True)
            if s != ours
        ]
        table.add_row(case, *shown, *ratios)
    Console(width=140).print(table)
    for row in rows:
        if told := row["metrics"].get("error") or row["metrics"].get("ended"):
            print(f"{row['case']}, {row['system']}: {told}")


def print_metric(rows: Sequence[Row], metric: str) -> None:
    """A table: sets by systems."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    table = Table(metric, *systems, box=None, pad_edge=False)
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = {row["system"]: row["metrics"].get(metric) for row in rows if row["case"] == case}
        table.add_row(case, *(_shown(cells.get(s)) for s in systems))
    Console(width=140).print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}".rstrip("0").rstrip(".")


@dataclass
class Watch:
    """How long something took, and what else the machine did meanwhile."""

    seconds: float = 0.0
    others: float | None = None
    """Share of the processors that other programs took; None where that cannot be told."""


@contextmanager
def watched() -> Iterator[Watch]:
    """Measure what is done in the block."""
    watch = Watch()
    began, before = time.perf_counter(), _processor_seconds()
    yield watch
    watch.seconds = time.perf_counter() - began
    if before and watch.seconds > 0.1:
        watch.others = round((_processor_seconds() - before) / watch.seconds / (os.cpu_count() or 1), 3)


def _processor_seconds() -> float:
    """What programs other than this one have computed since the machine was started; 0 where the system does not say."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text("ascii").split()[1:4])
    except (OSError, ValueError):
        return 0.0
    mine = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - mine.user - mine.system
