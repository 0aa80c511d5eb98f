"""Digests: what makes two programs, models or evaluations the same."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

from ..optimizers.candidate import current_state
from ..signatures.bridge import Module
from ..signatures.knob import knob_values
from ..signatures.layout import lower


def program_digest(program: Module) -> str:
    """sha256 over each predictor's plan and state and the source of the program's classes.

    A class whose source cannot be read (typed at a prompt, say) counts by its name: then edit its name with its code, or
    use a new ledger.
    """
    parts = [_source(type(module)) for _, module in program.named_sub_modules()]
    for name, predictor in sorted(program.named_predictors()):
        parts += [name, lower(predictor.signature).digest, repr(current_state(predictor).to_json()), repr(predictor.config)]
        if getattr(predictor, "lm", None) is not None:  # one of its own
            parts.append(model_digest(predictor.lm))
    if values := knob_values(program):
        parts.append(repr(sorted(values.items())))
    if found := resources(program):
        parts.append(repr(sorted((path, sorted(digests.items())) for path, digests in found.items())))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def resources(program: Module) -> dict[str, dict[str, str]]:
    """What a program's modules read besides their inputs (a corpus, an embedding model): digests by module and name.

    A module says so by a method `identity() -> dict[str, str]`.
    """
    named = ((path.removeprefix("self").removeprefix("."), module) for path, module in program.named_sub_modules())
    return {path: module.identity() for path, module in named if callable(getattr(module, "identity", None))}


def weights_digest(lm: Any) -> str:
    """Identity of the model behind an LM: weights and quantization of a local one, the name of any other dspy.LM."""
    digest = getattr(lm, "digest", None)
    return digest if isinstance(digest, str) else str(lm.model)


def model_digest(lm: Any) -> str:
    """Identity of what answers: the model and the LM's default sampling settings."""
    settings = sampling_settings(lm)
    return f"{weights_digest(lm)} {settings}" if settings else weights_digest(lm)


def sampling_settings(lm: Any) -> dict[str, Any]:
    """The settings an LM was made with that change its answers; keys and addresses are not among them."""
    secret = ("key", "base", "url", "header")
    return {k: v for k, v in sorted(lm.kwargs.items()) if v is not None and not any(part in k for part in secret)}


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return f"{kind.__module__}.{kind.__qualname__}"
