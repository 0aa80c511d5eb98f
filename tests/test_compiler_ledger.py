"""The ledger loses no row: not to kills, full disks, forks, other processes or other threads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from still.compiler import ledger_file
from still.compiler.ledger import (
    READY_QUERIES,
    ArtifactRow,
    CallRow,
    CandidateRow,
    EvaluationRow,
    Ledger,
    RunRow,
    ScoreRow,
    evaluation_key,
)
from still.errors import LedgerError

RUN = RunRow(run_id="r1", program="p", level="O1", model="m", model_digest="md", seed=3, config={"level": "O1"})


def evaluation(key, **changes):
    row = {"candidate_id": "c1", "example_id": f"e{key}", "split": "dev", "model_digest": "md", "score": 0.5}
    return EvaluationRow(evaluation_id=str(key), **{**row, "run_id": "r1", **changes})


def counted(key, **changes):
    of = {"candidate_id": "c1", "example_id": f"e{key}"}
    return ScoreRow(**{"run_id": "r1", "evaluation_id": str(key), **of, "split": "dev", "score": 0.5, **changes})


def candidate(key, **changes):
    return CandidateRow(**{"candidate_id": key, "run_id": "r1", "name": key, "origin": "test", "state": {}, **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "folder" / "ledger.duckdb"


@pytest.fixture
def ledger(path):
    with Ledger(path) as opened:
        yield opened


def python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# --- rows


def test_rows_come_back_as_they_were(ledger):
    at = datetime(2024, 1, 2, 3, 4, 5, 678901, UTC)
    full = evaluation(
        "k",
        prediction={"text": 'é "quoted" \0 \u2028 😀', "n": [1, None, 2.5, 10**18]},
        scores={"team": 1.0, "urgency": 0.25},
        error="ValueError: x",
        calls=2,
        prompt_tokens=3,
        cached_tokens=4,
        decoded_tokens=5,
        seconds=0.125,
        created_at=at,
    )
    bare = evaluation("bare", score=None, created_at=at)
    made = candidate("c1", state={"demos": [1]}, created_at=at)
    run = replace(RUN, started_at=at)
    for row in (run, made, full, bare):
        ledger.record(row)
    assert ledger.lookup(["k", "bare", "absent"]) == {"k": full, "bare": bare}
    assert ledger.lookup([]) == {}
    assert ledger.runs() == [run]
    assert ledger.candidates() == ledger.candidates("r1") == [made]
    assert ledger.candidates("r2") == []


def test_the_ids_of_a_model_are_those_in_the_file_and_in_the_queue(ledger):
    for key, model in (("a", "md"), ("b", "other"), ("c", "md")):
        ledger.record(evaluation(key, model_digest=model))
    assert ledger.evaluation_ids("md") == {"a", "c"}
    ledger.record(evaluation("d"))
    assert ledger.evaluation_ids("md") == {"a", "c", "d"}
    assert ledger.evaluation_ids("unknown") == frozenset()


def test_rows_that_come_mixed_are_all_written_and_updates_keep_their_order(ledger):
    for i in range(300):
        ledger.record(evaluation(i % 250))
        ledger.record(candidate(f"c{i}"))
        ledger.record(replace(RUN, status=f"at {i}"))
    assert len(ledger.evaluations()) == 250
    assert len(ledger.candidates()) == 300
    assert [run.status for run in ledger.runs()] == ["at 299"]


def test_a_run_is_updated_the_rest_is_not(ledger):
    ledger.record(RUN)
    ledger.record(replace(RUN, status="done", finished_at=datetime.now(UTC), result={"score": 1}))
    ledger.record(evaluation("k", score=0.25))
    ledger.record(evaluation("k", score=0.75))
    ledger.flush()
    ledger.record(evaluation("k", score=1.0))
    ledger.record(replace(RUN, status="resumed", started_at=datetime(2000, 1, 1, tzinfo=UTC)))
    (run,) = ledger.runs()
    assert (run.status, run.finished_at, run.started_at.year) == ("resumed", None, 2000), "its times are the last run's"
    assert [row.score for row in ledger.evaluations()] == [0.25]


def test_a_score_is_that_of_its_run_and_the_last_one(ledger):
    ledger.record(candidate("c1"))
    ledger.record(candidate("c1", run_id="r2"))
    ledger.record(evaluation("k", score=0.25))
    for score in (0.25, 0.5):
        ledger.record(counted("k", score=score))
    ledger.record(counted("k", run_id="r2", split="test", score=0.0, error="MetricError: no"))
    ledger.flush()
    ledger.record(counted("k", score=0.75, fields={"team": 0.75}))
    columns = "run_id, split, score, error"
    _, rows = ledger.query(f"SELECT {columns} FROM scored ORDER BY run_id")
    assert rows == [("r1", "dev", 0.75, None), ("r2", "test", 0.0, "MetricError: no")]
    assert ledger.query("SELECT run_id, score FROM failures")[1] == [("r2", 0.0)]
    assert ledger.query("SELECT fields FROM scores WHERE run_id = 'r1'")[1] == [('{"team":0.75}',)]


def test_evaluations_are_filtered(ledger):
    for i in range(6):
        ledger.record(evaluation(i, run_id=f"r{i % 2}", candidate_id=f"c{i % 3}"))
    assert [row.evaluation_id for row in ledger.evaluations()] == list("012345")
    assert [row.evaluation_id for row in ledger.evaluations(run_id="r1")] == list("135")
    assert [row.evaluation_id for row in ledger.evaluations("r1", "c2")] == ["5"]
    assert ledger.evaluations(candidate_id="x' OR '1'='1") == []


def test_what_cannot_be_stored_is_refused_or_replaced(ledger):
    ledger.record(evaluation("a", prediction={"x": "half \ud800 pair"}, error="\udfff"))
    wrong = [
        ({"prediction": {"x": object()}}, "no JSON form"),
        ({"calls": None}, "calls=None"),
        ({"calls": 2**63}, "calls=9223372036854775808"),
        ({"score": float("nan")}, "score=nan"),
        ({"scores": {"team": 1.5}}, r"scores\.team=1\.5"),
        ({"seconds": float("inf")}, "seconds=inf"),
    ]
    for changes, message in wrong:
        with pytest.raises(LedgerError, match=message):
            ledger.record(evaluation("b", **changes))
    with pytest.raises(LedgerError, match="seed"):
        ledger.record(replace(RUN, seed=2**64))
    ledger.record(evaluation("c", prediction={"x": float("nan")}))
    rows = {row.evaluation_id: row for row in ledger.evaluations()}
    assert rows.keys() == {"a", "c"}
    assert rows["a"].prediction == {"x": "half \ufffd pair"}
    assert rows["a"].error == "\ufffd"


def test_evaluation_key_depends_on_every_part():
    base = {"program": "p", "candidate": "c", "example": "e", "model": "m", "seed": 0}
    keys = {evaluation_key(**{**base, name: "other"}) for name in base} | {evaluation_key(**base)}
    assert len(keys) == 6
    assert all(len(key) == 64 for key in keys)
    assert evaluation_key("p", "c", "e", "m", seed=0) == evaluation_key(**dict(reversed(base.items())))
    assert evaluation_key("pc", "", "e", "m") != evaluation_key("p", "c", "e", "m")


def test_a_recorded_row_no_longer_changes(ledger):
    prediction = {"x": [1]}
    ledger.record(evaluation("a", prediction=prediction))
    prediction["x"].append(2)
    assert ledger.lookup(["a"])["a"].prediction == {"x": [1]}


# --- the background thread


def durable(path):
    with duckdb.connect(str(path), read_only=True) as connection:
        return {key for (key,) in connection.execute("SELECT evaluation_id FROM evaluations").fetchall()}


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


def test_rows_reach_the_file_without_flush(ledger, path):
    ledger.record(evaluation("a"))
    # From a process of its own: it sees nothing but the file.
    code = (
        "import sys, duckdb; print(duckdb.connect(sys.argv[1], read_only=True).execute('FROM evaluations').fetchall())"
    )

    def seen():
        out, _ = python(code, path).communicate(timeout=60)
        return "'ea'" in out

    wait_until(seen)


def test_flush_and_close_make_durable(path):
    ledger = Ledger(path)
    for i in range(450):
        ledger.record(evaluation(i))
    ledger.flush()
    assert len(durable(path)) == 450
    ledger.record(evaluation("last"))
    ledger.close()
    ledger.close()
    assert len(durable(path)) == 451
    assert not [
        thread for thread in threading.enumerate() if thread.name == "still-ledger" and thread is ledger._thread
    ]
    for refused in (lambda: ledger.record(evaluation("x")), ledger.flush):
        with pytest.raises(LedgerError, match="closed"):
            refused()
    assert len(ledger.evaluations()) == 451


def test_rows_are_written_when_the_program_ends_without_close(path):
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from test_compiler_ledger import Ledger, evaluation
ledger = Ledger(sys.argv[1])
ledger.record(evaluation("a"))
"""
    _, err = python(code, path, Path(__file__).parent).communicate(timeout=60)
    assert err == ""
    assert durable(path) == {"a"}


