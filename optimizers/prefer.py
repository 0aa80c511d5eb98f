"""Prefer: from several answers to an example, the distilled program learns which one the metric likes better."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TrainingError
from ..signatures.bridge import Example, Module
from .candidate import Candidate
from .context import EvaluationContext, Forecast, PassResult
from .tuning import Tuned, train_further, untested
from .weights.dpo import DpoSettings, train_dpo
from .weights.pairs import Pair, Scored, ranked_pairs
from .weights.rows import answer_end
from .weights.student import Precision

if TYPE_CHECKING:
    from .weights.reward import Task

MIN_PAIRS = 8
MEASURED = DpoSettings({"sigmoid": 0.2, "sft": 1.0}, beta=0.3, learning_rate=4e-4, epochs=2, batch=16)
"""DPO's part is small because it sums over tokens and the other is a mean: so they weigh about the same. With DPO alone, or
with its part large, a rate at which something is learned from good answers breaks what SFT has taught."""


@dataclass(frozen=True)
class Prefer:
    """Direct preference optimization from where `distil` ended, or from the weights that the program came with: the engine
    samples answers to train examples with the adapter, the metric ranks them, and the example's own label if it has one (as
    in self-play fine-tuning, Chen, Deng, Yuan, Ji and Gu, 2024), and pairs of a better and a worse one are learned. Kept
    only if dev says so; where there is nothing to prefer, or training fails, a note says why.

    examples: at most so many are sampled from. samples: answers to each, at `temperature`. margin: least difference of
    scores in a pair. held_out: examples to be tested on later; none with the inputs of theirs or of dev's are sampled from.
    """

    settings: DpoSettings = MEASURED
    examples: int = 600
    samples: int = 8
    temperature: float = 1.0
    margin: float = 0.1
    precision: Precision = "auto"
    held_out: Sequence[Example] = ()

    name = "prefer"

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Sample, rank, train, and race the result against what it started from."""
        return train_further(self, "preferred", self._train, program, baseline, context)

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """One evaluation, if there is something to go on from. Sampling and training are not in it."""
        return Forecast((), (baseline,))

    def _train(self, tuned: Tuned, program: Module, context: EvaluationContext, folder: Path) -> str:
        indices = untested(context, self.held_out)
        random.Random(context.seed).shuffle(indices)
        tasks, left = tuned.tasks(program, context, indices[: self.examples])
        pairs = self._pairs(tuned, program, context, tasks)
        if len(pairs) < MIN_PAIRS:
            raise TrainingError(f"{len(pairs)} pairs of a better and a worse answer, at least {MIN_PAIRS} are needed{left}")
        context.report("loading the student")
        student = tuned.student(context.lm.local.model, self.settings.seed, self.precision)
        record = train_dpo(
            student, pairs, self.settings,
            lambda step: context.report(f"preferring, step {step.step}/{step.steps}, {step.remaining:.0f} s left"),
        )  # fmt: skip
        student.save(folder / "best")
        return (
            f"{record.pairs} pairs, {len(record.steps)} steps in {record.seconds:.0f} s; pairs told apart "
            f"{record.accuracies[0]:.2f} in the first step, {record.accuracies[-1]:.2f} in the last{left}"
        )

    def _pairs(self, tuned: Tuned, program: Module, context: EvaluationContext, tasks: Sequence[Task]) -> list[Pair]:
        from ..backends.engine import release_team
        from .weights.reward import EngineRollouts

        engine = context.lm.local.engine
        rollouts = EngineRollouts(engine, end_token=answer_end(engine.model.tokenizer), look=context.report)
        release_team()
        drawn = rollouts.sample(tasks, Path(tuned.adapter.path), self.samples, self.temperature, context.seed)
        labels = tuned.labels(program, context, [int(task.key) for task in tasks])
        groups = [
            [*(Scored(sample.row, sample.reward) for sample in group), *label]
            for group, label in zip(drawn, labels, strict=True)
        ]
        return ranked_pairs(groups, margin=self.margin, seed=context.seed)
