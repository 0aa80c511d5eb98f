"""Joint search over what passes found and over knobs."""

from typing import Literal

import pytest
import still
from scripted import ScriptedLM, demonstrations
from still.optimizers.candidate import Candidate, PredictorState, current_state
from still.optimizers.context import Outcome, PassResult, PredictorTrace, Standing
from still.optimizers.racing import race
from still.optimizers.search import PATIENCE, Search
from still.optimizers.space import make_space
from still.signatures.executor import Completion, Usage
from still.signatures.knob import offer


class Sort(still.Signature):
    """Sort the item."""

    item: str = still.Input()
    depth: int = still.Input()
    mode: str = still.Input()
    bin: Literal["glass", "paper", "metal"] = still.Output()


BINS = ("glass", "paper", "metal")


class Program(still.Module):
    depth = still.Knob(choices=(1, 2, 4, 8))
    mode = still.Knob(choices=("a", "b", "c"))
    weight = still.Knob(range=(0.0, 1.0), default=0.5)

    def __init__(self):
        super().__init__()
        self.sort = still.Predict(Sort)

    def forward(self, item):
        return self.sort(item=item, depth=self.depth, mode=self.mode)


def data(count, start=0):
    rows = [{"item": f"thing {i} of {BINS[i % 3]}", "bin": BINS[i % 3]} for i in range(start, start + count)]
    return still.Dataset(rows, inputs=["item"])


def good_combination(plan, inputs):
    """Right more often with each of two knobs; the two together are right always."""
    right = next(b for b in BINS if inputs["item"].endswith(b))
    number = int(inputs["item"].split()[1])
    points = 2 * (inputs["depth"] == 4) + 2 * (inputs["mode"] == "c")
    return {"bin": right if number % 5 <= points else BINS[(BINS.index(right) + 1) % 3]}


def compiled(tmp_path, answer, program, seed=0, examples=30, before=()):
    return still.compile(
        program, data(12), data(examples, 100), lm=ScriptedLM(answer), passes=[*before, Search()], progress=False, seed=seed,
        ledger=tmp_path / "l.duckdb",
    )  # fmt: skip


def test_the_combination_of_knobs_is_found(tmp_path):
    result = compiled(tmp_path, good_combination, Program())
    assert result.winner.knobs["depth"] == 4
    assert result.winner.knobs["mode"] == "c"
    assert (result.program.depth, result.program.mode) == (4, "c")
    assert Program().depth == 1


class Heated(still.Module):
    heat = still.Knob(choices=(0.0, 0.5, 1.0))

    def __init__(self):
        super().__init__()
        self.sort = still.Predict("item -> bin")

    def forward(self, item):
        return self.sort(item=item, config={"temperature": self.heat})


def test_the_temperature_of_a_call_may_be_a_knob(tmp_path):
    class Warm(ScriptedLM):
        def execute(self, plan, inputs, sampling=None, n=1):
            (found,) = {completion.values["bin"] for completion in super().execute(plan, inputs, sampling, n)}
            said = found if sampling is not None and sampling.temperature == 0.5 else "none"
            return [Completion({"bin": said}, {}, Usage(prompt_tokens=10, decoded_tokens=2))] * n

    lm = Warm(lambda plan, inputs: {"bin": inputs["item"].split()[-1]})
    result = still.compile(
        Heated(), data(12), data(30, 100), lm=lm, passes=[Search()], progress=False, ledger=tmp_path / "l.duckdb"
    )
    assert result.program.heat == 0.5


def test_a_knob_that_does_harm_alone_is_not_combined(tmp_path):
    def answer(plan, inputs):
        return {"bin": "none of them"} if inputs["mode"] == "b" else good_combination(plan, inputs)

    result = compiled(tmp_path, answer, Program())
    tried = [row.name.partition(": ")[2] for row in result.report.rows if row.name.startswith("search")]
    assert [name for name in tried if "mode=b" in name] == ["mode=b"]
    assert (result.program.depth, result.program.mode) == (4, "c")


