"""Still: a compiler for language-model programs.

    import still

    class Ticket(still.Signature):
        '''Route a customer message.'''

        message: str = still.Input()
        team: Literal["orders", "shipping", "returns"] = still.Output()

    data = still.Dataset.read("tickets.csv", inputs=["message"])
    result = still.compile(still.Predict(Ticket), data)
    result.save("router")
    print(still.load("router")(message="Where is my parcel?").team)

Names are imported when they are first used, so that `import still` itself loads neither dspy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from .signatures import remote as _remote

if TYPE_CHECKING:
    from .backends.lm import LM
    from .backends.retrieval.chunking import Chunking
    from .backends.retrieval.corpus import Corpus, Document
    from .backends.retrieval.dense import Dense
    from .backends.retrieval.fuse import fuse
    from .backends.retrieval.lexical import Lexical
    from .backends.retrieval.multihop import MultiHop
    from .backends.retrieval.pack import Pack
    from .backends.retrieval.retrieve import Retrieve
    from .backends.retrieval.rewrite import Rewrite
    from .compiler.audit import audit
    from .compiler.compile import compile, evaluate
    from .compiler.dataset import Dataset
    from .compiler.dspy_state import export_dspy, import_dspy
    from .compiler.estimate import estimate
    from .compiler.judge import judge
    from .compiler.ledger import Ledger
    from .compiler.load import load
    from .compiler.metrics import Score, close, exact, f1, json_fields, normalized, set_f1, span_f1
    from .compiler.ranked import mrr, ndcg_at, recall_at
    from .compiler.weighted import weighted
    from .compiler.weights_export import export_weights
    from .optimizers.budget import Budget
    from .signatures.bridge import Example, Prediction, configure, context
    from .signatures.cited import Cited
    from .signatures.knob import Knob
    from .signatures.module import Module
    from .signatures.passage import Passage
    from .signatures.predict import ChainOfThought, Predict
    from .signatures.quoted import Quoted
    from .signatures.remote import RemoteBackend
    from .signatures.signature import Input, Output, Signature

__version__ = "0.1.0"

_LAZY = {
    "ChainOfThought": "signatures.predict",
    "Example": "signatures.bridge",
    "Input": "signatures.signature",
    "Knob": "signatures.knob",
    "Module": "signatures.module",
    "Output": "signatures.signature",
    "Predict": "signatures.predict",
    "Prediction": "signatures.bridge",
    "Signature": "signatures.signature",
    "configure": "signatures.bridge",
    "context": "signatures.bridge",
    "Budget": "optimizers.budget",
    "LM": "backends.lm",
    "audit": "compiler.audit",
    "compile": "compiler.compile",
    "estimate": "compiler.estimate",
    "evaluate": "compiler.compile",
    "Dataset": "compiler.dataset",
    "export_dspy": "compiler.dspy_state",
    "import_dspy": "compiler.dspy_state",
    "Ledger": "compiler.ledger",
    "load": "compiler.load",
    "Score": "compiler.metrics",
    "close": "compiler.metrics",
    "exact": "compiler.metrics",
    "f1": "compiler.metrics",
    "json_fields": "compiler.metrics",
    "normalized": "compiler.metrics",
    "set_f1": "compiler.metrics",
    "span_f1": "compiler.metrics",
    "Cited": "signatures.cited",
    "Chunking": "backends.retrieval.chunking",
    "Corpus": "backends.retrieval.corpus",
    "Document": "backends.retrieval.corpus",
    "Dense": "backends.retrieval.dense",
    "Lexical": "backends.retrieval.lexical",
    "fuse": "backends.retrieval.fuse",
    "MultiHop": "backends.retrieval.multihop",
    "Pack": "backends.retrieval.pack",
    "Passage": "signatures.passage",
    "Quoted": "signatures.quoted",
    "Retrieve": "backends.retrieval.retrieve",
    "Rewrite": "backends.retrieval.rewrite",
    "mrr": "compiler.ranked",
    "ndcg_at": "compiler.ranked",
    "recall_at": "compiler.ranked",
    "judge": "compiler.judge",
    "weighted": "compiler.weighted",
    "export_weights": "compiler.weights_export",
}

__all__ = [
    "LM",
    "Budget",
    "ChainOfThought",
    "Chunking",
    "Cited",
    "Corpus",
    "Dataset",
    "Dense",
    "Document",
    "Example",
    "Input",
    "Knob",
    "Ledger",
    "Lexical",
    "Module",
    "MultiHop",
    "Output",
    "Pack",
    "Passage",
    "Predict",
    "Prediction",
    "Quoted",
    "Retrieve",
    "Rewrite",
    "Score",
    "Signature",
    "audit",
    "close",
    "compile",
    "configure",
    "context",
    "errors",
    "estimate",
    "evaluate",
    "exact",
    "export_dspy",
    "export_weights",
    "f1",
    "fuse",
    "import_dspy",
    "json_fields",
    "judge",
    "load",
    "mrr",
    "ndcg_at",
    "normalized",
    "recall_at",
    "set_f1",
    "span_f1",
    "weighted",
]


def _remote_backend() -> RemoteBackend:
    from .backends import remote

    return remote


# Wired here because signatures/ may not import backends/; whatever is imported of Still, this module comes first.
_remote.remote_backend = _remote_backend


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'still' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
