"""Which demonstrations are proposed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Literal

import dspy
import pytest
import still
from still.errors import SignatureError
from still.optimizers.budget import OutOfBudget
from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.context import Outcome, PredictorTrace, Rollout
from still.optimizers.decisions import Decisions, may_lean
from still.optimizers.demonstrations import Demonstrations


class Sort(still.Signature):
    """Sort."""

    item: str = still.Input()
    bin: Literal["glass", "paper", "metal"] = still.Output()


BINS = ["glass", "paper", "metal"]
EXAMPLES = [still.Example(item=f"item {i}", bin=BINS[0 if i < 24 else i % 3]).with_inputs("item") for i in range(30)]


class Context:
    """Scores a candidate by what it shows, and remembers what it was asked."""

    embedder = None

    def __init__(self, train=EXAMPLES, rollouts=(), inputs=("item",)):
        self.train, self.dev, self.seed = train, EXAMPLES[:20], 0
        self.input_fields = frozenset(inputs)
        self.seen: dict[str, Candidate] = {}
        self._rollouts = list(rollouts)

    def expect(self, examples): ...

    def evaluate(self, program, candidate, indices):
        self.seen[candidate.name] = candidate
        return [Outcome(0.5)] * len(indices)

    def rollouts(self, program, candidate, indices):
        return [] if candidate.draw else self._rollouts


BASELINE = Candidate("baseline", "baseline")


class Shares(Context):
    """A candidate is right on the share of dev examples that `share` gives it."""

    def share(self, candidate):
        raise NotImplementedError

    def evaluate(self, program, candidate, indices):
        self.seen[candidate.name] = candidate
        return [Outcome(float((7 * i + 3) % 20 < 20 * self.share(candidate))) for i in indices]


class Valued(Shares):
    """Right on the share of dev examples that `worth` gives the number of a candidate's nearest demonstrations."""

    def __init__(self, worth, train=EXAMPLES):
        super().__init__(train)
        self.dev, self.worth = EXAMPLES * 2, worth

    def share(self, candidate):
        return self.worth.get(candidate.states["self"].nearest, 0.1) if candidate.states else 0.1


@pytest.mark.parametrize(
    ("worth", "tried", "winner"),
    [
        ({4: 0.5, 8: 0.5}, [4, 8], "nearest-4"),
        ({4: 0.5, 8: 0.6}, [4, 8], "nearest-8"),
        ({4: 0.0, 8: 0.9}, [4], "baseline"),
        ({4: 0.15, 8: 0.9}, [4], "nearest-4"),
    ],
)
def test_more_neighbours_are_tried_where_few_help(worth, tried, winner):
    context = Valued(worth)
    result = Demonstrations().run(still.Predict(Sort), BASELINE, context)
    counts = [c.states["self"].nearest for c in context.seen.values() if c.origin == "nearest"]
    assert (counts, result.winner.name) == (tried, winner)
    assert {s.candidate.name for s in result.standings} >= {f"nearest-{count}" for count in tried}


class Long(Valued):
    """As many prompt tokens a call as there are demonstrations, times `each`."""

    def __init__(self, worth, each):
        super().__init__(worth)
        self.each = each

    def evaluate(self, program, candidate, indices):
        shown = candidate.states["self"].nearest if candidate.states else 0
        return [
            replace(outcome, calls=2, prompt_tokens=2 * self.each * (shown or 0))
            for outcome in super().evaluate(program, candidate, indices)
        ]


@pytest.mark.parametrize(
    ("worth", "each", "tried", "winner"),
    [
        ({2: 0.5, 4: 0.5, 8: 0.9}, 400, [4, 2], "nearest-2"),
        ({2: 0.4, 4: 0.5, 8: 0.9}, 400, [4, 2], "nearest-4"),
        ({2: 0.9, 4: 0.0, 8: 0.9}, 400, [4], "baseline"),
        ({2: 0.9, 4: 0.5, 8: 0.6}, 350, [4, 8], "nearest-8"),
    ],
)
def test_where_calls_are_long_fewer_neighbours_are_tried(worth, each, tried, winner):
    context = Long(worth, each)
    result = Demonstrations().run(still.Predict(Sort), BASELINE, context)
    counts = [c.states["self"].nearest for c in context.seen.values() if c.origin == "nearest"]
    assert (counts, result.winner.name) == (tried, winner)


