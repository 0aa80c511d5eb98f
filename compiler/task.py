"""What is to be compiled: the arguments of `compile`, checked and completed before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..backends.retrieval.embedding import embedder_of
from ..backends.retrieval.model_folder import DEFAULT_EMBEDDER
from ..errors import DatasetError, SignatureError, StillError
from ..optimizers.context import Pass
from ..optimizers.decisions import Decisions
from ..optimizers.demonstrations import Demonstrations
from ..optimizers.distil import Distil
from ..optimizers.instructions import Instructions
from ..optimizers.lean import Lean
from ..optimizers.prefer import Prefer
from ..optimizers.search import Search
from ..signatures.bridge import DspyChainOfThought, DspyPredict, Module
from ..signatures.knob import named_knobs
from .dataset import Dataset
from .lms import resolve, usable_lm
from .metrics import Metric, as_metric
from .objective import as_objective

Level = Literal["O0", "O1", "O2", "O3"]

PASSES: dict[str, tuple[Pass, ...]] = {
    "O0": (),
    "O1": (Demonstrations(), Decisions()),
    # Decisions again at the end: a calibration is one for a certain prompt.
    "O2": (Demonstrations(), Decisions(), Instructions(), Search(), Decisions()),
    "O3": (Demonstrations(), Decisions(), Instructions(), Search(), Decisions(), Distil(), Prefer()),
}
"""What each level runs, in order."""


@dataclass(frozen=True, slots=True)
class Task:
    """Program, data, metric, passes and LMs."""

    program: Module
    train: Dataset
    dev: Dataset
    metric: Metric
    level: str
    passes: tuple[Pass, ...]
    lm: Any
    teacher: Any
    """Runs the program for bootstrapping."""
    proposer: Any
    """Asked for instructions: the teacher that the user gave, or None."""
    seed: int
    objective: tuple[str, ...] = ("quality",)
    embedder: str | None = DEFAULT_EMBEDDER
    """What tells which demonstrations are near an input; None: the words they share."""


def make_task(
    program: Module,
    train: Dataset,
    dev: Dataset | None,
    metric: Any,
    level: Level,
    passes: Sequence[Pass] | None,
    lm: Any,
    teacher: Any,
    seed: int,
    objective: Any = "quality",
    embedder: str | None = DEFAULT_EMBEDDER,
) -> Task:
    """Check the arguments of `compile` and fill in their defaults. Raises as it does."""
    if level not in get_args(Level):
        raise StillError(f"level={level!r}: use one of {', '.join(get_args(Level))}")
    goals = as_objective(objective)
    if embedder is not None and embedder != DEFAULT_EMBEDDER:
        embedder_of(embedder)  # a name that is no model's should fail now; the default one may be missing, see the pass
    program, lm = resolve(program, lm)
    proposer = usable_lm(teacher, "teacher") if teacher is not None else None
    if dev is None:
        split = train.split(train=0.6, dev=0.4, test=0, seed=seed)
        train, dev = split.train, split.dev
    train, dev = typed(program, train, "train"), typed(program, dev, "dev")
    steps = _of_level(level, goals) if passes is None else tuple(passes)
    return Task(program, train, dev, as_metric(metric), level, steps, lm, proposer or lm, proposer, seed, goals, embedder)


def _of_level(level: Level, goals: Sequence[str]) -> tuple[Pass, ...]:
    """What a level runs; where latency counts too, leaner candidates before the weights are trained for what is found."""
    steps = PASSES[level]
    if "latency" not in goals or not steps:
        return steps
    weights = next((i for i, step in enumerate(steps) if isinstance(step, Distil)), len(steps))
    return (*steps[:weights], Lean(), *steps[weights:])


def typed(program: Module, dataset: Dataset, role: str) -> Dataset:
    """Check the dataset against the predictors' fields, and give its columns their types."""
    if not isinstance(dataset, Dataset):
        raise DatasetError(f"{role} is a {type(dataset).__name__}: give a still.Dataset (Dataset(rows, inputs=[...]))")
    if not len(dataset):
        raise DatasetError(f"{role} has no rows")
    predictors = program.named_predictors()
    if not predictors and not any(named_knobs(program)):
        raise SignatureError(f"{type(program).__name__} has no predictors and no knobs: there is nothing to compile")
    columns = set(dataset.columns)
    fields = {
        name: info.rebuild_annotation()
        for _, predictor in predictors
        for name, info in predictor.signature.fields.items()
        if name in columns
    }
    if isinstance(program, DspyPredict | DspyChainOfThought):  # what a module's predictor is given, the module may make
        for name, info in predictors[0][1].signature.input_fields.items():
            fields.setdefault(name, info.rebuild_annotation())  # check() then says that the column is missing
    return dataset.check(fields)
