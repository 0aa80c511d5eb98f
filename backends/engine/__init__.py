"""The embedded engine: paged KV cache, continuous batching, grammars. Importing it imports torch."""

from .engine import Engine
from .request import Decode, Forced, Request, Result, Sampling, StepResult, Usage
from .stats import Stats

__all__ = ["Decode", "Engine", "Forced", "Request", "Result", "Sampling", "Stats", "StepResult", "Usage"]
