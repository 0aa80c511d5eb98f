"""Recognise the rotary scaling of Llama 3 in the table of factors a GGUF file stores instead of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# The parameters all Llama 3.1 to 3.3 models share; only the factor differs (8, or 32 for the small ones).
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


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
        "original_max_position_embeddings": _ORIGINAL,
    }


def llama3_factors(factor: float, head_dim: int, theta: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Divisors [head_dim / 2]: 1 for short wavelengths, `factor` for long ones, a smooth passage between.

    After Llama 3.1's published scaling (llama-models, `apply_scaling`).
    """
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((_ORIGINAL / wavelength - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth))