def test_others_are_raced_against_the_best_of_the_nearest():
    result = Demonstrations().run(still.Predict(Sort), BASELINE, Valued({4: 0.5, 8: 1.0}))
    dropped = {s.candidate.name: s.dropped for s in result.standings if s.candidate.origin == "labelled"}
    assert dropped
    assert all("nearest-8" in reason for reason in dropped.values())


class Helped(Shares):
    """Right on the share of dev examples that `worth` gives the kind of a candidate's demonstrations, half of those it does
    not name; without any on a tenth."""

    def __init__(self, worth=None, **options):
        super().__init__(**options)
        self.worth = worth or {}

    def share(self, candidate):
        return self.worth.get(candidate.origin, 0.5) if candidate.states else 0.1


@pytest.mark.parametrize(
    ("worth", "more"),
    [
        ({"labelled": 0.5, "bootstrapped": 0.5}, {"labelled", "bootstrapped"}),
        ({"labelled": 0.6, "bootstrapped": 0.15}, {"labelled"}),
        ({"labelled": 0.2, "bootstrapped": 0.0}, set()),
    ],
)
def test_eight_are_tried_only_of_kinds_of_which_four_are_better_than_none(worth, more):
    traces = [(PredictorTrace("self", {"item": f"item {i}"}, {"bin": "paper"}),) for i in range(9)]
    passed = [Rollout(EXAMPLES[i], 1.0, trace) for i, trace in enumerate(traces)]
    context = Helped({"nearest": 0.0, **worth}, rollouts=passed)
    Demonstrations().run(still.Predict(Sort), BASELINE, context)
    shown = {(c.origin, c.demonstration_count) for c in context.seen.values() if c.states and c.origin != "nearest"}
    assert shown == {("labelled", 4), ("bootstrapped", 4), *((kind, 8) for kind in more)}


def test_neighbours_that_a_selection_would_not_keep_are_not_built_upon():
    result = Demonstrations().run(still.Predict(Sort), BASELINE, Helped({"nearest": 0.2, "labelled": 0.0}))
    standings = {s.candidate.name: s for s in result.standings}
    assert standings["nearest-4"].mean > standings["baseline"].mean
    assert standings["nearest-4"].dropped is None
    assert result.winner is BASELINE, "two examples of twenty may be luck"


def propose(program, context):
    result = Demonstrations().run(program, BASELINE, context)
    assert result.winner is BASELINE, "all score the same: the simplest stays"
    return result, context.seen


def test_what_earlier_passes_settled_is_kept():
    context = Helped()
    start = Candidate("start", "test", {"self": PredictorState(instructions="SORT.")}, {"samples": 1})
    result = Demonstrations().run(still.Predict(Sort), start, context)
    assert len(result.standings) > 3
    for standing in result.standings:
        assert standing.candidate.states["self"].instructions == "SORT."
        assert standing.candidate.knobs == {"samples": 1}
    assert any(name.startswith("start, nearest-4") for name in context.seen)


def test_what_has_no_json_form_is_no_demonstration():
    def trace(value):
        return (PredictorTrace("self", {"item": value}, {"bin": "glass"}),)

    runs = [Rollout(EXAMPLES[0], 1.0, trace(object())), Rollout(EXAMPLES[1], 1.0, trace("a jar"))]
    context = Context(train=[], rollouts=runs)
    Demonstrations().run(still.Predict(Sort), BASELINE, context)
    (shown,) = {d["item"] for c in context.seen.values() for s in c.states.values() for d in s.demonstrations}
    assert shown == "a jar"


