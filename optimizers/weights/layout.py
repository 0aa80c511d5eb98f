"""Rows as a trie: what several rows of a batch begin with goes through the model once.

Rows of one program share their prompt's beginning (half of the tokens of a short classification), the answers of a pair or
of a group share all of the prompt. Each distinct prefix is a node; the nodes of all rows are one sequence, in which no
place is filled up. Values and gradients are those of the rows one by one, as every node sees its ancestors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

from .row import Row

if TYPE_CHECKING:
    from torch import Tensor

EXPLICIT = 1 << 22
"""Attention scores (rows x heads x queries x keys) up to which they are computed as a matrix. Torch's fused kernel, which
never holds them, takes on the CPU four times as long for its gradient."""
PASS_NODES = 2048
"""In one forward and backward pass. What is kept for the gradient takes about 1.5 MB a node with a model of 135 million
parameters."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch of rows, each without its last token, after which nothing is predicted.

    A row computes the nodes from where it leaves the row before it; rows that have none of their own are left out.
    """

    ids: Tensor
    """Token of each node, int64 [nodes]."""
    depths: Tensor
    """Its place in its rows, int64 [nodes]."""
    paths: Tensor
    """Nodes of a row from its first token, int64 [rows, length]; filled up with 0."""
    own: Tensor
    """Those of them that the row computes, int64 [rows, most]; filled up with 0."""
    places: Tensor
    """Where in `own`, flattened, each node is, int64 [nodes]."""
    parents: Tensor
    """Nodes that loss tokens come after, each once, int64."""
    asked: Tensor
    """For each loss token of all rows, in order, its place in `parents`."""
    targets: Tensor
    """And the token itself, int64."""

    @classmethod
    def of(cls, rows: Sequence[Row], device: Any) -> Self:
        """The layout of rows that each begin with a token without loss."""
        import torch

        paths, own = _nodes([row.tokens[:-1] for row in rows])
        told = {node: (row.tokens[i], i) for path, row in zip(paths, rows, strict=True) for i, node in enumerate(path)}
        nodes = [told[node] for node in range(len(told))]
        computing = [i for i, nodes in enumerate(own) if nodes]
        most = max(len(own[i]) for i in computing)
        places = {node: r * most + s for r, i in enumerate(computing) for s, node in enumerate(own[i])}
        before = [path[i - 1] for path, row in zip(paths, rows, strict=True) for i in _marked(row)]
        parents, asked = torch.unique(torch.tensor(before, dtype=torch.long), return_inverse=True)
        targets = [row.tokens[i] for row in rows for i in _marked(row)]
        tensors = (
            torch.tensor([token for token, _ in nodes]), torch.tensor([depth for _, depth in nodes]),
            _filled([paths[i] for i in computing]), _filled([own[i] for i in computing]),
            torch.tensor([places[node] for node in range(len(nodes))]), parents, asked,
            torch.tensor(targets, dtype=torch.long),
        )  # fmt: skip
        return cls(*(tensor.to(device) for tensor in tensors))


def parts_of(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of the rows, in parts of at most `PASS_NODES` nodes or one row. Rows that begin alike are in one part where
    that has room; all are in one if they fit, and each part is in their order."""
    heads = [row.tokens[:-1] for row in rows]
    if sum(map(len, heads)) <= PASS_NODES:
        return [list(range(len(rows)))]
    parts: list[list[int]] = []
    before: tuple[int, ...] = ()
    room = 0
    for i in sorted(range(len(rows)), key=lambda i: heads[i]):
        own = len(heads[i]) - _shared(before, heads[i])
        if not parts or own > max(room, 0):
            parts.append([])
            own, room = len(heads[i]), PASS_NODES
        parts[-1].append(i)
        before, room = heads[i], room - own
    return [sorted(part) for part in parts]


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, layout: Layout,
    scaling: float, sliding_window: int | None = None, softcap: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls for each layer: query [1, heads, nodes, size], key and value [1, key heads, nodes, size] to
    [1, nodes, heads, size]. Each node attends to its ancestors and itself, in a window to the last ones of them."""
    import torch

    assert softcap is None, "no architecture that the engine runs has it"
    heads, size, shared = query.shape[1], query.shape[3], key.shape[1]
    rows, most = layout.own.shape
    length = layout.paths.shape[1]
    # Query heads that share a key head are further queries of it: [rows, key heads, own x group, size].
    asking = query[0].transpose(0, 1).index_select(0, layout.own.flatten()).view(rows, most, shared, heads // shared, size)
    asking = asking.transpose(1, 2).reshape(rows, shared, -1, size)
    keys, values = (
        of[0].transpose(0, 1).index_select(0, layout.paths.flatten()).view(rows, length, shared, size).transpose(1, 2)
        for of in (key, value)
    )
    seen = torch.arange(length, device=query.device)
    depths = layout.depths[layout.own].repeat_interleave(heads // shared, 1)[:, None, :, None]
    open_ = seen <= depths
    if sliding_window is not None:
        open_ = open_ & (seen > depths - sliding_window)
    if rows * heads * most * length <= EXPLICIT:
        scores = (asking * scaling) @ keys.transpose(2, 3)
        weights = torch.softmax(scores.masked_fill(~open_, float("-inf")), -1, dtype=torch.float32)
        found = weights.to(values.dtype) @ values
    else:
        found = torch.nn.functional.scaled_dot_product_attention(asking, keys, values, open_, scale=scaling)
    found = found.view(rows, shared, most, -1, size).transpose(1, 2).reshape(rows * most, heads, size)
    return found.index_select(0, layout.places)[None], None


def _nodes(rows: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], list[list[int]]]:
    """Of each row its nodes, and those that no row before it in order of tokens has."""
    paths: list[list[int]] = [[]] * len(rows)
    own: list[list[int]] = [[]] * len(rows)
    before: tuple[int, ...] = ()
    path: list[int] = []
    count = 0
    for i in sorted(range(len(rows)), key=lambda i: rows[i]):
        kept = _shared(before, rows[i])
        own[i] = list(range(count, count := count + len(rows[i]) - kept))
        before, path = rows[i], path[:kept] + own[i]
        paths[i] = path
    return paths, own


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Number of tokens that both begin with."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


def _marked(row: Row) -> list[int]:
    return [i for i, loss in enumerate(row.loss) if loss]


def _filled(lists: Sequence[Sequence[int]]) -> Tensor:
    import torch

    width = max(map(len, lists))
    return torch.tensor([[*each, *[0] * (width - len(each))] for each in lists])
