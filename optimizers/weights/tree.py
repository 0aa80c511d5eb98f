"""Rows that begin alike, as one sequence in which what they share stands once.

The rows of a batch share the static part of their prompt, the two answers of a pair and the samples of a group all of it. In
a tree of their tokens every node is computed once and sees its ancestors only, which is what it would see in each of its
rows: the numbers are those of the rows alone, for fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .row import Row

if TYPE_CHECKING:
    from torch import Tensor

MOST_NODES = 256
"""Of a tree of several rows: each node is compared with all others, which costs more than it saves where trees are large."""


@dataclass(slots=True)
class TokenTree:
    """Nodes in an order in which parents come first."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """-1 for a first token."""
    decisions: list[tuple[int, int]] = field(default_factory=list)
    """For each token with loss, row after row: the node before it, and the token."""
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def unshared(self, row: Row) -> int:
        """How many nodes adding the row would make."""
        node = -1
        for i, token in enumerate(row.tokens):
            if (found := self._children.get((node, token))) is None:
                return len(row.tokens) - i
            node = found
        return 0

    def add(self, row: Row) -> None:
        """Add a row. Its first token must be without loss."""
        node = -1
        for i, token in enumerate(row.tokens):
            if row.loss[i]:
                self.decisions.append((node, token))
            found = self._children.get((node, token))
            if found is None:
                found = self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.positions.append(i)
                self.parents.append(node)
            node = found

    def visible(self, width: int) -> Tensor:
        """What each node sees, bool [width, width]; nodes beyond the tree see themselves."""
        import torch

        seen = torch.eye(width, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def plant(rows: Sequence[Row], most: int = MOST_NODES) -> list[TokenTree]:
    """Trees that hold the rows in their order, each with at most `most` nodes or a single row."""
    trees: list[TokenTree] = []
    for row in rows:
        if not trees or len(trees[-1].tokens) + trees[-1].unshared(row) > most:
            trees.append(TokenTree())
        trees[-1].add(row)
    return trees
