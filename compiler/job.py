"""One compile: the baseline, the passes one after another, and what is concluded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..backends.meter import metered
from ..errors import StillError
from ..optimizers.budget import OutOfBudget, Spending
from ..optimizers.context import Outcome, PassResult
from ..optimizers.racing import measure
from .call_log import call_rows
from .canonical import digest
from .conclusion import BASELINE, Passed, conclude
from .context import CompileContext, make_context
from .evidence import Step, make_step
from .identity import model_digest, program_digest
from .ledger import Ledger, RunRow
from .ledger_rows import now
from .lms import lm_name
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
        run_id = self._run_id(program_id)
        row = self._run_row(run_id, program_id)
        self.ledger.record(row)
        context = make_context(self.task, program_id, self.ledger, run_id, self.bar, self.spending)
        self.bar.describe("baseline")
        self.bar.expect(len(self.task.dev))
        try:
            # First and alone: a program that cannot run at all must fail before any candidate is paid for.
            outcomes = context.evaluate(self.task.program, BASELINE, range(len(self.task.dev)))
            refuse_total_failure(outcomes)
            results, steps = self._passes(context, run_id)
        except OutOfBudget as stop:
            self.ledger.record(replace(row, status="failed", finished_at=now()))
            needed = f"measuring the program as it is on {len(self.task.dev)} dev examples takes more: raise it"
            raise StillError(f"{stop}, and {needed}") from None
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self.ledger.record(replace(row, status=status, finished_at=now()))
            raise
        result = conclude(self.task, context, Passed(results, steps, self.spending.elapsed, self.spending.stopped))
        self.ledger.record(replace(row, status="finished", finished_at=now(), result=result.report.to_json()))
        return result

    def _passes(self, context: CompileContext, run_id: str) -> tuple[list[PassResult], list[Step]]:
        current, results, steps = BASELINE, [], []
        for step in self.task.passes:
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
            steps.append(make_step(step.name, current, result, spent))
            context.history.extend(result.standings)
            current = result.winner
        if not results:
            results.append(PassResult(BASELINE, (measure(self.task.program, BASELINE, context),)))
        return results, steps

    def _note_calls(self, purpose: str, begin: int, run_id: str) -> None:
        """Record what a pass asked LMs itself: the requests from number `begin` on."""
        for row in call_rows(self.spending.asked.log[begin:], purpose, run_id, asked_at=now().isoformat()):
            self.ledger.record(row)

    def _run_id(self, program_id: str) -> str:
        """The same compile has the same id, so that running it again resumes it."""
        parts = [
            program_id, self.task.train.digest, self.task.dev.digest, self.task.level, self.task.metric.name,
            model_digest(self.task.lm), model_digest(self.task.teacher), self.task.seed, self.task.embedder,
        ]  # fmt: skip
        return digest(parts)[:16]

    def _run_row(self, run_id: str, program_id: str) -> RunRow:
        return RunRow(
            run_id=run_id,
            program=f"{type(self.task.program).__name__} {program_id[:12]}",
            level=self.task.level,
            model=lm_name(self.task.lm),
            model_digest=model_digest(self.task.lm),
            seed=self.task.seed,
            config={"metric": self.task.metric.name, "train": len(self.task.train), "dev": len(self.task.dev)},
        )


def refuse_total_failure(outcomes: Sequence[Outcome]) -> None:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        raise StillError(f"the program failed on every one of {len(outcomes)} examples; the first error: {errors[0]}")
