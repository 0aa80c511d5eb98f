"""Programs of several steps: loops, branches, threads, coroutines, and state that they keep."""

import asyncio
import contextvars
import datetime
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import dspy
import pytest
import still
from pydantic import BaseModel, Field
from scripted import ScriptedLM, demonstrations
from still.compiler.explain import call_tables
from still.compiler.invocation import call
from still.errors import StillError
from still.optimizers.candidate import Candidate
from still.optimizers.demonstrations import Demonstrations
from still.optimizers.nearest import NearestDemonstrations
from still.optimizers.own_copy import DATA, own_copy
from still.signatures.adapter import PlanAdapter
from still.signatures.layout import lower

COLOURS = ("red", "green", "blue")


def data(count, start=0):
    rows = [{"text": f"case {i} {COLOURS[i % 3]}", "colour": COLOURS[i % 3]} for i in range(start, start + count)]
    return still.Dataset(rows, inputs=["text"])


class Scripted(ScriptedLM):
    """Also for coroutines."""

    async def aexecute(self, plan, inputs, sampling=None, n=1):
        await asyncio.sleep(0)
        return self.execute(plan, inputs, sampling, n)


def colour_of(value):
    return str(value).rpartition(" ")[2]


def answer(plan, inputs):
    """Fills any of the fields used below. Of a colour it is sure only with demonstrations, or where the text is of red."""
    return fill(plan, inputs, "red" if demonstrations(plan) == 0 else None)


def right(plan, inputs):
    """Like `answer`, and sure."""
    return fill(plan, inputs)


def fill(plan, inputs, colour=None):
    known = inputs.get("hint") or inputs.get("text")
    made = {
        "hint": f"of {colour_of(known)}",
        "colour": colour or colour_of(known),
        "next_word": f"word {len(inputs.get('so_far', []))}",
        "kind": "unknown" if "green" in known else "known",
        "note": "-",
    }
    return {step.field: made.get(step.field) for step in plan.decodes}


def teacher():
    return Scripted(right, name="teacher")


class Recording(Demonstrations):
    """Demonstrations whose bootstrapped candidate is kept, whoever wins."""

    def run(self, program, baseline, context):
        result = super().run(program, baseline, context)
        self.notes = result.notes
        found = [s.candidate for s in result.standings if s.candidate.name == "bootstrapped-8"]
        found += [s.candidate for s in result.standings if s.candidate.name == "bootstrapped-4"]
        self.states = found[0].states if found else {}
        return result


def bootstrap(tmp_path, program, lm=None, train=None, **options):
    """Compile with demonstrations only; what was bootstrapped, and the result."""
    step = Recording()
    result = still.compile(
        program, train or data(24), data(12, 100), lm=lm or Scripted(answer), passes=[step], progress=False,
        ledger=tmp_path / "ledger.duckdb", **{"teacher": teacher(), **options},
    )  # fmt: skip
    return step, result


def shown(step, name):
    return list(step.states[name].demonstrations)


