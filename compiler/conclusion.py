"""What is concluded from the passes: the winner, the front, and a report of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..optimizers.budget import OutOfBudget
from ..optimizers.candidate import Candidate
from ..optimizers.context import PassResult, Standing
from ..optimizers.racing import gains, measure
from ..optimizers.selection import CONFIDENCE, Selection, select
from .audit import audit
from .context import CompileContext
from .evidence import Evidence, Step, compare, make_prompts
from .lms import bind, described, lm_name, pinned
from .objective import Timed, fastest, time_candidates
from .report import Report
from .report_table import make_row
from .result import Result
from .task import Task

BASELINE = Candidate("baseline", "baseline")
"""The program as the user wrote it."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What the passes of a compile returned, what each did, and the seconds it all took."""

    results: Sequence[PassResult]
    steps: Sequence[Step]
    seconds: float
    stopped: str | None
    """The limit of the budget that was reached, in words."""


def conclude(task: Task, context: CompileContext, passed: Passed) -> Result:
    """Settle on a winner by the task's objective."""
    found: dict[str, Standing] = {}
    for standing in (s for result in passed.results for s in result.standings):
        # A pass starts from the winner of the one before and measures it again.
        known = found.get(standing.candidate.digest)
        if known is None or len(known.outcomes) < len(standing.outcomes):
            found[standing.candidate.digest] = standing
    baseline = measure(task.program, BASELINE, context)
    found = {BASELINE.digest: baseline, **{key: s for key, s in found.items() if key != BASELINE.digest and s.outcomes}}
    best = _best(task, context, passed, found)
    selection = select(baseline, list(found.values()), task.seed)
    # Passes may have come to the same candidate by other names: it goes by that of its row.
    winner, notes = _settle(task, passed, selection, best, baseline)
    writer = _Writer(task, context, passed, selection, best.candidate, _audit(task))
    if "latency" not in task.objective:
        return writer.result(winner, list(found.values()), Timed(), notes)
    try:
        timed = time_candidates(list(found.values()), winner, context)
    except OutOfBudget:
        return writer.result(winner, list(found.values()), Timed(), (*notes, "the budget left no time to measure latency"))
    found.update({s.candidate.digest: s for s in timed.completed})
    standings = list(found.values())
    chosen = fastest(baseline, timed) if task.objective[0] == "latency" else winner
    if chosen.digest != winner.digest:
        notes = (*notes, f"{chosen.name} is the fastest that scores no lower than the program as it was")
    front = tuple(writer.result(s.candidate, standings, timed, notes) for s in timed.front)
    return replace(writer.result(chosen, standings, timed, notes), front=front)


def _best(task: Task, context: CompileContext, passed: Passed, found: dict[str, Standing]) -> Standing:
    """What the passes settled on, if it is known on all of dev (one that no pass has measured is measured now); where the
    budget ended before that, the best of those that are."""
    winner, size = passed.results[-1].winner, len(task.dev)
    if winner.digest not in found:
        with suppress(OutOfBudget):
            found[winner.digest] = Standing(winner, measure(task.program, winner, context).outcomes)
    settled = found.get(winner.digest)
    if settled is not None and len(settled.outcomes) == size:
        return settled
    return max((s for s in found.values() if len(s.outcomes) == size), key=lambda s: s.mean)


def _settle(
    task: Task, passed: Passed, selection: Selection, best: Standing, baseline: Standing
) -> tuple[Candidate, tuple[str, ...]]:
    """Keep the program as it is where the examples cannot tell the best candidate from it."""
    notes: tuple[str, ...] = ()
    if passed.stopped:
        notes = (f"stopped when {passed.stopped} were spent: the best until then",)
    if best is baseline:
        return BASELINE, notes
    name, size = best.candidate.name, len(task.dev)
    looked = f"{name} looked better, but {size} dev examples cannot tell it from the program as it is"
    if selection.confidence < CONFIDENCE:
        why = f"picked on a resample, it is ahead on the rest in {selection.confidence:.0%} of resamples"
        return BASELINE, (*notes, f"{looked}: {why} ({CONFIDENCE:.0%} wanted)")
    # Of two or three examples resamples know nothing that is not in all of them.
    if not gains(best, baseline, task.seed, 1.0 - CONFIDENCE):
        why = f"by chance it would be as far ahead with a probability of {1 - CONFIDENCE:.0%} or more"
        return BASELINE, (*notes, f"{looked}: {why}")
    return best.candidate, notes


