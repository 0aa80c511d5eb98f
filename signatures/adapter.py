"""`PlanAdapter`: runs dspy predictors as plans."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

from ..errors import SignatureError
from . import remote
from .bridge import Adapter, settings, with_callbacks
from .executor import Completion, DemonstrationSource, Executor, NearnessSource, Piece, Sampling, Streamer
from .fieldset import allows_none, special_fields
from .layout import lower
from .plan import Plan
from .prediction import Answer
from .stream import aclose
from .values import value_text

_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "adapter"})
_OTHER = frozenset({"n", "num_generations", "rollout_id"})


class PlanAdapter(Adapter):  # type: ignore[misc]  # dspy ships no types
    """Lowers a signature to a plan and has an `Executor` run it; other LMs get messages, and a JSON schema if they take one.

    Either way every value returned is of its field's type, or `ConstraintError` is raised. Signatures with dspy's own
    types (Image, Tool, History, ...) always go through dspy's chat format, and fields of those types are not checked.
    `demos` may be a `DemonstrationSource`. For unmodified dspy predictors: `dspy.context(adapter=PlanAdapter())`.
    """

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        source, demos = demos, _selected(demos, inputs)
        if not _runs_plans(lm, signature):
            _refuse_adapter(lm, lm_kwargs)
            return remote.remote_backend().call_remote(lm, lm_kwargs, signature, demos, inputs)
        plan, sampling, n = _prepare(lm, lm_kwargs, signature, demos)
        values = _present(signature, inputs)
        return _finish(lm, _execute(lm, _leaning(plan.bound(values), source, signature, inputs), values, sampling, n))

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        # To choose, or to lean, takes an embedder some milliseconds, and when it is loaded seconds: the event loop goes on.
        source, chosen = demos, isinstance(demos, DemonstrationSource)
        demos = await asyncio.to_thread(demos.select, inputs) if chosen else demos
        if not _runs_plans(lm, signature):
            _refuse_adapter(lm, lm_kwargs)
            return await remote.remote_backend().acall_remote(lm, lm_kwargs, signature, demos, inputs)
        plan, sampling, n = _prepare(lm, lm_kwargs, signature, demos)
        values = _present(signature, inputs)
        plan = plan.bound(values)
        plan = await asyncio.to_thread(_leaning, plan, source, signature, inputs) if chosen else plan
        return _finish(lm, await _aexecute(lm, plan, values, sampling, n))

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> list[dict[str, str]]:
        """The messages of a call, as dspy's tools expect them."""
        return lower(signature, _selected(demos, inputs)).messages(_present(signature, inputs))

    def format_user_message_content(
        self, signature: Any, inputs: Mapping[str, Any], prefix: str = "", suffix: str = "", main_request: bool = False
    ) -> str:
        """Inputs as lines `name: value`; dspy.ReAct writes its trajectory with it."""
        lines = [f"{name}: {value_text(inputs[name], name)}" for name in signature.input_fields if name in inputs]
        return "\n".join(part for part in (prefix, *lines, suffix) if part)


def check_stream(lm: Any, options: Mapping[str, Any], signature: Any) -> None:
    """Raise `SignatureError` where there is nothing that could stream, or more than one answer."""
    if not isinstance(lm, Streamer) or not _runs_plans(lm, signature):
        raise SignatureError("only still.LM streams, and no fields of dspy's own types: call the predictor instead")
    if (n := _sampling(lm, options)[1]) != 1:
        raise SignatureError(f"n={n}: a stream has one answer, leave n out")


def prepare_stream(lm: Any, options: Mapping[str, Any], signature: Any, demos: Any, inputs: Mapping[str, Any]) -> _Ready:
    """What a streaming call needs: arguments of `stream_plan`."""
    plan, sampling, _ = _prepare(lm, options, signature, _selected(demos, inputs))
    values = _present(signature, inputs)
    return _leaning(plan.bound(values), demos, signature, inputs), values, sampling


