"""Budgets: kept, resumed, and what is returned when they are spent."""

import pytest
import still
from scripted import ScriptedLM, demonstrations
from still.compiler.evaluation import BATCH
from still.errors import StillError
from test_compiler_compile import Sort, data, right_with_demonstrations, truth

TRAIN, DEV = 30, 36
FULL = 600
"""Calls that an unlimited compile of this test stays below."""


def run(tmp_path, budget, lm=None, train=TRAIN, dev=DEV, **options):
    lm = lm or ScriptedLM(right_with_demonstrations)
    result = still.compile(
        still.Predict(Sort), data(train), data(dev, 100), lm=lm, budget=budget, progress=False,
        ledger=tmp_path / "ledger.duckdb", **options,
    )  # fmt: skip
    return result, lm


def table(result):
    return [(row.name, row.score, row.examples) for row in result.report.rows]


@pytest.mark.parametrize("calls", [40, 80, 150, 260])
def test_calls_are_overshot_by_less_than_a_batch(tmp_path, calls):
    result, lm = run(tmp_path, still.Budget(calls=calls))
    assert calls <= lm.calls < calls + BATCH
    assert f"stopped when {calls} calls were spent" in str(result.report)


def test_tokens_are_overshot_by_less_than_a_batch(tmp_path):
    _, lm = run(tmp_path, still.Budget(tokens=1200))  # a scripted call has 12
    assert 100 <= lm.calls < 100 + BATCH


def test_no_budget_and_one_that_is_not_reached_are_the_same(tmp_path):
    free, _ = run(tmp_path / "a", None)
    rich, lm = run(tmp_path / "b", still.Budget(calls=10_000, tokens=10**9, seconds=3600))
    assert rich.winner.digest == free.winner.digest
    assert table(rich) == table(free)
    assert lm.calls < FULL
    assert "stopped when" not in str(rich.report)


def test_the_best_so_far_is_the_result(tmp_path):
    """After the baseline there is budget for the nearest demonstrations, which are right, and little more."""
    result, _ = run(tmp_path, still.Budget(calls=DEV + DEV + 30))
    assert result.winner.name == "nearest-4"
    with still.context(lm=ScriptedLM(right_with_demonstrations)):
        assert result.program(item="thing of metal").bin == "metal"


def test_what_has_seen_a_part_of_dev_replaces_nothing(tmp_path):
    """It is right on all that it has seen; the budget ends in the middle of its race."""
    from still.optimizers.candidate import Candidate, PredictorState
    from still.optimizers.context import PassResult
    from still.optimizers.racing import race

    class Partly:
        name = "partly"

        def run(self, program, baseline, context):
            right = Candidate("right", self.name, {"self": PredictorState(instructions="Be right.")})
            standings = race(program, [right, baseline], context)
            assert 0 < len(next(s for s in standings if s.candidate is right).outcomes) < DEV
            return PassResult(right, tuple(standings))

    def liked(plan, inputs):
        return {"bin": truth(inputs) if "Be right." in plan.turns[0].text else "glass"}

    result, _ = run(tmp_path, still.Budget(calls=DEV + 12), ScriptedLM(liked), passes=[Partly()])
    assert result.winner.name == "baseline"
    assert [(row.name, row.examples, row.score) for row in result.report.rows[1:]] == [("right", 12, 1.0)]
    assert result.report.saved == 0, "what the budget cut is no saving"


def test_a_teacher_is_not_asked_when_the_budget_is_spent(tmp_path):
    from still.optimizers.instructions import Instructions

    teacher = ScriptedLM(lambda plan, inputs: {"better_instructions": "Sort well."}, name="teacher")
    result, _ = run(tmp_path, still.Budget(calls=DEV), passes=[Instructions()], teacher=teacher)
    assert teacher.calls == 0
    assert {row.examples for row in result.report.rows} == {DEV}, "nor is anything listed that was not run"


def test_passes_after_the_end_of_the_budget_are_not_begun(tmp_path):
    result, lm = run(tmp_path, still.Budget(calls=DEV + 1), level="O2")
    assert [note for note in result.report.notes if "not begun" in note] == [
        "decisions: not begun", "instructions: not begun", "search: not begun", "decisions: not begun"
    ]  # fmt: skip
    assert lm.calls < DEV + 1 + BATCH


def test_a_resumed_compile_spends_what_an_unbroken_one_does(tmp_path):
    whole, _ = run(tmp_path / "whole", still.Budget(calls=200))
    broken = tmp_path / "broken"
    first, lm_one = run(broken, still.Budget(calls=90))
    second, lm_two = run(broken, still.Budget(calls=200))
    assert first.report.selection is not None
    assert second.winner.digest == whole.winner.digest
    assert [(r.name, r.score, r.examples) for r in second.report.rows] == [
        (r.name, r.score, r.examples) for r in whole.report.rows
    ]
    assert lm_one.calls + lm_two.calls < 200 + BATCH


def test_a_budget_below_the_baseline_is_an_error_that_says_so(tmp_path):
    with pytest.raises(StillError, match="budget of 10 calls is spent, and measuring the program as it is on 200"):
        run(tmp_path, still.Budget(calls=10), dev=200)


@pytest.mark.parametrize("limits", [{"calls": 0}, {"seconds": -1}, {"tokens": float("nan")}])
def test_limits_are_positive(limits):
    with pytest.raises(StillError, match=f"budget: {next(iter(limits))}="):
        still.Budget(**limits)


def test_seconds_stop_a_compile(tmp_path):
    import time

    def slowly(plan, inputs):
        # The program as it is answers at once: on a busy machine, too, it is measured before the time is up.
        time.sleep(1.5 if demonstrations(plan) else 0)
        return {"bin": truth(inputs) if demonstrations(plan) else "glass"}

    result, lm = run(tmp_path, still.Budget(seconds=3), ScriptedLM(slowly))
    assert "stopped when 3 seconds were spent" in str(result.report)
    assert lm.calls < FULL


def test_a_pass_of_ones_own_runs_under_the_same_budget(tmp_path):
    from still.optimizers.candidate import Candidate, PredictorState
    from still.optimizers.context import PassResult
    from still.optimizers.racing import race

    class Shouting:
        """Tries the instructions in capitals."""

        name = "shouting"

        def run(self, program, baseline, context):
            states = {
                name: PredictorState(instructions=predictor.signature.instructions.upper())
                for name, predictor in program.named_predictors()
            }
            standings = race(program, [baseline, Candidate("capitals", self.name, states)], context)
            return PassResult(standings[0].candidate, tuple(standings))

    def likes_capitals(plan, inputs):
        return {"bin": truth(inputs) if "SORT" in plan.turns[0].text else "glass"}

    result, lm = run(tmp_path / "a", None, ScriptedLM(likes_capitals), passes=[Shouting()])
    assert result.winner.name == "capitals"
    assert lm.calls == 2 * DEV
    result, lm = run(tmp_path / "b", still.Budget(calls=DEV), ScriptedLM(likes_capitals), passes=[Shouting()])
    assert result.winner.name == "baseline"
    assert lm.calls == DEV
