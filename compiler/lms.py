"""Which LM answers for which predictor of a program that is compiled."""

from __future__ import annotations

from typing import Any

from ..backends.lm import LM
from ..errors import StillError
from ..optimizers.candidate import Candidate
from ..signatures.bridge import BaseLM, Module, settings
from .identity import sampling_settings, weights_digest


def usable_lm(lm: Any, argument: str = "lm") -> Any:
    """The LM an argument means: an LM, or the name of a local model. Raises `StillError` for anything else."""
    if isinstance(lm, str):
        return LM(lm)
    if not isinstance(lm, BaseLM):
        raise StillError(f"{argument}={lm!r}: give a still.LM, a dspy.LM, or the name of a local model")
    return lm


def resolve(program: Module, lm: Any) -> tuple[Module, Any]:
    """The program and the LM it is compiled for.

    An LM that all predictors have (`program.set_lm(lm)`) is that of the program: the default for `lm`, which replaces it.
    The program that comes back is then a copy without it, so that a teacher can take its place too. Otherwise predictors
    with an LM of their own keep it, and `lm` (default: the configured LM, else the default model) is for the rest.
    """
    own = [getattr(predictor, "lm", None) for _, predictor in program.named_predictors()]
    shared = own[0] if own and own[0] is not None and all(found is own[0] for found in own) else None
    if shared is not None:
        program = Candidate("without its LM", "").apply(program)
        program.set_lm(None)
    if lm is None:
        return program, shared or settings.lm or LM()
    return program, usable_lm(lm)


def pinned(program: Module) -> dict[str, Any]:
    """Predictors with an LM of their own, by name."""
    return {name: predictor.lm for name, predictor in program.named_predictors() if getattr(predictor, "lm", None)}


def bind(program: Module, lm: Any) -> Module:
    """Give the predictors without an LM this one, in place. Returns the program."""
    for _, predictor in program.named_predictors():
        if getattr(predictor, "lm", None) is None:
            predictor.lm = lm
    return program


def lm_name(lm: Any) -> str:
    """What reports call an LM."""
    return lm.local.model if isinstance(lm, LM) else str(lm.model)


def described(lm: Any) -> dict[str, Any]:
    """What an artifact keeps of an LM: its name, digest and settings, and for a local one how to open it again."""
    return {
        "name": lm_name(lm),
        "digest": weights_digest(lm),
        "sampling": sampling_settings(lm),
        "local": lm.local.to_json() if isinstance(lm, LM) else None,
    }
