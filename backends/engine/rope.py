"""Rotary position embedding tables (Su et al., 2021), in the rotate-half layout, with the common scalings."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...errors import ModelError
from ..models.spec import DecoderSpec

Tables = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, float32 [length, head_dim]."""


def rope_tables(spec: DecoderSpec, length: int) -> Tables:
    """Tables for positions below `length`. Raises `ModelError` for a scaling that is not implemented."""
    frequencies, factor = _scaled(_frequencies(spec, spec.rope_theta), spec)
    return _tables(frequencies, length, factor)


def local_rope_tables(spec: DecoderSpec, length: int) -> Tables:
    """Tables of the layers with a window, which some models turn by another, unscaled base."""
    if spec.local_rope_theta is None:
        return rope_tables(spec, length)
    return _tables(_frequencies(spec, spec.local_rope_theta), length, 1.0)


def _frequencies(spec: DecoderSpec, theta: float) -> torch.Tensor:
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    return 1.0 / (theta**exponents)


def _tables(frequencies: torch.Tensor, length: int, factor: float) -> Tables:
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [rows, heads, head_dim] by cos, sin [rows, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None]


def _scaled(frequencies: torch.Tensor, spec: DecoderSpec) -> tuple[torch.Tensor, float]:
    """Scaled frequencies, and what cos and sin are multiplied by."""
    scaling = spec.rope_scaling or {}
    kind = str(scaling.get("rope_type", "default"))
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return frequencies / float(scaling["factor"]), 1.0
    if kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if kind == "yarn":
        return _yarn(frequencies, scaling, spec)
    raise ModelError(f"rope scaling {kind!r} is not implemented: use a model with default, linear, llama3 or yarn scaling")


def _yarn(frequencies: torch.Tensor, scaling: dict[str, Any], spec: DecoderSpec) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al., 2023): interpolate long wavelengths, keep short ones, sharpen attention."""
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])

    def turns_at(turns: float) -> float:
        """Index of the frequency that makes so many turns over the original context."""
        return spec.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(spec.rope_theta))

    low, high = turns_at(scaling.get("beta_fast") or 32.0), turns_at(scaling.get("beta_slow") or 1.0)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.head_dim - 1)
    ramp = (torch.arange(spec.head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0.0, 1.0)
    return frequencies / factor * interpolated + frequencies * (1 - interpolated), _yarn_attention(scaling, factor)


def _yarn_attention(scaling: dict[str, Any], factor: float) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def sharpness(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return sharpness(float(scaling["mscale"])) / sharpness(float(scaling["mscale_all_dim"]))
    return sharpness(1.0)


def _llama3(frequencies: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    """Llama 3.1's rule: keep short wavelengths, divide long ones by the factor, interpolate between."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequencies
    smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / factor + smooth * frequencies
