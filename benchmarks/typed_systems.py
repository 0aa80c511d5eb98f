"""Who is asked for typed answers: DSPy's adapters over llama.cpp's server and over our LM, and Still.

The server runs the same model in Q4_0 (its fastest format here) with a slot and a cache per request in flight, as many as
DSPy has threads; it is reached over HTTP, as DSPy users do. All systems decode greedily, with the set's limit of tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from typed_sets import Row

SERVER_THREADS = 8
STILL_THREADS = 64
SLOT_TOKENS = 4096


class System(Protocol):
    """Answers rows; None where there was no valid answer."""

    def run(self, rows: Sequence[Row]) -> list[Any]:
        """Answers in the order of `rows`."""

    def decoded_tokens(self) -> int:
        """Tokens written since the last look."""


class DspySystem:
    """dspy.Predict under one of dspy's adapters."""

    def __init__(self, adapter: str, lm: Any, threads: int) -> None:
        import dspy

        self._adapter = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter}[adapter]()
        self._lm, self._threads = lm, threads
        self._seen = 0
        self.failures: list[str] = []

    def run(self, rows: Sequence[Row]) -> list[Any]:
        import dspy

        def one(row: Row) -> Any:
            with dspy.context(lm=self._lm, adapter=self._adapter, max_history_size=100_000):
                try:
                    return dspy.Predict(row.signature)(**row.inputs)
                except Exception as error:  # whatever it is, there is no answer
                    self.failures.append(f"{type(error).__name__}: {error}"[:300])
                    return None

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(one, rows))

    def decoded_tokens(self) -> int:
        """From the LM's own history, so that answers that did not parse count too."""
        fresh = self._lm.history[self._seen :]
        self._seen = len(self._lm.history)
        return sum(int((entry.get("usage") or {}).get("completion_tokens") or 0) for entry in fresh)


class StillSystem:
    """still.Predict, the program as it is written."""

    def __init__(self, limit: int) -> None:
        import still

        self._lm = still.LM(max_tokens=limit)
        self._decoded = 0
        self.failures: list[str] = []

    def run(self, rows: Sequence[Row]) -> list[Any]:
        import still

        def one(row: Row) -> Any:
            with still.context(lm=self._lm):
                try:
                    answer: Any = still.Predict(row.signature)(**row.inputs)
                except still.errors.StillError as error:
                    self.failures.append(f"{type(error).__name__}: {error}"[:300])
                    return None
                self._decoded += answer.completion.usage.decoded_tokens
                return answer

        with ThreadPoolExecutor(STILL_THREADS) as pool:
            return list(pool.map(one, rows))

    def decoded_tokens(self) -> int:
        decoded, self._decoded = self._decoded, 0
        return decoded


def _server_lm(limit: int) -> Any:
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
        threads.n_threads = 2
    server = xllamacpp.Server(parameters)
    lm = dspy.LM(
        "openai/local", api_base=f"{server.listening_address}/v1", api_key="none", cache=False, temperature=0.0,
        max_tokens=limit, num_retries=0,
    )  # fmt: skip
    lm.server = server  # lives as long as what asks it
    with suppress(AttributeError):
        sys.stderr.flush()
    return lm


def _still_lm(limit: int) -> Any:
    import still

    return still.LM(max_tokens=limit)


SYSTEMS: dict[str, Callable[[int], Any]] = {
    "dspy_chat_llamacpp": lambda limit: DspySystem("chat", _server_lm(limit), SERVER_THREADS),
    "dspy_json_llamacpp": lambda limit: DspySystem("json", _server_lm(limit), SERVER_THREADS),
    "dspy_chat_still": lambda limit: DspySystem("chat", _still_lm(limit), STILL_THREADS),
    "dspy_json_still": lambda limit: DspySystem("json", _still_lm(limit), STILL_THREADS),
    "still_O0": StillSystem,
}
"""By name: made with the tokens an answer may have."""


def version_of(system: str) -> str | None:
    """Versions of the packages a system is made of, None if one is missing."""
    packages = ["dspy", "still"] + (["xllamacpp"] if system.endswith("llamacpp") else [])
    try:
        return " ".join(version(package) for package in packages)
    except PackageNotFoundError:
        return None
