"""Grammar masks by llguidance: which tokens may come next."""

from __future__ import annotations

from functools import lru_cache

import llguidance
import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...grammars import compile_grammar
from .closing import shortest_completion

MAX_CLOSING_BYTES = 4096


class Matcher:
    """Follows one grammar over one sequence's decoded tokens."""

    def __init__(self, matcher: llguidance.LLMatcher, tokenizer: llguidance.LLTokenizer, grammar: str) -> None:
        self._matcher, self._tokenizer, self._grammar = matcher, tokenizer, grammar

    def mask_into(self, row: NDArray[np.int32]) -> None:
        """Write the bit mask of allowed tokens: `row` is int32 [ceil(vocab / 32)], C-contiguous, bit set = allowed."""
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._raise_if_broken()

    def consume(self, token: int) -> None:
        """Accept a drawn token."""
        if not self._matcher.consume_token(token):
            self._raise_if_broken()

    def forced(self) -> list[int]:
        """Consume and return the tokens that the grammar leaves no choice about (jump-forward); may be empty.

        Forced text is cut where the next character could still change its last token: "team: " followed by a choice
        must stay open for the token " billing", or the model sees a spelling it never saw in training.
        """
        text = self._matcher.compute_ff_bytes()
        if not text:
            return []
        tokens: list[int]
        tokens, rest = self._tokenizer.tokenize_partial(text)
        if rest and (whole := self._completing(text)):
            tokens = whole
        if tokens and not self._matcher.consume_tokens(tokens):
            self._raise_if_broken()
        return tokens

    def _completing(self, text: bytes) -> list[int]:
        """The tokens of all of `text` if the grammar is complete after it, else none."""
        tokens: list[int] = self._tokenizer.tokenize_bytes(text)
        trial = self._matcher.deep_copy()
        return tokens if trial.consume_tokens(tokens) and trial.is_stopped() else []

    def fork(self) -> Matcher:
        """An independent matcher at the same place."""
        return Matcher(self._matcher.deep_copy(), self._tokenizer, self._grammar)

    def closing(self, written: list[int], limit: int) -> list[int]:
        """Consume and return the tokens of the shortest text that completes the grammar after `written`, all that was
        consumed so far. Empty if it takes more than `limit` tokens."""
        try:
            text = shortest_completion(self._grammar, self._tokenizer.decode_bytes(written), MAX_CLOSING_BYTES)
        except ValueError as error:
            raise EngineError(f"a value that was cut off cannot be brought to an end: {error}") from error
        tokens: list[int] = self._tokenizer.tokenize_bytes(text or b"")
        if len(tokens) > limit:
            return []
        self._matcher.consume_tokens(tokens)
        self._raise_if_broken()
        return tokens

    def spell(self, text: bytes) -> tuple[list[int], list[bool]]:
        """Consume and return the tokens of a text as decoding would come to it, and which of them are drawn, not forced.

        Raises `EngineError` for a text that the grammar does not let pass.
        """
        tokens: list[int] = []
        drawn: list[bool] = []
        while True:
            given = self.forced()
            tokens += given
            drawn += [False] * len(given)
            rest = text[len(self._tokenizer.decode_bytes(tokens)) :]
            if not rest:
                return tokens, drawn
            token = self._tokenizer.tokenize_bytes(rest)[0]
            if not self._matcher.consume_token(token):
                raise EngineError(f"{text!r} is no text of the grammar, from {rest[:40]!r} on:\n{self._grammar}")
            tokens.append(token)
            drawn.append(True)

    @property
    def complete(self) -> bool:
        """The grammar is satisfied and nothing more may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def accepting(self) -> bool:
        """The grammar is satisfied; more may follow."""
        return bool(self._matcher.is_accepting())

    def _raise_if_broken(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"grammar failed while decoding: {self._matcher.get_error()}")


class GrammarCompiler:
    """Compiles Lark grammars for one tokenizer; the last 512 are kept. Thread-safe."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_ids: frozenset[int]) -> None:
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=sorted(eos_ids))
        except ValueError as error:
            raise EngineError(f"grammars cannot be used with this model's tokenizer: {error}") from error
        self._compile = lru_cache(maxsize=512)(self._compile_uncached)

    def matcher(self, grammar: str) -> Matcher:
        """Return a fresh matcher. Raises `EngineError` with llguidance's message if the grammar is malformed."""
        return Matcher(self._compile(grammar).deep_copy(), self._tokenizer, grammar)

    def _compile_uncached(self, grammar: str) -> llguidance.LLMatcher:
        try:
            return compile_grammar(self._tokenizer, grammar)
        except ValueError as error:
            raise EngineError(f"grammar does not compile: {error}\n{grammar}") from error