async def astream_items(
    lm: Streamer, options: Mapping[str, Any], signature: Any, demos: Any, inputs: Mapping[str, Any]
) -> AsyncIterator[Piece | Completion]:
    """What a streaming call yields. Demonstrations are chosen when the first item is asked for, off the event loop."""
    if isinstance(demos, DemonstrationSource):
        ready = await asyncio.to_thread(prepare_stream, lm, options, signature, demos, inputs)
    else:
        ready = prepare_stream(lm, options, signature, demos, inputs)
    items = lm.astream_plan(*ready)
    try:
        async for item in items:
            yield item
    finally:
        await aclose(items)


_Ready = tuple[Plan, dict[str, Any], Sampling]


# dspy tells an LM's callbacks of a call by the name of the first parameter.
@with_callbacks  # type: ignore[untyped-decorator]
def _execute(instance: Any, plan: Plan, inputs: dict[str, Any], sampling: Sampling, n: int) -> list[Completion]:
    return cast(Executor, instance).execute(plan, inputs, sampling, n)


@with_callbacks  # type: ignore[untyped-decorator]
async def _aexecute(instance: Any, plan: Plan, inputs: dict[str, Any], sampling: Sampling, n: int) -> list[Completion]:
    return await cast(Executor, instance).aexecute(plan, inputs, sampling, n)


def _runs_plans(lm: Any, signature: Any) -> bool:
    return isinstance(lm, Executor) and not special_fields(signature)


def _refuse_adapter(lm: Any, options: Mapping[str, Any]) -> None:
    if options.get("adapter") is not None:
        raise SignatureError(
            f"the predictor answers with trained weights, which {lm.model} cannot load, nor can a call with fields of "
            "dspy's own types: use the still.LM it was compiled for"
        )


def _selected(demos: Any, inputs: Mapping[str, Any]) -> Any:
    return demos.select(inputs) if isinstance(demos, DemonstrationSource) else demos


def _leaning(plan: Plan, source: Any, signature: Any, inputs: Mapping[str, Any]) -> Plan:
    """The plan with what the source of its demonstrations says of its options, where their calibration asks for it."""
    asked = any(step.scoring is not None and step.scoring.nearness for step in plan.decodes)
    return plan.leaning(source.nearness(signature, inputs)) if asked and isinstance(source, NearnessSource) else plan


def _prepare(lm: Any, lm_kwargs: Mapping[str, Any], signature: Any, demos: Any) -> tuple[Plan, Sampling, int]:
    sampling, n = _sampling(lm, lm_kwargs)
    return lower(signature, demos), sampling, n


def _sampling(lm: Any, lm_kwargs: Mapping[str, Any]) -> tuple[Sampling, int]:
    return sampling_of({**getattr(lm, "kwargs", {}), **lm_kwargs})


def _present(signature: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    absent = {name: None for name, field in signature.input_fields.items() if allows_none(field)}
    return {**absent, **inputs}


def sampling_of(options: Mapping[str, Any]) -> tuple[Sampling, int]:
    """Read dspy's generation options: (sampling, number of completions). None means not given.

    A rollout_id changes the seed, and so the answer where the temperature is above 0.
    Raises `SignatureError` for an option that no executor has.
    """
    given = {name: value for name, value in options.items() if value is not None}
    unknown = given.keys() - _SAMPLING - _OTHER
    if unknown:
        raise SignatureError(
            f"option {min(unknown)!r} is not known here: use {', '.join(sorted(_SAMPLING | {'n', 'rollout_id'}))}"
        )
    n = int(given.get("n", given.get("num_generations", 1)))
    chosen = {name: value for name, value in given.items() if name in _SAMPLING}
    if "rollout_id" in given:
        chosen["seed"] = int(chosen.get("seed", 0)) + zlib.crc32(repr(given["rollout_id"]).encode())
    return Sampling(**chosen), n


def _finish(lm: Any, completions: list[Completion]) -> list[dict[str, Any]]:
    tracker = settings.usage_tracker
    for completion in completions if tracker else ():
        usage = completion.usage
        tracker.add_usage(
            lm.model,
            {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.decoded_tokens + usage.forced_tokens,
                "total_tokens": usage.prompt_tokens + usage.decoded_tokens + usage.forced_tokens,
                "cached_tokens": usage.cached_tokens,
            },
        )
    return [Answer(completion) for completion in completions]
