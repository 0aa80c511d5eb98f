"""A sequence that scores a part of another one's options."""

from __future__ import annotations

from dataclasses import dataclass

from .options import Node
from .sequence import Sequence


@dataclass(eq=False, slots=True)
class Branch(Sequence):
    """Goes on from where `root` has to choose, along `node.edge`; it starts on the pages of the sequence it grew from.

    It has no answer of its own: what it finds goes to the root's tally, and it shares the root's future.
    """

    root: Sequence | None = None
    logprob: float = 0.0
    """Of what has been read of the options' tokens up to here."""

    @property
    def lasting(self) -> int:
        """The root's. Of an option that was scored nobody asks again, but for the one that is taken, and that at once: kept
        like prompts, options would drive them from the cache, and take up memory that was never used before."""
        assert self.root is not None
        return self.root.lasting

    @property
    def unwanted(self) -> bool:
        """Whether the root is."""
        assert self.root is not None
        return self.root.unwanted

    @property
    def draws(self) -> bool:
        """Whether options part at the last token: then its row says how they go on."""
        return self.node is not None and bool(self.node.children)

    def dismiss(self) -> None:
        """Nobody waits for a branch."""

    def add_score(self, position: int, logprob: float) -> None:
        """Deliver the log-probability of the token at `position + 1`."""
        del self.pending_scores[position]
        self.logprob += logprob
        if not self.pending_scores and not self.draws:
            self.settle()

    def settle(self) -> None:
        """The end of an option: its log-probability is known."""
        assert self.node is not None and self.node.option is not None and self.tally is not None
        self.tally.logprobs[self.node.option] = self.logprob
        self.finished = True


def branch(number: int, origin: Sequence, node: Node, first: float) -> Branch | None:
    """A branch from `origin` to `node`, whose first token has log-probability `first`. None if nothing is left to compute:
    then the option's log-probability is in the tally already."""
    root = origin.root if isinstance(origin, Branch) else origin
    assert root is not None and root.tally is not None
    before = origin.logprob if isinstance(origin, Branch) else 0.0
    if len(node.edge) == 1 and node.option is not None:
        root.tally.logprobs[node.option] = before + first
        return None
    # The last token of an option is only predicted; where options part, the token before goes through the model too.
    edge = node.edge if node.option is None else node.edge[:-1]
    begin = len(origin.tokens)
    made = Branch(number, root.request, root.vocabulary, root.future, root.adapter, root=root, logprob=before + first)
    made.tokens, made.results = [*origin.tokens, *edge], root.results
    made.tally, made.node = root.tally, node
    made.pending_scores = {begin + i: token for i, token in enumerate(node.edge[1:])}
    root.tally.tokens += len(edge)
    root.tally.under_way += 1
    return made
