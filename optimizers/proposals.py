"""Instructions proposed by a teacher, from the program, the data, and what went wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from ..errors import LedgerError
from ..signatures.bridge import Example
from ..signatures.bridge import context as running
from ..signatures.fields import Input, Output
from ..signatures.predict import Predict
from ..signatures.signature import Signature
from .brief import Brief
from .context import EvaluationContext, Outcome, PredictorTrace

SHOWN = 5
"""Examples, and failures, that a teacher is shown."""
TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Failure:
    """An example that went wrong, and the call of the predictor in question, where the program has several."""

    example: Example
    outcome: Outcome
    call: PredictorTrace | None = None


class Propose(Signature):
    """You write instructions for a small language model. Given a task as it is set now, some examples and some of the
    model's mistakes, write better instructions: say what to do, what tells similar cases apart, and what to watch out for.
    Write the instructions only, in at most 120 words, and do not repeat the examples."""

    program: str = Input(desc="source of the program that the task is a step of; empty where it is all of it")
    data: str = Input(desc="what the columns of the training data hold")
    task: str = Input(desc="inputs and outputs, with their types")
    current_instructions: str = Input()
    examples: str = Input()
    mistakes: str = Input(desc="what the model answered, and what was wrong with it")
    tip: str = Input()
    better_instructions: str = Output(max_length=1200)


TIPS = (
    "Be short and precise.",
    "Explain how to tell the outputs apart.",
    "Name the mistake to avoid.",
    "Describe what a good answer looks like.",
)


def proposals(
    signature: Any,
    failures: Sequence[Failure],
    context: EvaluationContext,
    count: int,
    seed: int,
    told: Brief,
    failed: list[str],
) -> Iterator[str]:
    """Ask the teacher `count` times, with other examples and another tip each time. A call that fails is skipped, and why is
    added to `failed`."""
    rng = random.Random(f"{seed}/proposals")
    train = list(context.train)
    for i in range(count):
        shown = rng.sample(train, min(SHOWN, len(train)))
        wrong = rng.sample(list(failures), min(SHOWN, len(failures)))
        try:
            text = _proposed(_question(signature, shown, wrong, told, TIPS[i % len(TIPS)]), f"{seed}/{i}", context)
        except LedgerError:
            raise
        except Exception as error:  # of a server any: what the compile has found so far must not be lost by it
            failed.append(f"{type(error).__name__}: {error}")
            continue
        if text:
            yield text


def _question(
    signature: Any, shown: Sequence[Example], wrong: Sequence[Failure], told: Brief, tip: str
) -> dict[str, str]:
    """Inputs of `Propose`."""
    return {
        "program": told.program,
        "data": told.data,
        "task": _task(signature),
        "current_instructions": signature.instructions,
        "examples": "\n".join(_example(example) for example in shown),
        "mistakes": "\n".join(_mistake(failure) for failure in wrong) or "none yet",
        "tip": tip,
    }


def _proposed(inputs: dict[str, str], rollout: str, context: EvaluationContext) -> str:
    """rollout: tells questions apart that are the same, but for the answer that is drawn."""

    def ask() -> str:
        with running(lm=context.proposer):
            answer = Predict(Propose, temperature=TEMPERATURE)(**inputs, config={"rollout_id": rollout})
        return str(answer.better_instructions).strip()

    asked: Any = Propose
    return context.ask_once([asked.instructions, TEMPERATURE, rollout, inputs], ask)


def _task(signature: Any) -> str:
    from ..signatures.fieldset import constraints

    outputs = "; ".join(f"{name}: {constraint.describe()}" for name, constraint in constraints(signature).items())
    return f"inputs: {', '.join(signature.input_fields)}. outputs: {outputs}"


def _mistake(failure: Failure) -> str:
    said = failure.outcome.feedback or failure.outcome.error or "wrong"
    if (call := failure.call) is not None and (call.inputs or call.outputs):
        own = f"asked {_shown(call.inputs)}, answered {_shown(call.outputs)}; the program: "
        return f"{own}{_example(failure.example)} -> {said}"
    return f"{_example(failure.example)} -> {said}"


def _example(example: Example) -> str:
    return _shown(dict(example.items()))


def _shown(values: Mapping[str, Any]) -> str:
    return to_json(values, fallback=str).decode()[:600]
