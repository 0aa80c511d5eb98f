"""A compile that is killed again and again, for `test_compiler_kills.py`: run as a script, in a process without threads.

    killed_compiles.py FOLDER KILLS SEED

Compiles once in one go and once under kills, and prints one JSON object about both. What is killed are forks, so that what
they import is there already.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import still
from scripted import ScriptedLM
from still.compiler import ledger as ledger_module
from test_compiler_compile import Sort, data, right_with_demonstrations

CALLS = 700
"""The budget: less than the compile would take without one."""


def slowly(plan, inputs):
    time.sleep(0.25)
    return right_with_demonstrations(plan, inputs)


def compile_into(folder, answer):
    ledger_module.FLUSH_SECONDS = 0.25  # or there would be nothing to lose
    lm = ScriptedLM(answer)
    result = still.compile(
        still.Predict(Sort), data(30), data(36, 100), lm=lm, level="O2", progress=False,
        ledger=folder / "ledger.duckdb", budget=still.Budget(calls=CALLS), embedder=None,  # each fork would load it
    )  # fmt: skip
    told = {"winner": result.winner.digest, "artifact": result.digest, "calls": lm.calls}
    (folder / "told.json").write_text(json.dumps(told))


def forked(folder, answer):
    """Process id of a child that compiles."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            compile_into(folder, answer)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def rows(folder):
    """Evaluations in the ledger, by id: what they say and what they cost."""
    if not (folder / "ledger.duckdb").exists():
        return {}
    # In a fork too: this process never opens the file, so no lock of its own is handed to the next compile.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with still.Ledger(folder / "ledger.duckdb") as book:
            _, found = book.query("SELECT evaluation_id, score, prediction, calls FROM evaluations")
        with os.fdopen(writer, "w") as pipe:
            json.dump(found, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    return {row[0]: row[1:] for row in found}


def main():
    folder, kills, generator = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    whole, broken = folder / "whole", folder / "broken"
    for each in (whole, broken):
        each.mkdir()
    compile_into(whole, right_with_demonstrations)
    seen, killed, lost, changed = {}, 0, 0, 0
    while killed < kills:
        child = forked(broken, slowly)
        time.sleep(generator.uniform(0.0, 1.3))
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
        now = rows(broken)
        lost += len(seen.keys() - now.keys())
        changed += sum(seen[key] != now[key] for key in seen.keys() & now.keys())
        seen = now
    assert os.waitpid(forked(broken, right_with_demonstrations), 0)[1] == 0
    told = {name: json.loads((folder / name / "told.json").read_text()) for name in ("whole", "broken")}
    ends = {"ids": sorted(rows(broken)) == sorted(rows(whole)), "rows": len(rows(broken))}
    print(json.dumps({"killed": killed, "lost": lost, "changed": changed, "kept": len(seen), **told, **ends}))


if __name__ == "__main__":
    main()
