"""`Predict` and `ChainOfThought`: one call of a language model, typed by its signature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Generic, Never, TypeVar, cast, overload

from pydantic.fields import FieldInfo

from .adapter import PlanAdapter, astream_items, check_stream, prepare_stream
from .bridge import DspyChainOfThought, DspyPredict, OutputField, context, ensure_signature, settings
from .knob import Knob
from .page import Page
from .prediction import prediction
from .signature import Signature, with_instructions
from .stream import AsyncPieceStream, PieceStream
from .vote import majority

S = TypeVar("S")

VOTING_TEMPERATURE = 0.7
REASONING_LIMIT = 300
"""Characters. A small model that reasons on repeats itself."""

_ADAPTER = PlanAdapter()


@contextmanager
def _still_adapter() -> Iterator[None]:
    """Still's adapter, unless the user chose one."""
    if settings.adapter is not None:
        yield
        return
    with context(adapter=_ADAPTER):
        yield


def with_reasoning(signature: Any) -> Any:
    """The signature with a `reasoning` output before the others, unless it has one."""
    if "reasoning" in signature.output_fields:
        return signature
    return signature.prepend("reasoning", OutputField(max_length=REASONING_LIMIT), type_=str)


# Kept: a plan is kept by its signature, and a new class for every call would have none.
@lru_cache(maxsize=256)
def _effective(signature: Any, reasoning: bool) -> Any:
    signature = ensure_signature(signature)  # a call may give one as text
    given = signature
    for name, field in signature.output_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("written") is False:
            signature = signature.delete(name)
    signature = with_reasoning(signature) if reasoning else signature
    return signature if signature is given else with_instructions(signature, given.instructions)


class Predict(Page, DspyPredict, Generic[S]):  # type: ignore[misc]  # dspy ships no types
    """Maps inputs to outputs with one call of the language model.

    Type checkers see a call return the signature, whose fields have their declared types; at run time it is a
    `dspy.Prediction` with the same attributes. config: sampling defaults (temperature, top_p, n, max_tokens, seed).

    Two knobs for the compiler (or you): `reasoning` has the model write a few words before the outputs; `samples` draws as
    many answers (at temperature 0.7 unless it is set) and returns the one that most agree on.
    """

    reasoning = Knob(choices=(False, True))
    samples = Knob(choices=(1, 3, 5))

    @overload
    def __init__(self: Predict[S], signature: type[S], callbacks: list[Any] | None = None, **config: Any) -> None: ...
    @overload
    def __init__(
        self: Predict[Any], signature: str | Signature, callbacks: list[Any] | None = None, **config: Any
    ) -> None: ...
    def __init__(self, signature: Any, callbacks: list[Any] | None = None, **config: Any) -> None:
        super().__init__(signature, callbacks, **config)

    def __call__(self, *positional: Never, **inputs: Any) -> S:
        """Run it. Raises `SignatureError` for a missing input, `ConstraintError` if no valid answer comes."""
        return cast(S, super().__call__(*positional, **inputs))

    async def acall(self, *positional: Never, **inputs: Any) -> S:
        """Like a call, without blocking the event loop."""
        return cast(S, await super().acall(*positional, **inputs))

    def stream(self, **inputs: Any) -> PieceStream[S]:
        """Run it and iterate over the text of its outputs while they are written; then see `prediction` of the stream.

        One answer is written, whatever `samples` is: nobody votes, so it is drawn at the predictor's own temperature.
        Raises `SignatureError` for an LM that cannot stream, and as a call does.
        """
        lm, config, signature, demos, values = self._streamed(inputs)
        ready = prepare_stream(lm, config, signature, demos, values)
        return PieceStream(lm.stream_plan(*ready), signature)

    def astream(self, **inputs: Any) -> AsyncPieceStream[S]:
        """`stream` for coroutines: `async for piece in predictor.astream(...)`."""
        lm, config, signature, demos, values = self._streamed(inputs)
        return AsyncPieceStream(astream_items(lm, config, signature, demos, values), signature)

    def _streamed(self, inputs: dict[str, Any]) -> Any:
        """LM, options, signature, demonstrations and inputs of a call that streams."""
        lm, config, signature, demos, values = self._forward_preprocess(**self._with_reasoning(inputs))
        check_stream(lm, config, signature)
        return lm, config, signature, demos, values

    def _forward_postprocess(self, completions: Any, signature: Any, **inputs: Any) -> Any:
        # dspy's own, with a `Prediction` that knows probabilities.
        traced, trace = inputs.pop("_trace", True), settings.trace
        if self.samples > 1 and len(completions) > 1:
            # Of the signature that was called. No two samples give the same reasons, so not on those that the knob added.
            own = "reasoning" in self.signature.output_fields
            voted = [name for name in signature.output_fields if own or name != "reasoning"]
            completions = [completions[majority(completions, voted)]]
        made = prediction(completions, signature)
        if traced and trace is not None and settings.max_trace_size > 0:
            if len(trace) >= settings.max_trace_size:
                trace.pop(0)
            trace.append((self, dict(inputs), made))
        return made

    def forward(self, **inputs: Any) -> Any:
        """Implementation of a call; call the object instead."""
        with _still_adapter():
            return super().forward(**self._with_knobs(inputs))

    async def aforward(self, **inputs: Any) -> Any:
        """Implementation of `acall`."""
        with _still_adapter():
            return await super().aforward(**self._with_knobs(inputs))

    @property
    def effective_signature(self) -> Any:
        """The signature that a call runs: with the reasoning before the outputs where that knob is on,
        and without outputs that are not written any more (`written=False`: what trained weights have taken over)."""
        return _effective(self.signature, self.reasoning)

    def _with_reasoning(self, inputs: dict[str, Any]) -> dict[str, Any]:
        asked = inputs.get("signature", self.signature)
        effective = _effective(asked, self.reasoning)
        return inputs if effective is asked else {**inputs, "signature": effective}

    def _with_knobs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = self._with_reasoning(inputs)
        if self.samples > 1:
            config = {"temperature": VOTING_TEMPERATURE, **self.config, **inputs.get("config", {}), "n": self.samples}
            inputs = {**inputs, "config": config}
        return inputs