@pytest.mark.parametrize("seed", range(4))
def test_what_is_better_than_the_start_is_combined_with_what_is_better_still(tmp_path, seed):
    """Alone, depth 8 is right on 80 %, and mode c on 40 %, which is more than the 20 % that it starts from."""

    def answer(plan, inputs):
        right, number = next(b for b in BINS if inputs["item"].endswith(b)), int(inputs["item"].split()[1])
        points = 3 * (inputs["depth"] == 8) + (inputs["mode"] == "c")
        return {"bin": right if number % 5 <= points else "none of them"}

    result = compiled(tmp_path, answer, Program(), seed=seed)
    verdicts = {row.name.partition(": ")[2]: row.verdict for row in result.report.rows}
    assert "search" in verdicts["mode=c"], "it lost to the depth"
    assert (result.program.depth, result.program.mode) == (8, "c")


def test_the_same_seed_searches_the_same(tmp_path):
    one = compiled(tmp_path / "a", good_combination, Program(), seed=3)
    two = compiled(tmp_path / "b", good_combination, Program(), seed=3)
    assert [row.name for row in one.report.rows] == [row.name for row in two.report.rows]
    assert one.winner.digest == two.winner.digest


def test_knobs_that_change_nothing_stay_as_they_are(tmp_path):
    result = compiled(tmp_path, lambda plan, inputs: {"bin": "glass"}, Program())
    assert result.winner.name == "baseline"
    assert result.program.depth == 1


def history(*states):
    outcome = (Outcome(1.0),)
    return [Standing(Candidate(f"c{i}", "test", {"sort": state}), outcome) for i, state in enumerate(states)]


def test_the_space_holds_what_was_measured_once_each():
    shown = PredictorState(({"item": "x", "bin": "glass"},))
    told = PredictorState(({"item": "x", "bin": "glass"},), instructions="Be quick.")
    space = make_space(Program(), Candidate("baseline", "baseline"), history(shown, told, shown))
    assert set(space.parts) == {"sort demonstrations", "sort instructions"}
    assert list(space.parts["sort demonstrations"]) == ["as it was", "c0"]
    assert list(space.parts["sort instructions"]) == ["as it was", "c1"]
    assert set(space.knobs) == {"depth", "mode", "weight", "sort.reasoning", "sort.samples"}
    candidate = space.candidate({**space.first, "sort instructions": "c1", "depth": 8}, "x")
    assert candidate.states["sort"].instructions == "Be quick."
    assert candidate.states["sort"].demonstrations == ()
    assert candidate.knobs == {"depth": 8}


def test_what_was_measured_is_found_again_in_the_space():
    shown = PredictorState(({"item": "x", "bin": "glass"},))
    told = PredictorState(({"item": "y", "bin": "glass"},), instructions="Be quick.")
    measured = [*history(shown, told), Standing(Candidate("baseline", "baseline"), (Outcome(1.0),))]
    space = make_space(Program(), measured[0].candidate, measured)
    for standing in measured:
        values = space.values(standing.candidate)
        one, other = (c.apply(Program()) for c in (space.candidate(values, "x"), standing.candidate))
        assert current_state(one.sort) == current_state(other.sort)
    assert space.values(measured[0].candidate) == space.first
    assert space.values(Candidate("other", "test", {"sort": PredictorState(instructions="Never seen.")})) is None


class Before:
    """Measures a demonstration (c0) and other instructions (c1); a search starts at the baseline (0), c0 (1), c1 (2)."""

    name = "before"

    def __init__(self, start):
        self.start = start

    def run(self, program, baseline, context):
        shown = PredictorState(({"item": "x", "depth": 1, "mode": "a", "bin": "glass"},))
        told = PredictorState(instructions="Look closely.")
        tried = [Candidate(f"c{i}", "before", {"sort": state}) for i, state in enumerate((shown, told))]
        candidates = [baseline, *tried]
        return PassResult(candidates[self.start], tuple(race(program, candidates, context)))


def combined(tmp_path, answer, start, examples):
    """Search for what comes of the two together, without knobs."""
    program = Program()
    for module, names in ((program, ("depth", "mode", "weight")), (program.sort, ("reasoning", "samples"))):
        for name in names:
            offer(module, name, ())
    return compiled(tmp_path, answer, program, examples=examples, before=[Before(start)])


