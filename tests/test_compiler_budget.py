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
    """After the baseline there is budget for the labelled candidates' first blocks only; one of them is right already."""
    result, _ = run(tmp_path, still.Budget(calls=DEV + 30 + 120))
    assert result.winner.name != "baseline"
    with still.context(lm=ScriptedLM(right_with_demonstrations)):
        assert result.program(item="thing of metal").bin == "metal"


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
