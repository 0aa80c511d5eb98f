"""The embedded engine: paged KV cache, continuous batching, grammars. Importing it imports torch."""

from .engine import Engine
from .request import Decode, Forced, Request, Result, Sampling, StepResult, Usage
from .stats import Stats
from .stream import AsyncStream, Stream

__all__ = [
    "AsyncStream", "Decode", "Engine", "Forced", "Request", "Result", "Sampling", "Stats", "StepResult", "Stream", "Usage",
]  # fmt: skip
