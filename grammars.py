"""Compiling grammars (Lark) with llguidance, with enough room for large patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

STEP_FUEL = 5_000_000
"""What a step of the lexer may cost, some 0.3 s. At llguidance's own limit, a 25th of that, a pattern within a counted
length breaks in the middle, and with it all other uses of the same compiled grammar: copies share their lexer."""


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return a matcher at the beginning of a grammar, to be copied. Raises `ValueError` if the grammar does not compile."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(step_lexer_fuel=STEP_FUEL))
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher
