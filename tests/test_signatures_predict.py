"""Predictors and adapter: programs run through an executor, or through dspy's chat format."""

import asyncio
import copy
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from pydantic import AfterValidator
from still.errors import ConstraintError, SignatureError
from still.signatures.adapter import PlanAdapter, sampling_of
from still.signatures.executor import Completion, Executor, Sampling, Usage
from still.signatures.layout import lower
from still.signatures.module import Module
from still.signatures.plan import Plan, Text
from still.signatures.predict import ChainOfThought, Predict
from still.signatures.signature import Input, Output, Signature

REPO = Path(__file__).resolve().parent.parent


class Ticket(Signature):
    """Route a customer message."""

    message: str = Input()
    team: Literal["orders", "shipping"] = Output()
    urgency: int = Output(ge=1, le=5)


class Scripted(dspy.BaseLM):
    """An executor that answers with given texts by field; keeps what it was asked."""

    def __init__(self, texts: Mapping[str, str], **settings: Any) -> None:
        super().__init__("scripted", **settings)
        self.texts = texts
        self.calls: list[tuple[Plan, dict[str, Any], Sampling, int]] = []

    def execute(self, plan, inputs, sampling=None, n=1):
        self.calls.append((plan, dict(inputs), sampling, n))
        plan.fill(inputs)
        ends = {"newline": "\n", "end": ""}
        texts = {step.field: f" {self.texts[step.field]}{ends[step.terminator]}" for step in plan.decodes}
        values = {step.field: step.parse(texts[step.field]) for step in plan.decodes}
        return [Completion(dict(values), texts, Usage(prompt_tokens=10, decoded_tokens=4)) for _ in range(n)]

    async def aexecute(self, plan, inputs, sampling=None, n=1):
        await asyncio.sleep(0)
        return self.execute(plan, inputs, sampling, n)

    def __deepcopy__(self, memo):
        return self


