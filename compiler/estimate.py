"""`still.estimate`: what a compile would cost, from a few timed calls."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..backends.retrieval.model_folder import DEFAULT_EMBEDDER
from ..optimizers.budget import Budget
from ..optimizers.candidate import Candidate
from ..optimizers.context import Forecast, Forecaster, Pass, Standing
from ..optimizers.racing import blocks_of
from ..signatures.bridge import Module
from .conclusion import BASELINE
from .dataset import Dataset
from .ledger import Ledger
from .probe import Cost, Probe
from .task import Level, Task, make_task

COLUMNS = ("pass", "candidates", "example runs", "calls", "tokens", "of them computed", "seconds")
PROPOSAL_TOKENS = 900
"""Of a prompt that asks a teacher for instructions, with the answer: five examples, five mistakes, and about 100 words."""


@dataclass(frozen=True, slots=True)
class PassEstimate:
    """A pass: what it costs at least, if racing drops all but the best after the first block, and at most."""

    name: str
    candidates: int
    low: Cost
    high: Cost


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a compile would cost, pass by pass. It ran `probed` examples to find out, in `seconds`."""

    passes: tuple[PassEstimate, ...]
    probed: int
    seconds: float
    train_size: int
    dev_size: int
    notes: tuple[str, ...] = ()

    @property
    def low(self) -> Cost:
        """All passes together, at least."""
        return sum((one.low for one in self.passes), Cost())

    @property
    def high(self) -> Cost:
        """All passes together, at most."""
        return sum((one.high for one in self.passes), Cost())

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "low": asdict(self.low), "high": asdict(self.high)}

    def __str__(self) -> str:
        title = f"estimate for {self.train_size} train and {self.dev_size} dev examples"
        table = Table(*COLUMNS, title=title, title_justify="left", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        total = PassEstimate("together", sum(one.candidates for one in self.passes), self.low, self.high)
        for one in (*self.passes, total):
            spans = [_span(getattr(one.low, name), getattr(one.high, name)) for name in Cost.__slots__]
            table.add_row(one.name, str(one.candidates), *spans)
        console = Console(file=io.StringIO(), width=132, force_terminal=False, markup=False, emoji=False)
        console.print(table)
        for note in (f"measured on {self.probed} example runs in {self.seconds:.1f} s", *self.notes):
            console.print(note, highlight=False, markup=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()


def estimate(
    program: Module,
    train: Dataset,
    dev: Dataset | None = None,
    metric: Any = "exact",
    *,
    level: Level = "O1",
    passes: Sequence[Pass] | None = None,
    lm: Any = None,
    teacher: Any = None,
    budget: Budget | None = None,
    objective: str | Sequence[str] = "quality",
    embedder: str | None = DEFAULT_EMBEDDER,
    seed: int = 0,
) -> Estimate:
    """Say what `compile` with these arguments would cost, without doing it.

    Of each kind of candidate (number of demonstrations, fixed or nearest, decoded or scored, knobs) one is run on a handful
    of dev examples side by side, after one that warms up what they share; that gives its calls, tokens and seconds per
    example. How many candidates there will be the passes say; which of them starts the next pass is not known, so the range
    goes from the cheapest start and a race that drops everybody after its first block, to whichever of the cheapest and the
    dearest start comes to more and a race that drops nobody. The timing at the end that latency as an objective needs
    (some 150 runs at most) is left out. Nothing is written to a ledger. Raises as `compile` does.
    """
    task = make_task(program, train, dev, metric, level, passes, lm, teacher, seed, objective, embedder)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "probe.duckdb") as book:
        probe = Probe(task, book)
        rows, notes = _rows(task, probe)
        found = Estimate(rows, probe.runs, probe.seconds, len(task.train), len(task.dev), notes)
    return replace(found, notes=(*notes, *_budget_notes(budget, found)))


def _rows(task: Task, probe: Probe) -> tuple[tuple[PassEstimate, ...], tuple[str, ...]]:
    first = probe.cost(BASELINE, len(task.dev))
    rows, notes = [PassEstimate("baseline", 1, first, first)], []
    cheap = dear = BASELINE
    for step in task.passes:
        if not isinstance(step, Forecaster):
            notes.append(f"{step.name}: has no forecast, and is left out")
            continue
        low, high = (step.forecast(task.program, start, probe.context) for start in (cheap, dear))
        # The dearest start may leave a pass less to try than the cheapest, so either may come to more.
        most = _most(low, cheap, task, probe).at_most(_most(high, dear, task, probe))
        runs = [(*forecast.candidates, *forecast.possible) for forecast in (low, high)]
        rows.append(PassEstimate(step.name, max(map(len, runs)), _least(low, cheap, task, probe), most))
        # What a pass finds measured decides how much it can combine anew.
        probe.context.history.extend(Standing(candidate, ()) for candidate in runs[1])
        dear = max((dear, *runs[1]), key=lambda candidate: probe.cost(candidate, len(task.dev)).seconds)
    return tuple(rows), tuple(notes)


def _least(forecast: Forecast, start: Candidate, task: Task, probe: Probe) -> Cost:
    """Only what is sure to be tried, and dropped after its first block. What a pass starts from was run before."""
    block = len(blocks_of(range(len(task.dev)))[0])
    tried = [candidate for candidate in forecast.candidates if candidate.digest != start.digest]
    return sum((probe.cost(candidate, block) for candidate in tried), probe.teacher_cost(forecast.rollouts))


def _most(forecast: Forecast, start: Candidate, task: Task, probe: Probe) -> Cost:
    """All that may be tried, on all of dev."""
    tried = [candidate for candidate in forecast.candidates if candidate.digest != start.digest]
    others = probe.teacher_cost(forecast.rollouts + forecast.further) + probe.asking_cost(forecast.asked, PROPOSAL_TOKENS)
    return sum((probe.cost(candidate, len(task.dev)) for candidate in (*tried, *forecast.possible)), others)


def _budget_notes(budget: Budget | None, found: Estimate) -> list[str]:
    notes = []
    for name in ("seconds", "calls", "tokens") if budget is not None else ():
        limit, spent = getattr(budget, name), 0.0
        for one in found.passes if limit is not None else ():
            spent += getattr(one.high, name)
            if spent > limit:
                notes.append(f"the budget of {limit:,g} {name} may be spent during {one.name}")
                break
    return notes


def _span(low: float, high: float) -> str:
    ends = [f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} - {ends[1]}"
