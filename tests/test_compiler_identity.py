"""What makes two programs the same for the ledger: a result is never another program's."""

import inspect

import dspy
import pytest
import still
from scripted import ScriptedLM
from still.compiler.identity import program_digest


class Ending(still.Module):
    """Asks with something at the end of the question."""

    def __init__(self, end, when=None):
        super().__init__()
        self.end, self.when = end, when
        self.ask = still.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question + self.end)


class Base(dspy.Module):
    mark = "?"

    def forward(self, question):
        return self.ask(question=question + self.mark)


class Derived(Base):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")


def is_short(arguments, prediction):
    return float(len(prediction.answer) < 9)


def is_long(arguments, prediction):
    return float(len(prediction.answer) > 9)


class Cleaner:
    def __init__(self, mark):
        self.mark = mark

    def clean(self, text):
        return text.strip(self.mark)


def best_of(count, reward=is_short):
    return dspy.BestOfN(still.Predict("question -> answer"), N=count, reward_fn=reward, threshold=1.0)


def frozen(instructions):
    class Outer(still.Module):
        def __init__(self):
            super().__init__()
            self.inner = Ending("")
            self.inner.ask.signature = self.inner.ask.signature.with_instructions(instructions)
            self.inner._compiled = True  # what dspy sets of a program that it has optimized

        def forward(self, question):
            return self.inner(question=question)

    return Outer()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: Ending("?"), lambda: Ending("!")),
        (lambda: Ending("?", ["a", 1]), lambda: Ending("?", ["a", 2])),
        (lambda: best_of(2), lambda: best_of(5)),
        (lambda: best_of(2), lambda: best_of(2, is_long)),
        (lambda: Ending("", Cleaner("a").clean), lambda: Ending("", Cleaner("b").clean)),
        (lambda: frozen("Be short."), lambda: frozen("Be long.")),
    ],
)
def test_what_a_program_is_made_with_tells_it_from_others(one, other):
    assert program_digest(one()) == program_digest(one())
    assert program_digest(one()) != program_digest(other())


def test_a_base_class_is_part_of_it(monkeypatch):
    before = program_digest(Derived())
    source = "class Base(dspy.Module):\n    mark = '!'\n"
    original = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda code: source if code is Base else original(code))
    assert program_digest(Derived()) != before


def test_what_cannot_be_told_apart_does_not_hinder():
    class Holding(Ending):
        def __init__(self):
            super().__init__("")
            self.client, self.rows, self.tree = object(), iter([1, 2]), {}
            self.tree["parent"] = self.tree

    program = Holding()
    assert program_digest(program) == program_digest(program)
    assert list(program.rows) == [1, 2], "it was not read"


def test_what_may_be_chosen_of_a_knob_is_no_part_of_it():
    class Turned(Ending):
        k = still.Knob(choices=(1, 2, 3))

    program, narrowed = Turned(""), Turned("")
    still.signatures.knob.offer(narrowed, "k", (1, 2))
    assert program_digest(narrowed) == program_digest(program)
    narrowed.k = 2
    assert program_digest(narrowed) != program_digest(program)


def test_programs_that_differ_in_an_attribute_do_not_share_results(tmp_path):
    lm = ScriptedLM(lambda plan, inputs: {"answer": inputs["question"]})
    data = still.Dataset([{"question": f"q{i}", "answer": f"q{i}!"} for i in range(4)], inputs=["question"])
    scores = [
        still.evaluate(Ending(end), data, lm=lm, ledger=tmp_path / "l.duckdb", progress=False).score for end in ("?", "!")
    ]
    assert scores == [0.0, 1.0]
    assert lm.calls == 8