class Chat(dspy.LM):
    """A remote LM: answers in dspy's chat format, one prepared answer per request."""

    def __init__(self, *answers: dict[str, str]) -> None:
        super().__init__("openai/test", cache=False)
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []

    def forward(self, prompt=None, messages=None, **kwargs):
        raise NotImplementedError

    def __call__(self, prompt=None, messages=None, **kwargs):
        self.requests.append({"messages": messages, **kwargs})
        return [self._text(self.answers.pop(0)) for _ in range(kwargs.get("n") or 1)]

    async def acall(self, prompt=None, messages=None, **kwargs):
        return self(prompt, messages, **kwargs)

    @staticmethod
    def _text(answer):
        return "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in answer.items()) + "[[ ## completed ## ]]"


@pytest.fixture
def lm():
    lm = Scripted({"team": "shipping", "urgency": "3", "reasoning": "It is late.\\nVery.", "answer": "7"})
    with dspy.context(lm=lm):
        yield lm


# --- predictors ---


def test_a_prediction_has_typed_values(lm):
    prediction = Predict(Ticket)(message="Where is it?")
    assert isinstance(prediction, dspy.Prediction)
    assert prediction.team == "shipping"
    assert prediction.urgency == 3
    ((plan, inputs, sampling, n),) = lm.calls
    assert plan == lower(Ticket)
    assert inputs == {"message": "Where is it?"}
    assert sampling == Sampling()
    assert n == 1


def test_a_string_signature(lm):
    assert Predict("question -> answer: int")(question="3 + 4?").answer == 7


def test_chain_of_thought_reasons_first(lm):
    program = ChainOfThought(Ticket)
    prediction = program(message="Where is it?")
    assert prediction.reasoning == "It is late.\nVery."
    assert prediction.team == "shipping"
    assert [step.field for step in lm.calls[0][0].decodes] == ["reasoning", "team", "urgency"]
    assert [name for name, _ in program.named_predictors()] == ["predict"]
    assert isinstance(program.predict, Predict)
    assert isinstance(program, dspy.ChainOfThought)


def test_predict_async(lm):
    async def both() -> list[Any]:
        return [await Predict(Ticket).acall(message="x"), await ChainOfThought(Ticket).acall(message="x")]

    assert [prediction.team for prediction in asyncio.run(both())] == ["shipping", "shipping"]


def test_positional_inputs_and_missing_inputs_say_what_to_do(lm):
    with pytest.raises(ValueError, match=r"predict\(message=input_value"):
        Predict(Ticket)("Where is it?")
    with pytest.raises(SignatureError, match="'message' is missing"):
        Predict(Ticket)()


def test_defaults_and_optional_inputs_fill_in(lm):
    class Question(Signature):
        question: str = Input()
        style: str = Input(default="plain")
        context: str | None = Input()
        answer: int = Output()

    Predict(Question)(question="?")
    plan, inputs, *_ = lm.calls[0]
    assert plan.fill(inputs)[1].text == "question: ?\nstyle: plain\ncontext: none"


def test_a_generic_alias_builds_a_working_predictor(lm):
    program = copy.deepcopy(Predict[Ticket](Ticket))
    assert program(message="x").team == "shipping"


# --- programs ---


class Program(Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = Predict(Ticket)
        self.solve = ChainOfThought("question -> answer: int")

    def forward(self, message: str) -> dspy.Prediction:
        team = self.route(message=message).team
        return dspy.Prediction(team=team, answer=self.solve(question=f"{team}?").answer)


def test_a_module_is_a_dspy_module(lm):
    program = Program()
    assert isinstance(program, dspy.Module)
    assert [name for name, _ in program.named_predictors()] == ["route", "solve.predict"]
    assert program(message="x").answer == 7
    with dspy.context(trace=[]):
        program(message="x")
        trace = dspy.settings.trace
    assert [predictor for predictor, *_ in trace] == program.predictors()
    assert trace[0][1] == {"message": "x"}
    assert trace[0][2].toDict() == {"team": "shipping", "urgency": 3}


def test_state_goes_through_json_and_back(lm, tmp_path):
    program = Program()
    program.route.demos = [dspy.Example(message="a", team="orders", urgency=1)]
    program.route.signature = program.route.signature.with_instructions("Sort.")
    program.save(tmp_path / "program.json")
    restored = Program()
    restored.load(tmp_path / "program.json")
    assert lower(restored.route.signature, restored.route.demos).digest == (
        lower(program.route.signature, program.route.demos).digest
    )
    assert restored(message="x").team == "shipping"
    assert lm.calls[0][0].turns[0].text.startswith("Sort.")


def test_a_deep_copy_is_independent(lm):
    program = Program()
    twin = copy.deepcopy(program)
    twin.route.demos.append({"message": "a", "team": "orders", "urgency": 1})
    assert program.route.demos == []
    assert twin(message="x").team == "shipping"


def test_callbacks_are_told_of_modules_and_lm(lm):
    seen: list[str] = []

    class Recorder(BaseCallback):
        def on_module_start(self, call_id, instance, inputs):
            seen.append(type(instance).__name__)

        def on_lm_start(self, call_id, instance, inputs):
            seen.append(f"lm {inputs['n']}")

        def on_lm_end(self, call_id, outputs, exception=None):
            seen.append(outputs[0].values["team"])

    with dspy.context(callbacks=[Recorder()]):
        Predict(Ticket)(message="x")
        asyncio.run(Predict(Ticket).acall(message="x"))
    assert seen == ["Predict", "lm 1", "shipping"] * 2


def test_usage_is_tracked(lm):
    with dspy.context(track_usage=True):
        usage = Program()(message="x").get_lm_usage()
    assert usage["scripted"]["prompt_tokens"] == 20
    assert usage["scripted"]["total_tokens"] == 28


def test_notebooks_show_a_table():
    program = Program()
    program.route.signature = program.route.signature.with_instructions("a < b")
    html = program._repr_html_()
    assert "a &lt; b" in html
    assert "solve.predict" in html
    assert "message -&gt; team, urgency" in Predict(Ticket)._repr_html_()


# --- unmodified dspy programs ---


def test_a_dspy_predictor_runs_as_a_plan_under_the_adapter(lm):
    class Theirs(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.ChainOfThought("message -> team: str, urgency: int")

        def forward(self, message):
            return self.route(message=message)

    with dspy.context(adapter=PlanAdapter()):
        assert Theirs()(message="x").urgency == 3
        assert asyncio.run(dspy.Predict("question -> answer: int").acall(question="?")).answer == 7
    assert len(lm.calls) == 2


def test_an_adapter_that_the_user_configured_is_kept(lm):
    class Other(dspy.ChatAdapter):
        def __call__(self, lm, lm_kwargs, signature, demos, inputs):
            return [{"team": "other", "urgency": 1}]

    with dspy.context(adapter=Other()):
        assert Predict(Ticket)(message="x").team == "other"
    assert lm.calls == []


def test_dspys_tools_can_format_messages():
    messages = PlanAdapter().format(Ticket, [{"message": "a", "team": "orders", "urgency": 1}], {"message": "b"})
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "team: orders\nurgency: 1"


# --- options ---


def test_sampling_options_come_from_lm_predictor_and_call():
    lm = Scripted({"team": "orders", "urgency": "1"}, temperature=0.3, max_tokens=99)
    predict = Predict(Ticket, temperature=0.5, seed=4)
    with dspy.context(lm=lm):
        predict(message="x", config={"top_p": 0.9})
        prediction = predict(message="x", config={"n": 3})
    assert lm.calls[0][2] == Sampling(temperature=0.5, top_p=0.9, seed=4, max_tokens=99)
    assert lm.calls[1][3] == 3
    assert prediction.completions.team == ["orders"] * 3


def test_rollouts_differ_by_seed():
    seeds = {sampling_of({"rollout_id": i, "temperature": 1.0})[0].seed for i in (1, 2, "a")}
    assert len(seeds) == 3
    assert sampling_of({"rollout_id": 1})[0] == sampling_of({"rollout_id": 1})[0]
    assert sampling_of({"rollout_id": None, "temperature": None}) == (Sampling(), 1)


def test_unknown_options_are_refused(lm):
    with pytest.raises(SignatureError, match="'presence_penalty' is not known"):
        Predict(Ticket, presence_penalty=1.0)(message="x")


class Nearest(list):
    def select(self, inputs):
        return [demo for demo in self if demo["message"] == inputs["message"]]


def test_demonstrations_may_depend_on_the_input(lm):
    predict = Predict(Ticket)
    predict.demos = Nearest({"message": m, "team": "orders", "urgency": 1} for m in "ab")
    predict(message="b")
    asyncio.run(predict.acall(message="c"))
    assert lm.calls[0][0].turns[1].parts[1] == Text("b", trusted=False)
    assert len(lm.calls[1][0].turns) == 3
    assert len(predict.dump_state()["demos"]) == 2


def test_what_counts_as_an_executor():
    assert isinstance(Scripted({}), Executor)
    assert not isinstance(Chat(), Executor)


# --- other LMs ---


def test_other_lms_get_the_chat_format_and_their_answers_are_typed():
    lm = Chat({"team": "orders", "urgency": "2"})
    with dspy.context(lm=lm):
        prediction = Predict(Ticket)(message="x")
    assert (prediction.team, prediction.urgency) == ("orders", 2)
    assert "[[ ## team ## ]]" in lm.requests[0]["messages"][0]["content"]


@pytest.mark.parametrize("run", ["sync", "async"])
def test_an_invalid_answer_is_asked_for_again_with_the_reason(run):
    lm = Chat({"team": "orders", "urgency": "9"}, {"team": "orders", "urgency": "2"})
    with dspy.context(lm=lm):
        predict = Predict(Ticket)
        prediction = predict(message="x") if run == "sync" else asyncio.run(predict.acall(message="x"))
    assert prediction.urgency == 2
    assert len(lm.requests) == 2
    first, second = (request["messages"] for request in lm.requests)
    assert second[: len(first)] == first
    answer, told = second[len(first) :]
    assert answer["role"] == "assistant" and "[[ ## urgency ## ]]\n9" in answer["content"]
    assert told["role"] == "user" and "field 'urgency': 9 is not valid" in told["content"]


def test_three_invalid_answers_are_an_error():
    lm = Chat(*[{"team": "orders", "urgency": "9"}] * 5)
    with dspy.context(lm=lm), pytest.raises(ConstraintError, match=r"3 attempts.*field 'urgency'"):
        Predict(Ticket)(message="x")
    assert len(lm.requests) == 3


def test_of_several_answers_only_the_invalid_are_asked_for_again():
    good, bad = {"team": "orders", "urgency": "2"}, {"team": "shipping", "urgency": "7"}
    lm = Chat(bad, good, bad, bad, good, good)
    with dspy.context(lm=lm):
        prediction = Predict(Ticket)(message="x", config={"n": 3})
    assert prediction.completions.team == ["orders"] * 3
    assert [request.get("n") for request in lm.requests] == [3, 2, 1]


def test_answers_that_stay_invalid_are_left_out_where_others_are_valid():
    good, bad = {"team": "orders", "urgency": "2"}, {"team": "shipping", "urgency": "7"}
    lm = Chat(good, bad, good, bad, bad)
    with dspy.context(lm=lm):
        prediction = Predict(Ticket)(message="x", config={"n": 3})
    assert prediction.completions.urgency == [2, 2]
    assert [request.get("n") for request in lm.requests] == [3, 1, 1]


def test_dspys_dummy_lm_answers():
    lm = dspy.utils.DummyLM([{"team": "orders", "urgency": "9"}, {"team": "orders", "urgency": "2"}])
    with dspy.context(lm=lm, adapter=PlanAdapter()):
        assert dspy.Predict(Ticket)(message="x").urgency == 2


def test_special_dspy_types_take_the_chat_format(lm):
    class Theirs(Chat):
        execute = Scripted.execute
        aexecute = Scripted.aexecute

    chat = Theirs({"answer": "3"})
    signature = dspy.Signature("history: dspy.History, question -> answer: int")
    with dspy.context(lm=chat):
        history = dspy.History(messages=[{"question": "a", "answer": 1}])
        assert Predict(signature)(history=history, question="b").answer == 3


# --- signatures ---


def test_a_signature_is_a_dspy_signature():
    assert issubclass(Ticket, dspy.Signature)
    assert Ticket.instructions == "Route a customer message."
    assert list(Ticket.input_fields) == ["message"]
    assert Ticket.output_fields["urgency"].metadata


def test_a_signature_without_docstring_gets_dspys_instructions():
    class Plain(Signature):
        question: str = Input()
        answer: str = Output()

    assert Plain.instructions == "Given the fields `question`, produce the fields `answer`."


def test_a_signature_from_a_string_or_fields():
    made = Signature("question -> answer: int", "Count.")
    assert made.instructions == "Count."
    assert made.output_fields["answer"].annotation is int
    local = Signature("question -> mood: Mood")
    assert local.output_fields["mood"].annotation is Mood


class Mood(enum.Enum):
    GOOD = "good"


def test_impossible_fields_are_refused_where_they_are_declared():
    with pytest.raises(SignatureError, match="'grade'"):

        class Empty(Signature):
            grade: Literal[()] = Output()  # type: ignore[valid-type]

    with pytest.raises(SignatureError, match="'grade'"):

        class Bounds(Signature):
            grade: int = Output(ge=5, le=4)

    with pytest.raises(SignatureError, match="'name'"):

        class Lengths(Signature):
            name: str = Output(min_length=5, max_length=4)

    with pytest.raises(SignatureError, match=r"'name'.*unclosed group"):

        class Pattern(Signature):
            name: str = Output(pattern="(")

    with pytest.raises(SignatureError, match=r"'name'.*unclosed group"):

        class InputPattern(Signature):
            name: str = Input(pattern="(")
            grade: int = Output()

    with pytest.raises(SignatureError, match="'config'"):

        class Reserved(Signature):
            config: str = Input()
            answer: str = Output()

    with pytest.raises(SignatureError, match="'count'"):
        Signature("question -> count: complex")


def test_names_defined_later_are_checked_when_lowered():
    class Early(Signature):
        grade: "Later" = Output(desc="school grade")

    class Never(Signature):
        grade: "Nowhere" = Output()  # noqa: F821

    assert lower(Early).turns[0].text.endswith("grade: school grade; one of: A, B")
    with pytest.raises(SignatureError, match="'Nowhere', which its module does not define"):
        lower(Never)


Later = Literal["A", "B"]


def test_an_output_cannot_have_the_name_of_a_method():
    with pytest.raises(SignatureError, match=r"output 'items' of Order is the name of a method .* rename it"):

        class Order(Signature):
            """Read."""

            message: str = Input()
            items: list[int] = Output()


@pytest.mark.parametrize("name", ["completions", "instance"])
def test_an_input_cannot_have_a_name_that_calls_need(name):
    with pytest.raises(SignatureError, match=rf"input '{name}' of .* rename it"):
        Signature({name: (str, Input()), "answer": (str, Output())}, "Ask.")


def test_an_output_cannot_have_the_name_of_all_samples():
    with pytest.raises(SignatureError, match=r"output 'completions' of .* is the name of an attribute .* rename it"):
        Signature({"question": (str, Input()), "completions": (list[str], Output())}, "Ask.")


def test_a_demonstration_keeps_the_label_that_a_validator_changes():
    class Graded(Signature):
        text: str = Input()
        grade: Annotated[Literal["A", "B"], AfterValidator(lambda value: value.lower())] = Output()

    assert lower(Graded, [{"text": "x", "grade": "A"}]).turns[2].text == "grade: A"
