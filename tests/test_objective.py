"""Objectives: what is timed, what the front is, which program is returned, and what else can be had."""

import threading
from types import SimpleNamespace

import pytest
import still
from chat_server import serving
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedLM, demonstrations
from still.compiler.artifact import read_artifact
from still.errors import StillError
from still.optimizers.candidate import Candidate
from still.optimizers.context import PassResult
from still.optimizers.pareto import front
from still.optimizers.racing import race
from test_compiler_compile import Sort, data, truth


def by_hand(points):
    """The front by its definition, over sets."""
    kept = []
    for i, point in enumerate(points):
        worse = [
            other
            for j, other in enumerate(points)
            if j != i and all(a >= b for a, b in zip(other, point, strict=True)) and (other != point or j < i)
        ]
        if not worse:
            kept.append(i)
    return kept


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_front_is_what_its_definition_says(points):
    found = front(points)
    assert found == by_hand(points)
    for i, point in enumerate(points):
        covered = [j for j in found if all(a >= b for a, b in zip(points[j], point, strict=True))]
        assert covered, f"{i} is neither on the front nor matched by it"


KNOWN = {"": 0.4, "quick": 0.5, "slow": 1.0, "worse": 0.2, "both": 0.4}
"""Share of right answers, by the instructions."""
DELAY = {"": 0.02, "quick": 0.004, "slow": 0.05, "worse": 0.001, "both": 0.03}
"""Seconds a call takes, by the clock below."""


class Clock(threading.local):
    """Stands still but for what LMs say they take, in each thread for itself."""

    now = 0.0

    def perf_counter(self):
        return self.now


CLOCK = Clock()


@pytest.fixture(scope="module", autouse=True)
def _own_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("still.compiler.evaluation.time", SimpleNamespace(perf_counter=CLOCK.perf_counter))
        yield


class Named:
    """Proposes candidates by their instructions."""

    name = "named"

    def run(self, program, baseline, context):
        states = [still.optimizers.candidate.PredictorState(instructions=name) for name in KNOWN if name]
        made = [Candidate(state.instructions, self.name, {"self": state}) for state in states]
        standings = race(program, [baseline, *made], context)
        return PassResult(standings[0].candidate, tuple(standings))


def answer(plan, inputs):
    text = "".join(part.text for part in plan.turns[0].parts).splitlines()[0]
    name = text if text in KNOWN else ""
    CLOCK.now += DELAY[name]
    number = int(inputs["item"].split()[2])
    right = (number % 20) / 20 < KNOWN[name]
    return {"bin": truth(inputs) if right else "glass" if truth(inputs) != "glass" else "paper"}


def compiled(folder, objective, **options):
    lm = ScriptedLM(answer)
    result = still.compile(
        still.Predict(Sort), data(20), data(40, 100), lm=lm, passes=[Named()], objective=objective, progress=False,
        ledger=folder / "l.duckdb", **options,
    )  # fmt: skip
    return result, lm


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objective")
    wanted = {"quality": "quality", "latency": "latency", "both": ("quality", "latency"), "turned": ("latency", "quality")}
    return {name: compiled(folder, objective)[0] for name, objective in wanted.items()}


def test_the_first_objective_decides(results):
    assert results["quality"].winner.name == "slow"
    assert results["latency"].winner.name == "quick", "worse is faster, but scores lower than the program as it was"
    assert results["both"].winner.name == "slow"
    assert results["turned"].winner.name == "quick"


def test_quality_alone_times_nothing(results):
    assert results["quality"].front == ()
    assert all(row.latency is None for row in results["quality"].report.rows)
    assert "latency" not in str(results["quality"].report)


@pytest.mark.parametrize("name", ["latency", "both", "turned"])
def test_the_front_has_what_none_is_better_and_faster_than(results, name):
    members = results[name].front
    assert [one.winner.name for one in members] == ["worse", "quick", "slow"], "fastest first; baseline and both are beaten"
    rows = {row.name: row for row in results[name].report.rows}
    assert [row.name for row in rows.values() if row.on_front] == [n for n in rows if n in ("worse", "quick", "slow")]
    assert rows["worse"].examples == 40, "a race had dropped it; it is measured to the end because it is fast"


def test_latency_is_that_of_a_call_of_the_program(results):
    for row in results["both"].report.rows:
        assert row.latency == pytest.approx(DELAY["" if row.name == "baseline" else row.name])


def test_any_program_of_the_front_can_be_kept(results, tmp_path):
    quick = results["both"].front[1]
    assert quick.program.signature.instructions == "quick"
    assert quick.report.winner == "quick"
    assert quick.report.evidence.prompts[0].after.splitlines()[2].strip() == "quick"
    quick.save(tmp_path / "quick.still")
    assert read_artifact(tmp_path / "quick.still").report.winner == "quick"
    assert results["both"].digest == results["both"].front[2].digest != quick.digest


def test_the_report_shows_the_front(results):
    report = results["both"].report
    assert "latency, ms" in str(report)
    assert "on the front" in str(report)
    assert "Quality and latency" in report.page()
    assert type(report).from_json(report.to_json()) == report


def test_what_is_not_faster_stays_as_it_is(tmp_path):
    def even(plan, inputs):
        CLOCK.now += 0.01
        return {"bin": truth(inputs) if demonstrations(plan) < 4 else "glass"}

    result = still.compile(
        still.Predict(Sort), data(20), data(24, 100), lm=ScriptedLM(even), level="O1", objective="latency", progress=False,
        ledger=tmp_path / "l.duckdb",
    )  # fmt: skip
    assert result.report.rows[0].score == 1.0
    assert result.winner.name == "baseline"


def test_timing_is_spent_from_the_budget_and_left_out_where_there_is_none(tmp_path):
    whole, lm = compiled(tmp_path / "whole", ("quality", "latency"))
    measured = sum(row.calls for row in whole.report.rows)
    assert lm.calls == measured + 5 * 9, "nine examples for each of five candidates"
    _, plain = compiled(tmp_path / "plain", "quality")
    result, _ = compiled(tmp_path / "short", ("quality", "latency"), budget=still.Budget(calls=plain.calls))
    assert result.front == ()
    assert "the budget left no time to measure latency" in str(result.report)


@pytest.mark.parametrize("objective", ["speed", "", (), ("quality", "quality"), ["latency", "cost"]])
def test_other_objectives_are_refused(tmp_path, objective):
    lm = ScriptedLM(answer)
    with pytest.raises(StillError, match="objective="):
        still.compile(
            still.Predict(Sort), data(20), lm=lm, objective=objective, progress=False, ledger=tmp_path / "l.duckdb"
        )
    assert lm.calls == 0


def test_latency_is_the_servers_and_not_that_of_dspys_cache(tmp_path):
    class Twice(still.Module):
        """The first predictor has an LM of its own."""

        def __init__(self, lm):
            super().__init__()
            self.first, self.second = still.Predict(Sort), still.Predict(Sort)
            self.first.lm = lm

        def forward(self, item):
            return self.second(item=f"{self.first(item=item).bin} {item}")

    with serving(lambda body: '{"bin": "glass"}') as server:
        asked = []
        for name in ("first", "second"):
            still.compile(
                Twice(server.lm(cache=True)), data(12), data(9, 100), lm=server.lm(cache=True), passes=[],
                objective="latency", ledger=tmp_path / f"{name}.duckdb", progress=False,
            )  # fmt: skip
            asked.append(len(server.requests))
    assert asked[1] - asked[0] == 2 * 9, "dev is there already; what is timed is asked again"
