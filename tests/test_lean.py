"""Leaner candidates: what is taken away, and that an objective of latency has them to choose from."""

import threading
from types import SimpleNamespace

import pytest
import still
from scripted import ScriptedLM, demonstrations
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.context import PassResult
from still.optimizers.decisions import Decisions
from still.optimizers.lean import Lean
from still.optimizers.neighbours import Neighbours
from still.optimizers.racing import measure
from test_compiler_compile import Sort, data, truth
from test_optimizers_decisions import Colour, colours


class Clock(threading.local):
    """Each call takes as long as its prompt has demonstrations, in this thread."""

    now = 0.0

    def perf_counter(self):
        return self.now


CLOCK = Clock()


def answer(plan, inputs):
    """Two demonstrations are as good as eight; without any it is no good."""
    CLOCK.now += 0.01 * (1 + demonstrations(plan))
    return {"bin": truth(inputs) if demonstrations(plan) >= 2 else "glass"}


@pytest.fixture
def own_time(monkeypatch):
    monkeypatch.setattr("still.compiler.evaluation.time", SimpleNamespace(perf_counter=CLOCK.perf_counter))


def test_with_latency_fewer_demonstrations_are_found_that_do_as_well(own_time, tmp_path):
    """The other passes try four and eight."""
    options = {"lm": ScriptedLM(answer), "progress": False, "ledger": tmp_path / "l.duckdb"}
    quality = still.compile(still.Predict(Sort), data(20), data(40, 100), **options)
    assert len(quality.program.demos) >= 4
    assert not any(step.name == "lean" for step in quality.report.evidence.steps)
    result = still.compile(still.Predict(Sort), data(20), data(40, 100), objective=("quality", "latency"), **options)
    assert len(result.program.demos) == 2, "of equals the leaner"
    assert {len(one.program.demos) for one in result.front} == {0, 2}
    assert result.report.evidence.steps[-1].name == "lean"




def cuts(program, candidate):
    made = {}

    class Context:
        dev, seed, train, input_fields, embedder, lm = range(12), 0, (), frozenset({"item"}), None, still.LM()

        def expect(self, examples): ...

        def evaluate(self, program, candidate, indices):
            made[candidate.name] = candidate
            return [still.optimizers.context.Outcome(1.0) for _ in indices]

    return Lean().run(program, candidate, Context()), made


SHOWN = tuple({"item": f"thing {i}", "bin": "glass"} for i in range(8))


def test_what_is_cut():
    program = still.Predict(Sort.with_instructions("Say which bin it goes to. Think of what it is made of and its form."))
    program.reasoning, program.samples = True, 3
    start = Candidate("start", "test", {"self": PredictorState(SHOWN, nearest=8)})
    _, made = cuts(program, start)
    states = {name.removeprefix("start, "): candidate.states.get("self") for name, candidate in made.items()}
    assert [states[name].nearest for name in ("4 demonstrations", "2 demonstrations", "1 demonstration")] == [4, 2, 1]
    assert (states["no demonstrations"].demonstrations, states["no demonstrations"].nearest) == ((), None)
    assert states["bare"].instructions == " "
    assert states["short"].fields == {"bin": {"describe": False}}
    assert states["all scored"].fields == {"bin": {"decide": "score"}}
    assert "all decoded" not in states, "it is decoded already"
    assert made["start, one direct answer"].knobs == {"reasoning": False, "samples": 1}
    both = made["start, no demonstrations, bare, short, all scored, one direct answer"]
    assert (both.demonstration_count, both.states["self"].instructions) == (0, " ")
    assert both.apply(program).reasoning is False


def test_a_calibration_goes_with_the_scores_it_was_for():
    fields = {"bin": {"decide": "score", "calibration": {"bias": {"glass": 1.0}, "temperature": 2.0}, "describe": True}}
    _, made = cuts(still.Predict(Sort), Candidate("c", "test", {"self": PredictorState(SHOWN[:2], fields=fields)}))
    assert made["c, all decoded"].states["self"].fields == {"bin": {"decide": "decode", "describe": True}}
    assert made["c, short"].states["self"].fields == {"bin": {**fields["bin"], "describe": False}}


def test_examples_that_are_not_shown_are_not_chosen_by_words():
    fields = {"bin": {"decide": "score", "calibration": {"bias": {"glass": 1.0}, "temperature": 2.0, "nearness": 5.0}}}
    leaning = PredictorState(SHOWN, nearest=0, fields=fields, neighbours=Neighbours("minilm", "its digest"))
    _, made = cuts(still.Predict(Sort), Candidate("c", "test", {"self": leaning}))
    assert "c, short" in made
    assert not any("by words" in name or "demonstration" in name for name in made)


class Wrong:
    """Ends with a calibration that fits nothing."""

    name = "wrong"

    def run(self, program, baseline, context):
        pool = [{name: example[name] for name in ("thing", "colour")} for example in context.train]
        fields = {"colour": {"decide": "score", "calibration": {"bias": {"red": 50.0}, "temperature": 1.0}}}
        wrong = Candidate("wrong", "test", {"self": PredictorState(tuple(pool), nearest=2, fields=fields)})
        return PassResult(wrong, (measure(program, wrong, context),))


@pytest.mark.model
def test_fewer_demonstrations_get_a_calibration_of_their_own(tmp_path):
    options = {"lm": still.LM(), "ledger": tmp_path / "l.duckdb", "progress": False, "embedder": None}
    sets = colours(36, 0), colours(36, 1)
    lean = still.compile(still.Predict(Colour), *sets, passes=[Wrong(), Lean()], **options)
    scored = still.Predict(Colour.with_updated_fields("colour", decide="score"))
    alone = still.compile(scored, *sets, passes=[Decisions()], **options)
    leaner = {row.name.removeprefix("wrong, no demonstrations"): row.score for row in lean.report.rows}
    assert leaner["wrong"] == pytest.approx(1 / 3), "always red"
    plain = {row.name: row.score for row in alone.report.rows}
    assert (leaner[""], leaner[", calibrated"]) == (plain["baseline"], plain["calibrated"])
    with still.Ledger(tmp_path / "l.duckdb") as ledger:
        _, found = ledger.query("SELECT name, state->>'$.self.fields.colour.calibration' FROM candidates")
    fitted = dict(found)
    assert fitted["wrong, no demonstrations, calibrated"] == fitted["calibrated"] is not None


def test_nothing_to_cut_leaves_the_program_as_it_is():
    class Free(still.Signature):
        """ """

        text: str = still.Input()
        again: str = still.Output()

    result, made = cuts(still.Predict(Free), Candidate("baseline", "baseline"))
    assert result.winner.name in ("baseline", "short")
    assert set(made) == {"baseline", "short"}


def test_the_estimate_knows_the_pass():
    lm = ScriptedLM(answer)
    found = still.estimate(still.Predict(Sort), data(20), data(20, 100), lm=lm, objective="latency")
    assert [one.name for one in found.passes][-1] == "lean"
