"""The embedded engine: paged KV cache, continuous batching, grammars. Importing it imports torch."""

from .closing import shortest_completion
from .engine import Engine
from .kernels import release_team
from .request import END, Choose, Decode, Forced, Request, Result, Sampling, StepResult, Usage, option_probabilities
from .stats import Stats
from .stream import AsyncStream, Stream

__all__ = [
    "END", "AsyncStream", "Choose", "Decode", "Engine", "Forced", "Request", "Result", "Sampling", "Stats", "StepResult",
    "Stream", "Usage", "option_probabilities", "release_team", "shortest_completion",
]  # fmt: skip
