"""still.compile from data to result, on LMs whose behaviour the test decides."""

import asyncio
import json
import time
from typing import Literal

import dspy
import pytest
import still
from scripted import ScriptedLM, demonstrations
from still.errors import DatasetError, MetricError, SignatureError, StillError
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.context import PassResult
from still.optimizers.demonstrations import Demonstrations
from still.optimizers.search import Search


class Sort(still.Signature):
    """Sort the item."""

    item: str = still.Input()
    bin: Literal["glass", "paper", "metal"] = still.Output()


BINS = ("glass", "paper", "metal")


def data(count, start=0):
    return still.Dataset(
        [{"item": f"thing number {i} of {BINS[i % 3]}", "bin": BINS[i % 3]} for i in range(start, start + count)],
        inputs=["item"],
    )


def truth(inputs):
    return next(b for b in BINS if inputs["item"].endswith(b))


def right_with_demonstrations(plan, inputs):
    """Right on every input once it is shown at least 4 demonstrations, else on every third."""
    return {"bin": truth(inputs) if demonstrations(plan) >= 4 else "glass"}


def never_helped(plan, inputs):
    return {"bin": "glass"}


def run(tmp_path, answer, level="O1", program=None, **options):
    lm = ScriptedLM(answer)
    result = still.compile(
        program or still.Predict(Sort), data(30), data(36, 100), lm=lm, level=level, progress=False,
        ledger=tmp_path / "ledger.duckdb", **options,
    )  # fmt: skip
    return result, lm


def test_what_helps_wins_and_the_program_given_stays_as_it_was(tmp_path):
    program = still.Predict(Sort)
    result, _ = run(tmp_path, right_with_demonstrations, program=program)
    assert result.winner.demonstration_count == 4, "of equal scores the candidate with fewer demonstrations"
    assert result.report.rows[0].name == "baseline"
    assert result.report.rows[0].score == pytest.approx(1 / 3)
    assert next(row for row in result.report.rows if row.name == result.report.winner).score == 1.0
    assert program.demos == []
    assert program.lm is None
    assert result.program(item="a bottle of glass").bin == "glass"


def test_the_baseline_is_kept_when_nothing_beats_it(tmp_path):
    result, _ = run(tmp_path, never_helped)
    assert result.winner.name == "baseline"
    assert result.program.demos == []


def test_o0_only_measures(tmp_path):
    result, lm = run(tmp_path, never_helped, level="O0")
    assert lm.calls == 36
    assert [row.name for row in result.report.rows] == ["baseline"]


def test_a_teacher_bootstraps_what_the_program_cannot(tmp_path):
    """The student is never right, so only the teacher's traces can become demonstrations."""
    teacher = ScriptedLM(lambda plan, inputs: {"bin": truth(inputs)}, name="teacher")
    result, _ = run(tmp_path, right_with_demonstrations, teacher=teacher)
    shown = {row.name for row in result.report.rows}
    assert {"bootstrapped-4", "bootstrapped-8"} <= shown
    assert teacher.calls == 16, "that many examples are enough where all pass"


def test_every_candidate_and_example_is_a_row(tmp_path):
    result, _ = run(tmp_path, right_with_demonstrations)
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        _, rows = ledger.query(
            "SELECT c.name, count(*) FROM candidates c JOIN evaluations e USING (candidate_id) "
            "WHERE split = 'dev' GROUP BY 1"
        )
    assert dict(rows) == {row.name: row.examples for row in result.report.rows}


def test_the_same_compile_again_calls_no_model(tmp_path):
    first, _ = run(tmp_path, right_with_demonstrations)
    second, lm = run(tmp_path, right_with_demonstrations)
    assert lm.calls == 0
    assert second.winner.digest == first.winner.digest
    assert [(r.name, r.score) for r in second.report.rows] == [(r.name, r.score) for r in first.report.rows]
    assert second.report.resumed > 0


def test_a_ledger_is_opened_only_for_what_it_has(tmp_path, monkeypatch):
    asked = []
    lookup = still.Ledger.lookup
    monkeypatch.setattr(still.Ledger, "lookup", lambda ledger, ids: lookup(ledger, asked.append(set(ids)) or ids))
    run(tmp_path, right_with_demonstrations, level="O0")
    assert asked == []
    run(tmp_path, right_with_demonstrations)
    assert len(set().union(*asked)) == 36, "the baseline on dev, which was there"


def test_another_metric_is_computed_from_stored_predictions(tmp_path):
    run(tmp_path, right_with_demonstrations)
    result, lm = run(tmp_path, right_with_demonstrations, metric=lambda example, prediction: prediction.bin == "glass")
    assert result.report.rows[0].score == 1.0, "the baseline always says glass"
    # Bootstrapping looks at other traces now, so a few candidates are new; the baseline and the labelled ones are not.
    assert lm.calls <= 2 * 36


