"""What type checkers know of an answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent

SNIPPET = """
from collections.abc import Mapping
from datetime import date
from typing import Any, Literal
from typing_extensions import assert_type
from pydantic import BaseModel
from still.signatures.executor import Piece
from still.signatures.predict import ChainOfThought, Predict
from still.signatures.signature import Input, Output, Signature

class Item(BaseModel):
    sku: str
    count: int

class Ticket(Signature):
    '''Route.'''
    message: str = Input(desc="x")
    team: Literal["orders", "shipping"] = Output(decide="score")
    urgency: int | None = Output(ge=1, default=None)
    wanted: list[Item] = Output()
    due: date = Output()

class Own(Signature):
    reasoning: int = Output()  # pyright: ignore (a property of the base, for ChainOfThought)

predict = Predict(Ticket)
answer = predict(message="x")
assert_type(predict, Predict[Ticket])
assert_type(answer.team, Literal["orders", "shipping"])
assert_type(answer.wanted[0].count, int)
assert_type(answer.due.year, int)
assert_type(answer.probabilities, Mapping[str, Mapping[Any, float]])
assert_type(answer.truncated, tuple[str, ...])
assert_type(ChainOfThought(Ticket)(message="x").urgency, int | None)
print(ChainOfThought(Ticket)(message="x").reasoning)
stream = predict.stream(message="x")
for piece in stream:
    assert_type(piece, Piece)
assert_type(stream.prediction.due, date)
async def wait() -> None:
    assert_type((await predict.acall(message="x")).urgency, int | None)
    async for piece in predict.astream(message="x"):
        assert_type(piece.text, str)
Predict("question -> answer")(question="x").answer
Predict(Signature("question -> answer"))(question="x").answer
answer.tema  # E: tema
predict("x")  # E: Never
Output(decide="guess")  # E: guess
"""


@pytest.fixture
def snippet(tmp_path):
    (tmp_path / "still").symlink_to(REPO)
    (tmp_path / "snippet.py").write_text(SNIPPET)
    return tmp_path


def judge(errors, output):
    """errors: (line, message) pairs that the checker found."""
    expected = {i: line.split("# E: ")[1] for i, line in enumerate(SNIPPET.splitlines(), 1) if "# E: " in line}
    assert sorted({line for line, _ in errors}) == list(expected), output
    assert all(expected[line] in message for line, message in errors), output


def test_mypy_knows_the_fields_of_an_answer(snippet):
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(REPO / "pyproject.toml"), "snippet.py"],
        cwd=snippet,
        env={**os.environ, "MYPYPATH": str(snippet), "MYPY_CACHE_DIR": str(REPO / ".mypy_cache")},
        capture_output=True,
        text=True,
    )
    found = [line for line in run.stdout.splitlines() if line.startswith("snippet.py:") and "error" in line]
    judge([(int(line.split(":")[1]), line) for line in found], run.stdout + run.stderr)


def test_pyright_knows_the_fields_of_an_answer(snippet):
    pytest.importorskip("basedpyright")
    settings = {
        "include": ["snippet.py"],
        "extraPaths": ["."],
        "typeCheckingMode": "standard",
        "reportMissingTypeStubs": False,
    }
    (snippet / "pyrightconfig.json").write_text(json.dumps(settings))
    run = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=snippet, capture_output=True, text=True,
    )  # fmt: skip
    found = [
        (one["range"]["start"]["line"] + 1, one["message"])
        for one in json.loads(run.stdout)["generalDiagnostics"]
        if one["severity"] == "error" and one["file"].endswith("snippet.py")
    ]
    judge(found, run.stdout + run.stderr)
