"""`Gather`: what many threads ask for one by one, done together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class _Waiting(Generic[A, B]):
    def __init__(self, item: A) -> None:
        self.item = item
        self.done = False
        self.answer: B
        self.error: BaseException | None = None


class Gather(Generic[A, B]):
    """Calls `run` with all items that have arrived since it was called last; one call at a time, in a thread that waits."""

    def __init__(self, run: Callable[[Sequence[A]], Sequence[B]]) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._waiting: list[_Waiting[A, B]] = []
        self._running = False

    def __call__(self, item: A) -> B:
        """The answer to one item. Raises what `run` raises for it alone: items that failed together are tried one by one."""
        mine: _Waiting[A, B] = _Waiting(item)
        with self._changed:
            self._waiting.append(mine)
            while self._running and not mine.done:
                self._changed.wait()
            batch: list[_Waiting[A, B]] = []
            if not mine.done:
                self._running = True
                batch, self._waiting = self._waiting, []
        if batch:
            self._work(batch)
        if mine.error is not None:
            raise mine.error
        return mine.answer

    def _work(self, batch: Sequence[_Waiting[A, B]]) -> None:
        try:
            try:
                self._answer(batch)
            except Exception:
                if len(batch) == 1:
                    raise
                self._one_by_one(batch)
        except BaseException as error:
            for waiting in batch:
                waiting.error = error
        finally:
            with self._changed:
                for waiting in batch:
                    waiting.done = True
                self._running = False
                self._changed.notify_all()

    def _answer(self, batch: Sequence[_Waiting[A, B]]) -> None:
        for waiting, answer in zip(batch, self._run([waiting.item for waiting in batch]), strict=True):
            waiting.answer = answer

    def _one_by_one(self, batch: Sequence[_Waiting[A, B]]) -> None:
        """One item may be what the others failed with: alone, it fails alone."""
        for waiting in batch:
            try:
                self._answer([waiting])
            except Exception as error:
                waiting.error = error