def test_what_was_measured_is_not_tried_again(tmp_path):
    """Two kinds of demonstrations and two of instructions: three of the four were measured before."""

    def answer(plan, inputs):
        right, number = next(b for b in BINS if inputs["item"].endswith(b)), int(inputs["item"].split()[1])
        points = 1 + 2 * ("closely" in plan.turns[0].parts[0].text) + (demonstrations(plan) > 0)
        return {"bin": right if number % 5 < points else "none of them"}

    result = combined(tmp_path, answer, 0, 30)
    (tried,) = [row.name for row in result.report.rows if row.name.startswith("search")]
    assert "demonstrations of c0" in tried
    assert "instructions of c1" in tried
    assert result.winner.name == tried


@pytest.mark.parametrize(("fewer", "tried"), [(0, 1), (2, 0)])
def test_demonstrations_that_did_harm_are_not_combined(tmp_path, fewer, tried):
    """The search starts at new instructions; demonstrations were seen with the old ones only, as good as none or worse."""

    def answer(plan, inputs):
        right, number = next(b for b in BINS if inputs["item"].endswith(b)), int(inputs["item"].split()[1])
        points = 2 + ("closely" in plan.turns[0].parts[0].text) - fewer * (demonstrations(plan) > 0)
        return {"bin": right if number % 5 < points else "none of them"}

    result = combined(tmp_path, answer, 2, 30)
    assert len([row for row in result.report.rows if row.name.startswith("search")]) == tried


@pytest.mark.parametrize(("more", "kept"), [(1, False), (8, True)])
def test_demonstrations_have_to_bring_a_gain(tmp_path, more, kept):
    """The search starts at new instructions; demonstrations beside them are right on some more of fifty examples."""

    def answer(plan, inputs):
        right, number = next(b for b in BINS if inputs["item"].endswith(b)), int(inputs["item"].split()[1])
        told = "closely" in plan.turns[0].parts[0].text
        points = 20 + 15 * told + more * (told and demonstrations(plan) > 0)
        return {"bin": right if number % 50 < points else "none of them"}

    result = combined(tmp_path, answer, 2, 50)
    (tried,) = [row for row in result.report.rows if row.name.startswith("search")]
    assert tried.score == pytest.approx((35 + more) / 50)
    assert (result.winner.name == tried.name) is kept
    assert kept or result.winner.name == "c1"


def test_knobs_of_predictors_that_no_run_calls_are_left_alone():
    class ByKey(still.Module):
        def __init__(self):
            super().__init__()
            self.by = {key: still.Predict("text -> note") for key in ("used", "idle")}

    outcome = Outcome(0.0, trace=(PredictorTrace("by['used']", {"text": "x"}, {"note": "y"}),))
    baseline = Candidate("baseline", "baseline")
    space = make_space(ByKey(), baseline, [Standing(baseline, (outcome,))])
    assert set(space.knobs) == {"by[used].reasoning", "by[used].samples"}


def test_a_knob_can_be_turned_back():
    start = Candidate("start", "test", {}, {"depth": 4})
    space = make_space(Program(), start, [])
    assert space.first["depth"] == 4
    assert space.candidate({**space.first, "depth": 1}, "x").apply(Program()).depth == 1
    assert space.candidate(space.first, "x").apply(Program()).depth == 4


class Scored(still.Signature):
    """Sort it."""

    item: str = still.Input()
    bin: Literal["glass", "paper"] = still.Output(decide="score")
    size: Literal["small", "large"] = still.Output(decide="score")


def test_there_are_no_votes_where_nothing_is_drawn():
    space = make_space(still.Predict(Scored), Candidate("baseline", "baseline"), [])
    assert space.settled({**space.first, "samples": 5}) == space.first
    reasoned = {**space.first, "reasoning": True, "samples": 5}
    assert space.settled(reasoned) == reasoned

    drawn = {"bin": {"decide": "score"}, "size": {"decide": "decode"}}
    one = Candidate("one", "decisions", {"self": PredictorState(fields=drawn)})
    space = make_space(still.Predict(Scored), one, [])
    assert space.settled({**space.first, "samples": 3})["samples"] == 3


