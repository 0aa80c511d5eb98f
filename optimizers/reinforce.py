"""Reinforce: the distilled program answers, the metric rewards, again and again with the adapter as it then is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..signatures.bridge import Example, Module
from .candidate import Candidate
from .context import EvaluationContext, Forecast, PassResult
from .tuning import Tuned, train_further, untested
from .weights.grpo import GrpoSettings, GrpoStep, train_grpo
from .weights.rows import answer_end
from .weights.student import Precision


@dataclass(frozen=True)
class Reinforce:
    """Group-relative policy optimization from where an earlier weight pass ended, or from the weights that the program came
    with. Kept only if dev says so. Not part of a level: it samples in every step, which takes longer than `prefer`; for
    metrics that know more than right and wrong.
    held_out: examples to be tested on later; none with the inputs of theirs or of dev's are sampled from.
    """

    settings: GrpoSettings = field(default_factory=GrpoSettings)
    precision: Precision = "auto"
    held_out: Sequence[Example] = ()

    name = "reinforce"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Train, and race the result against what it started from."""
        return train_further(self, "reinforced", self._train, program, baseline, context)

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """One evaluation, if there is something to go on from. Sampling and training are not in it."""
        return Forecast((), (baseline,))

    def _train(self, tuned: Tuned, program: Module, context: EvaluationContext, folder: Path) -> str:
        from .weights.reward import EngineRollouts

        engine = context.lm.local.engine
        tasks, left = tuned.tasks(program, context, untested(context, self.held_out))
        context.report("loading the student")
        student = tuned.student(context.lm.local.model, self.settings.seed, self.precision)

        def shown(step: GrpoStep) -> None:
            context.report(f"reinforcing, step {step.step}/{step.steps}, reward {step.reward:.3f}")

        rollouts = EngineRollouts(engine, end_token=answer_end(engine.model.tokenizer), look=context.report)
        record = train_grpo(student, tasks, rollouts, self.settings, shown)
        student.save(folder / "best")
        rewards = [step.reward for step in record.steps]
        ends = max(1, len(rewards) // 5)
        mismatches = [step.mismatch for step in record.steps if step.mismatch is not None]
        return (
            f"{len(rewards)} steps, mean reward of the first {ends} {sum(rewards[:ends]) / ends:.3f}, of the last "
            f"{sum(rewards[-ends:]) / ends:.3f}; log-probabilities of engine and student differ by "
            f"{sum(mismatches) / max(1, len(mismatches)):.3f} a token{left}"
        )
