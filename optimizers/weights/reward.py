"""Rollouts with rewards: completions drawn by the engine with the adapter as it is, and what the metric says of each."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ...backends.meter import OURS, count_call
from ...errors import ConstraintError, MetricError, TrainingError
from .row import Row

if TYPE_CHECKING:
    from ...backends.engine import Engine, Request, Result
    from ...backends.engine.grammar import GrammarCompiler
    from ...backends.engine.request import Decode, Step, StepResult
    from ...backends.prompt import Prompter
    from ...signatures.plan import Plan

_names = count()
BATCH = 64
"""Answers that are drawn between two looks at a budget."""


class Sample(NamedTuple):
    """One rollout."""

    row: Row
    logprobs: tuple[float, ...]
    """Of the row's loss tokens, by the model that drew them: natural logs, without grammar mask, at temperature 1."""
    reward: float


class Rollouts(Protocol):
    """Draws completions. A run of a program with several predictors is several samples with one reward."""

    def sample(
        self, prompts: Sequence[Any], adapter: Path, n: int, temperature: float, seed: int
    ) -> Sequence[Sequence[Sample]]:  # fmt: skip
        """For each prompt the samples of `n` runs with the adapter in this PEFT folder. Same arguments, same samples."""


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt to sample from, and its reward: a finite number, the larger the better (a metric's are 0 to 1)."""

    request: Request
    reward: Callable[[Result], float]
    key: str = ""
    predictor: str = ""


def plan_task(
    plan: Plan, inputs: Mapping[str, Any], prompter: Prompter, metric: Callable[[dict[str, Any]], float], *,
    key: str = "", predictor: str = "",
) -> Task:  # fmt: skip
    """The task of one call of a predictor: its run-time prompt, and the metric of the values by field.

    An answer that its type refuses (the grammar lets pass a few) is worth 0.
    """
    from ...backends.steps import to_completion, to_request
    from ...signatures.executor import Sampling

    def reward(result: Result) -> float:
        try:
            return metric(to_completion(plan, result).values)
        except ConstraintError:
            return 0.0

    return Task(to_request(plan, inputs, Sampling(), prompter), reward, key, predictor)


def longest(request: Request) -> int:
    """Tokens that prompt and answer may come to, for all of which the engine wants room in its context."""
    from ...backends.engine import Forced

    steps = (len(step.tokens) if isinstance(step, Forced) else step.longest for step in request.steps)
    return len(request.prompt) + sum(steps)


class EngineRollouts:
    """Rollouts by the embedded engine: quantized, batched, under the grammar of each step.

    end_token: the end-of-sequence token that rows carry where the model ended its answer; by default the model's only
    one, or of several the smallest id. look: called before every `BATCH` answers with what is being done; what it raises
    ends the sampling. Without it all answers are drawn at once.
    """

    def __init__(
        self, engine: Engine, *, end_token: int | None = None, look: Callable[[str], None] | None = None
    ) -> None:  # fmt: skip
        from ...backends.engine.grammar import GrammarCompiler

        tokenizer = engine.model.tokenizer
        self._engine, self._model = engine, f"{OURS}{engine.model.spec.architecture}"
        self._end = min(tokenizer.eos_ids) if end_token is None else end_token
        self._look = look
        self._grammars = GrammarCompiler(tokenizer.json, engine.model.spec.vocab_size, tokenizer.eos_ids)

    def sample(
        self, prompts: Sequence[Task], adapter: Path, n: int, temperature: float, seed: int
    ) -> list[list[Sample]]:  # fmt: skip
        """Load the adapter under a name of its own, draw, score what was drawn, and unload it. Each drawn answer is a call
        that counts against a budget.

        Raises `EngineError` and `ModelError` as the engine does, `MetricError` for a reward that is no number.
        """
        name = f"rollout-{next(_names)}"
        size = max(1, len(prompts) if self._look is None else BATCH // max(1, n))
        samples: list[list[Sample]] = []
        self._engine.load_adapter(name, adapter)
        try:
            for begin in range(0, len(prompts), size):
                if self._look is not None:
                    self._look(f"sampling answers, {begin}/{len(prompts)} examples")
                part = prompts[begin : begin + size]
                # A seed of its own for each: with the same one, prompts would draw the same random numbers.
                seeds = [random.Random(f"{seed} {i}").getrandbits(48) for i in range(begin, begin + len(part))]
                samples += self._sampled(part, name, n, temperature, seeds)
        finally:
            self._engine.unload_adapter(name)
        return samples

    def _sampled(
        self, tasks: Sequence[Task], name: str, n: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[Sample]]:  # fmt: skip
        drawn = self._draw(tasks, name, n, temperature, seeds)
        rows = [[self._row(task, result) for result in results] for task, results in zip(tasks, drawn, strict=True)]
        scores = [[self._score(row, name) for row in group] for group in rows]
        samples = []
        for task, results, group, scored in zip(tasks, drawn, rows, scores, strict=True):
            rewards = [_reward(task, result) for result in results]
            logprobs = [_at_loss(row, future) for row, future in zip(group, scored, strict=True)]
            samples.append([Sample(*one) for one in zip(group, logprobs, rewards, strict=True)])
        return samples

    def _draw(
        self, tasks: Sequence[Task], name: str, n: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[Result]]:  # fmt: skip
        futures = []
        for task, own in zip(tasks, seeds, strict=True):
            sampling = replace(task.request.sampling, temperature=temperature, seed=own)
            futures.append(self._engine.submit_samples(replace(task.request, sampling=sampling, adapter=name), n))
        drawn = [[future.result() for future in group] for group in futures]
        for usage in (result.usage for group in drawn for result in group):
            count_call(self._model, usage.prompt_tokens, usage.cached_tokens, usage.decoded_tokens)
        return drawn

    def _row(self, task: Task, result: Result) -> Row:
        """Prompt and answer; loss on what the model decided: drawn tokens, drawn ends, chosen options."""
        tokens, loss = list(task.request.prompt), [False] * len(task.request.prompt)
        for step, done in zip(task.request.steps, result.steps, strict=True):
            tokens += done.tokens
            loss += self._decided(step, done)
            if self._ended(step, done):
                tokens.append(self._end)
                loss.append(True)
        return Row(tuple(tokens), tuple(loss), task.predictor, task.key)

    def _decided(self, step: Step, done: StepResult) -> list[bool]:
        from ...backends.engine import Choose, Forced

        if isinstance(step, Forced):
            return [False] * len(done.tokens)
        if isinstance(step, Choose):
            return [len(step.options) > 1] * len(done.tokens)
        return drawn_tokens(step, done, self._grammars)

    def _ended(self, step: Step, done: StepResult) -> bool:
        from ...backends.engine import END, Choose

        if isinstance(step, Choose):
            return len(step.options) > 1 and (*done.tokens, END) in step.options
        return done.finish_reason == "eos"

    def _score(self, row: Row, name: str) -> Future[Result] | None:
        """The engine reports log-probabilities of drawn tokens only, without ends and choices: so all are scored, in one
        pass over the completion, which is as good as free beside drawing it."""
        from ...backends.engine import Forced, Request

        if not any(row.loss):
            return None
        first = row.loss.index(True)
        return self._engine.submit(Request(row.tokens[:first], (Forced(row.tokens[first:], score=True),), adapter=name))


def drawn_tokens(step: Decode, done: StepResult, grammars: GrammarCompiler) -> list[bool]:
    """For each token of a finished step whether it was drawn; the others the grammar forced, or were appended to close a
    text that ran out of tokens. Found by following the grammar once more."""
    if step.grammar is None:
        return [True] * len(done.tokens)
    drawn = done.drawn_tokens - (done.finish_reason == "eos")
    matcher = grammars.matcher(step.grammar)
    marks = [False] * len(matcher.forced())
    while drawn and len(marks) < len(done.tokens):
        matcher.consume(done.tokens[len(marks)])
        marks.append(True)
        drawn -= 1
        if not matcher.complete:
            marks += [False] * len(matcher.forced())
    return (marks + [False] * len(done.tokens))[: len(done.tokens)]


def _at_loss(row: Row, scored: Future[Result] | None) -> tuple[float, ...]:
    if scored is None:
        return ()
    first = row.loss.index(True)
    logprobs = scored.result().steps[0].logprobs
    return tuple(logprob for logprob, marked in zip(logprobs, row.loss[first:], strict=True) if marked)


def _reward(task: Task, result: Result) -> float:
    reward = task.reward(result)
    if isinstance(reward, bool):
        reward = float(reward)
    if not isinstance(reward, (int, float)) or not math.isfinite(reward):
        raise MetricError(f"reward={reward!r} of an answer to {task.key or 'a task'!r}: return a finite number")
    return float(reward)


def check_sample(sample: Sample) -> None:
    """Raise `TrainingError` where a sample's log-probabilities are not those of its loss tokens."""
    marked = sum(sample.row.loss)
    if len(sample.logprobs) != marked:
        raise TrainingError(
            f"logprobs has {len(sample.logprobs)} numbers for the {marked} loss tokens of {sample.row.key!r}: "
            "give the log-probability of each token that was drawn"
        )
    if not math.isfinite(sample.reward) or not all(map(math.isfinite, sample.logprobs)):
        raise TrainingError(f"reward={sample.reward} or a log-probability of {sample.row.key!r} is no finite number")