# --- damage


def test_other_files_are_refused_and_left_alone(tmp_path):
    text, empty, foreign, newer = (tmp_path / name for name in ("text", "empty", "foreign.duckdb", "newer.duckdb"))
    text.write_text("not a database" * 1000)
    empty.write_bytes(b"")
    with duckdb.connect(str(foreign)) as connection:
        connection.execute("CREATE TABLE t (i INTEGER)")
    Ledger(newer).close()
    with duckdb.connect(str(newer)) as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    for file, words in ((text, "not a valid"), (empty, "not a valid"), (foreign, "no ledger"), (newer, "version 99")):
        before = file.read_bytes()
        with pytest.raises(LedgerError, match=words) as caught:
            Ledger(file)
        assert str(file) in str(caught.value)
        assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(LedgerError):
        Ledger(tmp_path)
    with pytest.raises(LedgerError, match="cannot be created"):
        Ledger(text / "below" / "a.duckdb")


def test_rows_survive_the_loss_of_the_folder(ledger, path):
    ledger.record(evaluation("a"))
    ledger.flush()
    path.parent.rename(path.parent.with_name("gone"))
    for key in "bc":
        ledger.record(evaluation(key))
    with pytest.raises(LedgerError, match="put it back"):
        ledger.flush()
    with pytest.raises(LedgerError):
        ledger.evaluations()
    wait_until(lambda: ledger._failure is not None)
    with pytest.raises(LedgerError, match="put it back"):
        ledger.record(evaluation("d"))
    with pytest.raises(LedgerError):
        ledger.close()
    path.parent.with_name("gone").rename(path.parent)
    ledger.flush()
    assert durable(path) == set("abcd")