class Chain(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("text -> hint")
        self.second = dspy.Predict("hint -> colour: Literal['red', 'green', 'blue']")

    def forward(self, text):
        return self.second(hint=self.first(text=text).hint)


class Loop(dspy.Module):
    """Calls one predictor three times, with a list it goes on appending to."""

    def __init__(self):
        super().__init__()
        self.grow = dspy.Predict("text, so_far: list[str] -> next_word")
        self.end = dspy.Predict("text -> colour")

    def forward(self, text):
        so_far = []
        for _ in range(3):
            so_far.append(self.grow(text=text, so_far=so_far).next_word)
        said = self.end(text=text)
        said.colour = said.colour.strip()
        return said


class Branch(dspy.Module):
    """Asks a specialist, by what the first predictor says; there is none for green."""

    def __init__(self):
        super().__init__()
        self.sort = dspy.Predict("text -> kind")
        self.expert = dspy.Predict("text -> colour")
        self.never = dspy.Predict("text -> note")

    def forward(self, text):
        if self.sort(text=text).kind == "unknown":
            raise LookupError(f"nobody knows {text!r}")
        return self.expert(text=text)


def test_o1_finds_what_helps_in_a_chain(tmp_path):
    result = still.compile(
        Chain(), data(24), data(36, 100), lm=Scripted(answer), teacher=teacher(), progress=False,
        ledger=tmp_path / "ledger.duckdb",
    )  # fmt: skip
    assert result.report.rows[0].score == pytest.approx(1 / 3)
    assert next(row for row in result.report.rows if row.name == result.report.winner).score == 1.0
    assert result.winner.origin == "bootstrapped"
    assert result.program(text="case 7 of blue").colour == "blue"


def test_demonstrations_come_from_the_right_predictor(tmp_path):
    step, _ = bootstrap(tmp_path, Chain())
    assert all(set(d) == {"text", "hint"} and d["hint"] == f"of {colour_of(d['text'])}" for d in shown(step, "first"))
    assert all(set(d) == {"hint", "colour"} and d["colour"] == colour_of(d["hint"]) for d in shown(step, "second"))
    assert {d["colour"] for d in shown(step, "second")} == set(COLOURS)


def test_a_call_repeated_by_many_runs_is_one_demonstration(tmp_path):
    step, _ = bootstrap(tmp_path, Chain())
    assert len(shown(step, "second")) == 3, "24 runs, of three hints"
    assert len(shown(step, "first")) == 8


def test_a_loops_calls_are_shown_with_the_inputs_they_had(tmp_path):
    step, _ = bootstrap(tmp_path, Loop())
    calls = shown(step, "grow")
    assert {len(d["so_far"]) for d in calls} == {0, 1, 2}
    assert all(d["next_word"] == f"word {len(d['so_far'])}" for d in calls)


def test_what_a_program_does_to_a_prediction_is_not_what_the_model_said(tmp_path):
    class Shouting(Loop):
        def forward(self, text):
            said = super().forward(text)
            said.colour = said.colour.upper()
            return said

    def loud(example, prediction):
        return prediction.colour == example.colour.upper()

    step, _ = bootstrap(tmp_path, Shouting(), metric=loud)
    assert {d["colour"] for d in shown(step, "end")} == set(COLOURS)


def test_only_calls_of_passing_runs_are_shown(tmp_path):
    step, _ = bootstrap(tmp_path, Chain(), teacher=Scripted(answer, name="weak"))
    assert {d["hint"] for d in shown(step, "first")} == {"of red"}, "without demonstrations only red is right"


def test_an_exception_in_a_branch_is_a_failure_and_shows_nothing(tmp_path):
    step, result = bootstrap(tmp_path, Branch())
    assert not any("green" in d["text"] for d in shown(step, "sort") + shown(step, "expert"))
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        _, rows = ledger.query("SELECT DISTINCT error FROM evaluations WHERE error IS NOT NULL")
    assert rows
    assert all("LookupError: nobody knows" in error for (error,) in rows)
    runs = {row.name: row for row in result.report.rows}
    assert runs["baseline"].failures == 4


def test_a_predictor_that_is_never_called_gets_none_and_the_report_says_so(tmp_path):
    step, result = bootstrap(tmp_path, Branch())
    assert set(step.states) == {"sort", "expert"}
    note = "predictor 'never' was never called in 24 runs: no demonstrations bootstrapped for it"
    assert note in result.report.notes
    assert note in str(result.report)


def test_a_predictor_called_only_in_failing_runs_is_told_apart(tmp_path):
    class Desperate(Branch):
        def forward(self, text):
            if "green" not in text:
                return self.expert(text=text)
            raise LookupError(self.never(text=text).note)

    for again in (False, True):
        _, result = bootstrap(tmp_path, Desperate())
        notes = "\n".join(result.report.notes)
        assert "predictor 'never' was called in no run that passed the metric" in notes, f"from the ledger: {again}"
        assert "predictor 'sort' was never called" in notes


def test_calls_with_different_inputs_make_demonstrations_of_the_complete_ones(tmp_path):
    class Sometimes(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("text, hint: str | None, topic: str | None -> colour")

        def forward(self, text):
            self.ask(text=text, topic="colours")
            self.ask(text=text, signature="text -> note")
            return self.ask(text=text, hint=f"of {colour_of(text)}", unknown="ignored")

    step, _ = bootstrap(tmp_path, Sometimes())
    assert all(set(d) == {"text", "hint", "topic", "colour"} for d in shown(step, "ask"))
    assert {d["topic"] for d in shown(step, "ask")} == {None, "colours"}
    assert {d["colour"] for d in shown(step, "ask")} == set(COLOURS), "a call for something else is not one"


class AsyncOnly(dspy.Module):
    """Both steps at once, as coroutines."""

    def __init__(self):
        super().__init__()
        self.hint = dspy.Predict("text -> hint")
        self.colour = dspy.Predict("text -> colour: Literal['red', 'green', 'blue']")

    async def aforward(self, text):
        _, said = await asyncio.gather(self.hint.acall(text=text), self.colour.acall(text=text))
        return said


class AsyncForward(AsyncOnly):
    async def forward(self, text):
        return await self.aforward(text)


def made_sync():
    return dspy.syncify(AsyncOnly())


def wrapped_sync():
    return dspy.syncify(AsyncOnly(), in_place=False)


@pytest.mark.parametrize("make", [AsyncOnly, AsyncForward, made_sync, wrapped_sync])
def test_async_programs_are_compiled_and_evaluated(tmp_path, make):
    step, result = bootstrap(tmp_path, make())
    assert next(row for row in result.report.rows if row.name.startswith("bootstrapped")).score == 1.0
    assert {name.split(".")[-1] for name in step.states} == {"hint", "colour"}
    lm = Scripted(right)
    row = still.evaluate(make(), data(9), lm=lm, progress=False, ledger=tmp_path / "other.duckdb")
    assert (row.score, row.failures, lm.calls) == (1.0, 0, 18)


def test_async_programs_run_also_where_a_loop_is_running():
    async def notebook():
        with dspy.context(lm=Scripted(right), adapter=PlanAdapter()):
            return call(AsyncOnly(), {"text": "a blue"})

    assert asyncio.run(notebook()).colour == "blue"


def test_calls_of_async_programs_are_explained(tiny_lm):
    class Yes(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = still.Predict("text -> sure: bool")

        async def aforward(self, text):
            return await self.ask.acall(text=text)

    (table,) = call_tables(Yes(), {"text": "a"}, tiny_lm)
    assert table.title.startswith("ask: ")


def test_a_cancelled_task_or_an_exit_is_a_failure_of_its_example_alone(tmp_path):
    class Leaving(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("text -> colour")

        async def aforward(self, text):
            if "green" in text:
                raise asyncio.CancelledError
            if "blue" in text:
                raise SystemExit(3)
            return await self.ask.acall(text=text)

    row = still.evaluate(Leaving(), data(9), lm=Scripted(right), progress=False, ledger=tmp_path / "ledger.duckdb")
    assert (row.score, row.failures) == (pytest.approx(1 / 3), 6)


class InParallel(Chain):
    def forward(self, text):
        pairs = [(self.first, {"text": text}), (self.first, {"text": f"again {text}"})]
        hints = dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)
        return self.second(hint=hints[0].hint)


class InThreads(Chain):
    """Its own threads, with the context that they need."""

    def forward(self, text):
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(contextvars.copy_context().run, lambda said=said: self.first(text=said))
                for said in (text, f"again {text}")
            ]
            hints = [future.result() for future in asked]
        return self.second(hint=hints[0].hint)


@pytest.mark.parametrize("kind", [InParallel, InThreads])
def test_calls_in_threads_are_traced_and_counted(tmp_path, kind, monkeypatch):
    # dspy.Parallel empties tqdm's list of bars, under which one of another thread may fail: one example at a time.
    monkeypatch.setattr("still.compiler.evaluation.WORKERS", 1)
    step, _ = bootstrap(tmp_path, kind())
    assert {d["text"].startswith("again") for d in shown(step, "first")} == {True, False}
    assert len(shown(step, "second")) == 3
    with still.Ledger(tmp_path / "ledger.duckdb") as ledger:
        _, rows = ledger.query("SELECT DISTINCT calls, prompt_tokens FROM evaluations")
    assert rows == [(3, 30)]


def test_a_thread_without_the_context_is_a_failure_that_says_what_it_lacks(tmp_path):
    class Lost(Chain):
        def forward(self, text):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(lambda: self.second(hint=text)).result()

    with pytest.raises(StillError, match=r"failed on every one of 6 examples.*No LM is loaded"):
        still.evaluate(Lost(), data(6), lm=Scripted(right), progress=False, ledger=tmp_path / "ledger.duckdb")


class Remembering(dspy.Module):
    """Keeps its input and a log on itself while others run."""

    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("text -> hint")
        self.current, self.log, self.parts = None, [], {"seen": [], "nested": [{}]}

    def forward(self, text):
        self.current = text
        self.log.append(text)
        self.parts["nested"][0][text] = True
        self.ask(text=text)
        mixed = len(self.log) > 1 or len(self.parts["nested"][0]) > 1
        return dspy.Prediction(colour="mixed up" if mixed else colour_of(self.current))


def test_every_run_has_the_programs_state_to_itself(tmp_path):
    together = threading.Barrier(12)

    def meet(plan, inputs):
        together.wait(30)  # every run has written its state before one goes on
        return answer(plan, inputs)

    program = Remembering()
    row = still.evaluate(program, data(12), lm=Scripted(meet), progress=False, ledger=tmp_path / "ledger.duckdb")
    assert row.score == 1.0
    assert program.log == []
    assert program.current is None


def test_an_own_copy_keeps_what_belongs_together_and_shares_what_is_large():
    class Holder(dspy.Module):
        def __init__(self):
            super().__init__()
            self.one = dspy.Predict("a -> b")
            self.again = [self.one, (self.one, 3)]
            self.bound = self.helper
            self.lock = threading.Lock()
            self.corpus = ["text"] * (DATA + 1)
            self.me = {"self": self}

        def helper(self):
            return self

    program = Holder()
    program.one.demos = NearestDemonstrations([{"a": "x", "b": "y"}], 1)
    made = own_copy(program)
    assert made.one is not program.one
    assert made.again[0] is made.one
    assert made.again[1] == (made.one, 3)
    assert made.bound() is made
    assert made.me["self"] is made
    assert made.lock is program.lock
    assert made.corpus is program.corpus
    assert made.one.demos is program.one.demos, "with its index"
    assert made.one.signature is program.one.signature


def test_a_predictor_under_two_names_is_one(tmp_path):
    class Shared(Chain):
        def __init__(self):
            super().__init__()
            self.also = self.second

        def forward(self, text):
            return self.also(hint=self.first(text=text).hint)

    step, result = bootstrap(tmp_path, Shared())
    assert set(step.states) == {"first", "second"}
    assert len(shown(step, "second")) == 3
    assert result.program.also is result.program.second


def test_attempts_on_copies_of_a_module_are_traced(tmp_path):
    """dspy.BestOfN runs copies, each with a trace of its own, and hands on that of the best."""
    program = dspy.BestOfN(Chain(), N=2, reward_fn=lambda inputs, said: 1.0, threshold=1.0)
    program.module.set_lm(lm := teacher())
    lm.copy = lambda **settings: lm
    step, _ = bootstrap(tmp_path, program)
    assert {d["colour"] for d in shown(step, "module.second")} == set(COLOURS)


def test_outputs_of_one_name_and_two_types_are_found_again(tmp_path):
    class Twice(dspy.Module):
        def __init__(self):
            super().__init__()
            self.first = dspy.Predict("text -> hint: Literal['of red', 'of green', 'of blue'], score: int")
            self.second = dspy.Predict("hint -> colour, score: str")

        def forward(self, text):
            return self.second(hint=self.first(text=text).hint)

    def typed(plan, inputs):
        return {**right(plan, inputs), "score": 3 if "text" in inputs else "three"}

    first, _ = bootstrap(tmp_path, Twice(), lm=Scripted(typed), teacher=Scripted(typed, name="teacher"))
    lm, again = Scripted(typed), Scripted(typed, name="teacher")
    second, _ = bootstrap(tmp_path, Twice(), lm=lm, teacher=again)
    assert (lm.calls, again.calls) == (0, 0)
    assert {d["score"] for d in shown(second, "first")} == {3}
    assert second.states == first.states


class Person(BaseModel):
    name: str = Field(alias="fullName")
    born: datetime.date


class Find(dspy.Signature):
    """Find who."""

    text: str = dspy.InputField()
    who: Person = dspy.OutputField()


class Judge(dspy.Signature):
    """Which colour?"""

    who: Person = dspy.InputField()
    colour: Literal["red", "green", "blue"] = dspy.OutputField()


class Typed(dspy.Module):
    def __init__(self):
        super().__init__()
        self.find, self.judge = dspy.Predict(Find), dspy.Predict(Judge)

    def forward(self, text):
        return self.judge(who=self.find(text=text).who)


def test_models_between_steps_are_the_same_from_the_ledger(tmp_path):
    """A model whose keys in prompts are not the names of its fields."""

    def typed(plan, inputs):
        if "text" in inputs:
            return {"who": Person(fullName=colour_of(inputs["text"]), born=datetime.date(2000, 1, 2))}
        return {"colour": inputs["who"].name}

    lm, again = Scripted(typed), Scripted(typed)
    first, _ = bootstrap(tmp_path, Typed(), lm=lm, teacher=lm)
    second, _ = bootstrap(tmp_path, Typed(), lm=again, teacher=again)
    assert again.calls == 0
    assert shown(first, "judge")[0]["who"].born == datetime.date(2000, 1, 2)
    first_plan, second_plan = (
        lower(predictor.signature, predictor.demos)
        for step in (first, second)
        for predictor in [Candidate("x", "x", step.states).apply(Typed()).judge]
    )
    assert first_plan.digest == second_plan.digest
    assert "fullName" in str(second_plan)
    assert Candidate("x", "x", first.states).digest == Candidate("x", "x", second.states).digest


def test_a_prediction_that_no_row_can_keep_is_scored_all_the_same(tmp_path):
    class Talkative(Chain):
        def forward(self, text):
            said = super().forward(text)
            return dspy.Prediction(colour=said.colour, by=object())

    lm = Scripted(right)
    for calls in (18, 36):
        row = still.evaluate(Talkative(), data(9), lm=lm, progress=False, ledger=tmp_path / "ledger.duckdb")
        assert row.score == 1.0
        assert lm.calls == calls, "it cannot be taken from the ledger"


def test_a_program_that_holds_what_cannot_be_copied(tmp_path):
    class Locked(Chain):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def forward(self, text):
            with self.lock:
                return super().forward(text)

    step, result = bootstrap(tmp_path, Locked())
    assert set(step.states) == {"first", "second"}
    assert result.program(text="a blue").colour == "blue"