class ChainOfThought(Page, DspyChainOfThought, Generic[S]):  # type: ignore[misc]  # dspy ships no types
    """`Predict` with a `reasoning` field written before the outputs."""

    predict: Predict[S]

    @overload
    def __init__(
        self: ChainOfThought[S],
        signature: type[S],
        rationale_field: FieldInfo | None = None,
        rationale_field_type: type = str,
        **config: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: ChainOfThought[Any],
        signature: str | Signature,
        rationale_field: FieldInfo | None = None,
        rationale_field_type: type = str,
        **config: Any,
    ) -> None: ...
    def __init__(
        self,
        signature: Any,
        rationale_field: FieldInfo | None = None,
        rationale_field_type: type = str,
        **config: Any,
    ) -> None:
        super().__init__(signature, rationale_field, rationale_field_type, **config)
        self.predict = Predict(self.predict.signature, **config)

    def __call__(self, **inputs: Any) -> S:
        """Run it; see `Predict`."""
        return cast(S, super().__call__(**inputs))

    async def acall(self, **inputs: Any) -> S:
        """Like a call, without blocking the event loop."""
        return cast(S, await super().acall(**inputs))

    def stream(self, **inputs: Any) -> PieceStream[S]:
        """Text as it is written; see `Predict.stream`."""
        return self.predict.stream(**inputs)

    def astream(self, **inputs: Any) -> AsyncPieceStream[S]:
        """Async twin of `stream`."""
        return self.predict.astream(**inputs)


def plan_predictors(program: Any) -> Any:
    """Make every plain dspy.Predict of `program` a `Predict`, so that it runs as a plan wherever it is called.

    Works in place and returns the program (a new object if it is itself a plain predictor). Subclasses are left alone:
    what they do is not known here.
    """
    if type(program) is DspyPredict:
        return _as_plan(program)
    for _, predictor in program.named_predictors():
        if type(predictor) is DspyPredict:
            # The object itself: a predictor may be held in several places, of which named_predictors gives the first.
            predictor.__class__ = Predict
    return program


def _as_plan(predictor: Any) -> Any:
    made: Any = Predict.__new__(Predict)
    made.__dict__.update(predictor.__dict__)
    return made
