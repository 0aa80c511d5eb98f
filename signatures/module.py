"""`Module`: a program made of predictors and Python."""

from __future__ import annotations

from .bridge import Module as DspyModule
from .page import Page


class Module(Page, DspyModule):  # type: ignore[misc]  # dspy ships no types
    """Base of programs: build predictors in `__init__`, use them in `forward`. It is a `dspy.Module`."""
