"""What a pass sees of the compile it runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..signatures.bridge import Example, Module
from .candidate import Candidate

OptionScores = dict[str, dict[str, dict[str, float]]]
"""By predictor, field and option text."""


@dataclass(frozen=True, slots=True)
class PredictorTrace:
    """One predictor call inside a program run: the predictor's name, its inputs and its outputs."""

    predictor: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of outputs that were scored: log-probability of each option's text."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One candidate on one example."""

    score: float
    """The metric, 0 to 1; 0 when the program failed (`error` says how)."""
    fields: dict[str, float] = field(default_factory=dict)
    """The metric per field, where the metric knows fields."""
    error: str | None = None
    feedback: str = ""
    """What the metric says was wrong, in words."""
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    seconds: float = 0.0
    """Of the wall time of examples that run side by side, since the one before it was done; alone: what it took."""
    resumed: bool = False
    """Taken from the ledger instead of run."""
    metric_calls: int = 0
    """LM calls of the metric, where it is a judge; not among `calls`."""
    metric_tokens: int = 0
    """Prompt and decoded tokens of those."""
    option_scores: OptionScores = field(default_factory=dict)
    """For fields that were scored: the model's log-probability of each option's text, in the last call of the predictor."""
    trace: tuple[PredictorTrace, ...] = ()
    """The calls, of a program with several predictors; empty for one, and for rows of the ledger that have none."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One traced run of a program on a training example."""

    example: Example
    score: float
    trace: tuple[PredictorTrace, ...]


class EvaluationContext(Protocol):
    """Given to every pass; the compiler implements it over datasets, metric and ledger."""

    @property
    def train(self) -> Sequence[Example]:
        """Examples to learn from."""

    @property
    def dev(self) -> Sequence[Example]:
        """Examples to choose by."""

    @property
    def seed(self) -> int:
        """Seed of every random choice a pass makes."""

    @property
    def proposer(self) -> Any:
        """The LM to ask for instructions: the teacher, if the user gave one; else None."""

    @property
    def metric(self) -> str:
        """What tells the metric from others: its name, and of a function its code."""

    @property
    def history(self) -> Sequence[Standing]:
        """What the passes before this one have measured."""

    @property
    def input_fields(self) -> frozenset[str]:
        """The dataset's input columns."""

    @property
    def lm(self) -> Any:
        """The LM that the program is compiled for."""

    @property
    def embedder(self) -> str | None:
        """What tells which demonstrations are near an input: the name of an embedder; None: the words they share."""

    @property
    def folder(self) -> Path:
        """Where a pass may keep files between runs; it need not exist yet."""

    def report(self, text: str) -> None:
        """Say what is being done. Call it now and then in long work: it raises `OutOfBudget` where the budget is spent."""

    def ask_once(self, question: Any, ask: Callable[[], str]) -> str:
        """What the proposer answers to a question: from the ledger where it has answered it before, else what `ask()`
        returns, which is kept there. question: all that decides the answer, as plain data. Where `ask` raises, nothing is
        kept."""

    def expect(self, examples: int) -> None:
        """Announce how many example runs the pass will ask for at most, for the progress bar."""

    def score(self, example: Example, prediction: Any) -> float:
        """The metric of a prediction, 0 to 1; 0 where the metric fails, which the report says. No evaluation of its own."""

    def evaluate(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Outcome]:
        """Run `candidate.apply(program)` on these dev examples, in order; rows known to the ledger are not run again.

        Raises `OutOfBudget` where a batch would begin beyond the budget. A pass need not catch it: what was the best
        before it is kept then.
        """

    def practise(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Outcome]:
        """Run the candidate on these train examples, to see what goes wrong without looking at dev. Raises as `evaluate`."""

    def rollouts(self, program: Module, candidate: Candidate, indices: Sequence[int]) -> list[Rollout]:
        """Run the candidate on these train examples with the teacher, if there is one, and return the traces. None come
        back where the budget is spent."""


UNFINISHED = "the budget ran out"
"""How the reason begins why a candidate was dropped that no other has beaten."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a candidate did on dev. `outcomes` covers the first `len(outcomes)` examples of the race's order."""

    candidate: Candidate
    outcomes: tuple[Outcome, ...]
    dropped: str | None = None
    """Why the race ended early for it, or None."""

    @property
    def mean(self) -> float:
        """Mean score over the examples seen."""
        return sum(o.score for o in self.outcomes) / len(self.outcomes) if self.outcomes else 0.0

    @property
    def was_raced_away(self) -> bool:
        """Whether a race ended early for it, and not the budget."""
        return self.dropped is not None and not self.dropped.startswith(UNFINISHED)


def is_perfect(outcomes: Sequence[Outcome]) -> bool:
    """Whether nothing can score higher."""
    return bool(outcomes) and all(outcome.score >= 1.0 for outcome in outcomes)


PERFECT = "nothing to gain: every dev example is all right"
"""What a pass says that looks for nothing because of that."""


@dataclass(frozen=True, slots=True)
class Bin:
    """A bar of a reliability diagram: answers of about the same confidence, and how often they were right."""

    confidence: float
    """Mean of the probabilities of the answers in it."""
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """How well the probabilities of a scored field fit: with the share of right answers among those given p, on dev."""

    predictor: str
    field: str
    examples: int
    accuracy_before: float
    accuracy_after: float
    error_before: float
    """Expected calibration error, 0 to 1, of the model's own probabilities."""
    error_after: float
    """Of the calibrated ones, each example's by a calibration that was fitted without it."""
    temperature: float
    nearness: float = 0.0
    """What the nearness of the input to each option's examples counts."""
    reliability_before: tuple[Bin, ...] = ()
    reliability_after: tuple[Bin, ...] = ()


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass returns: the candidate it settled on (perhaps the one it was given) and the evidence."""

    winner: Candidate
    standings: tuple[Standing, ...]
    notes: tuple[str, ...] = ()
    calibrations: tuple[CalibrationFit, ...] = ()


class Pass(Protocol):
    """A pass over a program. It must not change `program`."""

    @property
    def name(self) -> str:
        """Short name, shown in the report and stored in the ledger."""

    def run(self, program: Module, baseline: Candidate, context: EvaluationContext) -> PassResult:
        """Propose, compare on dev, and return the best candidate."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a pass will run at most, for an estimate beforehand."""

    candidates: tuple[Candidate, ...] = ()
    """To be run on dev."""
    possible: tuple[Candidate, ...] = ()
    """Those that may come about; one that cannot be known yet stands in by one of about its cost."""
    rollouts: int = 0
    """Train examples that the teacher runs."""
    further: int = 0
    """Runs that may follow: of other examples, or again."""
    asked: int = 0
    """Calls of the teacher for proposals."""


@runtime_checkable
class Forecaster(Protocol):
    """A pass that can say what it will cost; an estimate leaves others out, and says so."""

    def forecast(self, program: Module, baseline: Candidate, context: EvaluationContext) -> Forecast:
        """What `run` would do at most. May not call `context.evaluate` or `context.rollouts`."""
