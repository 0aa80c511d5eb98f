"""What passes that train weights have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from ..errors import ConstraintError, EngineError, ModelError, SignatureError, TrainingError
from ..signatures.bridge import Example, Module, Prediction
from ..signatures.executor import AdapterFolder
from ..signatures.fieldset import constraints
from ..signatures.layout import lower
from .candidate import Candidate, asked_signature, current_state
from .context import EvaluationContext, PassResult, Standing
from .racing import race
from .weights.lora import Lora
from .weights.pairs import Scored
from .weights.rows import RowWriter
from .weights.student import Precision, Student

if TYPE_CHECKING:
    from .weights.reward import Task


RECORD = "record.json"
"""In the folder of a training that was finished: what is told of it."""
FAILURES = (TrainingError, ModelError, EngineError, MemoryError, OSError)
"""What keeps weights from being trained, and no compile from ending with what it had."""


def untested(context: EvaluationContext, held_out: Sequence[Example] = ()) -> list[int]:
    """Indices of the train examples whose inputs are those of no example of dev, nor of those held out."""
    seen = {inputs_key(example, context) for example in (*context.dev, *held_out)}
    return [i for i, example in enumerate(context.train) if inputs_key(example, context) not in seen]


def inputs_key(example: Example, context: EvaluationContext) -> str:
    """Equal for equal inputs."""
    values = {name: example.get(name) for name in sorted(context.input_fields)}
    return json.dumps(to_jsonable_python(values, fallback=repr), sort_keys=True)


def with_adapter(candidate: Candidate, folder: Path, name: str, predictor: str | None = None) -> Candidate:
    """The candidate with all its predictors, or only the one named, answering with the adapter in a PEFT folder."""
    from ..backends.models import adapter_digest

    adapter = AdapterFolder(adapter_digest(folder), str(folder))
    states = {
        key: replace(state, adapter=adapter) if predictor in (None, key) else state
        for key, state in candidate.states.items()
    }
    return replace(candidate, name=name, states=states)


def kept(ahead: Sequence[Standing], trained: Candidate) -> Candidate:
    """The better one; where they are even, the trained one."""
    own = next(standing for standing in ahead if standing.candidate is trained)
    return trained if own.dropped is None and own.mean >= ahead[0].mean else ahead[0].candidate


@dataclass(frozen=True, slots=True)
class Tuned:
    """A candidate that answers with trained weights, of a program with one predictor."""

    candidate: Candidate
    predictor: str
    adapter: AdapterFolder

    @classmethod
    def of(cls, candidate: Candidate, program: Module) -> Tuned:
        """What was distilled in this compile, or else the weights that the program came with.

        Raises `TrainingError` where there is nothing to go on from.
        """
        predictors = dict(program.named_predictors())
        if not any(state.adapter for state in candidate.states.values()):
            came = {name: state for name in predictors if (state := current_state(predictors[name])).adapter is not None}
            candidate = replace(candidate, states={**candidate.states, **came})
        adapters = {name: state.adapter for name, state in candidate.states.items() if state.adapter is not None}
        if not adapters:
            raise TrainingError("nothing was distilled that it could go on from")
        if len(predictors) != 1:
            raise TrainingError(f"answers are sampled for programs of one predictor, this one has {len(predictors)}")
        ((name, adapter),) = adapters.items()
        return cls(candidate, name, adapter)

    def student(self, model: str, seed: int, precision: Precision) -> Student:
        """A student at the adapter as it is."""
        folder = Path(self.adapter.path)
        student = Student.open(model, Lora.read(folder), seed, precision=precision)
        student.load(folder)
        return student

    def labels(self, program: Module, context: EvaluationContext, indices: Sequence[int]) -> list[list[Scored]]:
        """For each train example its label as an answer, with what the metric says of it; none where there is no label, or
        one that the grammar does not let pass."""
        signature, local = self._asked(program), context.lm.local
        plan, writer = lower(signature), RowWriter(local.engine, local.prompter)
        found: list[list[Scored]] = []
        for example in (context.train[i] for i in indices):
            inputs = {field: example.get(field) for field in plan.slots}
            try:
                values = {name: constraint.coerce(example[name]) for name, constraint in constraints(signature).items()}
                row = writer.write(plan, inputs, values, predictor=self.predictor)
            except (KeyError, ConstraintError, SignatureError, TrainingError):
                found.append([])
            else:
                found.append([Scored(row, context.score(example, Prediction(**values)))])
        return found

    def tasks(self, program: Module, context: EvaluationContext, indices: Sequence[int]) -> list[Task]:
        """Prompts of train examples, with the metric as reward."""
        from .weights.reward import plan_task

        plan, prompter = lower(self._asked(program)), context.lm.local.prompter
        if fed := sorted(set(plan.slots) - context.input_fields):
            raise TrainingError(f"answers are sampled where a predictor's inputs are columns; {fed} come from other steps")
        made = []
        for i in indices:
            example = context.train[i]
            inputs = {field: example.get(field) for field in plan.slots}

            def reward(values: dict[str, Any], example: Any = example) -> float:
                return context.score(example, Prediction(**values))

            made.append(plan_task(plan.bound(inputs), inputs, prompter, reward, key=str(i), predictor=self.predictor))
        return made

    def _asked(self, program: Module) -> Any:
        """The signature of a call."""
        (_, predictor), *_ = self.candidate.apply(program).named_predictors()
        return asked_signature(predictor)


Train = Callable[[Tuned, Module, EvaluationContext, Path], str]


def train_further(
    step: Any, label: str, train: Train, program: Module, baseline: Candidate, context: EvaluationContext
) -> PassResult:  # fmt: skip
    """Go on from trained weights, and race the result, called `label`, against what it started from.

    step: the pass; its settings are part of where the training is kept, and what was finished there is not repeated.
    train: saves the adapter in the folder, `best`, and returns what to say of it. Where it fails, a note says why.
    """
    try:
        tuned = Tuned.of(baseline, program)
        parts = [tuned.adapter.digest, step, context.seed, [sorted(e.items(), key=str) for e in context.train]]
        folder = context.folder / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        told = _recorded(folder / RECORD)
        if told is None:
            told = train(tuned, program, context, folder)
            (folder / RECORD).write_text(json.dumps({"told": told}), "utf-8")
        trained = with_adapter(tuned.candidate, folder / "best", label)
        ahead = race(program, [baseline, trained], context)
    except FAILURES as error:
        return PassResult(baseline, (), (f"{step.name}: {error or 'out of memory'}; {baseline.name} stays",))
    return PassResult(kept(ahead, trained), tuple(ahead), (f"{step.name}: {told}",))


def _recorded(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text("utf-8"))["told"])
    except (OSError, ValueError, KeyError):
        return None
