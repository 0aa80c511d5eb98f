"""What must hold between a scheduler's sequences and its pages after every step. For tests and debugging."""

from __future__ import annotations

from collections import defaultdict

from ...errors import EngineError
from .pages import PAGE_SIZE, Page
from .scheduler import Scheduler
from .sequence import Sequence


def check_tables(scheduler: Scheduler) -> None:
    """Raise `EngineError` if the pool or the sequences' block tables are inconsistent. Costs O(pages + tokens)."""
    scheduler.pool.check()
    holders: dict[int, list[tuple[Sequence, int]]] = defaultdict(list)
    for sequence in scheduler.parked:
        if sequence.pages or sequence.computed:
            raise EngineError(f"sequence {sequence.id} is parked and holds {len(sequence.pages)} pages")
    for sequence in (*scheduler.running, *scheduler.waiting):
        for position, page in enumerate(sequence.pages):
            holders[page.index].append((sequence, position))
            if page.filled < min(PAGE_SIZE, sequence.computed - position * PAGE_SIZE):
                raise EngineError(
                    f"sequence {sequence.id} counts {sequence.computed} tokens as computed, "
                    f"but page {page.index} at {position} holds {page.filled}"
                )
    running = {sequence.id for sequence in scheduler.running}
    for page in scheduler.pool.pages:
        _check_page(page, holders[page.index], running)


def _check_page(page: Page, holders: list[tuple[Sequence, int]], running: set[int]) -> None:
    if page.references != len(holders):
        raise EngineError(f"page {page.index} counts {page.references} references, {len(holders)} tables hold it")
    if page.owner is not None and page.owner not in running:
        raise EngineError(f"page {page.index} belongs to sequence {page.owner}, which is not running")
    if len({position for _, position in holders}) > 1:
        raise EngineError(f"page {page.index} is at several positions: {[position for _, position in holders]}")
    # A page under a key holds its whole block, whether written or not; an open one only what is written.
    known = page.tokens if page.key is not None else page.written
    for sequence, position in holders:
        begin = position * PAGE_SIZE
        held = sequence.tokens[begin : begin + PAGE_SIZE]
        if page.branch is not None and held[: len(known)] != list(known):
            raise EngineError(f"page {page.index} is found under {list(known)}, sequence {sequence.id} has {held} there")
        first = holders[0][0].tokens[begin : begin + page.filled]
        if held[: page.filled] != first:
            raise EngineError(f"page {page.index} is shared by sequences with tokens {first} and {held}")
