"""What a report shows beyond scores: how the search went, what changed in the prompts, which examples were won and lost.

All of it is plain data that the artifact keeps, so that a page can be made of an artifact long after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..optimizers.budget import Spending
from ..optimizers.candidate import Candidate, asked_signature
from ..optimizers.context import Outcome, PassResult, Standing
from ..optimizers.nearest import NearestDemonstrations
from ..signatures.bridge import Example, Module
from ..signatures.layout import lower
from .canonical import canonical_json
from .example_run import Run

TEXT_LIMIT = 400
"""Characters of an input, label or answer that are kept."""
KEPT = 40
"""Wins, losses and shared failures that are kept, each."""


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate that has seen all of dev, and what the compile had spent by then."""

    candidate: str
    score: float
    best: float
    """The best score on all of dev until then."""
    calls: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """One pass: where it began, where it ended, and what it took."""

    name: str
    start: str
    end: str
    candidates: int
    raced_away: int
    score_before: float
    score_after: float
    """Mean over the dev examples it measured."""
    calls: int
    tokens: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def decision(self) -> str:
        """What it decided, in a sentence."""
        if not self.candidates:
            return "had nothing to try"
        if self.start == self.end:
            return f"kept {self.start}: none of {self.candidates - 1} others was better"
        return f"took {self.end} in place of {self.start}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One dev example under the program as it was and under the winner; texts are cut at `TEXT_LIMIT` characters."""

    example: int
    inputs: dict[str, str]
    expected: dict[str, str]
    baseline: dict[str, str]
    winner: dict[str, str]
    baseline_score: float
    winner_score: float
    said: str = ""
    """The metric's feedback on the worse of the two, or the error."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One predictor's prompt, with slots for the inputs, before and after."""

    predictor: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything of this page. wins, losses and ties count examples; `comparisons` has at most `KEPT` of a kind."""

    points: tuple[Point, ...] = ()
    steps: tuple[Step, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    wins: int = 0
    losses: int = 0
    ties: int = 0
    audit: tuple[str, ...] = ()
    """Notes of the dataset audit."""


@dataclass(slots=True)
class Course:
    """Watches a compile: which candidates are known on all of dev, and what had been spent by then."""

    size: int
    spending: Spending
    points: list[Point] = field(default_factory=list)
    _scores: dict[str, dict[int, float]] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)

    def note(self, candidate: Candidate, indices: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        """A candidate was run on these dev examples."""
        scores = self._scores.setdefault(candidate.digest, {})
        scores.update(zip(indices, (outcome.score for outcome in outcomes), strict=True))
        if candidate.digest in self._known or len(scores) < self.size:
            return
        self._known.add(candidate.digest)
        score = sum(scores[index] for index in sorted(scores)) / self.size
        best = max([score, *(point.best for point in self.points[-1:])])
        spent = self.spending
        self.points.append(Point(candidate.name, score, best, spent.all_calls, spent.all_tokens, spent.elapsed))


def make_step(
    name: str, start: Candidate, result: PassResult, spent: Mapping[str, float], known: Sequence[Standing] = ()
) -> Step:
    """Summarize a pass; `spent` has its calls, tokens and seconds. known: what was measured before it."""
    means = {s.candidate.digest: s.mean for s in (*known, *reversed(result.standings)) if s.outcomes}
    tried = {s.candidate.digest: s for s in reversed(result.standings) if s.outcomes}
    return Step(
        name=name,
        start=start.name,
        end=result.winner.name,
        candidates=len(tried),
        raced_away=sum(s.was_raced_away for s in tried.values()),
        score_before=means.get(start.digest, 0.0),
        score_after=means.get(result.winner.digest, 0.0),
        calls=int(spent["calls"]),
        tokens=int(spent["tokens"]),
        seconds=spent["seconds"],
        notes=result.notes,
    )


def make_prompts(before: Module, after: Module) -> tuple[Prompt, ...]:
    """The prompts of two variants of a program, predictor by predictor."""
    now = dict(after.named_predictors())
    return tuple(Prompt(name, prompt_text(old), prompt_text(now[name])) for name, old in before.named_predictors())


def prompt_text(predictor: Any) -> str:
    """A predictor's plan as text; of demonstrations that are chosen per input, the first, as many as a call shows."""
    signature, demos = asked_signature(predictor), predictor.demos
    if not isinstance(demos, NearestDemonstrations):
        return str(lower(signature, list(demos)))
    return f"{lower(signature, demos[: demos.count_per_input])}\n({demos.about})"


Settled = tuple[Outcome, Run]


def compare(
    examples: Sequence[Example], baseline: Sequence[Settled | None], winner: Sequence[Settled | None]
) -> dict[str, Any]:
    """`comparisons`, `wins`, `losses` and `ties` of `Evidence`, over the examples that both have seen."""
    kinds: dict[str, list[Comparison]] = {"wins": [], "losses": [], "failures": []}
    counts = dict.fromkeys(("wins", "losses", "ties"), 0)
    for index, (example, old, new) in enumerate(zip(examples, baseline, winner, strict=True)):
        if old is None or new is None:
            continue
        gain = new[0].score - old[0].score
        kind = "wins" if gain > 0 else "losses" if gain < 0 else "ties"
        counts[kind] += 1
        listed = kind if kind != "ties" else "failures" if new[0].score < 1 else ""
        if listed and len(kinds[listed]) < KEPT:
            kinds[listed].append(_comparison(index, example, old, new))
    return {"comparisons": tuple(one for found in kinds.values() for one in found), **counts}


def _comparison(index: int, example: Example, old: Settled, new: Settled) -> Comparison:
    labels = {name: value for name, value in example.items() if name not in example.inputs()}
    worse = old[0] if new[0].score > old[0].score else new[0]
    return Comparison(
        example=index,
        inputs=_texts(dict(example.inputs().items())),
        expected=_texts(labels),
        baseline=_answer(old[1], labels),
        winner=_answer(new[1], labels),
        baseline_score=old[0].score,
        winner_score=new[0].score,
        said=_cut(worse.error or worse.feedback),
    )


def _answer(run: Run, labels: Mapping[str, Any]) -> dict[str, str]:
    """What the program said, the labelled fields first; nothing where it failed."""
    values = {} if run.prediction is None else run.prediction.toDict()
    return _texts({name: values[name] for name in sorted(values, key=lambda name: name not in labels)})


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _cut(value if isinstance(value, str) else _json(value)) for name, value in values.items()}


def _json(value: Any) -> str:
    try:
        return canonical_json(value)
    except Exception:  # an object of the user's without JSON
        return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
