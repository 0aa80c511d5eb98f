"""docs/ledger.md says what is in the file, and a compile fills the tables."""

import re
from pathlib import Path

import pytest
import still
from scripted import ScriptedLM
from still.compiler.ledger_views import READY_QUERIES, VIEWS
from still.errors import StillError
from test_compiler_compile import Sort, data, right_with_demonstrations, truth

DOCS = Path(__file__).parent.parent / "docs" / "ledger.md"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")

    def judged(example, prediction, trace=None):
        with still.context(lm=judge):
            still.Predict("answer -> verdict: bool")(answer=prediction.bin)
        return prediction.bin == example.bin

    judge = ScriptedLM(lambda plan, inputs: {"verdict": True}, name="judge")
    teacher = ScriptedLM(lambda plan, inputs: {"bin": truth(inputs)}, name="teacher")
    result = still.compile(
        still.Predict(Sort), data(30), data(36, 100), judged, lm=ScriptedLM(right_with_demonstrations), teacher=teacher,
        passes=[still.optimizers.demonstrations.Demonstrations()], ledger=folder / "ledger.duckdb", progress=False,
    )  # fmt: skip
    saved = result.save(folder / "sorted.still")
    with still.Ledger(folder / "ledger.duckdb") as ledger:
        yield ledger, result, saved


def documented():
    """Columns by table, as the page lists them."""
    text = DOCS.read_text("utf-8").split("## Tables")[1].split("## Views")[0]
    parts = re.split(r"^\*\*(\w+)\*\*", text, flags=re.MULTILINE)
    return {
        table: re.findall(r"`([a-z_]+)`", about.replace("`result.save`", ""))
        for table, about in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_the_page_lists_every_table_and_column_in_order(compiled):
    ledger, _, _ = compiled
    _, rows = ledger.query(
        "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() c "
        "WHERE table_name IN (SELECT table_name FROM duckdb_tables()) GROUP BY 1"
    )
    assert {table: list(columns) for table, columns in rows} == documented()


def test_the_page_lists_every_view_with_its_command():
    rows = re.findall(r"^\| `(\w+)` \| (\w*) ?\| (.+) \|$", DOCS.read_text("utf-8"), flags=re.MULTILINE)
    assert {name: about for name, _, about in rows} == {name: about for name, (about, _) in VIEWS.items()}
    assert [command for _, command, _ in rows if command] == list(READY_QUERIES)


def test_the_pages_query_runs(compiled):
    ledger, _, _ = compiled
    (sql,) = re.findall(r"```sql\n(.+?)```", DOCS.read_text("utf-8"), flags=re.DOTALL)
    ledger.query(sql.rstrip().rstrip(";"))


def test_every_call_is_a_row_of_its_evaluation(compiled):
    ledger, _, _ = compiled
    _, rows = ledger.query(
        "SELECT e.calls, count(*) FROM evaluations e JOIN calls c USING (evaluation_id) WHERE purpose = 'program' "
        "GROUP BY e.evaluation_id, e.calls"
    )
    assert rows
    assert all(told == counted for told, counted in rows)
    _, totals = ledger.query("SELECT sum(prompt_tokens) FROM calls WHERE purpose = 'program'")
    assert totals == ledger.query("SELECT sum(prompt_tokens) FROM evaluations")[1]


def test_calls_say_who_asked_whom(compiled):
    ledger, _, _ = compiled
    _, rows = ledger.query("SELECT DISTINCT purpose, predictor, model FROM calls ORDER BY ALL")
    assert rows == [
        ("metric", None, "still/judge-for-tests"),
        ("program", "self", "still/scripted-for-tests"),
        ("program", "self", "still/teacher-for-tests"),
    ]


def test_a_saved_artifact_is_a_row(compiled):
    ledger, result, saved = compiled
    (row,) = ledger.artifacts()
    assert (row.path, row.digest, row.name) == (str(saved.resolve()), result.digest, result.winner.name)
    assert row.score == 1.0
    assert still.compiler.artifact.read_artifact(saved).digest == row.digest


def test_runs_of_one_ledger_do_not_mix(tmp_path):
    """The program as it is is the same candidate of every program, and what was predicted serves every metric."""
    lm = ScriptedLM(lambda plan, inputs: {"bin": truth(inputs) if "Sort" in str(plan) else "glass"})
    guess = still.Predict(Sort.with_instructions("Guess where it goes."))
    asked = {"lm": lm, "ledger": tmp_path / "ledger.duckdb", "progress": False}
    made = [
        still.evaluate(still.Predict(Sort), data(12), **asked),
        still.evaluate(guess, data(12), **asked),
        still.evaluate(guess, data(6, 50), **asked),
        still.evaluate(guess, data(12), lambda example, prediction: 0.25, **asked),
        still.evaluate(guess, data(12), lambda example, prediction: 0.75, **asked),
    ]
    assert [row.score for row in made] == [1.0, pytest.approx(1 / 3), pytest.approx(1 / 3), 0.25, 0.75]
    assert lm.calls == 12 + 12 + 6
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        _, rows = ledger.query(
            "SELECT c.n, c.score FROM candidate_scores c JOIN runs r USING (run_id) "
            "WHERE r.level = 'evaluate' AND r.status = 'finished' ORDER BY r.started_at"
        )
        assert rows == [(row.examples, pytest.approx(row.score)) for row in made]
        assert len(ledger.runs()) == len(made)


def test_a_run_that_fails_says_so(tmp_path):
    def broken(plan, inputs):
        raise ValueError("out of paper")

    with pytest.raises(StillError, match="out of paper"):
        still.evaluate(
            still.Predict(Sort), data(3), lm=ScriptedLM(broken), ledger=tmp_path / "ledger.duckdb", progress=False
        )
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        assert [(run.level, run.status, run.result) for run in ledger.runs()] == [("evaluate", "failed", None)]
        assert ledger.query("errors")[1]
