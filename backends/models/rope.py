"""Rotary scalings: one spelling with nothing left to a default, and Llama 3's recognised in the table GGUF stores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import ModelError
from .spec import ROPE_TYPES

# The parameters all Llama 3.1 to 3.3 models share; only the factor differs (8, or 32 for the small ones).
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192

_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # of the YaRN paper


def complete_scaling(source: Any, given: dict[str, Any], max_position: int) -> dict[str, Any]:
    """A `rope_scaling` with every number its type needs and no other key, defaults as transformers has them.

    `given` has a `rope_type` and may have any of the type's keys; YaRN's `mscale` and `mscale_all_dim` are folded into
    `attention_factor`. Raises ModelError naming `source`, key and value.
    """
    kind = given.get("rope_type")
    if kind not in ROPE_TYPES:
        raise ModelError(f"{source}: rotary scaling of type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    numbers = _Numbers(source, given)
    if kind == "linear":
        return {"rope_type": kind, "factor": numbers.positive("factor")}
    original = numbers.positive("original_max_position_embeddings", max_position)
    if kind == "llama3":
        low, high = numbers.positive("low_freq_factor"), numbers.positive("high_freq_factor")
        if not low < high:
            raise numbers.wrong("high_freq_factor", f"must be above low_freq_factor = {low}")
        scaling = {"factor": numbers.positive("factor"), "low_freq_factor": low, "high_freq_factor": high}
        return {"rope_type": kind, **scaling, "original_max_position_embeddings": original}
    factor = numbers.positive("factor", max_position / original)
    return {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": numbers.positive("beta_fast", _BETA_FAST),
        "beta_slow": numbers.positive("beta_slow", _BETA_SLOW),
        "attention_factor": numbers.positive("attention_factor", _yarn_attention_factor(numbers, factor)),
        "truncate": given.get("truncate") is not False,
    }


class _Numbers:
    def __init__(self, source: Any, given: dict[str, Any]) -> None:
        self.source, self.given = source, given

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.given.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
            raise self.wrong(key, "must be a positive number")
        return float(value)

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(
            f"{self.source}: rotary scaling {self.given.get('rope_type')!r}: {key} = {self.given.get(key)!r} {what}"
        )


def _yarn_attention_factor(numbers: _Numbers, factor: float) -> float:
    """What cosine and sine are multiplied by unless the configuration says: 1 + log(factor) / 10, or a ratio of two."""

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if numbers.given.get("mscale") and numbers.given.get("mscale_all_dim"):
        return grown(numbers.positive("mscale")) / grown(numbers.positive("mscale_all_dim"))
    return grown(1.0)


def llama3_scaling_of(factors: np.ndarray[Any, Any], head_dim: int, theta: float) -> dict[str, Any] | None:
    """The `rope_scaling` whose divisors of the inverse frequencies are `factors` [head_dim / 2], or None."""
    factors = np.asarray(factors, dtype=np.float64).reshape(-1)
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all() or not 1.0 <= factors.max() < 1e4:
        return None
    factor = round(float(factors.max()), 4)
    if not np.allclose(llama3_factors(factor, head_dim, theta), factors, rtol=1e-3):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": float(_ORIGINAL),
    }


def llama3_factors(factor: float, head_dim: int, theta: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Divisors [head_dim / 2]: 1 for short wavelengths, `factor` for long ones, a smooth passage between.

    After Llama 3.1's published scaling (llama-models, `apply_scaling`).
    """
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((_ORIGINAL / wavelength - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth))
