"""The engine behind DSPy's protocol: one canonical request in, one response out.

This is the way unmodified DSPy adapters reach the model: their messages go through the chat template, and a
`response_format` becomes a grammar, so JSONAdapter's answers always parse. Contract: `dspy/clients/engines/base.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any
from zlib import crc32

from ..errors import EngineError, StillError
from ..signatures.bridge import lm15
from ..signatures.schema_parts import enforceable, without
from .local import LocalModel
from .meter import OURS, count_call
from .steps import closing_tokens

if TYPE_CHECKING:
    from .engine import Request, Result

DEFAULT_MAX_TOKENS = 512
"""Tokens an answer may have when the caller does not say."""
_HOTTEST = 2
"""The highest temperature that lm15 lets pass; plans go further."""
_BEYOND = "still_sampling"
"""Where the metadata of a request has the options that lm15 does not carry."""
# Free white space would let a small model indent forever. What no grammar can say (an unknown format) dspy checks.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True, "lenient": True}

_samples: ContextVar[Iterator[int] | None] = ContextVar("still_samples", default=None)


@contextmanager
def numbered_samples() -> Iterator[None]:
    """In the block is one call of an LM: DSPy asks for its samples one after the other, each by the same request."""
    token = _samples.set(count())
    try:
        yield
    finally:
        _samples.reset(token)


def carried(options: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in DSPy's options for a call, so that lm15 carries them to `ChatEngine`.

    It refuses some that plans have: those travel as metadata. It drops rollouts: as in plans, each is another seed.
    """
    temperature = options.get("temperature")
    refused = {
        "min_p": options.get("min_p") is not None,
        "top_k": options.get("top_k") == 0,
        "temperature": isinstance(temperature, int | float) and temperature > _HOTTEST,
    }
    beyond = {name: options[name] for name, is_refused in refused.items() if is_refused}
    changed: dict[str, Any] = dict.fromkeys(beyond)
    if beyond:
        changed["metadata"] = {**(options.get("metadata") or {}), _BEYOND: beyond}
    seed, rollout = options.get("seed"), options.get("rollout_id")
    if seed is not None and rollout is not None:
        changed["seed"] = int(seed) + crc32(repr(rollout).encode())
    return changed


class ChatEngine:
    """DSPy's synchronous engine protocol over a local model."""

    supports_response_schema = True
    supports_function_calling = False
    supports_reasoning = False
    supported_params = frozenset({"response_format", "temperature", "max_tokens", "top_p", "top_k", "min_p", "stop", "seed"})

    def __init__(self, local: LocalModel) -> None:
        self._local = local
        self._fresh_seeds = count()

    def __deepcopy__(self, memo: dict[int, Any]) -> ChatEngine:
        # DSPy copies LMs with the programs they are in; the weights and the cache stay one.
        return self

    def complete(self, request: Any) -> Any:
        """Answer an lm15 `Request` with an lm15 `Response`."""
        with _canonical_errors():
            built = self._build(request)
            return self._respond(request, self._local.engine.submit(built).result())

    def stream(self, request: Any) -> Iterator[Any]:
        """The response as a stream of lm15 events, text as it is decoded."""
        with _canonical_errors():
            stream = self._local.engine.stream(self._build(request))
            yield lm15.StreamStartEvent(id=None, model=request.model)
            for text in stream:
                yield _delta(text)
            yield self._end(request, stream.result)

    def close(self) -> None:
        """Nothing to do: the model is shared and closed by its owner."""

    def dump_state(self) -> dict[str, Any]:
        """JSON state for `load_state`; names the model, holds no weights."""
        return self._local.to_json()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> ChatEngine:
        """Inverse of `dump_state`."""
        return cls(LocalModel.shared(**state))

    def _build(self, request: Any) -> Request:
        from .engine import Decode, Request, Sampling

        config = request.config
        prompt = self._local.prompter.chat(_messages(request))
        room = self._local.engine.max_context - len(prompt) - 2
        if room < 1:
            raise lm15.ContextLengthError(
                f"prompt of {len(prompt)} tokens does not fit into a context of {self._local.engine.max_context}: "
                "shorten it or use fewer demonstrations"
            )
        drawing: dict[str, Any] = {
            "temperature": config.temperature or 0.0,
            "top_p": config.top_p or 1.0,
            "top_k": config.top_k or 0,
            **_beyond(config),
        }
        sampling = Sampling(**drawing, seed=self._seed(config.seed, drawing["temperature"]))
        limit, grammar = min(config.max_tokens or DEFAULT_MAX_TOKENS, room), _grammar(config.response_format)
        # JSON that is cut off parses no more: it is brought to an end, beyond the limit where there is room.
        closing = min(closing_tokens(grammar), room - 1) if grammar is not None else 0
        decode = Decode(min(limit, room - closing), grammar, config.stop, closing=closing)
        return Request(tuple(prompt), (decode,), sampling)

    def _seed(self, given: int | None, temperature: float) -> int:
        if not temperature:
            return given or 0
        if given is None:
            return next(self._fresh_seeds)
        # Another for each sample of a call, as in plans; the same again for the next call.
        numbers = _samples.get()
        return given * 1_000_003 + (0 if numbers is None else next(numbers))

    def _end(self, request: Any, result: Result) -> Any:
        response = self._respond(request, result)
        return lm15.StreamEndEvent(finish_reason=response.finish_reason, usage=response.usage)

    def _respond(self, request: Any, result: Result) -> Any:
        step, usage = result.steps[-1], result.usage
        count_call(f"{OURS}{self._local.model}", usage.prompt_tokens, usage.cached_tokens, usage.decoded_tokens)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(step.text or " "),
            finish_reason="length" if step.finish_reason == "length" else "stop",
            usage=lm15.Usage(
                input_tokens=usage.prompt_tokens,
                output_tokens=len(step.tokens),
                cache_read_tokens=usage.cached_tokens,
            ),
        )


