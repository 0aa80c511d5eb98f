"""A server for tests: speaks OpenAI's chat protocol on this machine and answers from a script."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy


class Refusal:
    """An answer that is an error: a status and what the server says."""

    def __init__(self, status, message, code=None):
        self.status, self.error = status, {"message": message, "type": "invalid_request_error", "code": code}


class Server(ThreadingHTTPServer):
    """`script`: a text or a `Refusal` per request, or a function from the request's body to one of these.

    `requests` has the bodies received, in order.
    """

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.lock = [], threading.Lock()
        left = iter(() if callable(script) else script)
        self.answer = script if callable(script) else lambda body: next(left)

    def lm(self, kind=None, **options):
        """A client of this server: `SchemaLM` unless another class is given."""
        settings = {"cache": False, "num_retries": 0, "api_key": "x", **options}
        return (kind or SchemaLM)("openai/scripted", api_base=f"http://127.0.0.1:{self.server_port}/v1", **settings)


@contextmanager
def serving(*script):
    """A running `Server`; a single function as the script computes the answers."""
    server = Server(script[0] if len(script) == 1 and callable(script[0]) else script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class SchemaLM(dspy.LM):
    """An LM of whose server dspy knows that it takes schemas; of a plain `dspy.LM("openai/scripted")` it knows nothing."""

    supports_response_schema = True
    supported_params = frozenset({"response_format", "temperature", "max_tokens", "n"})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            answer = self.server.answer(body)
        if isinstance(answer, Refusal):
            self.reply(answer.status, {"error": answer.error})
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        usage = {
            "prompt_tokens": 30,
            "completion_tokens": 2,
            "total_tokens": 32,
            "prompt_tokens_details": {"cached_tokens": 20},
        }
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
