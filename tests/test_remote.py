"""Servers: the types go along as a JSON schema, answers are checked and asked for again, scoring is refused."""

import asyncio
import enum
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Annotated, Literal

import dspy
import pytest
import still
from chat_server import Refusal, SchemaLM, serving
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMInvalidRequestError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)
from pydantic import AfterValidator
from still.backends.meter import metered
from still.errors import ConstraintError, SignatureError

GOOD = '{"team": "orders", "urgency": 2}'
TOO_URGENT = '{"team": "orders", "urgency": 9}'
CHAT = "[[ ## team ## ]]\nshipping\n\n[[ ## urgency ## ]]\n3\n\n[[ ## completed ## ]]"
NO_BOUNDS = Refusal(400, "Invalid schema for response_format 'answer': 'maximum' is not permitted.")
NO_SCHEMA = Refusal(422, "This response_format type is unavailable now.")
NO_JSON = Refusal(400, "'response_format.type' must be 'text'")


class Ticket(still.Signature):
    """Route the message."""

    message: str = still.Input()
    team: Literal["orders", "shipping"] = still.Output()
    urgency: int = still.Output(ge=1, le=5)


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Runs a predictor on an LM, by a call or by a coroutine."""

    def run(lm, signature=Ticket, **options):
        predict = still.Predict(signature)
        with still.context(lm=lm):
            if request.param == "sync":
                return predict(message="x", **options)
            return asyncio.run(predict.acall(message="x", **options))

    return run


def conversation(body):
    return body["messages"]


def formats(server):
    """How the format was asked for, per request."""
    kinds = []
    for body in server.requests:
        asked = body.get("response_format") or {"type": None}
        kinds.append("bounds" if "maximum" in json.dumps(asked) else asked["type"])
    return kinds


# --- what is sent ---


def test_the_types_go_along_as_one_schema(ask):
    with serving(GOOD) as server:
        answer = ask(server.lm())
    assert (answer.team, answer.urgency) == ("orders", 2)
    (body,) = server.requests
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "team": {"type": "string", "enum": ["orders", "shipping"]},
                    "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
                },
                "required": ["team", "urgency"],
                "additionalProperties": False,
            },
        },
    }
    # Servers refuse JSON modes where the prompt does not mention it.
    assert "JSON" in conversation(body)[-1]["content"]


def test_demonstrations_are_what_the_schema_asks_for():
    predict = still.Predict(Ticket)
    predict.demos = [{"message": "a", "team": "shipping", "urgency": 1}]
    with serving(GOOD) as server, still.context(lm=server.lm()):
        predict(message="x")
    _, _, shown, _ = conversation(server.requests[0])
    assert shown["role"] == "assistant"
    assert json.loads(shown["content"]) == {"team": "shipping", "urgency": 1}


def test_a_server_of_which_nothing_is_known_is_asked_in_the_chat_format(ask):
    with serving(CHAT) as server:
        assert ask(server.lm(dspy.LM)).team == "shipping"
    assert formats(server) == [None]
    assert "[[ ## team ## ]]" in conversation(server.requests[0])[0]["content"]


def test_a_server_that_was_declared_to_dspy_gets_the_schema(ask):
    with serving(GOOD, GOOD) as server:
        address = f"http://127.0.0.1:{server.server_port}/v1"
        definition = dspy.lm15.ProviderDefinition.chat(
            dspy.lm15.AccessPolicy(provider="my-server", base_url=address),
            compat=dspy.lm15.OpenAIChatCompat(json_schema="send"),
            placeholder_key="none",
        )
        dspy.lm15.register_provider(definition, supports=dspy.lm15.ModelSupport(response_schema=True))
        try:
            assert ask(dspy.LM("my-server/any", cache=False)).urgency == 2
        finally:
            dspy.lm15.unregister_provider("my-server")
    assert formats(server) == ["bounds"]


def test_a_response_format_of_the_users_own_is_kept(ask):
    with serving(GOOD, GOOD, NO_JSON) as server:
        ask(server.lm(response_format={"type": "json_object"}))
        ask(server.lm(), config={"response_format": {"type": "json_object"}})
        with pytest.raises(LMInvalidRequestError):
            ask(server.lm(response_format={"type": "json_object"}))
    assert formats(server) == ["json_object"] * 3


# --- what comes back ---


def test_a_value_outside_its_type_is_shown_to_the_model_with_the_reason(ask):
    garden = '{"team": "garden", "urgency": 1}'
    with serving(TOO_URGENT, garden, GOOD) as server:
        assert ask(server.lm()).urgency == 2
    first, second, third = map(conversation, server.requests)
    # What was said before stays as it was, so that a server's prefix cache holds it.
    assert second[:-2] == first
    assert third[:-2] == second
    assert second[-2] == {"role": "assistant", "content": TOO_URGENT}
    assert second[-1]["role"] == "user"
    assert "field 'urgency': 9 is not valid" in second[-1]["content"]
    assert third[-2] == {"role": "assistant", "content": garden}
    assert "field 'team': 'garden' is not valid" in third[-1]["content"]
    assert formats(server) == ["bounds"] * 3


@pytest.mark.parametrize("text", ["I would say orders.", '{"team": "orders"', '{"team": "orders"}', "[1, 2]", ""])
def test_what_is_no_complete_object_is_asked_for_again(text):
    with serving(text, GOOD) as server, still.context(lm=server.lm()):
        assert still.Predict(Ticket)(message="x").team == "orders"
    told = conversation(server.requests[1])[-2:]
    assert told[0]["role"] == "assistant" and told[0]["content"]
    assert "not valid" in told[1]["content"]


def test_an_object_is_found_between_fences():
    with serving(f"Here it is:\n```json\n{GOOD}\n```") as server, still.context(lm=server.lm()):
        assert still.Predict(Ticket)(message="x").urgency == 2


def test_the_chat_format_is_told_of_errors_too(ask):
    with serving("[[ ## team ## ]]\norders", CHAT.replace("3", "many"), CHAT) as server:
        assert ask(server.lm(dspy.LM)).urgency == 3
    first, second, third = map(conversation, server.requests)
    assert second[:-2] == first and third[:-2] == second
    assert "urgency" in second[-1]["content"]
    assert "many" in third[-1]["content"]


def test_three_wrong_answers_are_an_error_that_names_them(ask):
    wrong = [TOO_URGENT, '{"team": "garden", "urgency": 1}', '{"team": "orders", "urgency": "soon"}']
    with serving(*wrong, GOOD) as server, pytest.raises(ConstraintError, match="no valid answer in 3 attempts") as caught:
        ask(server.lm())
    assert len(server.requests) == 3
    for part in ("field 'urgency': 9", "field 'team': 'garden'", "field 'urgency': 'soon'"):
        assert part in str(caught.value)


def test_of_several_samples_the_valid_ones_are_kept():
    answers = iter([GOOD, TOO_URGENT, '{"team": "shipping", "urgency": 1}', '{"team": "shipping", "urgency": 5}'])
    with serving(lambda body: next(answers)) as server, still.context(lm=server.lm(temperature=1.0)):
        prediction = still.Predict(Ticket)(message="x", config={"n": 3})
    assert prediction.completions.urgency == [2, 1, 5]
    assert [len(conversation(body)) for body in server.requests] == [2, 2, 2, 4]


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


Twice = Annotated[int, AfterValidator(lambda value: value * 2)]
LONG = "12345678901234567890.123456789"


def under_header(text):
    return f"[[ ## value ## ]]\n{text}\n\n[[ ## completed ## ]]"


def valued(kind, **more):
    fields = {"message": (str, still.Input()), "value": (kind, still.Output()), **more}
    return still.Signature(fields)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str | None, "null", None),
        (str | None, "None", None),
        (str | None, "Graz", "Graz"),
        (str | None, '"Graz"', "Graz"),
        (str | None, "007", "007"),
        (str | None, "see [1]", "see [1]"),
        (int | None, "null", None),
        (Literal["a"] | None, "null", None),
        (Literal["a", "None"] | None, "None", "None"),
        (Level, "1", Level.LOW),
        (Level, "LOW", Level.LOW),
        (bool, "True", True),
        (list[Twice], "[1, 2]", [2, 4]),
        (Decimal, LONG, Decimal(LONG)),
        (list[Decimal], f"[{LONG}, 0.5]", [Decimal(LONG), Decimal("0.5")]),
        (list[str], "['a', 'b']", ["a", "b"]),
        (set[int], "{1, 2}", {1, 2}),
        (list[int], "```json\n[1, 2]\n```", [1, 2]),
        (str, "a\\nb", "a\\nb"),
    ],
)
def test_what_stands_under_a_header_is_read_once_and_to_the_last_digit(kind, text, value):
    with serving(under_header(text)) as server, still.context(lm=server.lm(dspy.LM)):
        found = still.Predict(valued(kind))(message="x").value
    assert found == value and type(found) is type(value)


def test_what_may_be_left_out_may_have_no_header():
    signature = valued(int, place=(str | None, still.Output()), note=(str, still.Output(default="-")))
    with serving(under_header("3")) as server, still.context(lm=server.lm(dspy.LM)):
        answer = still.Predict(signature)(message="x")
    assert (answer.value, answer.place, answer.note) == (3, None, "-")


def test_dspys_own_types_are_read_by_dspy_and_the_others_beside_them_here():
    signature = valued(Level, code=(dspy.Code, still.Output()))
    text = "[[ ## value ## ]]\n1\n\n[[ ## code ## ]]\n```python\nprint(1)\n```\n\n[[ ## completed ## ]]"
    with serving(text) as server, still.context(lm=server.lm(dspy.LM)):
        answer = still.Predict(signature)(message="x")
    assert answer.value is Level.LOW
    assert answer.code.code == "print(1)"


def test_decimals_in_json_keep_their_digits():
    signature = valued(Decimal, more=(list[Decimal], still.Output()), share=(float, still.Output()))
    text = f'{{"value": {LONG}, "more": [{LONG}, 0.5], "share": 0.12345678901234567891}}'
    with serving(text) as server, still.context(lm=server.lm()):
        answer = still.Predict(signature)(message="x")
    assert (answer.value, answer.more) == (Decimal(LONG), [Decimal(LONG), Decimal("0.5")])
    assert answer.share == 0.12345678901234567891


# --- what a server refuses ---


def test_what_a_server_refuses_is_left_out_step_by_step_and_not_asked_again(ask):
    with serving(NO_BOUNDS, NO_SCHEMA, NO_JSON, GOOD, TOO_URGENT, GOOD) as server:
        assert ask(server.lm()).team == "orders"
        assert formats(server) == ["bounds", "json_schema", "json_object", None]
        assert ask(server.lm()).team == "orders"
        assert formats(server)[4:] == [None, None]
    assert len({json.dumps(conversation(body)) for body in server.requests[:4]}) == 1


def test_a_schema_without_bounds_is_tried_first():
    with serving(NO_BOUNDS, GOOD) as server, still.context(lm=server.lm()):
        still.Predict(Ticket)(message="x")
    schema = server.requests[1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {
        "team": {"type": "string", "enum": ["orders", "shipping"]},
        "urgency": {"type": "integer"},
    }
    assert schema["required"] == ["team", "urgency"]


def test_refusals_do_not_count_as_attempts():
    with serving(NO_BOUNDS, NO_SCHEMA, TOO_URGENT, TOO_URGENT, GOOD) as server, still.context(lm=server.lm()):
        assert still.Predict(Ticket)(message="x").urgency == 2


def test_an_error_that_is_about_something_else_takes_nothing_from_later_calls(ask):
    other = Refusal(400, "The JSON body has a message that is not allowed.")
    with serving(*[other] * 4, GOOD) as server:
        with pytest.raises(LMInvalidRequestError):
            ask(server.lm())
        assert ask(server.lm()).urgency == 2
    assert formats(server) == ["bounds", "json_schema", "json_object", None, "bounds"]


def test_many_threads_may_meet_the_refusal_at_once():
    def answer(body):
        return NO_BOUNDS if "maximum" in json.dumps(body.get("response_format")) else GOOD

    with serving(answer) as server, ThreadPoolExecutor(8) as threads:
        lm = server.lm()

        def one(i):
            with still.context(lm=lm):
                return still.Predict(Ticket)(message=str(i)).urgency

        assert list(threads.map(one, range(32))) == [2] * 32
    assert set(formats(server)) == {"bounds", "json_schema"}


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refusal(400, "max_tokens is too large"), LMInvalidRequestError),
        (Refusal(400, "8 tokens at most, your JSON has 9", "context_length_exceeded"), ContextWindowExceededError),
        (Refusal(401, "Incorrect API key, see the JSON schema"), LMAuthError),
        (Refusal(408, "Timed out while compiling the schema"), LMTimeoutError),
        (Refusal(500, "The schema made the server fail"), LMServerError),
    ],
)
def test_other_errors_are_raised_as_they_are(ask, refusal, error):
    with serving(refusal) as server:
        with pytest.raises(error) as caught:
            ask(server.lm())
        assert len(server.requests) == 1
    assert type(caught.value) is error


def test_a_server_that_is_not_there_is_an_error_of_dspys(ask):
    with serving() as server:
        lm = server.lm()
    with pytest.raises(LMTransportError):
        ask(lm)


def test_scoring_is_refused_before_anything_is_sent(ask):
    signature = Ticket.with_updated_fields("team", decide="score")
    with serving(GOOD) as server:
        for kind in (SchemaLM, dspy.LM):
            with pytest.raises(SignatureError, match=r"field 'team': .* only still\.LM gives .*decide='decode'"):
                ask(server.lm(kind), signature)
        assert server.requests == []


# --- what dspy keeps of a call ---


def test_usage_history_and_meters_know_every_request(ask):
    with serving(TOO_URGENT, GOOD) as server, still.context(track_usage=True), metered() as meter:
        lm = server.lm()
        usage = ask(lm).get_lm_usage()["openai/scripted"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (60, 4)
    assert (meter.calls, meter.prompt_tokens, meter.cached_tokens, meter.decoded_tokens) == (2, 60, 40, 4)
    assert [len(entry["messages"]) for entry in lm.history] == [2, 4]


@pytest.mark.parametrize("tracked", [False, True])
def test_meters_know_of_requests_that_dspy_makes_itself(tracked):
    with serving("Hello.", CHAT, CHAT) as server, still.context(track_usage=tracked), metered() as outer, metered() as meter:
        lm = server.lm(dspy.LM)
        assert lm("Hi.") == ["Hello."]
        with still.context(lm=lm, adapter=dspy.ChatAdapter()):
            answers = [dspy.Predict(Ticket)(message="x"), asyncio.run(dspy.Predict(Ticket).acall(message="y"))]
    assert (meter.calls, meter.prompt_tokens, meter.cached_tokens, meter.decoded_tokens) == (3, 90, 60, 6)
    assert outer.calls == 3
    for answer in answers if tracked else ():
        assert answer.get_lm_usage()["openai/scripted"]["prompt_tokens"] == 30


def test_callbacks_are_told_of_every_request(ask):
    seen = []

    class Recorder(BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            seen.append("lm")

        def on_lm_end(self, call_id, outputs, exception=None):
            seen.append(outputs)

    with serving(TOO_URGENT, GOOD) as server, still.context(callbacks=[Recorder()]):
        ask(server.lm())
    assert seen == ["lm", [TOO_URGENT], "lm", [GOOD]]


def test_the_adapter_alone_finds_its_backend():
    code = (
        "from still.signatures.adapter import PlanAdapter; import dspy\n"
        "with dspy.context(lm=dspy.utils.DummyLM([{'answer': '3'}]), adapter=PlanAdapter()):\n"
        "    print(dspy.Predict('question -> answer: int')(question='?').answer + 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4"]