class AsyncChatEngine:
    """DSPy's asynchronous engine protocol over the same model."""

    def __init__(self, sync: ChatEngine) -> None:
        self._sync = sync

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncChatEngine:
        return self

    async def complete(self, request: Any) -> Any:
        """Like `ChatEngine.complete`, without blocking the event loop."""
        with _canonical_errors():
            # Building may load the model: off the event loop.
            built = await asyncio.to_thread(self._sync._build, request)
            result = await asyncio.wrap_future(self._sync._local.engine.submit(built))
            return self._sync._respond(request, result)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Like `ChatEngine.stream`, without blocking the event loop."""
        with _canonical_errors():
            built = await asyncio.to_thread(self._sync._build, request)
            stream = self._sync._local.engine.stream_async(built)
            yield lm15.StreamStartEvent(id=None, model=request.model)
            async for text in stream:
                yield _delta(text)
            yield self._sync._end(request, stream.result)

    async def aclose(self) -> None:
        """Nothing to do."""

    def dump_state(self) -> dict[str, Any]:
        """Like `ChatEngine.dump_state`."""
        return self._sync.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> AsyncChatEngine:
        """Inverse of `dump_state`."""
        return cls(ChatEngine.load_state(state))


class _canonical_errors:  # noqa: N801 - used like a function
    """DSPy wants lm15's errors from an engine; ours become `InvalidRequestError` with the same text."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, StillError):
            make: Callable[[str], Exception] = lm15.InvalidRequestError
            raise make(str(error)) from error


def _delta(text: str) -> Any:
    return lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=text, part_index=0))


def _messages(request: Any) -> list[tuple[str, str]]:
    messages: list[tuple[str, str]] = []
    if request.system is not None:
        system = request.system if isinstance(request.system, str) else "".join(part.text for part in request.system)
        messages.append(("system", system))
    for message in request.messages:
        for part in message.parts:
            if not isinstance(part, lm15.TextPart):
                raise lm15.UnsupportedFeatureError(f"a {part.type!r} part: this model reads text only")
        role = {"developer": "system", "tool": "user"}.get(message.role, message.role)
        messages.append((role, "".join(part.text for part in message.parts)))
    return messages


def _beyond(config: Any) -> Mapping[str, Any]:
    """Options of `carried` in a request."""
    metadata = (config.extensions or {}).get("metadata")
    found = metadata.get(_BEYOND) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _grammar(response_format: dict[str, Any] | None) -> str | None:
    """A Lark grammar for lm15's two response formats."""
    if response_format is None:
        return None
    schema = without(enforceable(response_format.get("schema") or {"type": "object"}), "uniqueItems")
    try:
        return f"start: %json {json.dumps({**schema, 'x-guidance': _JSON})}"
    except (TypeError, ValueError) as error:
        raise EngineError(f"response_format schema is not JSON: {error}") from error
