"""One request while it runs: its tokens, its pages, and where it is in its steps."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ...errors import EngineError
from ..models import Adapter, Tokenizer
from .grammar import GrammarCompiler, Matcher
from .options import Growth, Node, Tally, choose, grow, option_tree
from .pages import Page
from .request import END, Choose, Decode, Forced, Request, Result, Step, StepResult, Usage

if TYPE_CHECKING:
    import torch


class Feed(Protocol):
    """Someone who follows a sequence while it runs."""

    def update(self, sequence: Sequence) -> None:
        """Take note of what is new. Called by the scheduler's thread after each draw: must not block."""


@dataclass(slots=True)
class Vocabulary:
    """What a sequence needs to know of the tokenizer."""

    tokenizer: Tokenizer
    grammars: GrammarCompiler


@dataclass(eq=False, slots=True)
class Sequence:
    """State of one request. The scheduler owns `pages` and `computed`; the rest is driven by `begin` and `accept`.

    `tokens` = prompt and everything forced or decoded so far; the first `computed` of them have keys and values.
    """

    id: int
    request: Request
    vocabulary: Vocabulary
    future: Future[Result]
    adapter: Adapter | None = None
    """What it runs with beside the base model; its pages are told from those of other adapters by the digest."""
    followers: list[Sequence] = field(default_factory=list)
    """Samples that go their own way from the first draw on. Until then this sequence computes for them."""
    feed: Feed | None = None
    """Told of every new token, for callers that stream."""
    submitted: float = field(default_factory=time.perf_counter)
    tokens: list[int] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    page_keys: list[int] = field(default_factory=list)
    computed: int = 0
    admitted: bool = False
    """Whether it had pages before: `cached` counts what was there the first time."""
    cached: int = 0
    decoded: int = 0
    jumped: int = 0
    scored: int = 0
    results: list[StepResult] = field(default_factory=list)
    matcher: Matcher | None = None
    finished: bool = False
    error: EngineError | None = None
    """Why it cannot go on, where nothing but the request is to blame: its grammar, say."""
    _start: int = 0
    """Index in `tokens` where the current step began."""
    _logprobs: list[float] = field(default_factory=list)
    pending_scores: dict[int, int] = field(default_factory=dict)
    """Row position → token it should predict, for forced tokens that are to be scored."""
    tally: Tally | None = None
    """In a choice: what is known of the options. Branches share that of the sequence they are branches of."""
    node: Node | None = None
    """In a choice: the part of the tree of options that has been reached."""
    growth: Growth | None = None
    """What was found at `node`, to be followed by branches."""

    def begin(self) -> None:
        """Lay out the prompt and the steps up to the first that needs the model."""
        self.tokens = list(self.request.prompt)
        self._enter_steps()

    def part(self) -> list[Sequence]:
        """Hand over the followers that are still wanted, each at the same place as this sequence."""
        followers, self.followers = self.followers, []
        wanted = []
        for follower in followers:
            if follower.future.cancelled():
                follower.future.set_running_or_notify_cancel()
            else:
                follower._take_over(self)
                wanted.append(follower)
        return wanted

    @property
    def unwanted(self) -> bool:
        """Whether the request was cancelled, and with it every sample that waits for it."""
        return self.future.cancelled() and all(follower.future.cancelled() for follower in self.followers)

    @property
    def step(self) -> Step | None:
        """The current step, or None when all are done."""
        index = len(self.results)
        return self.request.steps[index] if index < len(self.request.steps) else None

    @property
    def step_start(self) -> int:
        """Index in `tokens` of the current step's first token."""
        return self._start

    @property
    def needed(self) -> int:
        """The first position whose logits are wanted: it has to be computed even if its keys and values are known."""
        return next(iter(self.pending_scores), len(self.tokens) - 1)

    @property
    def remaining(self) -> int:
        """Tokens that still have to go through the model before the next draw."""
        return len(self.tokens) - self.computed

    @property
    def lasting(self) -> int:
        """Tokens from the beginning that may be asked for again."""
        return len(self.tokens)

    @property
    def draws(self) -> bool:
        """Whether the row of the last token is to be sampled from."""
        return isinstance(self.step, Decode | Choose)

    def spread(self, logits: torch.Tensor, normalizer: float) -> None:
        """Read off a row of logits how the options go on from here."""
        assert self.node is not None
        self.growth = grow(self.node, logits, normalizer, self.vocabulary.tokenizer.eos_ids)

    def choose(self) -> None:
        """All options are scored: take one and go on."""
        step, tally = self.step, self.tally
        assert isinstance(step, Choose) and tally is not None
        index = choose(step, tally.logprobs, self.request.sampling, len(self.tokens))
        tokens = [token for token in step.options[index] if token != END]
        self.tokens.extend(tokens)
        self.jumped += len(tokens)
        self.scored += tally.tokens
        self.tally = self.node = None
        self._finish_step("chosen", tokens, tuple(tally.logprobs))
        self._enter_steps()

    def dismiss(self) -> None:
        """Take note that the request was cancelled."""
        self.future.set_running_or_notify_cancel()

    def add_score(self, position: int, logprob: float) -> None:
        """Deliver the log-probability of the forced token at `position + 1`."""
        del self.pending_scores[position]
        self._logprobs.append(logprob)
        if not self.pending_scores:
            self._finish_step("forced", self.tokens[self._start :])
            self._enter_steps()

    def accept(self, token: int, logprob: float) -> None:
        """Take a drawn token and go on as far as possible without the model."""
        step = self.step
        if not isinstance(step, Decode):
            raise EngineError("internal: a token was drawn outside a decode step")
        self.decoded += 1
        if token in self.vocabulary.tokenizer.eos_ids:
            self._end_decode("eos")
            return
        self.tokens.append(token)
        self._logprobs.append(logprob)
        if self.matcher is not None:
            self.matcher.consume(token)
        self._after_tokens(step)

    def usage(self) -> Usage:
        """Counts so far."""
        forced = len(self.tokens) - self._decoded_length()
        elapsed = time.perf_counter() - self.submitted
        return Usage(forced, self.cached, self.decoded, self.jumped, self.scored, elapsed)

    def result(self) -> Result:
        """The finished request."""
        return Result(tuple(self.results), self.usage())

    def _take_over(self, leader: Sequence) -> None:
        """Become a copy of `leader`, except for the request (its seed), the future and the pages."""
        self.tokens, self.results = list(leader.tokens), list(leader.results)
        self.matcher = leader.matcher.fork() if leader.matcher is not None else None
        self.decoded, self.jumped, self.finished = leader.decoded, leader.jumped, leader.finished
        self._start, self._logprobs = leader._start, list(leader._logprobs)
        self.tally, self.node, self.admitted = leader.tally, leader.node, True
        # Prompt and forced tokens: all of them were computed for the leader. A decode step's jumped tokens are neither.
        end = len(self.tokens) if self.finished else self._start
        self.cached = end - self._decoded_length()

    def _decoded_length(self) -> int:
        return sum(len(r.tokens) for r in self.results if r.finish_reason != "forced")

    def _enter_steps(self) -> None:
        """Append forced steps until one needs the model, or all are done."""
        while (step := self.step) is not None:
            self._start = len(self.tokens)
            if isinstance(step, Decode):
                self.matcher = self.vocabulary.grammars.matcher(step.grammar) if step.grammar is not None else None
                if self.matcher is not None:
                    self._jump()
                    if self.matcher.complete:
                        self._finish_decode("grammar")
                        continue
                return
            if isinstance(step, Choose):
                if len(step.options) > 1:
                    self.node, self.tally = option_tree(step.options), Tally([-math.inf] * len(step.options))
                    return
                self.tally = Tally([0.0])
                self.choose()
                return
            self._enter_forced(step)
            if self.pending_scores:
                return
            self._finish_step("forced", list(step.tokens))
        self.finished = True

    def _enter_forced(self, step: Forced) -> None:
        if step.score:
            if not self.tokens and step.tokens:
                raise EngineError("score() needs a prompt of at least one token before the continuation")
            self.pending_scores = {self._start + i - 1: token for i, token in enumerate(step.tokens)}
        self.tokens.extend(step.tokens)

    def _after_tokens(self, step: Decode) -> None:
        if self.matcher is not None and not self.matcher.complete:
            self._jump()
        if self.matcher is not None and self.matcher.complete:
            self._end_decode("grammar")
        elif step.stop and self._stop_found(step.stop):
            self._end_decode("stop")
        elif len(self.tokens) - self._start >= step.max_tokens:
            self._end_decode("closed" if self._close(step) else "length")

    def _jump(self) -> None:
        """Append what the grammar forces: it costs a share of a prefill instead of a decode step each."""
        step, matcher = self.step, self.matcher
        assert matcher is not None and isinstance(step, Decode)
        # At most what the sequence was admitted for.
        forced = matcher.forced()[: step.longest - (len(self.tokens) - self._start)]
        self.tokens.extend(forced)
        self.jumped += len(forced)

    def _close(self, step: Decode) -> bool:
        """Out of tokens inside a grammar: append the shortest text that completes it. False if there is nothing to do, or
        no room for it."""
        if self.matcher is None or self.matcher.accepting:
            return False
        written = self.tokens[self._start :]
        tokens = self.matcher.closing(written, step.longest - len(written))
        self.tokens.extend(tokens)
        self.jumped += len(tokens)
        return bool(tokens)

    def _stop_found(self, stop: tuple[str, ...]) -> bool:
        # A stop string of n bytes spans at most n tokens, plus one that began before it.
        longest = max(len(s.encode(errors="replace")) for s in stop)
        tail = self.tokens[max(self._start, len(self.tokens) - longest - 1) :]
        text = self.vocabulary.tokenizer.decode(tail)
        return any(s in text for s in stop)

    def _end_decode(self, reason: str) -> None:
        self._finish_decode(reason)
        self._enter_steps()

    def _finish_decode(self, reason: str) -> None:
        self._finish_step(reason, self.tokens[self._start :])
        self.matcher = None

    def _finish_step(self, reason: str, tokens: list[int], scores: tuple[float, ...] = ()) -> None:
        text = self.vocabulary.tokenizer.decode(tokens)
        step = self.step
        if reason == "stop" and isinstance(step, Decode):
            text = cut_at_stop(text, step.stop)
        drawn = self.decoded - sum(result.drawn_tokens for result in self.results)
        scored = self.scored - sum(result.scored_tokens for result in self.results)
        self.results.append(StepResult(tuple(tokens), text, reason, tuple(self._logprobs), scores, drawn, scored))
        self._logprobs = []


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first stop string in it."""
    return text[: min((i for i in map(text.find, stop) if i >= 0), default=len(text))]
