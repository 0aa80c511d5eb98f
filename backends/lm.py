"""`still.LM`: a local model, usable wherever DSPy takes an LM, and the executor of Still's plans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..errors import ConstraintError
from ..signatures.bridge import LM as DspyLM
from ..signatures.executor import Completion, Sampling, Usage
from ..signatures.plan import Decode, Plan, Text
from .chat import AsyncChatEngine, ChatEngine
from .local import LocalModel
from .meter import count_call

if TYPE_CHECKING:
    from .engine import Request, Result
    from .models import Quantization

DEFAULT_MODEL = "smollm2-135m"
MAX_ATTEMPTS = 3
"""Tries for an answer that the grammar lets pass and validation does not."""
RETRY_TEMPERATURE = 0.7


class LM(DspyLM):  # type: ignore[misc]  # dspy ships no types
    """A language model that runs in this process.

    model: a short name (`smollm2-135m`), a hub id, a folder with safetensors, or a GGUF file.
    quantization: "int8", "int4", "bf16" or "fp32". cache_tokens: size of the KV cache shared by all calls, in tokens.
    Nothing is loaded before the first call. LMs with the same settings share one engine.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        quantization: Quantization = "int8",
        cache_tokens: int = 32768,
        max_context: int | None = None,
        **settings: Any,
    ) -> None:
        self.local = LocalModel.shared(model, quantization, cache_tokens, max_context)
        chat = ChatEngine(self.local)
        # DSPy's response cache does not know which weights answered, and our prefix cache makes repeats cheap.
        settings.setdefault("cache", False)
        super().__init__(f"still/{model}", engine=chat, async_engine=AsyncChatEngine(chat), num_retries=0, **settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> LM:
        # Programs are copied for every candidate; their LM is a handle to one engine.
        return self

    @property
    def digest(self) -> str:
        """Identity of what answers: sha256 of the source weights, and the quantization."""
        return self.local.digest

    def execute(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None, n: int = 1
    ) -> list[Completion]:
        """Run a plan `n` times on one input; every value in the completions is of its field's type.

        Raises `ConstraintError` when an answer fails validation `MAX_ATTEMPTS` times, `EngineError` when it does not fit.
        """
        sampling = sampling or Sampling()
        started = time.perf_counter()
        futures = [self._submit(plan, inputs, sampling, i) for i in range(n)]
        return [self._settle(plan, inputs, sampling, i, f.result(), started) for i, f in enumerate(futures)]

    async def aexecute(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None, n: int = 1
    ) -> list[Completion]:
        """Like `execute`, without blocking the event loop."""
        return await asyncio.to_thread(self.execute, plan, inputs, sampling, n)

    def _submit(self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling, sample: int) -> Future[Result]:
        return self.local.engine.submit(self.request(plan, inputs, sampling, sample))

    def request(self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling, sample: int = 0) -> Request:
        """Lower a filled plan to tokens and steps."""
        from .engine import Decode as DecodeStep
        from .engine import Forced, Request
        from .engine import Sampling as EngineSampling

        prompter = self.local.prompter
        *turns, answer = plan.fill(inputs)
        prompt = prompter.chat([(turn.role, "".join(p.text for p in turn.parts if isinstance(p, Text))) for turn in turns])
        steps: list[Forced | DecodeStep] = []
        for part in answer.parts:
            if isinstance(part, Decode):
                limit = min(part.max_tokens, sampling.max_tokens or part.max_tokens)
                steps.append(DecodeStep(limit, part.grammar()))
            elif isinstance(part, Text):
                steps.append(Forced(tuple(prompter.encode(part.text))))
        first = steps[0]
        if isinstance(first, Forced):
            # The first marker belongs to the prompt, where the prefix cache covers it.
            prompt.extend(first.tokens)
            del steps[0]
        seed = (sampling.seed or 0) * 1_000_003 + sample
        drawing = EngineSampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, seed)
        return Request(tuple(prompt), tuple(steps), drawing)

    def _settle(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling, sample: int, result: Result, started: float
    ) -> Completion:
        """Parse a result; draw again, warmer, while validation rejects it."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            usage = result.usage
            count_call(usage.prompt_tokens, usage.cached_tokens, usage.decoded_tokens)
            try:
                return _completion(plan, result, attempt, time.perf_counter() - started)
            except ConstraintError:
                if attempt == MAX_ATTEMPTS:
                    raise
            warmer = Sampling(
                temperature=max(sampling.temperature, RETRY_TEMPERATURE),
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                seed=(sampling.seed or 0) + 7919 * attempt,
                max_tokens=sampling.max_tokens,
            )
            result = self._submit(plan, inputs, warmer, sample).result()
        raise AssertionError("unreachable")


def _completion(plan: Plan, result: Result, calls: int, seconds: float) -> Completion:
    decoded = [step.text for step in result.steps if step.finish_reason != "forced"]
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for decode, text in zip(plan.decodes, decoded, strict=True):
        texts[decode.field] = text
        values[decode.field] = decode.parse(text)
    usage = result.usage
    return Completion(
        values,
        texts,
        Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            decoded_tokens=usage.decoded_tokens,
            forced_tokens=usage.jumped_tokens,
            calls=calls,
            seconds=seconds,
        ),
    )
