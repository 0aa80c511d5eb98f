"""The sets of the weights benchmark: more rows to train on than those of the compile benchmark, closed outputs decoded.

    banking77   a bank customer's intent, one of 77: exact. 2,775 rows to train on, 300 to choose by, 500 to test
    trec        a question's kind, one of six: exact. 2,000, 300 and 500 rows
    snips       a command's intent and slots, quoted from it: 1 if the intent and every slot are right. 2,400 (400 of them of
                the dev file), 300 and 500 rows; six epochs, an adapter of rank 64
"""

# Without postponed annotations: the signatures below name types that are made in their functions.
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from compile_sets import _rows
from typed_sets import KINDS, snips_signature

TRAIN = {"banking77": 2775, "trec": 2000, "snips": 2000}
EPOCHS = {"snips": 6}
RANKS = {"snips": 64}
"""Where three epochs and rank 16, the defaults, are too few: values of slots take more time and room than labels."""
DEV = 300
TEST = 500


@dataclass(frozen=True)
class Task:
    """One set, as Still's datasets."""

    signature: Any
    train: Any
    dev: Any
    test: Any
    metric: Any
    epochs: int
    rank: int


def task_of(name: str) -> Task:
    """The set `name` with its rows drawn by a fixed seed; dev is of its dev file, whose other rows are trained on too, or if
    it has none, of its train file."""
    from still import Dataset

    signature, read, metric = _TASKS[name]()
    known, test = ([read(row) for row in _rows(name, file)] for file in ("train.jsonl", "test.jsonl"))
    inputs, train = list(signature.input_fields), TRAIN[name]
    others = [read(row) for row in _rows(name, "dev.jsonl")] if name == "snips" else known[train:]
    more = others[DEV:] if name == "snips" else []
    parts = [*known[:train], *more], others[:DEV], test[:TEST]
    sets = (Dataset(part, inputs=inputs) for part in parts)
    return Task(signature, *sets, metric, EPOCHS.get(name, 3), RANKS.get(name, 16))


Made = tuple[Any, Callable[[dict[str, Any]], dict[str, Any]], Any]


def _trec() -> Made:
    from still import Input, Output, Signature

    class Question(Signature):
        """Say what kind of answer the question asks for."""

        question: str = Input()
        kind: Literal[tuple(KINDS.values())] = Output()  # type: ignore[valid-type]

    return Question, lambda row: {"question": row["text"], "kind": KINDS[row["label"]]}, "exact"


def _banking77() -> Made:
    from still import Input, Output, Signature

    labels = tuple(sorted({row["label"] for row in _rows("banking77", "train.jsonl")}))

    class Intent(Signature):
        """Say what the customer of the bank wants."""

        message: str = Input()
        intent: Literal[labels] = Output()  # type: ignore[valid-type]

    return Intent, lambda row: {"message": row["text"], "intent": row["label"]}, "exact"


def _snips() -> Made:
    signature = snips_signature(bounded=False, quoted=True)
    (slot,) = signature.output_fields["slots"].annotation.__args__

    def read(row: dict[str, Any]) -> dict[str, Any]:
        slots = [slot(name=one["slot"], value=one["value"][:60]) for one in row["slots"]]
        return {"command": row["text"], "intent": row["intent"], "slots": slots}

    def all_right(example: Any, prediction: Any) -> float:
        """Order does not count."""
        pairs = [sorted((one.name, one.value) for one in side.slots) for side in (example, prediction)]
        return float(prediction.intent == example.intent and pairs[0] == pairs[1])

    return signature, read, all_right


_TASKS: dict[str, Callable[[], Made]] = {"banking77": _banking77, "trec": _trec, "snips": _snips}
SETS = tuple(_TASKS)
