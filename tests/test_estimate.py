"""still.estimate: what it foretells is what a compile then spends, and it leaves nothing behind."""

import json

import pytest
import still
from scripted import ScriptedLM
from still.cli import app
from still.compiler.probe import Cost, Rate
from still.errors import DatasetError, StillError
from still.optimizers.context import PassResult
from still.optimizers.instructions import Instructions
from test_compiler_compile import BINS, Sort, data, right_with_demonstrations, truth
from test_compiler_multistep import Chain as Steps
from typer.testing import CliRunner

PROGRAM = """
import still
from typing import Literal

class Sort(still.Signature):
    '''Sort.'''
    item: str = still.Input()
    bin: Literal["glass", "paper", "metal"] = still.Output()

def make():
    return still.Predict(Sort)
"""


def never_told_apart(plan, inputs):
    """All candidates score the same, so that no race drops any."""
    return {"bin": "glass"}


def spent(tmp_path, answer, **options):
    lm = ScriptedLM(answer)
    result = still.compile(
        still.Predict(Sort), data(15), data(18, 100), lm=lm, progress=False, ledger=tmp_path / "l.duckdb", **options
    )
    return lm.calls, result


@pytest.mark.parametrize(
    ("level", "answer"),
    [("O1", never_told_apart), ("O2", right_with_demonstrations)],
)
def test_a_compile_spends_what_was_foretold(tmp_path, level, answer):
    found = still.estimate(still.Predict(Sort), data(15), data(18, 100), lm=ScriptedLM(answer), level=level)
    calls, _ = spent(tmp_path, answer, level=level)
    assert found.low.calls <= calls <= found.high.calls


def test_without_races_and_without_choices_it_is_exact(tmp_path):
    found = still.estimate(still.Predict(Sort), data(15), data(18, 100), lm=ScriptedLM(never_told_apart), level="O0")
    calls, result = spent(tmp_path, never_told_apart, level="O0")
    assert found.low == found.high
    assert (found.high.calls, found.high.example_runs) == (calls, 18)
    assert found.high.tokens == result.report.rows[0].tokens


def test_tokens_of_a_shared_prefix_are_told_from_computed_ones():
    """The scripted LM says 10 prompt tokens of which 4 were known, and 2 decoded."""
    found = still.estimate(still.Predict(Sort), data(15), data(18, 100), lm=ScriptedLM(never_told_apart), level="O0")
    assert (found.high.tokens, found.high.computed) == (18 * 12, 18 * 8)


def test_it_runs_a_few_examples_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = ScriptedLM(right_with_demonstrations)
    found = still.estimate(still.Predict(Sort), data(300), data(400, 1000), lm=lm, level="O2")
    assert lm.calls < 300 < 400 < found.low.calls
    assert found.probed <= lm.calls
    assert not list(tmp_path.iterdir())


def test_programs_of_several_calls_count_all_of_them():
    lm = ScriptedLM(lambda plan, inputs: {s.field: "red" if s.field == "colour" else "x" for s in plan.decodes})
    rows = still.Dataset([{"text": f"case {i} red", "colour": "red"} for i in range(20)], inputs=["text"])
    found = still.estimate(Steps(), rows, rows, lm=lm, level="O0")
    assert (found.high.example_runs, found.high.calls) == (20, 40)


def test_a_judge_is_counted():
    class Verdict(still.Signature):
        """Is it right?"""

        prediction: str = still.Input()
        score: int = still.Output(ge=1, le=5)

    judge = still.judge(Verdict, lm=ScriptedLM(lambda plan, inputs: {"score": 3}, "judge"))
    lm = ScriptedLM(lambda plan, inputs: {"bin": truth(inputs)})
    distinct = still.Dataset([{"item": f"{i} of {BINS[i % 3]}", "bin": BINS[i % 3]} for i in range(20)], inputs=["item"])
    found = still.estimate(still.Predict(Sort), distinct, distinct, judge, lm=lm, level="O0")
    assert found.high.example_runs == 20
    assert found.high.calls > 20


