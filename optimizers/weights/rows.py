"""From a predictor's calls to rows: the tokens that the engine would see, and which of them the model has to decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ConstraintError, EngineError, TrainingError
from ...signatures.executor import Sampling
from ...signatures.plan import Plan
from .row import Row

if TYPE_CHECKING:
    from ...backends.engine import Engine, Request
    from ...backends.engine.request import Step
    from ...backends.prompt import Prompter


class RowWriter:
    """Writes rows for one model. Prompts are the run-time prompts, token for token; answers are spelled as the engine would
    come to them under the grammar, and what it appends without asking the model carries no loss."""

    def __init__(self, engine: Engine, prompter: Prompter) -> None:
        from ...backends.engine.grammar import GrammarCompiler

        tokenizer = engine.model.tokenizer
        self._prompter, self._longest = prompter, engine.max_context
        self._grammars = GrammarCompiler(tokenizer.json, engine.model.spec.vocab_size, tokenizer.eos_ids)
        # Of several tokens that end an answer the chat template writes one: that after an assistant's turn.
        self._end = answer_end(tokenizer)

    def write(
        self, plan: Plan, inputs: Mapping[str, Any], values: Mapping[str, Any], *, predictor: str = "", key: str = ""
    ) -> Row:
        """The row of a call with these inputs and outputs.

        Raises `ConstraintError` for a value that its type refuses, `TrainingError` where the row is longer than the context.
        """
        from ...backends.steps import to_request

        request = to_request(plan.bound(inputs), inputs, Sampling(), self._prompter)
        row = self.answer(request, [part.render(values[part.field]) for part in plan.bound(inputs).decodes])
        if len(row.tokens) > self._longest:
            raise TrainingError(f"a row of {len(row.tokens)} tokens does not fit the context of {self._longest}: shorten it")
        return Row(row.tokens, row.loss, predictor, key)

    def answer(self, request: Request, texts: Iterable[str]) -> Row:
        """The row of a request whose decode steps come to these texts. Raises `ConstraintError` for a text that the grammar
        does not let pass, or that this model's tokens cannot spell."""
        from ...backends.engine import Forced

        tokens, loss, given = list(request.prompt), [False] * len(request.prompt), iter(texts)
        for step in request.steps:
            if isinstance(step, Forced):
                more, decided = list(step.tokens), [False] * len(step.tokens)
            else:
                more, decided = self._spelled(step, next(given))
            tokens += more
            loss += decided
        return Row(tuple(tokens), tuple(loss))

    def _spelled(self, step: Step, text: str) -> tuple[list[int], list[bool]]:
        from ...backends.engine import END, Choose, Decode

        if isinstance(step, Choose):
            several = len(step.options) > 1
            plain = self._prompter.encode(text)
            ended = several and (*plain, END) in step.options
            return [*plain, self._end] if ended else list(plain), [several] * (len(plain) + ended)
        assert isinstance(step, Decode) and step.grammar is not None
        matcher = self._grammars.matcher(step.grammar)
        try:
            tokens, drawn = matcher.spell(text.encode())
        except EngineError as error:
            raise ConstraintError(f"answer {text!r} cannot be decoded by this model: {error}") from error
        return (tokens, drawn) if matcher.complete else ([*tokens, self._end], [*drawn, True])


def answer_end(tokenizer: Any) -> int:
    """The token that a model ends its answers with: the one its chat template puts after an assistant's turn, or the first
    of its end-of-sequence tokens."""
    if tokenizer.has_chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            written = tokenizer.encode(tokenizer.render(turns, add_generation_prompt=False), special=True)
        except Exception:  # a template that knows only the one use is no reason not to train
            written = []
        for token in reversed(written):
            if token in tokenizer.eos_ids:
                return int(token)
    return int(min(tokenizer.eos_ids))


def distinct_rows(rows: Iterable[Row]) -> list[Row]:
    """The first of the rows that are the same."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        found.setdefault((row.tokens, row.loss), row)
    return list(found.values())
