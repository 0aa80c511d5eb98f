"""The LM judge: what it is told, how its score counts, and what happens when its LM fails."""

import enum
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Literal

import dspy
import pytest
import still
from scripted import ScriptedLM
from still.backends.meter import metered
from still.compiler.metrics import Score, exact
from still.compiler.verdicts import Verdicts, kept_in
from still.errors import EngineError, MetricError
from still.signatures.bridge import Example, Prediction

EXAMPLE = Example(question="Where is it?", customer="Ann", reply="In the post.").with_inputs("question", "customer")
ANSWER = Prediction(reply="On its way.", team="shipping")


def scripted(score=4, reason="Curt.", seen=None):
    def answer(plan, inputs):
        if seen is not None:
            seen.append((plan, dict(inputs)))
        return {"reason": reason, "score": score}

    return ScriptedLM(answer)


@pytest.fixture(params=["outside", "compile"])
def place(request, tmp_path):
    """Where a judge is asked: outside of a compile, or within one."""
    if request.param == "outside":
        yield nullcontext
        return
    with still.Ledger(tmp_path / "ledger.duckdb") as book:
        verdicts = Verdicts(book, "run")
        yield lambda: kept_in(verdicts)


@pytest.mark.parametrize(("score", "value"), [(1, 0.0), (2, 0.25), (3, 0.5), (5, 1.0)])
def test_the_score_is_a_place_between_the_bounds(score, value):
    metric = still.judge("Is the reply polite?", lm=scripted(score))
    assert metric.score(EXAMPLE, ANSWER) == Score(value, "Curt.")
    assert metric.fields(EXAMPLE, ANSWER) == {}


def test_it_is_told_inputs_label_and_prediction():
    seen = []
    metric = still.judge("Is the reply polite?", lm=scripted(seen=seen))
    metric(EXAMPLE, ANSWER)
    plan, inputs = seen[0]
    assert inputs == {
        "inputs": "question: Where is it?\ncustomer: Ann",
        "label": "reply: In the post.",
        "prediction": "reply: On its way.\nteam: shipping",
    }
    assert "Is the reply polite?" in str(plan)
    only = still.judge("Is the reply polite?", lm=scripted(seen=seen), fields=["reply"])
    only(EXAMPLE, ANSWER)
    assert seen[1][1]["prediction"] == "reply: On its way."


def test_without_a_label_nothing_is_said_of_one():
    seen = []
    metric = still.judge("Is it short?", lm=scripted(seen=seen))
    metric(Example(question="Why?").with_inputs("question"), Prediction(reply={"text": "é", "n": None}))
    plan, inputs = seen[0]
    assert inputs == {"inputs": "question: Why?", "prediction": 'reply: {"text": "é", "n": null}'}
    assert "label" not in str(plan)
    named = still.judge("Is it short?", lm=scripted(seen=seen), fields="team")
    named(EXAMPLE, ANSWER)  # the example has a label, but not of this field
    assert seen[1][1].keys() == {"inputs", "prediction"}


def test_the_same_question_is_asked_once():
    lm = scripted()
    metric = still.judge("Is it polite?", lm=lm)
    assert metric(EXAMPLE, ANSWER) == metric(EXAMPLE, Prediction(**ANSWER)) == 0.75
    assert lm.calls == 1
    metric(EXAMPLE, Prediction(reply="No."))
    metric(Example(**{**EXAMPLE, "customer": "Bob"}).with_inputs("question", "customer"), ANSWER)
    assert lm.calls == 3


def test_threads_that_ask_the_same_wait_for_one_answer(place):
    waiting, go = threading.Event(), threading.Event()

    def answer(plan, inputs):
        waiting.set()
        assert go.wait(60)
        return {"reason": "Fine.", "score": 5}

    lm = ScriptedLM(answer)
    metric = still.judge("Is it polite?", lm=lm)

    def ask():
        with place():
            return metric(EXAMPLE, ANSWER)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask) for _ in range(8)]
        assert waiting.wait(60)
        go.set()
        assert [future.result() for future in futures] == [1.0] * 8
    assert lm.calls == 1


def test_an_lm_that_fails_is_a_metric_error_and_is_asked_again(place):
    broken = True

    def answer(plan, inputs):
        if broken:
            raise EngineError("no room")
        return {"reason": "", "score": 5}

    metric = still.judge("Is it polite?", lm=ScriptedLM(answer))

    def ask():
        with place():
            return metric.score(EXAMPLE, ANSWER)

    with pytest.raises(MetricError, match=r"judge\('Is it polite\?'.*example [0-9a-f]{12}: EngineError: no room") as caught:
        ask()
    assert isinstance(caught.value.__cause__, EngineError)
    broken = False
    assert ask() == Score(1.0)


class Grade(enum.IntEnum):
    BAD = 0
    GOOD = 2


@pytest.mark.parametrize(
    ("kind", "options", "score", "value"),
    [
        (int, {"ge": 0, "le": 10}, 3, 0.3),
        (int, {"gt": 0, "lt": 6}, 2, 0.25),
        (float, {"ge": -1, "le": 1}, 0.5, 0.75),
        (bool, {}, True, 1.0),
        (Literal[3, 1, 2], {}, 2, 0.5),
        (Grade, {}, Grade.GOOD, 1.0),
    ],
)
def test_a_signature_may_have_another_scale(kind, options, score, value):
    class Rating(still.Signature):
        """Rate the answer."""

        prediction: str = still.Input()
        score: kind = still.Output(**options)

    metric = still.judge(Rating, lm=ScriptedLM(lambda plan, inputs: {"score": score}))
    assert metric.score(EXAMPLE, ANSWER) == Score(value, "")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (str, {}),
        (int, {}),
        (int, {"ge": 1}),
        (float, {"le": 1}),
        (Literal["bad", "good"], {}),
        (Literal[1], {}),
        (int | None, {}),
    ],
)
def test_a_score_without_bounds_is_refused(kind, options):
    class Rating(still.Signature):
        """Rate the answer."""

        prediction: str = still.Input()
        score: kind = still.Output(**options)

    with pytest.raises(MetricError, match="score of Rating is not bounded"):
        still.judge(Rating, lm=scripted())


class Compare(still.Signature):
    """Does the reply say the same?"""

    question: str = still.Input()
    label_reply: str = still.Input()
    predicted_reply: str = still.Input()
    team: str = still.Input()
    tone: str = still.Input(default="friendly")
    reason: str = still.Output(max_length=80)
    score: bool = still.Output()


def test_a_signature_may_ask_for_single_fields():
    seen = []
    metric = still.judge(Compare, lm=scripted(True, seen=seen))
    assert metric.score(EXAMPLE, ANSWER) == Score(1.0, "Curt.")
    assert seen[0][1] == {
        "question": "Where is it?", "label_reply": "In the post.", "predicted_reply": "On its way.", "team": "shipping",
        "tone": "friendly",
    }  # fmt: skip
    with pytest.raises(MetricError, match="the judge's input 'label_reply' is neither"):
        metric(Example(question="Why?").with_inputs("question"), ANSWER)
    assert repr(metric).startswith("judge('Compare' ")


def test_what_there_is_nothing_to_judge_of():
    lm = scripted()
    metric = still.judge("Is it polite?", lm=lm, fields=["reply"])
    for nothing in (None, {}, 3, Prediction(team="x")):
        assert metric(EXAMPLE, nothing) == 0
    assert lm.calls == 0
    assert metric(EXAMPLE, {"reply": object()}) == 0.75  # the judge sees what it is
    with pytest.raises(MetricError, match="neither example nor prediction has a field 'repyl'"):
        still.judge("Is it polite?", lm=lm, fields=["repyl"])(EXAMPLE, ANSWER)
    with pytest.raises(MetricError, match="with_inputs"):
        metric(Example(reply="x"), ANSWER)


def test_what_is_no_judge():
    for bad in ("", "  ", 3, None, int, Compare.delete("score")):
        with pytest.raises(MetricError, match="judge: "):
            still.judge(bad, lm=scripted())
    with pytest.raises(MetricError, match="judge: lm=3"):
        still.judge("Good?", lm=3)
    with pytest.raises(MetricError, match="judge: lm=None"):
        still.judge("Good?")
    with pytest.raises(MetricError, match="judge: 3 is not a field name"):
        still.judge("Good?", lm=scripted(), fields=[3])
    lm = scripted(5)
    with still.context(lm=lm):
        metric = still.judge("Good?")
    assert metric(EXAMPLE, ANSWER) == 1


