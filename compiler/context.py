"""What passes see: the compiler's `EvaluationContext` over datasets, evaluators and progress."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..optimizers.budget import OutOfBudget
from ..optimizers.candidate import Candidate
from ..optimizers.context import Outcome, Rollout, Standing
from ..signatures.bridge import Example, Module
from .dataset import Dataset
from .evaluation import Evaluator
from .evidence import Course
from .progress import ProgressBar


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
    history: list[Standing] = field(default_factory=list)

    @property
    def input_fields(self) -> frozenset[str]:
        """The dataset's input columns."""
        return frozenset(self.train.inputs)

    def expect(self, examples: int) -> None:
        """Size the progress bar."""
        self.progress.expect(examples)

    def evaluate(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Outcome]:
        """Run a candidate on these dev examples."""
        self.progress.describe(candidate.name)
        outcomes = self.evaluator.evaluate(candidate, _pick(self.dev, indices), "dev")
        self.course.note(candidate, indices, outcomes)
        return outcomes

    def rollouts(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Rollout]:
        """Trace a candidate on these train examples, with the teacher; none if the budget is spent."""
        self.progress.describe("bootstrapping")
        with suppress(OutOfBudget):
            return self.teacher.rollouts(candidate, _pick(self.train, indices))
        return []


def _pick(dataset: Dataset, indices: Sequence[int]) -> list[Example]:
    return [dataset[i] for i in indices]
