"""From a plan to an engine's request, and from its result to a completion."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..errors import ConstraintError
from ..signatures.constraint import Constraint
from ..signatures.executor import Completion, FieldCost, Sampling, Usage
from ..signatures.plan import Decode, Plan, Text, Turn
from .prompt import Prompter

if TYPE_CHECKING:
    from .engine import Choose, Request, Result, StepResult
    from .engine import Decode as DecodeStep

END_RESERVE = 64
"""Tokens kept for bringing a value to an end beyond those of the type's shortest value: what may be open inside it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that failed validation: its text, and why."""

    answer: str
    reason: str


def to_request(
    plan: Plan,
    inputs: Mapping[str, Any],
    sampling: Sampling,
    prompter: Prompter,
    refusals: tuple[Refusal, ...] = (),
    choosing: float | None = None,
) -> Request:
    """Lower a filled plan to tokens and steps. Refused answers follow the prompt as further turns, so that all before
    them is a prefix that is computed already. choosing: the temperature for options, if it is not the sampling's."""
    from .engine import Forced, Request
    from .engine import Sampling as EngineSampling

    *turns, answer = plan.fill(inputs)
    messages = [(turn.role, _text(turn)) for turn in turns]
    for refusal in refusals:
        told = f"That answer is not valid: {refusal.reason}. Answer again."
        messages += [("assistant", refusal.answer), ("user", told)]
    prompt = prompter.chat(messages)
    steps: list[Forced | DecodeStep | Choose] = []
    for part in answer.parts:
        if isinstance(part, Decode):
            steps.append(_choice(part, prompter, choosing) if part.scoring is not None else _decode(part, sampling))
        elif isinstance(part, Text):
            steps.append(Forced(tuple(prompter.encode(part.text))))
    first = steps[0]
    if isinstance(first, Forced):
        # The first marker belongs to the prompt, where the prefix cache covers it.
        prompt.extend(first.tokens)
        del steps[0]
    drawing = EngineSampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed or 0)
    return Request(tuple(prompt), tuple(steps), drawing)


def to_completion(plan: Plan, result: Result) -> Completion:
    """Read values and scores. Raises `ConstraintError` for a value that its type refuses, naming the field."""
    steps = [step for step in result.steps if step.finish_reason != "forced"]
    completion = Completion({}, usage=usage_of(result))
    truncated = []
    by_field = groupby(zip(plan.decodes, steps, strict=True), key=lambda pair: pair[0].field)
    for field, pairs in ((field, list(pairs)) for field, pairs in by_field):
        # A drawn end of the answer is not among the tokens.
        completion.costs[field] = FieldCost(
            sum(step.drawn_tokens for _, step in pairs),
            sum(max(0, len(step.tokens) - step.drawn_tokens) for _, step in pairs),
            sum(step.scored_tokens for _, step in pairs),
        )
        if any(step.finish_reason in ("closed", "length") for _, step in pairs):
            truncated.append(field)
        try:
            completion.texts[field], completion.values[field] = _read(pairs)
        except ConstraintError as error:
            if (cut := next((pair for pair in pairs if pair[1].finish_reason == "length"), None)) is not None:
                raise ConstraintError(f"{error}; {_cut_off(*cut)}") from None
            raise
        for part, step in pairs:
            if part.scoring is not None:
                _add_scores(completion, part, step)
    return replace(completion, truncated=tuple(truncated))


def _read(pairs: Sequence[tuple[Decode, StepResult]]) -> tuple[str, Any]:
    """Text and value of a field: of its only step, or put together from those of its members."""
    (part, step), *_ = pairs
    if part.whole is None:
        return step.text, part.parse(step.text)
    found: dict[str, Any] = {}
    for member, written in pairs:
        *outer, last = member.path
        inside = found
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[last] = member.parse(written.text)
    text = json.dumps(found, ensure_ascii=False)
    return f" {text}", part.whole.parse(text)


def _cut_off(part: Decode, step: StepResult) -> str:
    """What helps where the tokens ran out: a caller has set a limit, or the type of the field has none but its own."""
    written = f"it was cut off after {len(step.tokens)} tokens"
    if len(step.tokens) < part.max_tokens:
        return f"{written}: raise max_tokens"
    return f"{written}, which is what its type is given: bound its texts and lists (max_length)"


def step_scores(plan: Plan, result: Result) -> dict[str, tuple[float, ...]]:
    """The log-probabilities of the options, by the name of the step that is scored. No value is read, so none is refused."""
    steps = [step for step in result.steps if step.finish_reason != "forced"]
    return {part.name: step.scores for part, step in zip(plan.decodes, steps, strict=True) if part.scoring is not None}


def _add_scores(completion: Completion, part: Decode, step: StepResult) -> None:
    from .engine import option_probabilities

    scoring = part.scoring
    assert scoring is not None
    likely = option_probabilities(step.scores, scoring.bias, scoring.temperature)
    completion.scores[part.name] = dict(zip(part.constraint.options or (), step.scores, strict=True))
    completion.probabilities[part.name] = _shares(part.constraint, likely)


def _shares(constraint: Constraint, likely: Sequence[float]) -> dict[Any, float]:
    """Probabilities of the options as the type declares them: its validators see the one that is taken, and no other.
    Options that are the same key of a dict, as 1 and True are, have their sum."""
    shares: dict[Any, float] = {}
    for text, value, share in zip(constraint.options or (), constraint.option_values, likely, strict=True):
        key = value if isinstance(value, Hashable) else text
        shares[key] = shares.get(key, 0.0) + share
    return shares


def answer_text(plan: Plan, result: Result) -> str:
    """The assistant's answer as it was written, markers included."""
    steps = iter([step.text for step in result.steps if step.finish_reason != "forced"])
    parts = [part for part in plan.turns[-1].parts if isinstance(part, Decode | Text)]
    return "".join(next(steps) if isinstance(part, Decode) else part.text for part in parts).strip()


def _text(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, Text))


def _decode(part: Decode, sampling: Sampling) -> DecodeStep:
    from .engine import Decode as DecodeStep

    grammar = part.grammar()
    closing = closing_tokens(grammar)
    limit = part.max_tokens
    if sampling.max_tokens is not None and sampling.max_tokens < limit + closing:
        # The caller's limit counts the end too, as far as there is room for both.
        limit = min(limit, max(sampling.max_tokens - closing, sampling.max_tokens // 2, 1))
    return DecodeStep(limit, grammar, closing=closing)


@lru_cache(maxsize=512)
def closing_tokens(grammar: str) -> int:
    """Tokens that bring a value of this grammar to an end, wherever it is cut off, as good as always."""
    from .engine import shortest_completion

    # A token has at least one byte.
    return len(shortest_completion(grammar, b"", 4096) or b"") + END_RESERVE


def _choice(part: Decode, prompter: Prompter, drawn_at: float | None) -> Choose:
    from .engine import END, Choose

    scoring = part.scoring
    assert scoring is not None
    end = (END,) if part.terminator == "end" else ()
    options = tuple((*prompter.encode(text), *end) for text in part.option_texts)
    if (threshold := scoring.abstain_below) is None:
        return Choose(options, scoring.bias, scoring.temperature, drawn_at=drawn_at)
    otherwise = part.constraint.option_values.index(None)
    return Choose(options, scoring.bias, scoring.temperature, threshold, otherwise, drawn_at)


def usage_of(result: Result) -> Usage:
    """What one request cost."""
    usage = result.usage
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        decoded_tokens=usage.decoded_tokens,
        forced_tokens=usage.jumped_tokens,
        scored_tokens=usage.scored_tokens,
    )
