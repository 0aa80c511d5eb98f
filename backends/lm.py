"""`still.LM`: a local model, usable wherever DSPy takes an LM, and the executor of Still's plans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..signatures.bridge import LM as DspyLM
from ..signatures.bridge import lm15
from ..signatures.executor import Completion, Piece, Sampling
from ..signatures.plan import Plan
from .call import Call
from .chat import AsyncChatEngine, ChatEngine, carried, numbered_samples
from .field_text import FieldText
from .local import LocalModel
from .recall import current_recall

if TYPE_CHECKING:
    from .engine import Request, Result
    from .models import Quantization

DEFAULT_MODEL = "smollm2-135m"


class LM(DspyLM):  # type: ignore[misc]  # dspy ships no types
    """A language model that runs in this process.

    model: a short name (`smollm2-135m`), a hub id, a folder with safetensors, or a GGUF file.
    quantization: "int8", "int4", "bf16" or "fp32". cache_tokens: size of the KV cache shared by all calls, in tokens;
    by default what a quarter of the memory holds, of which only what is used is taken.
    Nothing is loaded before the first call. LMs with the same settings share one engine.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        quantization: Quantization = "int8",
        cache_tokens: int | None = None,
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

    def __call__(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        """Answer messages, not a plan: so dspy's own adapters call it, and so do you with a text. See `dspy.LM`."""
        with numbered_samples():
            return super().__call__(prompt, messages=messages, **self._carried(prompt, options))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        """Async twin of a call."""
        with numbered_samples():
            return await super().acall(prompt, messages=messages, **self._carried(prompt, options))

    def _carried(self, prompt: Any, options: dict[str, Any]) -> dict[str, Any]:
        # A request says all itself: dspy takes no options beside it.
        if isinstance(prompt, lm15.Request) or options.get("request") is not None:
            return options
        return {**options, **carried({**self.kwargs, **options})}

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
        plan = self._corrected(plan, inputs, sampling)
        calls = [self._call(plan, inputs, sampling, sample) for sample in range(n)]
        started = [self._start(call) for call in calls]
        return [self._settle(call, *begun) for call, begun in zip(calls, started, strict=True)]

    async def aexecute(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None, n: int = 1
    ) -> list[Completion]:
        """Like `execute`, without blocking the event loop. Cancelling the task cancels the requests."""
        sampling = sampling or Sampling()
        plan = await self._prepared(plan, inputs, sampling)
        calls = [self._call(plan, inputs, sampling, sample) for sample in range(n)]
        return list(await asyncio.gather(*(self._asettle(call) for call in calls)))

    def request(self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling, sample: int = 0) -> Request:
        """Lower a filled plan to tokens and steps."""
        return self._call(plan, inputs, sampling, sample).request()

    def _call(self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling, sample: int) -> Call:
        return Call(plan, inputs, sampling, sample, self.local.prompter, self.model, self.digest, current_recall())

    def _start(self, call: Call) -> tuple[Request, Result | Future[Result]]:
        request = call.request()
        return request, call.known(request) or self.local.engine.submit(request)

    def _settle(self, call: Call, request: Request, found: Result | Future[Result]) -> Completion:
        while (completion := call.read(request, found.result() if isinstance(found, Future) else found)) is None:
            request, found = self._start(call)
        return completion

    async def _asettle(self, call: Call) -> Completion:
        completion: Completion | None = None
        while completion is None:
            request = call.request()
            completion = call.read(request, call.known(request) or await self.local.engine.submit_async(request))
        return completion

    def stream_plan(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None
    ) -> Iterator[Piece | Completion]:
        """Run a plan and yield the text of its outputs as it is written; the last item is the completion.

        Closing the iterator cancels the request. Raises as `execute` does.
        """
        sampling = sampling or Sampling()
        plan = self._corrected(plan, inputs, sampling)
        call = self._call(plan, inputs, sampling, 0)
        completion: Completion | None = None
        while completion is None:
            request = call.request()
            text = FieldText(plan, request.steps, len(call.refusals) + 1)
            stream = self.local.engine.stream(request)
            yield from (piece for step, more in stream.by_step() if (piece := text.take(step, more)))
            completion = call.read(request, stream.result)
        yield completion

    async def astream_plan(
        self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling | None = None
    ) -> AsyncIterator[Piece | Completion]:
        """Async twin of `stream_plan`."""
        sampling = sampling or Sampling()
        plan = await self._prepared(plan, inputs, sampling)
        call = self._call(plan, inputs, sampling, 0)
        completion: Completion | None = None
        while completion is None:
            request = call.request()
            text = FieldText(plan, request.steps, len(call.refusals) + 1)
            stream = self.local.engine.stream_async(request)
            async for step, more in stream.by_step():
                if piece := text.take(step, more):
                    yield piece
            completion = call.read(request, stream.result)
        yield completion

    async def _prepared(self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling) -> Plan:
        # What may take long happens off the event loop: loading the model, and measuring a plan for the first time.
        if not self.local.loaded or sampling.adapter is not None or not self.local.prior.is_known(plan, inputs):
            return await asyncio.to_thread(self._corrected, plan, inputs, sampling)
        return self._corrected(plan, inputs, sampling)

    def _corrected(self, plan: Plan, inputs: Mapping[str, Any], sampling: Sampling) -> Plan:
        """The plan with what is known of the model's leanings; an adapter has learned its own, and is made ready."""
        if sampling.adapter is None:
            return self.local.prior.correct(plan, inputs)
        self.local.ready(sampling.adapter)
        return plan