def test_an_interruption_keeps_what_was_computed(tmp_path):
    whole, reference = run(tmp_path / "whole", right_with_demonstrations)

    def interrupted(plan, inputs):
        if lm.calls > 100:
            raise KeyboardInterrupt
        return right_with_demonstrations(plan, inputs)

    lm = ScriptedLM(interrupted)
    arguments = {"progress": False, "ledger": tmp_path / "ledger.duckdb"}
    with pytest.raises(KeyboardInterrupt):
        still.compile(still.Predict(Sort), data(30), data(36, 100), lm=lm, **arguments)
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        stored = len(ledger.evaluations())
        assert [row.status for row in ledger.runs()] == ["interrupted"]
    assert stored >= 60
    rest = ScriptedLM(right_with_demonstrations)
    result = still.compile(still.Predict(Sort), data(30), data(36, 100), lm=rest, **arguments)
    assert rest.calls == reference.calls - stored
    assert result.winner.digest == whole.winner.digest


class Twice(dspy.Module):
    """An unmodified DSPy program of two predictors, the second fed by the first."""

    def __init__(self):
        super().__init__()
        self.name = dspy.Predict("item -> material: Literal['glass', 'paper', 'metal']")
        self.sort = dspy.Predict(Sort)

    def forward(self, item):
        material = self.name(item=item).material
        return self.sort(item=f"{item}, that is {material}")


def test_an_unmodified_dspy_program_compiles(tmp_path):
    def answer(plan, inputs):
        wanted = next(b for b in BINS if b in inputs["item"])
        helped = demonstrations(plan) >= 4
        return {step.field: wanted if helped else "glass" for step in plan.decodes}

    teacher = ScriptedLM(lambda plan, inputs: {s.field: truth(inputs) for s in plan.decodes}, name="teacher")
    result, _ = run(tmp_path, answer, program=Twice(), teacher=teacher)
    assert result.winner.origin == "bootstrapped"
    assert set(result.winner.states) == {"name", "sort"}, "both predictors get demonstrations from the traces"
    assert isinstance(result.program, Twice)


def test_failures_of_the_program_are_counted_and_shown(tmp_path):
    def sometimes(plan, inputs):
        if "number 101 " in inputs["item"]:
            raise ValueError("no idea")
        return {"bin": truth(inputs)}

    result, _ = run(tmp_path, sometimes, level="O0")
    row = result.report.rows[0]
    assert row.failures == 1
    assert row.score == pytest.approx(35 / 36)
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        _, rows = ledger.query("SELECT error FROM evaluations WHERE error IS NOT NULL")
    assert rows == [("ValueError: no idea",)]


def test_a_program_that_always_fails_stops_before_candidates_are_paid_for(tmp_path):
    def broken(plan, inputs):
        raise ValueError("weights missing")

    lm = ScriptedLM(broken)
    with pytest.raises(StillError, match=r"every one of 36 examples.*weights missing"):
        still.compile(still.Predict(Sort), data(30), data(36, 100), lm=lm, progress=False, ledger=tmp_path / "l.duckdb")
    assert lm.calls == 36


def test_a_metric_that_raises_is_a_failure_with_its_message(tmp_path):
    def metric(example, prediction):
        if "number 100 " in example.item:
            raise KeyError("weight")
        return 1.0

    result, _ = run(tmp_path, never_helped, level="O0", metric=metric)
    assert result.report.rows[0].failures == 1
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        _, rows = ledger.query("SELECT error FROM evaluations WHERE error IS NOT NULL")
    assert "MetricError" in rows[0][0]
    assert "weight" in rows[0][0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"level": "O9"}, StillError, "O9"),
        ({"train": [{"item": "x"}]}, DatasetError, "give a still.Dataset"),
        ({"dev": data(0 + 1)[:0]}, DatasetError, "dev has no rows"),
        ({"train": still.Dataset([{"name": "x", "bin": "glass"}], inputs=["name"])}, DatasetError, "item"),
        ({"train": still.Dataset([{"item": "x", "bin": "wood"}], inputs=["item"])}, DatasetError, "row 1.*bin.*wood"),
        ({"metric": "sharpness"}, MetricError, "sharpness"),
        ({"lm": 7}, StillError, "lm=7"),
        ({"program": still.Module()}, SignatureError, "no predictors"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tmp_path, change, error, message):
    lm = ScriptedLM(never_helped)
    arguments = {"program": still.Predict(Sort), "train": data(30), "dev": data(12, 100), "lm": lm, **change}
    with pytest.raises(error, match=f"(?s){message}"):
        still.compile(**arguments, progress=False, ledger=tmp_path / "ledger.duckdb")
    assert lm.calls == 0


