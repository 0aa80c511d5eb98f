"""Distil: what the best program so far says with demonstrations, instructions and reasoning, an adapter learns to say
without them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConstraintError, SignatureError, TrainingError
from ..signatures.bridge import Example, Module
from ..signatures.fieldset import special_fields
from ..signatures.layout import lower
from .budget import OutOfBudget
from .candidate import Candidate, PredictorState, asked_signature
from .context import EvaluationContext, Forecast, PassResult, Standing
from .racing import measure, race
from .taught import lessons
from .tuning import FAILURES, kept, untested, with_adapter
from .weights.lora import Lora
from .weights.row import Row
from .weights.rows import RowWriter, distinct_rows
from .weights.sft import SftRecord, SftSettings, train_sft
from .weights.student import Precision, Student

PASSING = 1.0
"""Runs below this score teach nothing."""
RECORD = "record.json"


@dataclass(frozen=True)
class Distil:
    """Trains one adapter for all predictors: on the labels, where the data has a predictor's outputs (what other steps feed
    it is taken from runs), else on runs of the best program so far (of the teacher, if there is one) that the metric finds
    right. Raises nothing: where training cannot
    be done or fails, a note says why, and what was the best stays. Where the budget ends a training, the best of its
    finished epochs counts; the same compile with more of it goes on from there.

    held_out: examples to be tested on later. Train examples with their inputs are not trained on; those of dev never are.
    """

    lora: Lora = field(default_factory=Lora)
    settings: SftSettings = field(default_factory=SftSettings)
    precision: Precision = "bf16"
    held_out: Sequence[Example] = ()

    name = "distil"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Train, and keep the adapter if it does better on dev, or as well with a shorter prompt."""
        try:
            return self._run(program, baseline, context)
        except FAILURES as error:
            return PassResult(baseline, (), (f"distil: {error or 'out of memory'}; {baseline.name} stays",))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """An evaluation after each epoch. The time of training is not in it."""
        bare = _bare(program, baseline)
        runs = 0 if _labelled(bare.apply(program), context) else len(context.train)
        return Forecast((bare,), (bare,) * self.settings.epochs, rollouts=runs)

    def _run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        from ..backends.engine import release_team

        lm = context.lm
        if getattr(lm, "local", None) is None:
            raise TrainingError(f"{lm.model} is not a local model: weights are trained for still.LM only")
        bare = _bare(program, baseline)
        context.report("writing rows")
        rows, notes = _rows(program, baseline, bare, context, untested(context, self.held_out))
        standings: list[Standing] = []

        def tried(folder: Path) -> float:
            release_team()
            candidate = with_adapter(bare, folder, f"distilled {folder.name}")
            standings.append(measure(program, candidate, context))
            return standings[-1].mean

        folder = context.folder / self._key(lm.digest, rows)[:16]
        try:
            record = self._trained(lm.local.model, rows, folder, tried, context)
        except OutOfBudget:
            if not standings:
                raise
            record = None
        best = with_adapter(bare, folder / "best", "distilled")
        ahead = race(program, [baseline, best], context)
        broken_off = f"distil: the budget ended it after {len(standings)} epochs; the best of them counts"
        notes = (*notes, broken_off if record is None else _told(record, ahead))
        return PassResult(kept(ahead, best), (*ahead, *standings), notes)

    def _trained(
        self, model: str, rows: Sequence[Row], folder: Path, tried: Any, context: EvaluationContext
    ) -> SftRecord:  # fmt: skip
        """The record of a training, which is not repeated where it was finished before."""
        try:
            found = json.loads((folder / RECORD).read_text("utf-8"))
            return SftRecord(self.settings, **found)
        except (OSError, ValueError, TypeError):
            pass
        context.report("loading the student")
        student = Student.open(model, self.lora, self.settings.seed, precision=self.precision)
        record = train_sft(
            student, rows, self.settings, folder=folder, measure=tried,
            progress=lambda step: context.report(f"training, {step}"),
        )  # fmt: skip
        told = {key: value for key, value in asdict(record).items() if key != "settings"}
        (folder / RECORD).write_text(json.dumps(told), "utf-8")
        return record

    def _key(self, model: str, rows: Sequence[Row]) -> str:
        parts = [model, self.lora, self.settings, self.precision, list(rows)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _bare(program: Module, baseline: Candidate) -> Candidate:
    """What the student is asked: no demonstrations, no instructions, outputs not described, no reasoning."""
    states = {}
    for name, predictor in program.named_predictors():
        outputs = predictor.signature.output_fields
        fields: dict[str, dict[str, Any]] = {output: {"describe": False} for output in outputs}
        if "reasoning" in outputs and len(outputs) > 1:
            fields["reasoning"]["written"] = False
        states[name] = PredictorState(instructions="", fields=fields)
    knobs = {path: value for path, value in baseline.knobs.items() if path.split(".")[-1] not in ("reasoning", "samples")}
    return Candidate("bare", Distil.name, states, knobs)


def _labelled(program: Module, context: EvaluationContext) -> bool:
    """Whether the data says what the program's only predictor is given, and what it should answer."""
    predictors = program.named_predictors()
    if len(predictors) != 1 or not context.train:
        return False
    signature = asked_signature(predictors[0][1])
    given = set(context.train[0].keys())
    return set(signature.output_fields) <= given - context.input_fields and set(signature.input_fields) <= given


def _rows(
    program: Module, baseline: Candidate, bare: Candidate, context: EvaluationContext, indices: Sequence[int]
) -> tuple[list[Row], tuple[str, ...]]:  # fmt: skip
    variant = bare.apply(program)
    for name, predictor in variant.named_predictors():
        if special := special_fields(asked_signature(predictor)):
            raise TrainingError(f"predictor {name!r}: fields {sorted(special)} are of dspy's own types, which have no plan")
    local = context.lm.local
    writer = RowWriter(local.engine, local.prompter)
    notes = _leaks(len(context.train) - len(indices))
    calls = (
        ((variant.named_predictors()[0][0], context.train[i], context.train[i], str(i)) for i in indices)
        if _labelled(variant, context)
        else _calls(program, baseline, variant, context, indices)
    )
    rows = []
    plans = {name: lower(asked_signature(predictor)) for name, predictor in variant.named_predictors()}
    for name, inputs, values, key in calls:
        plan = plans[name]
        asked = {field: inputs.get(field) for field in plan.slots}
        try:
            rows.append(writer.write(plan, asked, values, predictor=name, key=key))
        except (ConstraintError, SignatureError, KeyError):
            continue  # an example without a label, or with one that is none of the options
    return distinct_rows(rows), notes


def _calls(
    program: Module, baseline: Candidate, variant: Module, context: EvaluationContext, indices: Sequence[int]
) -> Iterator[tuple[str, Any, Any, str]]:  # fmt: skip
    """Predictor, inputs and outputs of the calls in runs on train examples: those that labels teach, with the labels, and
    of a run that the metric finds right, the others too."""
    signatures = {name: asked_signature(predictor) for name, predictor in variant.named_predictors()}
    for i, rollout in zip(indices, context.rollouts(program, baseline, indices), strict=False):
        taught = {lesson.predictor: lesson.values for lesson in lessons([rollout], signatures, context)}
        yield from ((name, values, values, str(i)) for name, values in taught.items())
        if rollout.score >= PASSING:
            rest = (step for step in rollout.trace if step.outputs and step.predictor not in taught)
            yield from ((step.predictor, step.inputs, step.outputs, str(i)) for step in rest)


def _leaks(count: int) -> tuple[str, ...]:
    told = f"distil: {count} train examples have the inputs of a dev example or of one held out, and were not trained on"
    return (told,) if count else ()


def _told(record: SftRecord, ahead: Sequence[Standing]) -> str:
    prompts = ", ".join(f"{s.candidate.name} {_mean(o.prompt_tokens for o in s.outcomes):.0f}" for s in ahead)
    waited = ", ".join(f"{s.candidate.name} {_mean(o.seconds for o in s.outcomes):.2f}" for s in ahead)
    scores = ", ".join(f"{score:.3f}" for score in record.scores)
    return (
        f"distil: {record.rows} rows, {len(record.losses)} steps, {record.tokens:,} tokens in {record.seconds:.0f} s "
        f"({record.tokens_per_second:.0f} tokens/s, {record.memory / 1e9:.1f} GB at most); "
        f"on dev after each epoch {scores}; prompt tokens an example: {prompts}; seconds to an answer, with others: {waited}"
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))