def test_labelled_draws_show_rare_labels_too():
    context = Helped()
    Demonstrations().run(still.Predict(Sort), BASELINE, context)
    seen = context.seen
    for name in ("labelled-4a", "labelled-4b", "labelled-8a", "labelled-8b"):
        shown = [d["bin"] for d in seen[name].states["self"].demonstrations]
        assert set(shown) == set(BINS), "24 of 30 examples are glass; a blind draw would show little else"
    assert seen["labelled-4a"].digest != seen["labelled-4b"].digest


def test_only_perfect_traces_become_demonstrations():
    def rollout(i, score):
        trace = (PredictorTrace("self", {"item": f"item {i}"}, {"bin": "paper"}),)
        return Rollout(EXAMPLES[i], score, trace)

    context = Context(rollouts=[rollout(1, 1.0), rollout(2, 0.5), rollout(3, 1.0), rollout(4, 0.0)])
    _, seen = propose(still.Predict(Sort), context)
    shown = seen["bootstrapped-4"].states["self"].demonstrations
    assert {d["item"] for d in shown} == {"item 1", "item 3"}


def test_without_a_passing_trace_the_report_says_so():
    result, seen = propose(still.Predict(Sort), Context(rollouts=[Rollout(EXAMPLES[0], 0.0, ())]))
    assert not any(name.startswith("bootstrapped") for name in seen)
    assert any("passed the metric" in note for note in result.notes)


def test_a_predictor_fed_by_another_gets_no_labelled_examples():
    class Chain(dspy.Module):
        def __init__(self):
            super().__init__()
            self.first = dspy.Predict("item -> hint")
            self.second = dspy.Predict("hint -> bin")

    result, seen = propose(Chain(), Context())
    assert not any(name.startswith(("labelled", "nearest")) for name in seen)
    assert any("left out" in note for note in result.notes)


class Fed(dspy.Module):
    """Its second predictor gets what the first one makes of an item."""

    def __init__(self):
        super().__init__()
        self.first = still.Predict("item -> hint")
        self.second = still.Predict("hint, item -> bin")


def second(hint, said):
    return PredictorTrace("second", {"hint": hint, "item": "x"}, {"bin": said})


def fed(i, *steps, score=0.0):
    return Rollout(EXAMPLES[i], score, steps)


def test_labels_teach_a_predictor_what_to_say_to_what_another_gave_it():
    """No run passes, and yet it is known what `second` should have answered; nothing is known of `first`."""
    runs = [
        fed(i, PredictorTrace("first", {"item": f"item {i}"}, {"hint": "soft"}), second("soft", "wood")) for i in (1, 25, 26)
    ]
    _, seen = propose(Fed(), Context(rollouts=runs))
    states = seen["taught-4"].states
    assert list(states) == ["second"]
    shown = states["second"].demonstrations
    assert sorted(d["bin"] for d in shown) == sorted(EXAMPLES[i].bin for i in (1, 25, 26))
    assert all(d["hint"] == "soft" and d["item"] == "x" for d in shown)
    assert not any(name.startswith("bootstrapped") for name in seen)


def test_what_is_called_twice_in_a_run_is_not_taught():
    runs = [fed(1, second("soft", "wood"), second("hard", "wood"))]
    _, seen = propose(Fed(), Context(rollouts=runs))
    assert not any(name.startswith("taught") for name in seen)


def test_an_input_column_is_no_label():
    _, seen = propose(Fed(), Context(rollouts=[fed(1, second("soft", "wood"))], inputs=("item", "bin")))
    assert not any(name.startswith("taught") for name in seen)


def test_beside_what_is_taught_the_others_show_what_passed():
    runs = [
        fed(1, PredictorTrace("first", {"item": "item 1"}, {"hint": "hard"}), second("hard", "glass"), score=1.0),
        fed(25, PredictorTrace("first", {"item": "item 25"}, {"hint": "soft"}), second("soft", "wood")),
    ]
    context = Helped(rollouts=runs)
    Demonstrations().run(Fed(), BASELINE, context)
    states = context.seen["taught-8"].states
    assert [d["hint"] for d in states["first"].demonstrations] == ["hard"]
    assert {d["bin"] for d in states["second"].demonstrations} == {EXAMPLES[1].bin, EXAMPLES[25].bin}


