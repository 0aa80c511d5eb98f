"""Distil: what the best program so far says with demonstrations, instructions and reasoning, an adapter learns to say
without them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import TrainingError
from ..signatures.bridge import Example, Module
from .bare import bare_candidate
from .budget import OutOfBudget
from .candidate import Candidate
from .context import EvaluationContext, Forecast, PassResult, Standing
from .distil_rows import labelled, training_rows
from .racing import measure, race
from .tuning import FAILURES, RECORD, content, kept, untested, with_adapter
from .weights.lora import Lora
from .weights.row import Row
from .weights.rows import distinct_rows
from .weights.sft import SftRecord, SftSettings, epochs_measured, train_sft
from .weights.student import Precision, Student


@dataclass(frozen=True)
class Distil:
    """Trains on the labels, where the data has a predictor's outputs (what a module or other steps give it is taken from
    runs), else on runs of the best program so far (of the teacher, if there is one) that the metric finds right. Raises
    nothing: where training cannot be done or fails, a note says why, and what was the best stays. Where the budget ends a
    training, the best of its finished epochs counts; the same compile with more of it goes on from there.

    adapters: "shared", one for all predictors, or "each", one of its own for every predictor, trained one after another:
    where tasks are unlike each other and rows are many; a predictor that has too few rows stays as it is.
    held_out: examples to be tested on later. Train examples with their inputs are not trained on; those of dev never are.
    """

    lora: Lora = field(default_factory=Lora)
    settings: SftSettings = field(default_factory=SftSettings)
    precision: Precision = "auto"
    adapters: Literal["shared", "each"] = "shared"
    held_out: Sequence[Example] = ()

    name = "distil"

    def __post_init__(self) -> None:
        if self.adapters not in ("shared", "each"):
            raise TrainingError(f"adapters={self.adapters!r}: give 'shared' or 'each'")

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Train, and keep the adapter if it does better on dev, or as well with a shorter prompt."""
        try:
            return self._run(program, baseline, context)
        except FAILURES as error:
            return PassResult(baseline, (), (f"distil: {error or 'out of memory'}; {baseline.name} stays",))

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """An evaluation after each epoch. The time of training is not in it."""
        bare = bare_candidate(program, baseline)
        runs = 0 if labelled(bare.apply(program), context) else len(context.train)
        return Forecast((bare,), (bare,) * self.settings.epochs, rollouts=runs)

    def _run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        lm = context.lm
        if getattr(lm, "local", None) is None:
            raise TrainingError(f"{lm.model} is not a local model: weights are trained for still.LM only")
        context.report("writing rows")
        indices = untested(context, self.held_out)
        rows, notes = training_rows(program, baseline, bare_candidate(program, baseline), context, indices)
        best, standings, told, failed = baseline, [], list(notes), None
        for predictor, part in self._parts(rows):
            try:
                best, tried, note = self._taught(program, best, predictor, part, context)
            except TrainingError as error:
                if self.adapters == "shared":
                    raise
                failed = error
                told.append(f"distil: {predictor}: {error}; it stays as it was")
            except OutOfBudget:
                if best is baseline:
                    raise
                told.append(f"distil: the budget ended it before {predictor} had an epoch; it stays as it was")
                break
            else:
                standings += tried
                told.append(note)
        if failed is not None and best is baseline:
            raise failed
        ahead = race(program, [baseline, best], context)
        return PassResult(kept(ahead, best), (*ahead, *standings), (*told, _compared(ahead)))

    def _parts(self, rows: Sequence[Row]) -> list[tuple[str | None, list[Row]]]:
        """What is trained apart from each other; None is all predictors together."""
        if self.adapters == "shared":
            return [(None, distinct_rows(rows))]
        names = dict.fromkeys(row.predictor for row in rows)
        return [(name, distinct_rows(row for row in rows if row.predictor == name)) for name in names]

    def _taught(
        self, program: Module, before: Candidate, predictor: str | None, rows: Sequence[Row], context: EvaluationContext
    ) -> tuple[Candidate, list[Standing], str]:  # fmt: skip
        """`before` with one adapter more: the candidate, what was measured on the way, and what to say.

        The epochs of a training that was finished or broken off here are measured again first. It costs nothing, as the
        ledger knows them, but it counts: so a budget ends where it does in a compile that was not interrupted.
        """
        from ..backends.engine import release_team

        bare = bare_candidate(program, before, predictor)
        measured: dict[str, Standing] = {}
        label = "distilled" if predictor is None else f"distilled {predictor}"

        def tried(folder: Path) -> float:
            release_team()
            candidate = with_adapter(bare, folder, f"{label} {folder.name}", predictor)
            measured[folder.name] = measure(program, candidate, context)
            return measured[folder.name].mean

        folder = context.folder / self._key(bare, rows, context)[:16]
        finished = self._finished(folder)
        try:
            for epoch in _epochs_before(folder, finished):
                tried(epoch)
            told = _told(finished or self._trained(rows, folder, tried, context), predictor)
        except OutOfBudget:
            if not measured:
                raise
            told = f"distil: the budget ended it after {len(measured)} epochs; the best of them counts"
        best = max(measured, key=lambda name: measured[name].mean)
        return with_adapter(bare, folder / best, "distilled", predictor), list(measured.values()), told

    def _finished(self, folder: Path) -> SftRecord | None:
        """The record of a training that was finished here, if its adapter is still there: it is not repeated."""
        try:
            found = json.loads((folder / RECORD).read_text("utf-8"))
            return SftRecord(self.settings, **found) if (folder / "best").is_dir() else None
        except (OSError, ValueError, TypeError):
            return None

    def _trained(
        self, rows: Sequence[Row], folder: Path, tried: Callable[[Path], float], context: EvaluationContext
    ) -> SftRecord:  # fmt: skip
        """Train, from the last checkpoint if there is one, and leave a record."""
        context.report("loading the student")
        student = Student.open(context.lm.local.model, self.lora, self.settings.seed, precision=self.precision)
        record = train_sft(
            student, rows, self.settings, folder=folder, measure=tried,
            progress=lambda step: context.report(f"training, {step}"),
        )  # fmt: skip
        told = {key: value for key, value in asdict(record).items() if key != "settings"}
        (folder / RECORD).write_text(json.dumps(told), "utf-8")
        return record

    def _key(self, bare: Candidate, rows: Sequence[Row], context: EvaluationContext) -> str:
        # Dev, metric and candidate too: which epoch is the best, and where training ends, depends on what the program
        # answers, the other predictors included, and on what that is worth.
        parts = [
            context.lm.digest, context.metric, sorted(context.input_fields), list(map(content, context.dev)), self.lora,
            self.settings, self.precision, bare.digest, list(rows),
        ]  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _epochs_before(folder: Path, finished: SftRecord | None) -> list[Path]:
    """Adapters of the epochs that a training has measured here; what it kept stands for those that are there no more."""
    count = epochs_measured(folder) if finished is None else len(finished.scores)
    epochs = [folder / f"epoch-{number}" for number in range(1, count + 1)]
    found = [epoch for epoch in epochs if epoch.is_dir()]
    if len(found) < count and (folder / "best").is_dir():
        found.append(folder / "best")
    return found


def _told(record: SftRecord, predictor: str | None) -> str:
    scores = ", ".join(f"{score:.3f}" for score in record.scores)
    return (
        f"distil: {'' if predictor is None else predictor + ': '}{record.rows} rows, {len(record.losses)} steps, "
        f"{record.tokens:,} tokens in {record.seconds:.0f} s ({record.tokens_per_second:.0f} tokens/s, "
        f"{record.memory / 1e9:.1f} GB at most); on dev after each epoch {scores}"
    )


def _compared(ahead: Sequence[Standing]) -> str:
    prompts = ", ".join(f"{s.candidate.name} {_mean(o.prompt_tokens for o in s.outcomes):.0f}" for s in ahead)
    waited = ", ".join(f"{s.candidate.name} {_mean(o.seconds for o in s.outcomes):.2f}" for s in ahead)
    return f"distil: prompt tokens an example: {prompts}; seconds to an answer, with others: {waited}"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))
