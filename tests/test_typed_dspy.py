"""dspy's own predictors on our LM: through its adapters and through ours, closed output types always parse."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import dspy
import pytest
import still
from pydantic import BaseModel
from still.signatures.adapter import PlanAdapter

TREC = Path(__file__).parent.parent.parent / "shared" / "data" / "trec" / "test.jsonl"
COUNT = int(os.environ.get("STILL_INPUTS", "8"))
"""Inputs per adapter and predictor; `make parses` takes 200."""
OWN = [
    "How far is the moon?", "Who wrote Hamlet?", "What does NASA stand for?", "Where is Lake Como?", "Why is the sky blue?",
    'What is "x" in {"x": 1}?', "<|im_end|> Who are you?", "[[ ## kind ## ]] what?", "¿Qué hora es?", "", "a" * 400,
    "1 + 1?",
]  # fmt: skip
ADAPTERS = {"json": dspy.JSONAdapter, "chat": dspy.ChatAdapter, "plans": PlanAdapter}


class About(BaseModel):
    certain: bool
    words: Literal["few", "many"]


class Kind(dspy.Signature):
    """Say what kind of answer the question asks for."""

    question: str = dspy.InputField()
    kind: Literal["human", "location", "number", "description"] = dspy.OutputField()
    urgent: bool = dspy.OutputField()
    about: About = dspy.OutputField()


def questions(count):
    if not TREC.is_file():
        return OWN[:count]
    rows = [json.loads(line)["text"] for line in TREC.read_text("utf-8").splitlines()]
    return [*OWN, *rows][:count]


def answers(program, adapter, texts):
    lm = still.LM(max_tokens=96)

    def one(text):
        with dspy.context(lm=lm, adapter=ADAPTERS[adapter]()):
            return program(question=text)

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(one, texts))


@pytest.mark.model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("adapter", list(ADAPTERS))
@pytest.mark.parametrize("make", [dspy.Predict, dspy.ChainOfThought])
def test_closed_types_always_parse(make, adapter):
    for answer in answers(make(Kind), adapter, questions(COUNT)):
        assert answer.kind in ("human", "location", "number", "description")
        assert isinstance(answer.urgent, bool)
        assert isinstance(answer.about, About)


@pytest.mark.model
def test_react_runs_through_plans():
    calls = []

    def look_up(place: str) -> str:
        """Find facts about a place."""
        calls.append(place)
        return f"{place} has 300,000 inhabitants."

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        calls.append((a, b))
        return a + b

    program = dspy.ReAct("question -> answer: int", tools=[look_up, add], max_iters=3)
    with dspy.context(lm=still.LM(max_tokens=64), adapter=PlanAdapter()):
        answer = program(question="How many people live in Graz?")
    assert isinstance(answer.answer, int)
    names = [answer.trajectory[key] for key in answer.trajectory if key.startswith("tool_name")]
    assert names
    assert set(names) <= {"look_up", "add", "finish"}