def test_reasoning_comes_along_from_traces():
    trace = (PredictorTrace("predict", {"item": "item 1"}, {"reasoning": "it shines", "bin": "metal"}),)
    _, seen = propose(still.ChainOfThought(Sort), Context(rollouts=[Rollout(EXAMPLES[1], 1.0, trace)]))
    (demonstration,) = seen["bootstrapped-4"].states["predict"].demonstrations
    assert demonstration == {"item": "item 1", "reasoning": "it shines", "bin": "metal"}


def test_a_candidate_applies_to_a_copy_and_names_what_it_misses():
    program = still.Predict(Sort)
    state = PredictorState(({"item": "x", "bin": "glass"},), None, "New instructions.")
    variant = Candidate("c", "test", {"self": state}).apply(program)
    assert variant.signature.instructions == "New instructions."
    assert len(variant.demos) == 1
    assert program.demos == []
    with pytest.raises(SignatureError, match=r"'other'.*self"):
        Candidate("c", "test", {"other": state}).apply(program)


def test_equal_candidates_have_equal_digests_whatever_they_are_called():
    state = PredictorState(({"item": "x", "bin": "glass"},))
    one, two = Candidate("one", "a", {"self": state}), Candidate("two", "b", {"self": state})
    assert one.digest == two.digest
    again = Candidate("c", "a", {"self": PredictorState.from_json(state.to_json())})
    assert again.digest == one.digest
    assert Candidate("d", "a", {"self": PredictorState(state.demonstrations, 4)}).digest != one.digest


def test_plain_dspy_predictors_become_plans():
    program = dspy.ChainOfThought("question -> answer")
    variant = BASELINE.apply(program)
    assert type(variant.predict) is still.Predict
    assert type(program.predict) is dspy.Predict
    assert type(BASELINE.apply(dspy.Predict("a -> b"))) is still.Predict


THINGS = {"glass": "a jar of jam", "paper": "a letter of love", "metal": "a can of soup"}


