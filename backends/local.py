"""A local model as programs use it: engine and prompts, loaded at the first call."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ModelError
from ..signatures.executor import AdapterFolder, Sampling
from ..signatures.plan import Plan
from .context_prior import ContextPrior, Scores
from .prompt import Prompter
from .steps import step_scores, to_request

if TYPE_CHECKING:
    from .engine import Engine
    from .models import Quantization


class LocalModel:
    """One engine per (model, quantization, cache size) and process: two LMs of the same model share weights and cache."""

    _shared: ClassVar[dict[tuple[Any, ...], LocalModel]] = {}
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, model: str, quantization: Quantization, cache_tokens: int | None, max_context: int | None) -> None:
        self.model, self.quantization = model, quantization
        self.cache_tokens, self.max_context = cache_tokens, max_context
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._engine: Engine | None = None
        self._prompter: Prompter | None = None
        self.prior = ContextPrior(self._run)

    @classmethod
    def shared(
        cls, model: str, quantization: Quantization, cache_tokens: int | None, max_context: int | None = None
    ) -> LocalModel:
        """Return this process's instance for these settings."""
        with cls._shared_lock:
            key = (model, quantization, cache_tokens, max_context)
            if key not in cls._shared:
                cls._shared[key] = cls(model, quantization, cache_tokens, max_context)
            return cls._shared[key]

    @property
    def engine(self) -> Engine:
        """The engine; the first access loads the model (and downloads it, where it is not there yet)."""
        with self._lock:
            if self._engine is None:
                from .engine import Engine
                from .models import load_model

                model = load_model(self.model, self.quantization)
                self._engine = Engine(model, cache_tokens=self.cache_tokens, max_context=self.max_context)
            return self._engine

    def _run(self, plan: Plan, inputs: Sequence[Mapping[str, str]]) -> list[Scores]:
        requests = [to_request(plan, each, Sampling(), self.prompter) for each in inputs]
        futures = [self.engine.submit(request) for request in requests]
        return [step_scores(plan, future.result()) for future in futures]

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._prompter is not None

    def ready(self, adapter: AdapterFolder) -> None:
        """Load an adapter into the engine, under its digest, unless it is there.

        Raises `ModelError` for a folder that is missing, another model's, or not what the digest says.
        """
        from .models import adapter_digest

        if adapter.digest in self.engine.adapters:
            return
        with self._loading:  # of many threads that answer with it first, one reads it
            if adapter.digest in self.engine.adapters:
                return
            if (found := adapter_digest(adapter.path)) != adapter.digest:
                raise ModelError(
                    f"adapter {adapter.path}: its sha256 is {found[:12]}…, compiled with was {adapter.digest[:12]}…: "
                    "restore the folder, or compile again"
                )
            self.engine.load_adapter(adapter.digest, adapter.path)

    @property
    def prompter(self) -> Prompter:
        """Turns messages into this model's tokens."""
        if self._prompter is None:
            self._prompter = Prompter(self.engine.model.tokenizer)
        return self._prompter

    @property
    def digest(self) -> str:
        """Identity of what answers: the source weights' sha256 and the quantization."""
        return f"{self.engine.model.digest}/{self.quantization}"

    def to_json(self) -> dict[str, Any]:
        """Arguments of `shared`."""
        return {
            "model": self.model,
            "quantization": self.quantization,
            "cache_tokens": self.cache_tokens,
            "max_context": self.max_context,
        }
