"""Who is asked for typed answers: DSPy's adapters over llama.cpp's server and over our LM, and Still.

The server runs the same model in Q4_0 (its fastest format here) with a slot and a cache per request in flight, as many as
DSPy has threads; it is reached over HTTP, as DSPy users do. All systems decode greedily, with the set's limit of tokens.

DSPy sends JSONAdapter's schema to models that it knows to take one. It knows nothing of a local server's, so
`dspy_json_llamacpp`, which is what one gets, sends none; for `dspy_schema_llamacpp` the server was declared to DSPy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from typed_sets import Row

SERVER_THREADS = 8
STILL_THREADS = 64
SLOT_TOKENS = 8192
"""What the model was trained for. Eight demonstrations of facility_support take more than half of it."""


class System:
    """Answers rows with an LM, several at a time."""

    def __init__(self, lm: Any, threads: int) -> None:
        self._lm, self._threads = lm, threads
        self._seen = 0
        self.failures: list[str] = []
        """What went wrong with the rows that have no answer."""

    def run(self, rows: Sequence[Row]) -> list[Any]:
        """Answers in the order of `rows`; None where there was no valid one."""
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._try, rows))

    def decoded_tokens(self) -> int:
        """Tokens written since the last look, those of answers that were no good too."""
        total = written(self._lm)
        fresh, self._seen = total - self._seen, total
        return fresh

    def _try(self, row: Row) -> Any:
        try:
            return self.answer(row)
        except Exception as error:  # whatever it is, there is no answer
            self.failures.append(f"{type(error).__name__}: {error}"[:600])
            return None

    def answer(self, row: Row) -> Any:
        """The program."""
        raise NotImplementedError


class DspySystem(System):
    """dspy.Predict under one of dspy's adapters."""

    def __init__(self, adapter: str, lm: Any, threads: int) -> None:
        import dspy

        super().__init__(lm, threads)
        self._adapter = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter}[adapter]()

    def answer(self, row: Row) -> Any:
        import dspy

        with dspy.context(lm=self._lm, adapter=self._adapter, max_history_size=100_000):
            return dspy.Predict(row.signature)(**row.inputs)


class StillSystem(System):
    """still.Predict, the program as it is written."""

    def answer(self, row: Row) -> Any:
        import still

        with still.context(lm=self._lm):
            return still.Predict(row.signature)(**row.inputs)


def written(lm: Any) -> int:
    """Tokens an LM has decoded so far. Text that our engine appends because nothing else is possible is not decoded."""
    import still

    if isinstance(lm, still.LM):
        return lm.local.engine.stats.decoded_tokens
    return sum(int((entry.get("usage") or {}).get("completion_tokens") or 0) for entry in lm.history)


def server_lm(limit: int, schema: bool = False) -> Any:
    """llama.cpp's server in this process, asked over HTTP."""
    import dspy
    import xllamacpp
    from engine_systems import gguf_path
    from engine_weights import requantized

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(requantized(Path(gguf_path()), "Q4_0"))
    parameters.n_parallel = SERVER_THREADS
    parameters.n_ctx = SERVER_THREADS * SLOT_TOKENS
    parameters.kv_unified = False
    parameters.n_batch = 2048
    for threads in (parameters.cpuparams, parameters.cpuparams_batch):
        threads.n_threads = os.cpu_count() or 1
    server = xllamacpp.Server(parameters)
    if schema:
        _declare(f"{server.listening_address}/v1")
    lm = dspy.LM(
        "llamacpp/local" if schema else "openai/local", api_base=f"{server.listening_address}/v1", api_key="none",
        cache=False, temperature=0.0, max_tokens=limit, num_retries=0,
    )  # fmt: skip
    lm.server = server  # lives as long as what asks it
    return lm


def _declare(address: str) -> None:
    """Tell DSPy of a server that takes JSON schemas."""
    from dspy import lm15

    definition = lm15.ProviderDefinition.chat(
        lm15.AccessPolicy(provider="llamacpp", base_url=address),
        compat=lm15.OpenAIChatCompat(max_tokens_field="max_tokens", json_schema="send"),
        placeholder_key="none",
    )
    lm15.register_provider(definition, supports=lm15.ModelSupport(response_schema=True))


def still_lm(limit: int) -> Any:
    """Our engine."""
    import still

    return still.LM(max_tokens=limit)


SYSTEMS: dict[str, Callable[[int], System]] = {
    "dspy_chat_llamacpp": lambda limit: DspySystem("chat", server_lm(limit), SERVER_THREADS),
    "dspy_json_llamacpp": lambda limit: DspySystem("json", server_lm(limit), SERVER_THREADS),
    "dspy_schema_llamacpp": lambda limit: DspySystem("json", server_lm(limit, schema=True), SERVER_THREADS),
    "dspy_chat_still": lambda limit: DspySystem("chat", still_lm(limit), STILL_THREADS),
    "dspy_json_still": lambda limit: DspySystem("json", still_lm(limit), STILL_THREADS),
    "still_O0": lambda limit: StillSystem(still_lm(limit), STILL_THREADS),
}
"""By name: made with the tokens an answer may have."""


def version_of(system: str) -> str | None:
    """Versions of the packages a system is made of, None if one is missing."""
    packages = ["dspy", "still"] + (["xllamacpp"] if system.endswith("llamacpp") else [])
    try:
        return " ".join(version(package) for package in packages)
    except PackageNotFoundError:
        return None
