"""Scoring a closed set: the options as a tree of tokens, so that what they begin with in common is computed once."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from ...errors import EngineError
from .request import END, Choose, Sampling
from .sampler import draw

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A stretch of tokens (`edge`, from the parent on) that some options share. option: the index of the one that ends
    here; a node without one has at least two children."""

    edge: Tokens
    option: int | None = None
    children: tuple[Node, ...] = ()


@lru_cache(maxsize=256)
def option_tree(options: tuple[Tokens, ...]) -> Node:
    """Radix tree of the options; the root's edge is empty.

    Raises `EngineError` if an option is empty, or the same as another or its beginning: a terminator tells those apart.
    """
    if any(not option or END in option[:-1] for option in options):
        raise EngineError("an option to choose from is empty, or has its end before its last token")
    return Node((), None, _children(list(enumerate(options))))


def _children(rest: list[tuple[int, Tokens]]) -> tuple[Node, ...]:
    groups: dict[int, list[tuple[int, Tokens]]] = {}
    for index, tokens in rest:
        groups.setdefault(tokens[0], []).append((index, tokens))
    return tuple(_node(members) for members in groups.values())


def _node(members: list[tuple[int, Tokens]]) -> Node:
    index, first = members[0]
    if len(members) == 1:
        return Node(first, index)
    length = _common(members)
    if any(len(tokens) == length for _, tokens in members):
        raise EngineError(f"option {index} is the beginning of another, or equal to it: end each with a terminator")
    return Node(first[:length], None, _children([(i, tokens[length:]) for i, tokens in members]))


def _common(members: list[tuple[int, Tokens]]) -> int:
    length = 0
    for column in zip(*(tokens for _, tokens in members), strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


@dataclass(slots=True)
class Tally:
    """What is known of a sequence's options: natural log-probability of each, and the branches still under way."""

    logprobs: list[float]
    under_way: int = 0
    tokens: int = 0
    """Tokens that went through the model for it."""


@dataclass(slots=True)
class Growth:
    """Children of a node that were reached, with the log-probability of each one's first token."""

    children: list[tuple[Node, float]] = field(default_factory=list)


def grow(node: Node, logits: torch.Tensor, normalizer: float, eos_ids: frozenset[int]) -> Growth:
    """Look up the first token of each child in a row of float32 logits [vocab]; any end-of-sequence token is an end."""
    growth = Growth()
    for child in node.children:
        growth.children.append((child, token_logprob(child.edge[0], logits, normalizer, eos_ids)))
    return growth


def token_logprob(token: int, logits: torch.Tensor, normalizer: float, eos_ids: frozenset[int]) -> float:
    """Natural log-probability of a token, or with `END` of any end-of-sequence token."""
    if token == END:
        return float(logits[sorted(eos_ids)].logsumexp(dim=0)) - normalizer
    return float(logits[token]) - normalizer


def choose(step: Choose, logprobs: SequenceOf[float], sampling: Sampling, position: int) -> int:
    """Index of the option that is taken: the likeliest, or at a temperature above 0 a drawn one.

    `step.otherwise` where no option reaches the step's threshold.
    """
    if step.drawn_at is not None:
        sampling = replace(sampling, temperature=step.drawn_at)
    probabilities = step.probabilities(logprobs)
    if step.otherwise is not None and max(probabilities) < step.threshold:
        return step.otherwise
    return draw(torch.tensor(probabilities, dtype=torch.float64).log(), sampling, position)
