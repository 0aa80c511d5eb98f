"""Digests: what makes two programs, models or evaluations the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..backends.callable_identity import described, is_function, source_of
from ..errors import DatasetError
from ..optimizers.candidate import current_state
from ..signatures.bridge import DspyPredict, Module
from ..signatures.knob import CHOICES, knob_values
from ..signatures.layout import lower
from .canonical import canonical_json

_NOT_THE_PROGRAMS = frozenset({"callbacks", "history", "_compiled", CHOICES})
"""Attributes of modules that say nothing of what they answer: dspy's own, and what of a knob is offered to a search."""


def program_digest(program: Module) -> str:
    """sha256 over each predictor's plan and state, the source of the program's classes, and their plain attributes.

    A class whose source cannot be read (typed at a prompt, say) counts by its name: then edit its name with its code, or
    use a new ledger. Of attributes those count that have a JSON form, and functions by their source; what else a module
    reads it says by `identity` (see `resources`).
    """
    parts = []
    for path, module in program.named_sub_modules():
        parts += [source_of(kind) for kind in type(module).__mro__ if _is_the_users(kind) or kind is type(module)]
        if not isinstance(module, DspyPredict):
            parts += [f"{path}.{name}={value}" for name, value in _attributes(module)]
    for name, predictor in sorted(_predictors(program).items()):
        parts += [name, lower(predictor.signature).digest, repr(current_state(predictor).to_json()), repr(predictor.config)]
        if getattr(predictor, "lm", None) is not None:  # one of its own
            parts.append(model_digest(predictor.lm))
    if values := knob_values(program):
        parts.append(repr(sorted(values.items())))
    if found := resources(program):
        parts.append(repr(sorted((path, sorted(digests.items())) for path, digests in found.items())))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _predictors(program: Module) -> dict[str, Any]:
    """Those of modules too that dspy does not list, as they are compiled already."""
    frozen = {path: module for path, module in program.named_sub_modules() if isinstance(module, DspyPredict)}
    listed = dict(program.named_predictors())
    return {**{path: p for path, p in frozen.items() if all(p is not other for other in listed.values())}, **listed}


def _is_the_users(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in ("abc", "builtins", "dspy", "typing", __name__.partition(".")[0])


def _attributes(module: Module) -> list[tuple[str, str]]:
    """A module's own plain values and functions, by name, as texts."""
    found = []
    for name, value in sorted(vars(module).items()):
        if name in _NOT_THE_PROGRAMS or isinstance(value, Iterator):
            continue
        if is_function(value):
            found.append((name, canonical_json(described(value))))
            continue
        with suppress(DatasetError, RecursionError, ValueError):  # a module, a client, a lock; what holds itself
            found.append((name, canonical_json(value)))
    return found


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
