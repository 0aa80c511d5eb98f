"""What passes see: the compiler's `EvaluationContext` over datasets, evaluators and progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.meter import metered
from ..errors import MetricError
from ..optimizers.budget import OutOfBudget, Spending
from ..optimizers.candidate import Candidate
from ..optimizers.context import Outcome, Rollout, Standing
from ..signatures.bridge import Example, Module
from .call_log import requests
from .canonical import digest
from .dataset import Dataset
from .evaluation import Evaluator
from .evidence import Course
from .identity import model_digest
from .ledger import AnswerRow, Ledger
from .lms import lm_name
from .progress import ProgressBar
from .verdicts import Verdicts, kept_in

if TYPE_CHECKING:
    from .task import Task


@dataclass(slots=True)
class CompileContext:
    """Implements `EvaluationContext`. Evaluations use the student LM, rollouts the teacher."""

    train: Dataset
    dev: Dataset
    seed: int
    evaluator: Evaluator
    teacher: Evaluator
    progress: ProgressBar
    course: Course
    proposer: Any = None
    embedder: str | None = None
    history: list[Standing] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)
    """What the metric said of answers that it failed on outside of any evaluation."""

    @property
    def input_fields(self) -> frozenset[str]:
        """The dataset's input columns."""
        return frozenset(self.train.inputs)

    @property
    def metric(self) -> str:
        """What tells the metric from others."""
        return self.evaluator.metric.identity

    @property
    def lm(self) -> Any:
        """The LM of evaluations."""
        return self.evaluator.lm

    @property
    def folder(self) -> Path:
        """Beside the ledger."""
        return self.evaluator.ledger.path.parent / "training"

    def report(self, text: str) -> None:
        """Show it in the progress bar, and look at the budget."""
        self.progress.describe(text)
        self.evaluator.spending.check()

    def ask_once(self, question: Any, ask: Callable[[], str]) -> str:
        """From the ledger, or asked and kept there."""
        book, key = self.evaluator.ledger, digest([model_digest(self.proposer), question])
        if (row := book.answer(key)) is not None:
            self.evaluator.spending.add_kept([prompt + decoded for _, prompt, decoded in row.calls])
            return row.text
        with metered() as meter:
            text = ask()
        calls, asked = requests(meter.log), lm_name(self.proposer)
        book.record(AnswerRow(answer_id=key, model=asked, text=text, calls=calls, run_id=self.evaluator.run_id))
        return text

    def expect(self, examples: int) -> None:
        """Size the progress bar."""
        self.progress.expect(examples)

    def score(self, example: Example, prediction: Any) -> float:
        """The metric of a prediction."""
        try:
            with kept_in(self.evaluator.verdicts):
                return self.evaluator.metric.score(example, prediction).value
        except Exception as error:  # as in an evaluation: of a class of the user's any
            self.unscored.append(str(error) if isinstance(error, MetricError) else f"{type(error).__name__}: {error}")
            return 0.0

    def evaluate(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Outcome]:
        """Run a candidate on these dev examples."""
        self.progress.describe(candidate.name)
        outcomes = self.evaluator.evaluate(candidate, _pick(self.dev, indices), "dev")
        self.course.note(candidate, indices, outcomes)
        return outcomes

    def practise(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Outcome]:
        """Run a candidate on these train examples, with the student LM."""
        self.progress.describe(f"{candidate.name} on train")
        return self.evaluator.evaluate(candidate, _pick(self.train, indices), "train")

    def rollouts(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Rollout]:
        """Trace a candidate on these train examples, with the teacher; none if the budget is spent."""
        self.progress.describe("bootstrapping")
        with suppress(OutOfBudget):
            return self.teacher.rollouts(candidate, _pick(self.train, indices))
        return []


def make_context(
    task: Task, program_id: str, ledger: Ledger, run_id: str, progress: ProgressBar, spending: Spending
) -> CompileContext:
    """The context of a task whose evaluations go to this run of a ledger."""
    shared = (ledger, run_id, progress, Verdicts(ledger, run_id), spending)
    evaluator, teacher = (
        Evaluator(task.program, program_id, task.metric, lm, *shared) for lm in (task.lm, task.teacher)
    )
    course = Course(len(task.dev), spending)
    return CompileContext(
        task.train, task.dev, task.seed, evaluator, teacher, progress, course, task.proposer, task.embedder
    )


def _pick(dataset: Dataset, indices: Sequence[int]) -> list[Example]:
    return [dataset[i] for i in indices]
