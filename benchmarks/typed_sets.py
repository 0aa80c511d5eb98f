"""The sets of the typed benchmark: rows, a signature for each, and what counts as right.

Every system gets the same signature and the same rows (labels are to be scored, which dspy's adapters do not know and
pass over). Accuracies are fractions; an answer that is missing or of another
type counts 0.

    trec              a question's kind, one of six labels: exact
    snips             a command's intent (seven labels) and its slots, a nested list: mean of intent and slot F1
    facility_support  a message's urgency, sentiment and ten yes-or-no categories: mean over the three fields, categories
                      as the share of the ten that is right
    bfcl              a function call's arguments, typed by the function's own schema: all arguments as expected
"""

# Without postponed annotations: the signatures below name types that are made in their functions.
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel, create_model

DATA = Path(os.environ.get("STILL_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
SEED = 0
LIMITS = {"trec": 64, "snips": 192, "facility_support": 256, "bfcl": 192}
"""Tokens an answer may have. Right answers have at most 19, 155, 143 and 105 in dspy's formats (200 rows a set)."""


@dataclass(frozen=True)
class Row:
    """One input, its signature, and the judge of an answer (0 to 1)."""

    signature: Any
    inputs: dict[str, Any]
    judge: Callable[[Any], float]


def rows_of(name: str, count: int) -> list[Row]:
    """The first `count` rows of a set's test part, shuffled with a fixed seed, and one more in front for the warm-up."""
    file, make = _SETS[name]
    rows = [json.loads(line) for line in (DATA / name / file).read_text("utf-8").splitlines()]
    random.Random(SEED).shuffle(rows)
    return [make(row) for row in rows[: count + 1]]


def is_there(name: str) -> bool:
    """Whether the set's file is on this machine."""
    return (DATA / name / _SETS[name][0]).is_file()


KINDS = {
    "ABBR": "abbreviation", "ENTY": "entity", "DESC": "description", "HUM": "human", "LOC": "location", "NUM": "number",
}  # fmt: skip


def _trec(row: dict[str, Any]) -> Row:
    expected = KINDS[row["label"]]
    return Row(trec_signature(), {"question": row["text"]}, lambda answer: float(answer.kind == expected))


@cache
def trec_signature() -> Any:
    from still import Input, Output, Signature

    class QuestionKind(Signature):
        """Say what kind of answer the question asks for."""

        question: str = Input()
        kind: Literal["abbreviation", "entity", "description", "human", "location", "number"] = Output(decide="score")

    return QuestionKind


def _snips(row: dict[str, Any]) -> Row:
    expected = [(slot["slot"], slot["value"]) for slot in row["slots"]]

    def judge(answer: Any) -> float:
        found = [(slot.name, slot.value) for slot in answer.slots.root]
        return 0.5 * (answer.intent == row["intent"]) + 0.5 * slot_f1(found, expected)

    return Row(snips_signature(), {"command": row["text"]}, judge)


def slot_f1(found: Sequence[tuple[str, str]], expected: Sequence[tuple[str, str]]) -> float:
    """F1 of (name, value) pairs, values apart from case; 1 where there are none and none were found."""
    one, other = (Counter((name, value.casefold()) for name, value in pairs) for pairs in (found, expected))
    size = one.total() + other.total()
    return 2 * (one & other).total() / size if size else 1.0


@cache
def snips_signature(bounded: bool = True, quoted: bool = False) -> Any:
    """bounded: with at most 8 slots, as part of the type (a model's): dspy neither checks nor sends a field's bounds.
    quoted: values are words of the command, which only Still can promise."""
    from still import Input, Output, Quoted, Signature

    rows = [json.loads(line) for line in (DATA / "snips" / "train.jsonl").read_text("utf-8").splitlines()]
    intents = tuple(sorted({row["intent"] for row in rows}))
    names = tuple(sorted({slot["slot"] for row in rows for slot in row["slots"]}))

    class Slot(BaseModel):
        name: Literal[names]  # type: ignore[valid-type]
        value: Annotated[(str, Field(min_length=1, max_length=60), *((Quoted("command"),) if quoted else ()))]

    class Few(RootModel[list[Slot]]):
        root: list[Slot] = Field(max_length=8)

    class Command(Signature):
        """Find what a voice command wants, and the words that say on what."""

        command: str = Input()
        intent: Literal[intents] = Output(decide="score")  # type: ignore[valid-type]
        slots: Few if bounded else list[Slot] = Output()  # type: ignore[valid-type]

    return Command


def _facility(row: dict[str, Any]) -> Row:
    label = row["answer"]

    def judge(answer: Any) -> float:
        same = [getattr(answer.categories, name) == value for name, value in label["categories"].items()]
        right = (answer.urgency == label["urgency"]) + (answer.sentiment == label["sentiment"])
        return float((right + sum(same) / len(same)) / 3)

    return Row(facility_signature(), {"message": row["message"]}, judge)


@cache
def facility_signature() -> Any:
    from still import Input, Output, Signature

    class Categories(BaseModel):
        routine_maintenance_requests: bool
        customer_feedback_and_complaints: bool
        training_and_support_requests: bool
        quality_and_safety_concerns: bool
        sustainability_and_environmental_practices: bool
        cleaning_services_scheduling: bool
        specialized_cleaning_services: bool
        emergency_repair_services: bool
        facility_management_issues: bool
        general_inquiries: bool

    class Support(Signature):
        """Read a message to a facility management company: how urgent it is, its tone, and what it is about."""

        message: str = Input()
        urgency: Literal["low", "medium", "high"] = Output(decide="score")
        sentiment: Literal["negative", "neutral", "positive"] = Output(decide="score")
        categories: Categories = Output(decide="score")

    return Support


def _bfcl(row: dict[str, Any]) -> Row:
    from still import Input, Output, Signature

    (function,) = row["function"]
    (expected,) = row["ground_truth"][0].values()
    arguments = _model(function["name"], function["parameters"])

    class Call(Signature):
        """Fill in the arguments of the function for the request."""

        request: str = Input()
        function: str = Input()
        arguments: Any = Output()

    signature = Call.with_updated_fields("arguments", type_=arguments)
    parameters = json.dumps(function["parameters"]["properties"], ensure_ascii=False)
    described = f"{function['name']}: {function['description']} Parameters: {parameters}"
    inputs = {"request": row["question"][0][0]["content"], "function": described}
    return Row(signature, inputs, lambda answer: float(_as_expected(answer.arguments, expected)))


def _as_expected(arguments: Any, expected: dict[str, list[Any]]) -> bool:
    return _matches(arguments.model_dump(mode="json", by_alias=True), expected)


def _matches(given: dict[str, Any], expected: dict[str, list[Any]]) -> bool:
    """Whether every argument is one of those allowed; "" among them allows to leave it out."""
    return set(given) <= set(expected) and all(
        (given.get(name) is None and "" in allowed) or any(_equal(given.get(name), one) for one in allowed)
        for name, allowed in expected.items()
    )


def _equal(found: Any, expected: Any) -> bool:
    """Equal, strings apart from case, spaces and light punctuation (as BFCL's own checker has it)."""
    if isinstance(found, str) and isinstance(expected, str):
        return _folded(found) == _folded(expected)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_equal, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return _matches(found, expected)  # objects in objects state what each of their members may be
    return bool(found == expected)


def _folded(text: str) -> str:
    return re.sub(r"[\s,./\-_*^]", "", text).casefold().replace("'", '"')


_PLAIN: dict[str, Any] = {"string": str, "integer": int, "float": float, "boolean": bool, "any": str}


def _model(name: str, schema: dict[str, Any]) -> Any:
    """A pydantic model of a function's parameters; parameters that are not required may be None."""
    fields: dict[str, Any] = {}
    for i, (key, value) in enumerate(schema.get("properties", {}).items()):
        kind = _type(key, value)
        # Names such as "from" or "model_config" cannot be attributes: all go by their alias.
        if key in schema.get("required", ()):
            fields[f"p{i}"] = (kind, Field(alias=key))
        else:
            fields[f"p{i}"] = (kind | None, Field(default=None, alias=key))
    return create_model("".join(c for c in name.title() if c.isalnum()), **fields)


def _type(name: str, schema: dict[str, Any]) -> Any:
    if schema.get("enum"):
        return Literal[tuple(schema["enum"])]
    kind = schema.get("type")
    if kind in ("array", "tuple"):
        return list[_type(name, schema.get("items", {"type": "string"}))]  # type: ignore[misc]
    if kind == "dict":
        return _model(name, schema) if schema.get("properties") else dict[str, str]
    return _PLAIN[str(kind)]


_SETS: dict[str, tuple[str, Callable[[dict[str, Any]], Row]]] = {
    "trec": ("test.jsonl", _trec),
    "snips": ("test.jsonl", _snips),
    "facility_support": ("all.jsonl", _facility),
    "bfcl": ("simple_python.jsonl", _bfcl),
}
SETS = tuple(_SETS)
