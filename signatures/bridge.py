"""The one module that imports dspy; everything else takes dspy's names from here.

dspy ships no type information: for type checkers the names below are `Any`. What moves with a release of dspy (pinned
`>=3.4,<3.5`) fails here, at import.
"""

from __future__ import annotations

from dspy import LM, BaseLM, Example, InputField, Module, OutputField, Prediction, ensure_signature, lm15, settings
from dspy import ChainOfThought as DspyChainOfThought
from dspy import Predict as DspyPredict
from dspy import Prediction as DspyPrediction
from dspy import Signature as DspySignature
from dspy.adapters import Adapter, ChatAdapter, JSONAdapter
from dspy.adapters.types import History
from dspy.adapters.types import Type as DspyType
from dspy.adapters.types.tool import Tool
from dspy.signatures.signature import SignatureMeta
from dspy.utils.callback import with_callbacks
from dspy.utils.exceptions import AdapterParseError, LMError, LMInvalidRequestError, LMUnsupportedFeatureError
from dspy.utils.saving import get_dependency_versions as dependency_versions

context = settings.context
"""`with context(lm=..., adapter=...):` settings for this thread (or task) and what it starts."""
configure = settings.configure
"""`configure(lm=...)`: settings for every thread; only the thread that called it first may call it again."""

__all__ = [
    "LM",
    "Adapter",
    "AdapterParseError",
    "BaseLM",
    "ChatAdapter",
    "DspyChainOfThought",
    "DspyPredict",
    "DspyPrediction",
    "DspySignature",
    "DspyType",
    "Example",
    "History",
    "InputField",
    "JSONAdapter",
    "LMError",
    "LMInvalidRequestError",
    "LMUnsupportedFeatureError",
    "Module",
    "OutputField",
    "Prediction",
    "SignatureMeta",
    "Tool",
    "configure",
    "context",
    "dependency_versions",
    "ensure_signature",
    "lm15",
    "settings",
    "with_callbacks",
]