@dataclass(frozen=True, slots=True)
class _Writer:
    """Makes a result of a candidate: program, report and what an artifact says of the model."""

    task: Task
    context: CompileContext
    passed: Passed
    selection: Selection
    best: Candidate
    """What the passes settled on, which the selection is about."""
    audit: tuple[str, ...]

    def result(self, winner: Candidate, standings: Sequence[Standing], timed: Timed, notes: tuple[str, ...]) -> Result:
        task = self.task
        calibrations = next((r.calibrations for r in reversed(self.passed.results) if r.calibrations), ())
        fronts = {s.candidate.digest for s in timed.front}
        rows = [make_row(s, _verdict(s, winner, fronts), task.seed) for s in standings]
        report = Report(
            level=task.level,
            metric=task.metric.name,
            model=lm_name(task.lm),
            seed=task.seed,
            train_size=len(task.train),
            dev_size=len(task.dev),
            seconds=self.passed.seconds,
            resumed=self.context.progress.resumed,
            saved=sum(len(task.dev) - len(s.outcomes) for s in standings if s.was_raced_away),
            winner=winner.name,
            rows=tuple(
                replace(row, latency=timed.latencies.get(s.candidate.digest), on_front=s.candidate.digest in fronts)
                for row, s in zip(rows, standings, strict=True)
            ),
            notes=(*(note for result in self.passed.results for note in result.notes), *_unscored(self.context), *notes),
            calibrations=calibrations if _is_calibrated(winner) else (),
            selection=self.selection if winner.digest == self.best.digest else None,
            evidence=self._evidence(winner),
        )
        own = {name: described(lm) for name, lm in pinned(task.program).items()}
        compiled = bind(winner.apply(task.program), task.lm)
        data = {"train": task.train.digest, "dev": task.dev.digest}
        model = {**described(task.lm), "pinned": own}
        evaluator = self.context.evaluator
        return Result(compiled, report, winner, model, data, evaluator.ledger.path, evaluator.run_id)

    def _evidence(self, winner: Candidate) -> Evidence:
        task, context = self.task, self.context
        examples = list(task.dev)
        settled = [context.evaluator.settled(candidate, examples, "dev") for candidate in (BASELINE, winner)]
        return Evidence(
            points=tuple(context.course.points),
            steps=tuple(self.passed.steps),
            prompts=make_prompts(BASELINE.apply(task.program), winner.apply(task.program)),
            **compare(examples, *settled),
            audit=self.audit,
        )


def _audit(task: Task) -> tuple[str, ...]:
    if set(task.train.inputs) != set(task.dev.inputs):
        return (f"train has the inputs {', '.join(task.train.inputs)}, dev {', '.join(task.dev.inputs)}",)
    return audit(task.train, task.dev).notes()


def _unscored(context: CompileContext) -> tuple[str, ...]:
    if not context.unscored:
        return ()
    count, first = len(context.unscored), context.unscored[0]
    return (f"the metric failed on {count} answers that were sampled for training, which counted 0; the first: {first}",)


def _verdict(standing: Standing, winner: Candidate, front: set[str]) -> str:
    if standing.candidate is winner:
        return "winner"
    return "on the front" if standing.candidate.digest in front else standing.dropped or ""


def _is_calibrated(candidate: Candidate) -> bool:
    settings = (given for state in candidate.states.values() for given in state.fields.values())
    return any(given.get("calibration") for given in settings)