def test_a_full_disk_loses_nothing(path):
    # A limit on file size fails writes as a full disk does. In a child, since duckdb's memory of the file goes with it.
    code = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from test_compiler_ledger import Ledger, LedgerError, evaluation
import signal, os
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(sys.argv[1])
ledger.record(evaluation("first"))
ledger.flush()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1]) + 4096, hard))
failures = 0
for i in range(300):
    try:
        ledger.record(evaluation(i, prediction={"x": os.urandom(2000).hex()}))
    except LedgerError:
        failures += 1
try:
    ledger.flush()
except LedgerError as error:
    failures += 1
assert failures, "the limit did not bite"
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
ledger.close()
"""
    process = python(code, path, Path(__file__).parent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert durable(path) == {"first", *map(str, range(300))}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes read-only files")
def test_a_read_only_file_keeps_rows_queued(ledger, path):
    path.chmod(0o444)
    ledger.record(evaluation("a"))
    with pytest.raises(LedgerError):
        ledger.flush()
    path.chmod(0o644)
    ledger.flush()
    assert durable(path) == {"a"}


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from test_compiler_ledger import Ledger, evaluation
ledger = Ledger(sys.argv[1])
i = 0
while True:
    batch = [f"{sys.argv[3]}-{i + j}" for j in range(37)]
    i += 37
    for key in batch:
        ledger.record(evaluation(key, prediction={"x": key * 50}))
    ledger.flush()
    print(*batch, flush=True)
"""


def test_killed_at_any_time_every_flushed_row_is_there(path):
    flushed = set()
    for life in range(5):
        process = python(KILLED, path, Path(__file__).parent, life)
        # The first is killed while it starts or creates the file, the others while they write.
        first = process.stdout.readline() if life else ""
        time.sleep(0.07 * life if life else 0.6)
        process.kill()
        out, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        flushed |= {
            key for line in (first + out).splitlines(keepends=True) if line.endswith("\n") for key in line.split()
        }
        with Ledger(path) as ledger:
            rows = ledger.evaluations()
        keys = [row.evaluation_id for row in rows]
        assert flushed <= set(keys), f"lost after kill {life}"
        assert len(keys) == len(set(keys))
        assert all(row.prediction == {"x": row.evaluation_id * 50} for row in rows)
    assert len(flushed) >= 37