def test_dev_is_split_off_train_when_it_is_not_given(tmp_path):
    lm = ScriptedLM(never_helped)
    result = still.compile(still.Predict(Sort), data(30), lm=lm, level="O0", progress=False, ledger=tmp_path / "l.duckdb")
    assert (result.report.train_size, result.report.dev_size) == (18, 12)


def test_it_works_inside_a_running_event_loop(tmp_path):
    async def cell():
        return run(tmp_path, never_helped, level="O0")[0]

    assert asyncio.run(cell()).report.rows[0].examples == 36


def test_evaluate_scores_a_program_as_it_is(tmp_path):
    row = still.evaluate(
        still.Predict(Sort), data(9), lm=ScriptedLM(never_helped), progress=False, ledger=tmp_path / "ledger.duckdb"
    )
    assert row.score == pytest.approx(1 / 3)
    assert row.fields == {"bin": row.score}
    assert row.low <= row.score <= row.high


def test_the_report_reads_back_and_shows_every_candidate(tmp_path):
    result, _ = run(tmp_path, right_with_demonstrations)
    again = type(result.report).from_json(json.loads(json.dumps(result.report.to_json())))
    assert again == result.report
    for row in result.report.rows:
        assert row.name in str(result.report)
        assert row.name in result.report._repr_html_()


def test_seconds_of_candidates_add_up_to_less_than_the_compile_took(tmp_path):
    def slowly(plan, inputs):
        time.sleep(0.02)
        return right_with_demonstrations(plan, inputs)

    report = run(tmp_path, slowly)[0].report
    assert all(row.seconds > 0 for row in report.rows)
    assert sum(row.seconds for row in report.rows) <= report.seconds, "examples run side by side, so waits do not add up"


def test_on_a_real_engine_every_answer_is_of_its_type(tmp_path, tiny_lm, monkeypatch):
    monkeypatch.setattr(type(tiny_lm), "digest", "tiny")
    result = still.compile(
        still.Predict(Sort), data(12), data(12, 100), lm=tiny_lm, progress=False, ledger=tmp_path / "ledger.duckdb"
    )
    assert all(row.failures == 0 for row in result.report.rows)
    assert result.program(item="x").bin in BINS


class Settled:
    """Returns a candidate of which it has measured nothing."""

    name = "settled"

    def run(self, program, baseline, context):
        shown = [{"item": f"{name} of {name}", "bin": name} for name in BINS] * 2
        return PassResult(Candidate("shown", self.name, {"self": PredictorState(tuple(shown))}), ())


def test_what_a_pass_has_not_measured_is_measured_before_it_wins(tmp_path):
    result, lm = run(tmp_path, right_with_demonstrations, passes=[Settled()])
    assert result.winner.name == "shown"
    assert [(row.name, row.examples) for row in result.report.rows] == [("baseline", 36), ("shown", 36)]
    assert lm.calls == 72
    assert result.save(tmp_path / "a").is_dir()
    unhelped, _ = run(tmp_path / "b", never_helped, passes=[Settled()])
    assert unhelped.winner.name == "baseline"


@pytest.mark.parametrize(("size", "replaced"), [(2, False), (4, True)])
def test_two_examples_are_too_few_to_tell(tmp_path, size, replaced):
    """However much better a candidate is on them."""
    dev = still.Dataset([{"item": f"one more of metal {i} metal", "bin": "metal"} for i in range(size)], inputs=["item"])
    result = still.compile(
        still.Predict(Sort), data(30), dev, lm=ScriptedLM(right_with_demonstrations), passes=[Settled()], progress=False,
        ledger=tmp_path / "ledger.duckdb",
    )  # fmt: skip
    assert (result.winner.name != "baseline") == replaced
    assert (result.report.selection is not None) == replaced, "it is about a candidate that is not returned"
    if not replaced:
        assert any("cannot tell it from the program as it is" in note for note in result.report.notes)


def test_steps_say_what_each_pass_began_and_ended_with(tmp_path):
    class Idle:
        name = "idle"

        def run(self, program, baseline, context):
            return PassResult(baseline, ())

    result, _ = run(tmp_path, right_with_demonstrations, passes=[Demonstrations(), Idle(), Search()])
    first, idle, search = result.report.evidence.steps
    assert (first.score_before, first.score_after) == (pytest.approx(1 / 3), 1.0)
    assert (idle.score_before, idle.score_after, idle.decision) == (1.0, 1.0, "had nothing to try")
    assert (search.score_before, search.score_after) == (1.0, 1.0)
    assert first.candidates == len({row.name for row in result.report.rows if row.origin != "search"})
