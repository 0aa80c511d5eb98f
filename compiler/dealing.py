"""Rows dealt to parts of given sizes: groups whole, classes in proportion, in a given order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 100
_LITTLE = 1e-9

Needs = dict[str, NDArray[np.float64]]


def deal(
    order: Sequence[int], groups: Sequence[Sequence[int]], classes: Sequence[str], sizes: Sequence[int]
) -> list[list[int]]:
    """One part per size, together all of `order`, each in its order; a member of a group is where the others are.

    First come the classes that have one row, or one group: they go to the first part, as far as it has room. Then
    groups, the largest first, each where its classes lack most after it. Then single rows: per class the parts' shares
    are rounded by largest remainder, and corrected so that every part has its size. Without groups and one-row classes
    no part has more or less of a class than its share rounded up or down; parts miss their sizes only for a group that
    is larger than the room there is.
    """
    table = _Table(order, groups, classes, sizes)
    units = sorted(table.units, key=lambda unit: -len(unit))  # stable: equal sizes stay in the order of the shuffle
    alone = [unit for unit in units if all(table.units_of[classes[i]] == 1 for i in unit)]
    together = len(table.units_of) > 1  # a single class is no rare one
    placed = set()
    for unit in alone if together else ():
        if len(unit) <= table.room[0]:
            table.put(unit, 0)
            placed.add(unit)
    for unit in units:
        if len(unit) > 1 and unit not in placed:
            table.put(unit, table.best(unit))
    table.deal_singles([unit[0] for unit in units if len(unit) == 1 and unit not in placed])
    return [[index for index in order if table.part_of[index] == part] for part in range(len(sizes))]


class _Table:
    """What has been dealt, and what each part still lacks."""

    def __init__(
        self, order: Sequence[int], groups: Sequence[Sequence[int]], classes: Sequence[str], sizes: Sequence[int]
    ) -> None:
        position = {index: place for place, index in enumerate(order)}
        self.units = sorted((tuple(group) for group in groups), key=lambda unit: min(position[i] for i in unit))
        self.classes = classes
        self.units_of = Counter(name for unit in self.units for name in {classes[i] for i in unit})
        self.room = list(sizes)
        self.part_of: dict[int, int] = {}
        shares = np.array(sizes, float) / max(len(order), 1)
        self.shares: Needs = {name: shares * count for name, count in Counter(classes).items()}
        self.needs: Needs = {name: share.copy() for name, share in self.shares.items()}

    def put(self, unit: Sequence[int], part: int) -> None:
        for index in unit:
            self.part_of[index] = part
            self.needs[self.classes[index]][part] -= 1
        self.room[part] -= len(unit)

    def best(self, unit: Sequence[int]) -> int:
        """Where the classes of `unit` will lack the largest share of theirs after it (d'Hondt), and there is room."""
        fits = [part for part, room in enumerate(self.room) if room >= len(unit)]
        if not fits:
            return max(range(len(self.room)), key=lambda part: self.room[part])
        counts = Counter(self.classes[index] for index in unit)

        def lack(part: int) -> float:
            return float(sum(n * (self.needs[name][part] - n) / self.shares[name][part] for name, n in counts.items()))

        return max(fits, key=lack)

    def deal_singles(self, singles: Sequence[int]) -> None:
        rows: dict[str, list[int]] = {}
        for index in singles:
            rows.setdefault(self.classes[index], []).append(index)
        if not rows:
            return
        names = sorted(rows)
        sums = [len(rows[name]) for name in names]
        wanted = np.array([self.needs[name] for name in names])
        counts = round_table(fit_margins(wanted, sums, self._rooms(len(singles))), sums, self._rooms(len(singles)))
        for name, row in zip(names, counts, strict=True):
            ends = np.cumsum(row)
            for part, end in enumerate(ends):
                for index in rows[name][int(end - row[part]) : int(end)]:
                    self.part_of[index] = part

    def _rooms(self, total: int) -> list[int]:
        """Rooms that add up to `total`: a group larger than any room has taken from the others'."""
        rooms = [max(room, 0) for room in self.room]
        while sum(rooms) > total:
            rooms[rooms.index(max(rooms))] -= 1
        return rooms


def fit_margins(wanted: NDArray[np.float64], row_sums: Sequence[int], column_sums: Sequence[int]) -> NDArray[np.float64]:
    """`wanted` scaled to the sums, by turns (iterative proportional fitting); unchanged if it has them already."""
    rows, columns = np.array(row_sums, float), np.array(column_sums, float)
    if np.allclose(wanted.sum(axis=1), rows) and np.allclose(wanted.sum(axis=0), columns) and (wanted >= 0).all():
        return wanted
    table = np.maximum(wanted, _LITTLE)  # not 0: every cell must be able to take what has no other place
    for _ in range(_ROUNDS):
        table *= (columns / np.maximum(table.sum(axis=0), _LITTLE))[None, :]  # a full part's column becomes 0
        table *= (rows / table.sum(axis=1))[:, None]
    return table


def round_table(table: NDArray[np.float64], row_sums: Sequence[int], column_sums: Sequence[int]) -> NDArray[np.int64]:
    """`table` in whole numbers with these sums, each cell rounded up or down where the table has the sums itself.

    Rows are rounded by largest remainder; where that gives columns too much or too little, the shortest chain of
    exchanges between columns mends it. There always is one (L. Cox, "A constructive procedure for unbiased controlled
    rounding", 1987).
    """
    floors = np.floor(table + _LITTLE).astype(np.int64)
    counts = floors.copy()
    for row, total in enumerate(row_sums):
        spare = total - int(floors[row].sum())
        counts[row, np.argsort(floors[row] - table[row], kind="stable")[:spare]] += 1
    while (excess := counts.sum(axis=0) - np.array(column_sums)).any():
        _exchange(counts, floors, table, excess)
    return counts


def _exchange(
    counts: NDArray[np.int64], floors: NDArray[np.int64], table: NDArray[np.float64], excess: NDArray[np.int64]
) -> None:
    """Move one from a column with too much to one with too little, if need be by way of others."""
    raised, lowered = counts > floors, (counts == floors) & (table - floors > _LITTLE)
    start = int(np.argmax(excess))
    came: dict[int, tuple[int, int]] = {start: (start, 0)}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if excess[here] < 0:
            _shift(counts, came, here)
            return
        for there in set(range(len(excess))) - came.keys():
            rows = np.flatnonzero(raised[:, here] & lowered[:, there])
            if len(rows):
                came[there] = (here, int(rows[0]))
                queue.append(there)
    # Only where the table itself could not be fitted to the sums.
    row = int(np.argmax(counts[:, start]))
    counts[row, start] -= 1
    counts[row, int(np.argmin(excess))] += 1


def _shift(counts: NDArray[np.int64], came: dict[int, tuple[int, int]], end: int) -> None:
    there = end
    while True:
        here, row = came[there]
        if here == there:
            return
        counts[row, here] -= 1
        counts[row, there] += 1
        there = here