def test_votes_settle_predictor_by_predictor():
    class Two(still.Module):
        def __init__(self):
            super().__init__()
            self.sort, self.tell = still.Predict(Scored), still.Predict("item, bin -> story")

        def forward(self, item):
            return self.tell(item=item, bin=self.sort(item=item).bin)

    space = make_space(Two(), Candidate("baseline", "baseline"), [])
    values = {**space.first, "sort.samples": 3, "tell.samples": 3}
    assert space.settled(values) == {**values, "sort.samples": 1}


def test_a_lead_that_may_be_luck_does_not_keep_a_search_going(tmp_path):
    """Greater depths are right on one or two more of fifty examples: they lead, and none is a gain.

    The end of the range is tried first, and does not count.
    """

    class Deep(still.Module):
        depth = still.Knob(range=(0, 40))

        def __init__(self):
            super().__init__()
            self.sort = still.Predict(Sort)

        def forward(self, item):
            return self.sort(item=item, depth=self.depth, mode="a")

    def answer(plan, inputs):
        right, number = next(b for b in BINS if inputs["item"].endswith(b)), int(inputs["item"].split()[1])
        return {"bin": right if number % 50 <= inputs["depth"] // 14 else "none of them"}

    program = Deep()
    for name in ("reasoning", "samples"):
        offer(program.sort, name, ())
    result = compiled(tmp_path, answer, program, examples=50)
    assert len([row for row in result.report.rows if row.name.startswith("search")]) == 1 + PATIENCE + 1


def test_reasoning_is_no_knob_of_what_reasons_already():
    space = make_space(still.ChainOfThought("question -> answer"), Candidate("baseline", "baseline"), [])
    assert set(space.knobs) == {"predict.samples"}


def test_every_level_compiles(tmp_path):
    def answer(plan, inputs):
        right = next(b for b in BINS if inputs["item"].endswith(b))
        return {step.field: right if step.field == "bin" else "because" for step in plan.decodes}

    for level in ("O0", "O1", "O2"):
        result = still.compile(
            Program(), data(12), data(15, 100), lm=ScriptedLM(answer), level=level, progress=False,
            ledger=tmp_path / "l.duckdb",
        )  # fmt: skip
        assert result.report.level == level
        assert result.winner.name == "baseline", "it was perfect already"


def test_what_is_right_everywhere_is_not_searched(tmp_path):
    result = compiled(tmp_path, lambda plan, inputs: {"bin": next(b for b in BINS if inputs["item"].endswith(b))}, Program())
    assert [row.name for row in result.report.rows] == ["baseline"]
    assert any("nothing to gain" in note for note in result.report.notes)


def test_the_search_ends_when_it_costs_too_much(tmp_path):
    """After passes that did little, it may do half of that; alone, it goes on."""

    class Before:
        name = "before"

        def run(self, program, baseline, context):
            return PassResult(baseline, tuple(race(program, [baseline], context)))

    def hopeless(plan, inputs):
        right = next(b for b in BINS if inputs["item"].endswith(b))
        return {"bin": right if inputs["depth"] == 1 and int(inputs["item"].split()[1]) % 2 else "none of them"}

    alone = compiled(tmp_path / "alone", hopeless, Program())
    after = still.compile(
        Program(), data(12), data(30, 100), lm=ScriptedLM(hopeless), passes=[Before(), Search()], progress=False,
        ledger=tmp_path / "l.duckdb",
    )  # fmt: skip
    assert len(after.report.rows) < len(alone.report.rows)
    assert after.winner.name == alone.winner.name == "baseline"


def test_a_knob_may_be_offered_other_values_than_the_programs_own(tmp_path):
    program = Program()
    offer(program, "depth", (2, 4))
    offer(program, "weight", ())
    result = compiled(tmp_path, good_combination, program)
    assert result.winner.knobs["depth"] == 4
    assert program.depth == 1
