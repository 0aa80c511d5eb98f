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

CALLS = 500
"""The budget: less than the compile would take without one."""


class Steps(still.Module):
    """Two predictors, of which the first has no labels; a few runs fail when both have answered."""

    def __init__(self):
        super().__init__()
        self.look, self.sort = still.Predict("item -> look"), still.Predict(Sort.append("look", still.Input(), type_=str))

    def forward(self, item):
        said = self.sort(item=item, look=self.look(item=item).look)
        if int(item.split()[2]) % 7 == 0:
            raise ValueError("seven")
        return said


def answered(plan, inputs):
    if plan.decodes[0].field == "look":
        return {"look": f"like {inputs['item']}"}
    return right_with_demonstrations(plan, inputs)


def slowly(plan, inputs):
    time.sleep(0.15)
    return answered(plan, inputs)


def compile_into(folder, answer):
    ledger_module.FLUSH_SECONDS = 0.25  # or there would be nothing to lose
    lm = ScriptedLM(answer)
    result = still.compile(
        Steps(), data(30), data(36, 100), lm=lm, level="O2", progress=False,
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


def rows(folder, sql="SELECT evaluation_id, score, prediction, calls FROM evaluations"):
    """Rows of the ledger by their first column: of evaluations what they say and what they cost."""
    if not (folder / "ledger.duckdb").exists():
        return {}
    # In a fork too: this process never opens the file, so no lock of its own is handed to the next compile.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with still.Ledger(folder / "ledger.duckdb") as book:
            _, found = book.query(sql)
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
    compile_into(whole, answered)
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
    assert os.waitpid(forked(broken, answered), 0)[1] == 0
    told = {name: json.loads((folder / name / "told.json").read_text()) for name in ("whole", "broken")}
    scores = "SELECT evaluation_id, split, score, error FROM scores"
    ends = {"ids": sorted(rows(broken)) == sorted(rows(whole)), "scores": rows(broken, scores) == rows(whole, scores)}
    kept = sum(calls for _, _, calls in seen.values())
    print(json.dumps({"killed": killed, "lost": lost, "changed": changed, "kept": kept, **told, **ends}))


if __name__ == "__main__":
    main()