def test_a_teacher_that_proposes_is_counted():
    student, teacher = ScriptedLM(never_told_apart), ScriptedLM(lambda p, i: {"bin": truth(i)}, "teacher")
    arguments = {"train": data(30), "dev": data(18, 100), "passes": [Instructions()]}
    without = still.estimate(still.Predict(Sort), **arguments, lm=student)
    found = still.estimate(still.Predict(Sort), **arguments, lm=student, teacher=teacher)
    # Four proposals and six reflections, each a candidate; before them seven times 24 train examples, as of ten candidates.
    assert found.high.calls == without.high.calls + 10 + 10 * 18 + 10 * 18
    assert 0 < teacher.calls <= 3, "a teacher may be paid for"


def test_passes_without_a_forecast_are_named():
    class Own:
        name = "own"

        def run(self, program, baseline, context):
            return PassResult(baseline, ())

    found = still.estimate(still.Predict(Sort), data(30), lm=ScriptedLM(never_told_apart), passes=[Own()])
    assert [one.name for one in found.passes] == ["baseline"]
    assert "own: has no forecast" in str(found)


@pytest.mark.parametrize(("limits", "where"), [({"calls": 30}, "demonstrations"), ({"tokens": 10**9}, None)])
def test_it_says_where_a_budget_may_end(limits, where):
    found = still.estimate(
        still.Predict(Sort), data(15), data(18, 100), lm=ScriptedLM(never_told_apart), budget=still.Budget(**limits)
    )
    assert ("budget" in str(found)) == (where is not None)
    assert where is None or f"may be spent during {where}" in str(found)


def test_what_compile_refuses_it_refuses():
    lm = ScriptedLM(never_told_apart)
    with pytest.raises(StillError, match="O7"):
        still.estimate(still.Predict(Sort), data(30), lm=lm, level="O7")
    with pytest.raises(DatasetError, match="no rows"):
        still.estimate(still.Predict(Sort), data(30), data(1)[:0], lm=lm)
    assert lm.calls == 0


def test_a_rate_is_linear_beyond_the_first():
    rate = Rate(Cost(1, 1, 100, 100, 2.0), Cost(4, 4, 40, 20, 1.0))
    assert rate.of(0) == Cost()
    assert rate.of(1) == Cost(1, 1, 100, 100, 2.0)
    assert rate.of(9) == Cost(9, 9, 180, 140, 4.0)


def test_it_is_a_table_and_plain_data():
    found = still.estimate(still.Predict(Sort), data(30), lm=ScriptedLM(never_told_apart))
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["high"]["calls"] == sum(one["high"]["calls"] for one in plain["passes"]) == found.high.calls
    assert "together" in str(found)


def test_on_a_real_engine_prefixes_are_shared(tiny_lm, monkeypatch):
    monkeypatch.setattr(type(tiny_lm), "digest", "tiny")
    found = still.estimate(still.Predict(Sort), data(24), data(24, 100), lm=tiny_lm)
    one = next(one for one in found.passes if one.name == "demonstrations")
    assert 0 < one.high.computed < one.high.tokens / 2
    assert 0 < found.low.seconds <= found.high.seconds


def test_the_command_line_plans_and_takes_budgets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = ScriptedLM(right_with_demonstrations)
    monkeypatch.setattr("still.compiler.lms.usable_lm", lambda name: lm)
    (tmp_path / "p.py").write_text(PROGRAM)
    rows = [{"item": f"thing number {i} of {BINS[i % 3]}", "bin": BINS[i % 3]} for i in range(60)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    planned = CliRunner().invoke(app, ["compile", "p.py:make", "d.jsonl", "--plan", "--calls", "60"])
    assert planned.exit_code == 0, planned.output
    assert "together" in planned.output and "budget of 60 calls" in planned.output
    assert not (tmp_path / ".still").exists()
    before = lm.calls
    arguments = ["compile", "p.py:make", "d.jsonl", "-o", "a.still", "--calls", "60", "--metric", "exact"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "stopped when 60 calls were spent" in done.output
    assert lm.calls - before < 60 + 64
    missing = CliRunner().invoke(app, ["compile", "p.py:make", "d.jsonl"])
    assert isinstance(missing.exception, StillError) and "--output" in str(missing.exception)