class Deciding(Shares):
    """An LM that holds all options equally likely, and an embedder: whether inputs tell their options is for their texts."""

    embedder, lm = "minilm", SimpleNamespace(local=True, model="level")

    def __init__(self, leaning, shown, shift=0, plain=0.2, count=20):
        super().__init__()
        rows = [(THINGS[BINS[i % 3]], BINS[(i + (i // 3) * shift) % 3]) for i in range(30 + count)]
        examples = [still.Example(item=f"{thing} {i}", bin=b).with_inputs("item") for i, (thing, b) in enumerate(rows)]
        self.train, self.dev = examples[:30], examples[30:]
        self.leaning, self.shown, self.plain = leaning, shown, plain

    def report(self, text): ...

    def share(self, candidate):
        state = candidate.states.get("self", PredictorState())
        return self.shown if state.nearest else self.leaning if state.leans else self.plain

    def evaluate(self, program, candidate, indices):
        level = {"self": {"bin": dict.fromkeys(BINS, -1.0)}}
        return [replace(outcome, option_scores=level) for outcome in super().evaluate(program, candidate, indices)]


@pytest.mark.parametrize("shown", [0.5, 0.7])
def test_what_nearness_decides_as_well_is_not_shown(shown):
    context = Deciding(leaning=0.7, shown=shown)
    result = Demonstrations().run(still.Predict(Sort), BASELINE, context)
    state = result.winner.states["self"]
    assert (state.shown, len(state.demonstrations), state.leans) == (0, 30, True)
    assert not any("labelled" in name or "nearest-8" in name for name in context.seen), "no others are tried"
    told = f"0.700 by nearness alone, {shown:.3f} with 4 of the nearest"
    assert result.notes == (f"demonstrations: {told}; no others were tried",)
    assert result.calibrations
    program = result.winner.apply(still.Predict(Sort))
    again = Decisions().run(still.Predict(Sort), result.winner, context)
    assert (again.winner, again.standings) == (result.winner, ()), "for this prompt they are decided"
    assert may_lean(still.Predict(Sort), BASELINE, context)
    assert not may_lean(program, BASELINE, context), "it has demonstrations"


@pytest.mark.parametrize(
    ("shown", "tokens", "tried", "kept"),
    [
        ({4: 0.9, 8: 0.9}, 400, [4, 8], 4), ({4: 0.8, 8: 1.0}, 400, [4, 8], 8), ({4: 0.65}, 400, [4], 0),
        ({2: 0.9, 4: 0.0}, 2000, [4, 2], 2),  # of four only the length is looked at
    ],
)  # fmt: skip
def test_the_nearest_are_shown_where_that_is_a_gain_over_nearness(shown, tokens, tried, kept):
    class Counting(Deciding):
        def share(self, candidate):
            state = candidate.states.get("self", PredictorState())
            return shown[state.nearest] if state.nearest else super().share(candidate)

        def evaluate(self, program, candidate, indices):
            calls = {"calls": 1, "prompt_tokens": tokens if candidate.demonstration_count else 100}
            return [replace(outcome, **calls) for outcome in super().evaluate(program, candidate, indices)]

    context = Counting(leaning=0.5, shown=None)
    result = Demonstrations().run(still.Predict(Sort), BASELINE, context)
    assert result.winner.states["self"].shown == kept
    counts = [c.states["self"].nearest for c in context.seen.values() if c.demonstration_count]
    assert list(dict.fromkeys(counts)) == tried
    assert not any("labelled" in name for name in context.seen)


def test_the_nearest_that_do_worse_uncalibrated_are_given_up_early():
    context = Deciding(leaning=0.8, shown=0.2, plain=0.7, count=96)
    result = Demonstrations().run(still.Predict(Sort), BASELINE, context)
    assert result.winner.states["self"].shown == 0
    (few,) = (s for s in result.standings if s.candidate.demonstration_count)
    assert len(few.outcomes) < 96 / 2
    assert result.notes[0].endswith("with 4 of the nearest, uncalibrated; no others were tried")


@pytest.mark.parametrize("outputs", ["bin: Literal['glass', 'paper', 'metal'], note: str", "note: str"])
def test_what_is_written_freely_is_shown_as_before(outputs):
    assert not may_lean(still.Predict(still.Signature(f"item -> {outputs}")), BASELINE, Deciding(0.7, 0.7))


def test_inputs_that_tell_nothing_leave_it_to_demonstrations():
    context = Deciding(leaning=0.9, shown=0.5, shift=1)  # jars are of each bin in turn
    result = Demonstrations().run(still.Predict(Sort), BASELINE, context)
    assert not result.winner.states["self"].leans
    assert any("labelled" in name for name in context.seen)


def test_a_server_is_not_asked_how_likely_options_are():
    context = Deciding(leaning=0.9, shown=0.5)
    context.lm = SimpleNamespace(model="openai/some")
    assert not may_lean(still.Predict(Sort), BASELINE, context)
    result = Decisions().run(still.Predict(Sort), BASELINE, context)
    assert (result.winner, context.seen) == (BASELINE, {})
    assert result.notes == ("decisions: openai/some does not tell how likely each option is",)


def test_a_budget_that_ends_meanwhile_leaves_what_leans():
    context = Deciding(leaning=0.7, shown=0.9)
    measured = context.evaluate

    def evaluate(program, candidate, indices):
        if candidate.states.get("self", PredictorState()).nearest:
            raise OutOfBudget
        return measured(program, candidate, indices)

    context.evaluate = evaluate
    assert Demonstrations().run(still.Predict(Sort), BASELINE, context).winner.states["self"].leans
