"""Servers: the types go along as a JSON schema, answers are checked and asked for again, scoring is refused."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import dspy
import pytest
import still
from still.errors import ConstraintError, SignatureError


class Ticket(still.Signature):
    """Route the message."""

    message: str = still.Input()
    team: Literal["orders", "shipping"] = still.Output()
    urgency: int = still.Output(ge=1, le=5)


class Server(ThreadingHTTPServer):
    """Speaks OpenAI's chat protocol; answers from a script: text, or a status code to fail with."""

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests = list(script), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def lm(self):
        return Remote(
            "openai/scripted", api_base=f"http://127.0.0.1:{self.server_port}/v1", api_key="x", cache=False, num_retries=0,
            max_tokens=64,
        )  # fmt: skip


class Remote(dspy.LM):
    """An LM of whose server dspy knows that it takes schemas."""

    supports_response_schema = True
    supported_params = frozenset({"response_format", "temperature", "max_tokens", "n"})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        answer = self.server.script.pop(0)
        if isinstance(answer, int):
            self.reply(answer, {"error": {"message": "refused by the test", "type": "invalid_request_error", "code": None}})
            return
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        self.reply(200, {**head, "choices": [choice], "usage": usage})

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_): ...


GOOD = '{"team": "orders", "urgency": 2}'
CHAT = "[[ ## team ## ]]\nshipping\n\n[[ ## urgency ## ]]\n3\n\n[[ ## completed ## ]]"


@pytest.fixture
def serve():
    servers = []

    def start(*script):
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server):
    with still.context(lm=server.lm):
        return still.Predict(Ticket)(message="x")


def schema_of(request):
    return request["response_format"]["json_schema"]["schema"]


def test_the_types_go_along_as_a_schema_with_their_bounds(serve):
    server = serve(GOOD)
    answer = ask(server)
    assert (answer.team, answer.urgency) == ("orders", 2)
    schema = schema_of(server.requests[0])
    assert schema["properties"]["team"]["enum"] == ["orders", "shipping"]
    assert (schema["properties"]["urgency"]["minimum"], schema["properties"]["urgency"]["maximum"]) == (1, 5)
    assert schema["required"] == ["team", "urgency"]
    assert schema["additionalProperties"] is False


def test_a_value_outside_its_type_is_asked_for_again_with_the_error(serve):
    server = serve('{"team": "orders", "urgency": 9}', GOOD)
    assert ask(server).urgency == 2
    assert len(server.requests) == 2
    assert "urgency" in json.dumps(server.requests[1]["messages"])
    assert "refused" in json.dumps(server.requests[1]["messages"])


def test_text_that_is_no_json_is_asked_for_again(serve):
    server = serve("I would say orders.", GOOD)
    assert ask(server).team == "orders"


def test_three_wrong_answers_are_an_error(serve):
    server = serve(*['{"team": "garden", "urgency": 2}'] * 3)
    with pytest.raises(ConstraintError, match="no valid answer in 3 attempts"):
        ask(server)
    assert len(server.requests) == 3


def test_a_server_that_refuses_the_schema_is_asked_without(serve):
    server = serve(400, CHAT)
    assert ask(server).team == "shipping"
    assert "response_format" not in server.requests[1]


def test_other_errors_of_the_server_are_its_own(serve):
    from dspy.utils.exceptions import LMError

    with pytest.raises(LMError):
        ask(serve(400, 400))
    with pytest.raises(LMError):
        ask(serve(500, 500, 500))


def test_scoring_is_refused_before_anything_is_sent(serve):
    server = serve(GOOD)
    signature = Ticket.with_updated_fields("team", decide="score")
    with still.context(lm=server.lm), pytest.raises(SignatureError, match=r"field 'team': .* only still\.LM gives"):
        still.Predict(signature)(message="x")
    assert server.requests == []


def test_async_calls(serve):
    import asyncio

    server = serve('{"team": "orders", "urgency": 9}', GOOD)

    async def main():
        with still.context(lm=server.lm):
            return await still.Predict(Ticket).acall(message="x")

    assert asyncio.run(main()).urgency == 2