def test_a_forked_child_writes_its_own_rows_only(ledger, path):
    ledger.record(evaluation("parent"))
    child = os.fork()
    if child == 0:
        try:
            ledger.record(evaluation("child"))
            ledger.flush()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    ledger.flush()
    assert durable(path) == {"parent", "child"}


# --- together with others


def test_many_threads_and_two_ledgers_on_one_file(ledger, path):
    with Ledger(path.parent / "." / path.name) as other:
        failures = []

        def work(name, mine):
            try:
                for i in range(60):
                    mine.record(evaluation(f"{name}-{i}"))
                    if i % 20 == 0:
                        assert f"{name}-{i}" in mine.lookup([f"{name}-{i}"])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i, (ledger, other)[i % 2])) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        other.flush()
        assert len(ledger.evaluations()) == 360


def test_a_reader_in_another_process_while_this_one_writes(ledger, path):
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from test_compiler_ledger import Ledger
ledger = Ledger(sys.argv[1])
counts = []
for _ in range(8):
    counts.append(ledger.query("SELECT count(*) FROM evaluations")[1][0][0])
print(counts)
"""
    readers = [python(code, path, Path(__file__).parent) for _ in range(2)]
    i = 0
    while any(reader.poll() is None for reader in readers):
        for _ in range(10):
            ledger.record(evaluation(i))
            i += 1
        ledger.flush()
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert reader.returncode == 0, err
        counts = json.loads(out)
        assert counts == sorted(counts)
    assert len(ledger.evaluations()) == i


def test_a_file_held_by_another_process_names_the_holder(ledger, path, monkeypatch):
    code = "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.readline()"
    holder = python(code, path, stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    ledger.record(evaluation("a"))
    monkeypatch.setattr(ledger_file, "LOCK_PATIENCE", 0.2)
    with pytest.raises(LedgerError, match=rf"{path.name}.*PID {holder.pid}"):
        ledger.flush()
    monkeypatch.setattr(ledger_file, "LOCK_PATIENCE", 30.0)
    threading.Timer(0.3, lambda: holder.communicate("\n")).start()
    ledger.flush()
    assert durable(path) == {"a"}


def test_two_processes_may_create_it_at_once(path):
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from test_compiler_ledger import Ledger, evaluation
with Ledger(sys.argv[1]) as ledger:
    ledger.record(evaluation(sys.argv[3]))
"""
    writers = [python(code, path, Path(__file__).parent, i) for i in range(3)]
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err
    assert durable(path) == {"0", "1", "2"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --- queries


def test_query_reads(ledger):
    for i in range(3):
        ledger.record(evaluation(i))
    assert ledger.query("SELECT count(*) AS n, max(score) AS s FROM evaluations") == (["n", "s"], [(3, 0.5)])
    assert ledger.query("FROM evaluations SELECT evaluation_id ORDER BY ALL;")[1] == [("0",), ("1",), ("2",)]
    columns, rows = ledger.query("SELECT now() AS t, 1 AS a, 2 AS a")
    assert columns == ["t", "a", "a"]
    assert rows[0][0].tzinfo is not None
    assert rows[0][1:] == (1, 2)
    assert len(ledger.query("DESCRIBE evaluations")[1]) == 16


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO meta VALUES (2)",
        "DELETE FROM evaluations",
        "DROP TABLE meta",
        "WITH x AS (DELETE FROM meta RETURNING *) SELECT * FROM x",
        "CREATE TEMP TABLE t AS SELECT 1",
        "COPY evaluations TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/out.duckdb'",
        "SELECT * FROM read_text('{folder}/secret.txt')",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM glob('{folder}/*')",
        "SET threads = 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE meta",
        "PRAGMA force_checkpoint",
        "SELECT nothing FROM evaluations",
        "not sql",
        "",
    ],
)
def test_query_refuses_everything_but_one_select(ledger, path, sql):
    folder = path.parent
    (folder / "secret.txt").write_text("secret")
    (folder / "secret.csv").write_text("a\nsecret\n")
    ledger.record(evaluation("a"))
    ledger.flush()
    with pytest.raises(LedgerError):
        ledger.query(sql.format(folder=folder))
    assert {file.name for file in folder.iterdir()} == {path.name, "secret.txt", "secret.csv"}
    assert durable(path) == {"a"}


