"""A progress bar for a compile: what runs, how far, time left, and what it has cost so far."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..optimizers.context import Outcome


class ProgressBar:
    """Draws on stderr if it is a terminal or a notebook; otherwise only counts. Use as a context manager."""

    def __init__(self, enabled: bool = True) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[cost]}", markup=False),
            console=console,
            disable=not enabled or not (console.is_terminal or console.is_jupyter),
        )
        self._task = self._bar.add_task("", total=None, cost="")
        self.calls = self.tokens = self.resumed = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def describe(self, text: str) -> None:
        """Say what is being done now."""
        self._bar.update(self._task, description=text)

    def expect(self, examples: int) -> None:
        """Set how many examples are to be run in all; at most, where a race may stop some early."""
        self._bar.update(self._task, total=examples)

    def advance(self, outcome: Outcome) -> None:
        """Count a finished example."""
        if outcome.resumed:
            self.resumed += 1
        else:
            self.calls += outcome.calls
            self.tokens += outcome.prompt_tokens - outcome.cached_tokens + outcome.decoded_tokens
        cost = f"{self.calls} calls, {self.tokens:,} tokens"
        if self.resumed:
            cost += f", {self.resumed} from the ledger"
        self._bar.update(self._task, advance=1, cost=cost)
