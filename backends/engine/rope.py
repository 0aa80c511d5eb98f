"""Rotary position embedding tables (Su et al., 2021), in the rotate-half layout, with the common scalings."""

from __future__ import annotations

import math

import torch

from ...errors import ModelError
from ..models.spec import DecoderSpec


def rope_tables(spec: DecoderSpec, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, float32 [length, head_dim].

    Raises `ModelError` for a scaling that is not implemented (implemented: default, linear, llama3).
    """
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    frequencies = _scaled(1.0 / (spec.rope_theta**exponents), spec)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [rows, heads, head_dim] by cos, sin [rows, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None]


def _scaled(frequencies: torch.Tensor, spec: DecoderSpec) -> torch.Tensor:
    scaling = spec.rope_scaling or {}
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise ModelError(f"rope scaling {kind!r} is not implemented: use a model with default, linear or llama3 scaling")


def _llama3(frequencies: torch.Tensor, scaling: dict[str, float]) -> torch.Tensor:
    """Llama 3.1's rule: keep short wavelengths, divide long ones by the factor, interpolate between."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequencies
    smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / factor + smooth * frequencies
