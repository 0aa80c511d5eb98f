"""The sets of the compile benchmark: a signature, examples to train, choose and test by, and the metric.

All systems get the same of each. Train, dev and test never share a row: where a set has a test file, train and dev come
from its train file.

    banking77         a bank customer's intent, one of 77: exact. Two examples of each intent to train by
    trec              a question's kind, one of six: exact
    sst2              a film review's sentiment: exact
    snips             a command's intent and slots: mean of intent and slot F1
    facility_support  a message's urgency, sentiment and ten yes-or-no categories: mean over the three fields
    math_word         the number that answers a word problem of one or two steps (MAWPS): exact
"""

# Without postponed annotations: the signatures below name types that are made in their functions.
import json
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from typed_sets import DATA, KINDS, facility_signature, slot_f1, snips_signature, trec_signature

SEED = 0
TEST = 100
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One set. metric: of an example and a prediction, 0 to 1."""

    signature: Any
    train: list[Any]
    dev: list[Any]
    test: list[Any]
    metric: Callable[[Any, Any], float]


def task_of(name: str) -> Task:
    """The set `name` with its rows drawn by a fixed seed."""
    return _TASKS[name]()


def is_there(name: str) -> bool:
    """Whether the set is on this machine."""
    return (DATA / name).is_dir()


def _rows(name: str, file: str) -> Rows:
    rows = [json.loads(line) for line in (DATA / name / file).read_text("utf-8").splitlines()]
    random.Random(SEED).shuffle(rows)
    return rows


def _examples(rows: Rows, inputs: str) -> list[Any]:
    import dspy

    return [dspy.Example(**row).with_inputs(inputs) for row in rows]


def _task(signature: Any, known: Rows, test: Rows, sizes: tuple[int, int], metric: Callable[[Any, Any], float]) -> Task:
    train, dev = sizes
    (name,) = signature.input_fields
    parts = known[:train], known[train : train + dev], test[:TEST]
    return Task(signature, *(_examples(part, name) for part in parts), metric)


def _exact(field: str) -> Callable[[Any, Any], float]:
    return lambda example, prediction: float(getattr(prediction, field, None) == getattr(example, field))


def _trec() -> Task:
    known, test = (
        [{"question": row["text"], "kind": KINDS[row["label"]]} for row in _rows("trec", file)]
        for file in ("train.jsonl", "test.jsonl")
    )
    return _task(trec_signature(), known, test, (100, 100), _exact("kind"))


def _sst2() -> Task:
    from still import Input, Output, Signature

    class Review(Signature):
        """Say whether the review speaks well or ill of the film."""

        review: str = Input()
        sentiment: Literal["positive", "negative"] = Output(decide="score")

    known, test = (
        [{"review": row["text"], "sentiment": row["label"]} for row in _rows("sst2", file)]
        for file in ("train.jsonl", "test.jsonl")
    )
    return _task(Review, known, test, (100, 100), _exact("sentiment"))


def _banking77() -> Task:
    known, test = (
        [{"message": row["text"], "intent": row["label"]} for row in _rows("banking77", file)]
        for file in ("train.jsonl", "test.jsonl")
    )
    by_intent = defaultdict(list)
    for row in known:
        by_intent[row["intent"]].append(row)
    labels = sorted(by_intent)
    taken = [by_intent[label][i] for i in range(3) for label in labels if i < len(by_intent[label])]
    train, rest = taken[: 2 * len(labels)], taken[2 * len(labels) :]
    return _task(_intent_signature(tuple(labels)), train + rest, test, (len(train), len(rest)), _exact("intent"))


@cache
def _intent_signature(labels: tuple[str, ...]) -> Any:
    from still import Input, Output, Signature

    class Intent(Signature):
        """Say what the customer of the bank wants."""

        message: str = Input()
        intent: Literal[labels] = Output(decide="score")  # type: ignore[valid-type]

    return Intent


def _snips() -> Task:
    signature = snips_signature(bounded=False)
    (slot,) = signature.output_fields["slots"].annotation.__args__
    known, test = (
        [
            {
                "command": row["text"],
                "intent": row["intent"],
                "slots": [slot(name=one["slot"], value=one["value"][:60]) for one in row["slots"]],
            }
            for row in _rows("snips", file)
            if len(row["slots"]) <= 8
        ]
        for file in ("train.jsonl", "test.jsonl")
    )

    def metric(example: Any, prediction: Any) -> float:
        pairs = ([(one.name, one.value) for one in getattr(side, "slots", None) or ()] for side in (prediction, example))
        return 0.5 * (getattr(prediction, "intent", None) == example.intent) + 0.5 * slot_f1(*pairs)

    return _task(signature, known, test, (100, 100), metric)


def _facility() -> Task:
    signature = facility_signature()
    categories = signature.output_fields["categories"].annotation
    rows = [
        {
            "message": row["message"],
            "urgency": row["answer"]["urgency"],
            "sentiment": row["answer"]["sentiment"],
            "categories": categories(**row["answer"]["categories"]),
        }
        for row in _rows("facility_support", "all.jsonl")
    ]

    def metric(example: Any, prediction: Any) -> float:
        found = getattr(prediction, "categories", None)
        same = [getattr(found, name, None) == value for name, value in example.categories.model_dump().items()]
        right = sum(getattr(prediction, name, None) == getattr(example, name) for name in ("urgency", "sentiment"))
        return (right + sum(same) / len(same)) / 3

    return _task(signature, rows[TEST:], rows, (50, 50), metric)


def _math_word() -> Task:
    from still import Input, Output, Signature

    class Problem(Signature):
        """Solve the word problem."""

        question: str = Input()
        answer: float = Output()

    known, test = (
        [{"question": row["question"], "answer": float(row["final"])} for row in _rows("math_word", file)]
        for file in ("mawps_train.jsonl", "mawps_test.jsonl")
    )

    def metric(example: Any, prediction: Any) -> float:
        found = getattr(prediction, "answer", None)
        return float(isinstance(found, int | float) and abs(found - example.answer) < 1e-3)

    return _task(Problem, known, test, (100, 100), metric)


_TASKS: dict[str, Callable[[], Task]] = {
    "banking77": _banking77,
    "trec": _trec,
    "sst2": _sst2,
    "snips": _snips,
    "facility_support": _facility,
    "math_word": _math_word,
}
SETS = tuple(_TASKS)