def test_ready_queries(ledger):
    ledger.record(RUN)
    ledger.record(candidate("base", created_at=datetime(2024, 1, 1, tzinfo=UTC)))
    ledger.record(candidate("better", created_at=datetime(2024, 1, 2, tzinfo=UTC)))
    scores = {"base": [0.0, 1.0, 0.0, None], "better": [1.0, 1.0, 0.0, 1.0]}
    for name, values in scores.items():
        for i, score in enumerate(values):
            changes = {"candidate_id": name, "example_id": f"e{i}", "score": score, "calls": 2, "seconds": 0.5}
            error = "boom" if score is None else None
            ledger.record(evaluation(f"{name}{i}", **changes, error=error))
            of = {"candidate_id": name, "example_id": f"e{i}"}
            ledger.record(counted(f"{name}{i}", **of, score=score or 0.0, error=error))
    for number, seconds in enumerate((0.25, 0.75, None)):
        spent = {"prompt_tokens": 100, "cached_tokens": 75, "decoded_tokens": 2, "seconds": seconds}
        whose = {"evaluation_id": "base0", "purpose": "program", "predictor": "sort", "model": "m", "run_id": "r1"}
        ledger.record(CallRow(call_id=f"c{number}", number=number, **whose, **spent))
    ledger.record(ArtifactRow(path="/a", digest="d", run_id="r1", candidate_id="better", name="better", score=0.75))
    # A row of a candidate of the same content that this run did not need: of another program, say, or another dataset.
    ledger.record(evaluation("other", candidate_id="base", score=1.0, run_id="r0"))

    def table(name):
        columns, rows = ledger.query(name)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    assert all(description and table(name) for name, (description, _) in READY_QUERIES.items())
    best, base = table("candidates")
    assert (best["name"], best["n"], best["score"], best["errors"]) == ("better", 4, 0.75, 0)
    assert (base["name"], base["score"], base["errors"]) == ("base", 0.25, 1)
    assert best["low"] == pytest.approx(0.75 - 1.96 * 0.5 / 2)
    assert best["high"] == 1.0
    (calls,) = table("calls")
    assert (calls["calls"], calls["predictor"], calls["hit_rate"], calls["mean_seconds"]) == (3, "sort", 0.75, 0.5)
    rising = [(row["name"], row["best"], row["on_all"]) for row in table("best")]
    assert rising == [("base", 0.25, True), ("better", 0.75, True)]
    (savings,) = table("savings")
    assert (savings["candidates"], savings["evaluated"], savings["raced_away"], savings["from_earlier_runs"]) == (2, 8, 0, 0)
    assert [(row["kind"], row["times"]) for row in table("errors")] == [("boom", 1)]
    assert [row["name"] for row in table("artifacts")] == ["better"]
    (wins,) = table("wins")
    assert (wins["name"], wins["pairs"], wins["wins"], wins["ties"], wins["losses"]) == ("better", 4, 2, 2, 0)
    assert wins["mean_difference"] == 0.5
    assert {(row["candidate_id"], row["example_id"]) for row in table("failures")} == {
        *(("base", "e0"), ("base", "e2"), ("base", "e3"), ("better", "e2"))
    }
    assert [(row["run_id"], row["calls"], row["seconds"]) for row in table("cost")] == [("r0", 0, 0.0), ("r1", 16, 4.0)]
    (run,) = table("runs")
    assert (run["run_id"], run["status"], run["candidates"], run["evaluations"]) == ("r1", "running", 2, 8)


def test_ctrl_c_during_a_query_is_a_keyboard_interrupt(tmp_path):
    """DuckDB turns the signal into a RuntimeError of its own; callers must see what the user did."""

    def interrupted(connection):
        raise RuntimeError("Query interrupted")

    with pytest.raises(KeyboardInterrupt):
        ledger_file._run(interrupted, duckdb.connect(), tmp_path / "ledger.duckdb")
