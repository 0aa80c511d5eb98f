"""What passes that train weights have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from ..errors import ConstraintError, EngineError, ModelError, SignatureError, TrainingError
from ..signatures.adapter import PlanAdapter
from ..signatures.bridge import DspyChainOfThought, DspyPredict, Example, Module
from ..signatures.bridge import context as running
from ..signatures.executor import AdapterFolder
from ..signatures.fieldset import constraints
from ..signatures.layout import lower
from ..signatures.prediction import from_values
from ..signatures.values import is_same
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
TRIALS = 3
"""Train examples on which a program is run to see whether what its predictor says is what it returns."""
LABELS = 16
"""That are scored between two looks at the budget: a judge may be asked of each."""


def is_plain(program: Module) -> bool:
    """Whether a program is a predictor, which is given what the program is, and says what that returns."""
    return isinstance(program, DspyPredict | DspyChainOfThought)


def untested(context: EvaluationContext, held_out: Sequence[Example] = ()) -> list[int]:
    """Indices of the train examples whose inputs are those of no example of dev, nor of those held out."""
    seen = {inputs_key(example, context) for example in (*context.dev, *held_out)}
    return [i for i, example in enumerate(context.train) if inputs_key(example, context) not in seen]


def inputs_key(example: Example, context: EvaluationContext) -> str:
    """Equal for equal inputs."""
    return _as_text({name: example.get(name) for name in sorted(context.input_fields)})


def content(example: Example) -> str:
    """Equal for examples that have the same values."""
    return _as_text(dict(example.items()))


def _as_text(values: dict[str, Any]) -> str:
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

    def key(self, step: Any, program: Module, context: EvaluationContext, indices: Sequence[int]) -> str:
        """Digest of what a training by this pass depends on. indices: of the train examples that it may look at."""
        parts = [
            self.candidate.digest, lower(self._asked(program)).digest, context.lm.digest, context.metric,
            replace(step, held_out=()),  # which examples it keeps away the indices say
            context.seed, sorted(context.input_fields), [(i, content(context.train[i])) for i in indices],
        ]  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def check(self, program: Module, context: EvaluationContext, indices: Sequence[int]) -> None:
        """Raise `TrainingError` where the program makes something of its own of its inputs or of the predictor's answers:
        the prompts that are sampled from would not be its prompts, nor the metric's scores those of what it returns. A
        module is run on the first of these train examples to see that."""
        slots = lower(self._asked(program)).slots
        if fed := sorted(set(slots) - context.input_fields):
            raise TrainingError(f"answers are sampled where a predictor's inputs are columns; {fed} come from other steps")
        failures: list[Exception] = []
        shown = () if is_plain(program) else indices[:TRIALS]
        for example in (context.train[i] for i in shown):
            context.report("looking at what the program makes of its predictor's answers")
            try:
                calls, returned = _run(self.candidate.apply(program), example, context.lm)
            except Exception as error:  # of a class of the user's any
                failures.append(error)
                continue
            if found := _own_doing(calls, returned, slots, example):
                raise TrainingError(f"answers are sampled where a program returns what its predictor says: {found}")
        if failures and len(failures) == len(shown):
            told = f"{type(failures[0]).__name__}: {failures[0]}"
            raise TrainingError(f"the program fails on each of {len(shown)} train examples that were tried; first {told}")

    def labels(self, program: Module, context: EvaluationContext, indices: Sequence[int]) -> list[list[Scored]]:
        """For each train example its label as an answer, with what the metric says of it; none where there is no label, or
        one that the grammar does not let pass. Raises `OutOfBudget` where the budget is spent."""
        signature, local = self._asked(program), context.lm.local
        plan, writer = lower(signature), RowWriter(local.engine, local.prompter)
        found: list[list[Scored]] = []
        for example in (context.train[i] for i in indices):
            if not len(found) % LABELS:
                context.report(f"scoring labels, {len(found)}/{len(indices)}")
            inputs = {field: example.get(field) for field in plan.slots}
            try:
                values = {name: constraint.coerce(example[name]) for name, constraint in constraints(signature).items()}
                row = writer.write(plan, inputs, values, predictor=self.predictor)
            except (KeyError, ConstraintError, SignatureError, TrainingError):
                found.append([])
            else:
                found.append([Scored(row, context.score(example, from_values(values)))])
        return found

    def tasks(self, program: Module, context: EvaluationContext, indices: Sequence[int]) -> tuple[list[Task], str]:
        """Prompts of train examples, with the metric as reward, and what to add of those that do not fit the context.

        Raises `TrainingError` where there is none.
        """
        from .weights.reward import longest, plan_task

        plan, local = lower(self._asked(program)), context.lm.local
        made = []
        for i in indices:
            example = context.train[i]
            inputs = {field: example.get(field) for field in plan.slots}

            def reward(values: dict[str, Any], example: Any = example) -> float:
                return context.score(example, from_values(values))

            made.append(
                plan_task(plan.bound(inputs), inputs, local.prompter, reward, key=str(i), predictor=self.predictor)
            )
        room = local.engine.max_context
        fitting = [task for task in made if longest(task.request) <= room]
        long = len(made) - len(fitting)
        left = f"; {long} examples do not fit the context of {room} tokens and were left out" if long else ""
        if not fitting:
            raise TrainingError(f"there is no train example to sample answers to{left}")
        return fitting, left

    def _asked(self, program: Module) -> Any:
        """The signature of a call."""
        (_, predictor), *_ = self.candidate.apply(program).named_predictors()
        return asked_signature(predictor)


class _Calls(list[Any]):
    """A trace of what predictors were given and said, copied: a program may put a last touch to either."""

    def append(self, step: Any) -> None:
        _, inputs, prediction = step
        super().append(deepcopy((dict(inputs), dict(prediction.items()))))

    def extend(self, steps: Iterable[Any]) -> None:
        for step in steps:
            self.append(step)


def _run(program: Module, example: Example, lm: Any) -> tuple[_Calls, dict[str, Any]]:
    """Run a program on an example: inputs and outputs of each call of a predictor, and what the program returns."""
    calls = _Calls()
    with running(lm=lm, adapter=PlanAdapter(), trace=calls):
        answer = program(**example.inputs())
    return calls, dict(answer.items())


def _own_doing(calls: _Calls, returned: Mapping[str, Any], slots: Iterable[str], example: Example) -> str:
    """What in a run is the program's own doing; "" where its only predictor was given the example's inputs, and said all
    that the program returns."""
    if len(calls) != 1:
        return f"this one calls its predictor {len(calls)} times"
    ((inputs, outputs),) = calls
    if changed := [name for name in slots if not is_same(inputs.get(name), example.get(name))]:
        return f"this one gives it inputs of its own making, {changed}"
    if changed := sorted(
        name
        for name in {*outputs, *returned}
        if name not in outputs or name not in returned or not is_same(outputs[name], returned[name])
    ):
        return f"this one returns something else, {changed}"
    return ""


Train = Callable[[Tuned, Module, EvaluationContext, Path], str]


def train_further(
    step: Any, label: str, train: Train, program: Module, baseline: Candidate, context: EvaluationContext
) -> PassResult:  # fmt: skip
    """Go on from trained weights, and race the result, called `label`, against what it started from.

    step: the pass, a dataclass with `held_out`; its settings are part of where the training is kept, and what was finished
    there is not repeated. train: saves the adapter in the folder, `best`, and returns what to say of it. Where it fails, a
    note says why.
    """
    try:
        tuned = Tuned.of(baseline, program)
        if getattr(context.lm, "local", None) is None:
            raise TrainingError(f"{context.lm.model} is not a local model: weights are trained for still.LM only")
        indices = untested(context, step.held_out)
        tuned.check(program, context, indices)
        folder = context.folder / tuned.key(step, program, context, indices)[:16]
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