def test_names_tell_judges_apart():
    def name(*arguments, **options):
        return repr(still.judge(*arguments, **{"lm": scripted(), **options}))

    names = [
        name("Good?"), name("Good!"), name(Compare), name("Good?", fields=["a"]), name("Good?", temperature=None),
        name("Good?", lm=ScriptedLM(None, "other")), name("x" * 100), name("x" * 101),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name("Good?") == name("Good?")


def test_any_dspy_lm_can_judge():
    lm = dspy.utils.DummyLM([{"reason": "Too short.", "score": "2"}])
    metric = still.judge("Is it polite?", lm=lm)
    assert metric.score(EXAMPLE, ANSWER) == Score(0.25, "Too short.")
    assert metric(EXAMPLE, ANSWER) == 0.25
    assert len(lm.history) == 1
    request = lm.history[0]
    assert request["kwargs"]["temperature"] == 0
    told = str(request["messages"])
    for text in ("Is it polite?", "Where is it?", "In the post.", "On its way."):
        assert text in told
    outside = dspy.utils.DummyLM([{"reason": "x", "score": "7"}] * 3)
    with pytest.raises(MetricError, match="ConstraintError"):
        still.judge("Is it polite?", lm=outside)(EXAMPLE, ANSWER)


def test_it_leaves_no_trace_in_the_program_it_judges():
    trace = []
    with dspy.context(trace=trace, track_usage=True):
        assert still.judge("Is it polite?", lm=scripted())(EXAMPLE, ANSWER) == 0.75
    assert trace == []


def test_a_real_grammar_holds_the_judge(tiny_lm):
    metric = still.judge("Is it polite?", lm=tiny_lm)
    first = metric.score(EXAMPLE, ANSWER)
    assert first.value in (0, 0.25, 0.5, 0.75, 1)
    assert len(first.feedback) <= 300
    assert still.judge("Is it polite?", lm=tiny_lm).score(EXAMPLE, ANSWER) == first


def test_a_compile_with_a_judge_in_it(tmp_path):
    class Reply(still.Signature):
        """Answer."""

        question: str = still.Input()
        reply: Literal["yes", "no"] = still.Output()

    data = still.Dataset([{"question": f"{i}?", "reply": "yes"} for i in range(6)], inputs=["question"])
    judged = ScriptedLM(lambda plan, inputs: {"reason": "So so.", "score": 3}, "judge")
    metric = still.weighted({"reply": (exact, 1), "style": (still.judge("Is it polite?", lm=judged), 1)})
    lm = ScriptedLM(lambda plan, inputs: {"reply": "yes"})
    row = still.evaluate(still.Predict(Reply), data, metric, lm=lm, ledger=tmp_path / "ledger.duckdb", progress=False)
    assert row.score == 0.75
    assert judged.calls == 6
    # As in a new process: the ledger answers for this judge, and not for another.
    again = ScriptedLM(lambda plan, inputs: {"reason": "So so.", "score": 3}, "judge")
    metric = still.weighted({"reply": (exact, 1), "style": (still.judge("Is it polite?", lm=again), 1)})
    row = still.evaluate(still.Predict(Reply), data, metric, lm=lm, ledger=tmp_path / "ledger.duckdb", progress=False)
    assert (row.score, again.calls) == (0.75, 0)
    other = ScriptedLM(lambda plan, inputs: {"reason": "Bad.", "score": 1}, "another judge")
    metric = still.weighted({"reply": (exact, 1), "style": (still.judge("Is it polite?", lm=other), 1)})
    row = still.evaluate(still.Predict(Reply), data, metric, lm=lm, ledger=tmp_path / "ledger.duckdb", progress=False)
    assert (row.score, other.calls) == (0.5, 6)


@pytest.mark.parametrize("same", [False, True], ids=["another judge object", "the same judge object"])
def test_a_resumed_compile_spends_what_its_judge_cost(tmp_path, same):
    """An answer from the ledger counts against the budget as it did at first."""
    data = still.Dataset([{"question": f"{i}?", "reply": "yes"} for i in range(6)], inputs=["question"])
    lms = [ScriptedLM(lambda plan, inputs: {"reason": "So so.", "score": 3}, "judge") for _ in range(2)]
    judges = [still.judge("Is it polite?", lm=lm) for lm in lms]
    spent = []
    for metric in judges[:1] * 2 if same else judges:
        result = still.compile(
            still.Predict("question -> reply"), data, data, metric, level="O0",
            lm=ScriptedLM(lambda plan, inputs: {"reply": "yes"}), ledger=tmp_path / "l.duckdb", progress=False,
            budget=still.Budget(calls=1000),
        )  # fmt: skip
        spent.append((result.report.evidence.points[-1].calls, result.report.evidence.points[-1].tokens))
    assert [lm.calls for lm in lms] == [6, 0]
    assert spent[0] == spent[1] == (12, 12 * 12)


def test_an_answer_costs_once_in_a_compile_and_again_in_the_next(tmp_path):
    lm = scripted()
    metric = still.judge("Is it polite?", lm=lm)
    with still.Ledger(tmp_path / "ledger.duckdb") as book:
        for _ in range(2):
            with metered() as meter, kept_in(Verdicts(book, "run")):
                assert metric(EXAMPLE, ANSWER) == metric(EXAMPLE, ANSWER) == 0.75
            assert (meter.calls, meter.prompt_tokens, meter.decoded_tokens) == (1, 10, 2)
    assert lm.calls == 1


def test_two_judges_that_ask_the_same_ask_once_and_both_count(tmp_path):
    """As they do when the compile is resumed, and both find the answer in the ledger."""
    lm = scripted()
    with still.Ledger(tmp_path / "ledger.duckdb") as book:
        for _ in range(2):
            with metered() as meter, kept_in(Verdicts(book, "run")):
                assert [still.judge("Is it polite?", lm=lm)(EXAMPLE, ANSWER) for _ in range(2)] == [0.75, 0.75]
            assert meter.calls == 2
    assert lm.calls == 1
