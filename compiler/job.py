"""One compile: the baseline, the passes one after another, and what is concluded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass

from ..backends.meter import metered
from ..errors import StillError
from ..optimizers.budget import OutOfBudget, Spending
from ..optimizers.context import Outcome, PassResult, Standing
from ..optimizers.racing import measure
from .call_log import call_rows
from .conclusion import BASELINE, Passed, conclude
from .context import CompileContext, make_context
from .evidence import Step, make_step
from .identity import model_digest, program_digest
from .ledger import Ledger, RunRow
from .ledger_rows import now
from .ledger_run import noted, run_row
from .progress import ProgressBar
from .result import Result
from .task import Task


@dataclass(slots=True)
class Job:
    """One compile."""

    task: Task
    spending: Spending
    ledger: Ledger
    bar: ProgressBar

    def run(self) -> Result:
        program_id = program_digest(self.task.program)
        row = self._run_row(program_id)
        context = make_context(self.task, program_id, self.ledger, row.run_id, self.bar, self.spending)
        with noted(self.ledger, row) as told:
            try:
                baseline = self._measure_baseline(context)
                results, steps = self._passes(context, row.run_id, baseline)
            except OutOfBudget as stop:
                needed = f"measuring the program as it is on {len(self.task.dev)} dev examples takes more: raise it"
                raise StillError(f"{stop}, and {needed}") from None
            result = conclude(self.task, context, Passed(results, steps, self.spending.elapsed, self.spending.stopped))
            told.update(result.report.to_json())
        return result

    def _measure_baseline(self, context: CompileContext) -> Standing:
        """First and alone: a program that cannot run at all must fail before any candidate is paid for."""
        self.bar.describe("baseline")
        self.bar.expect(len(self.task.dev))
        refuse_total_failure(context.evaluate(self.task.program, BASELINE, range(len(self.task.dev))))
        return measure(self.task.program, BASELINE, context)

    def _passes(
        self, context: CompileContext, run_id: str, baseline: Standing
    ) -> tuple[list[PassResult], list[Step]]:
        current, results, steps = BASELINE, [PassResult(BASELINE, (baseline,))], []
        for step in self.task.passes:
            if self.spending.stopped is not None:
                results.append(PassResult(current, (), (f"{step.name}: not begun",)))
                continue
            before, asked = self.spending.spent(), len(self.spending.asked.log)
            try:
                # What a pass asks LMs itself (a teacher's proposals, say) is spent as well.
                with metered(self.spending.asked, alone=True):
                    result = step.run(self.task.program, current, context)
            except OutOfBudget:
                result = PassResult(current, (), (f"{step.name}: broken off",))
            finally:
                self._note_calls(step.name, asked, run_id)
            spent = {name: value - before[name] for name, value in self.spending.spent().items()}
            results.append(result)
            steps.append(make_step(step.name, current, result, spent, (baseline, *context.history)))
            context.history.extend(result.standings)
            current = result.winner
        return results, steps

    def _note_calls(self, purpose: str, begin: int, run_id: str) -> None:
        """Record what a pass asked LMs itself: the requests from number `begin` on."""
        for row in call_rows(self.spending.asked.log[begin:], purpose, run_id, asked_at=now().isoformat()):
            self.ledger.record(row)

    def _run_row(self, program_id: str) -> RunRow:
        task = self.task
        data = {"train": task.train, "dev": task.dev}
        steps = [repr(step) if is_dataclass(step) else step.name for step in task.passes]
        more = (model_digest(task.teacher), steps, list(task.objective), task.embedder)
        return run_row(task.program, program_id, task.level, task.metric, task.lm, task.seed, data, *more)


def refuse_total_failure(outcomes: Sequence[Outcome]) -> None:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        raise StillError(f"the program failed on every one of {len(outcomes)} examples; the first error: {errors[0]}")
