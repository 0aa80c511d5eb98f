"""The metadata of a GGUF file: copied from the file a model is from, or written from its spec and tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ModelError
from ..models.gguf_header import read_header
from ..models.spec import DecoderSpec

if TYPE_CHECKING:
    import numpy as np

_OWN = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment", "split.")
"""What the writer says itself, or what is no longer so."""
_NAMES = {"mistral": "llama"}  # a Mistral is a Llama to llama.cpp
_PATTERN, _LOCAL_THETA = 6, 1e4  # Gemma 3's, where a file does not say
_GEMMA3_27B = 62  # layers


class Entry(NamedTuple):
    """One key and value; `kind` and `inner` (of an array) are names of gguf.GGUFValueType."""

    key: str
    value: Any
    kind: str
    inner: str | None = None


def architecture_name(spec: DecoderSpec) -> str:
    """What llama.cpp calls the architecture."""
    return _NAMES.get(spec.architecture, spec.architecture)


def copied(path: Path) -> list[Entry]:
    """All entries of a GGUF file, in its own types, but for those that its new form changes. Raises ModelError."""
    from gguf import GGUFValueType

    header = read_header(path)
    entries: list[Entry] = []
    for key, value in header.metadata.items():
        if not key.startswith(_OWN):
            kind, inner = header.kinds[key]
            entries.append(Entry(key, value, GGUFValueType(kind).name, None if inner is None else GGUFValueType(inner).name))
    return entries


def described(spec: DecoderSpec, name: str) -> list[Entry]:
    """The entries that say what `spec` says. Raises ModelError for what llama.cpp does not compute."""
    prefix = architecture_name(spec)
    if spec.architecture == "qwen2" and spec.num_heads * spec.head_dim != spec.hidden_size:
        raise ModelError(f"a Qwen 2 of {spec.num_heads} heads of {spec.head_dim}: llama.cpp wants {spec.hidden_size} in all")
    entries = [Entry("general.type", "model", "STRING"), Entry("general.name", name, "STRING")]
    return entries + [Entry(f"{prefix}.{key}", value, kind) for key, value, kind in _numbers(spec)]


def _numbers(spec: DecoderSpec) -> Iterator[tuple[str, Any, str]]:
    yield "vocab_size", spec.vocab_size, "UINT32"
    yield "context_length", _context(spec), "UINT32"
    yield "embedding_length", spec.hidden_size, "UINT32"
    yield "block_count", spec.num_layers, "UINT32"
    yield "feed_forward_length", spec.intermediate_size, "UINT32"
    yield "attention.head_count", spec.num_heads, "UINT32"
    yield "attention.head_count_kv", spec.num_kv_heads, "UINT32"
    yield "attention.key_length", spec.head_dim, "UINT32"
    yield "attention.value_length", spec.head_dim, "UINT32"
    yield "attention.layer_norm_rms_epsilon", spec.rms_eps, "FLOAT32"
    yield "rope.dimension_count", spec.head_dim, "UINT32"
    yield "rope.freq_base", spec.rope_theta, "FLOAT32"
    if spec.architecture == "gemma3":
        yield from _gemma3(spec)
    if spec.rope_scaling is not None:
        yield from _scaling(spec, spec.rope_scaling)


def _context(spec: DecoderSpec) -> int:
    """Tokens of context. llama.cpp has no windows for these families: within one window there is no difference."""
    if spec.architecture == "gemma3" or spec.sliding_window is None:
        return spec.max_position
    return min(spec.max_position, spec.sliding_window)


def _gemma3(spec: DecoderSpec) -> Iterator[tuple[str, Any, str]]:
    square = spec.hidden_size // spec.num_heads if spec.num_layers == _GEMMA3_27B else spec.head_dim
    if not math.isclose(spec.attention_scale, square**-0.5, rel_tol=1e-6):
        raise ModelError(f"attention scores scaled by {spec.attention_scale}: llama.cpp scales by {square} ** -0.5")
    if spec.sliding_window is None:
        return
    if spec.full_attention_every == 0:
        raise ModelError("a Gemma 3 in which no layer sees everything cannot be said in a GGUF file")
    yield "attention.sliding_window", spec.sliding_window, "UINT32"
    if spec.full_attention_every != _PATTERN:
        yield "attention.sliding_window_pattern", spec.full_attention_every, "UINT32"
    if spec.local_rope_theta not in (None, _LOCAL_THETA):
        yield "rope.freq_base_swa", spec.local_rope_theta, "FLOAT32"


def _scaling(spec: DecoderSpec, scaling: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    kind = scaling["rope_type"]
    if kind == "llama3":
        if architecture_name(spec) != "llama":
            raise ModelError(f"rotary scaling 'llama3' of a {spec.architecture} cannot be said in a GGUF file")
        return  # a tensor says it
    yield "rope.scaling.type", kind, "STRING"
    yield "rope.scaling.factor", scaling["factor"], "FLOAT32"
    if kind == "yarn":
        if not scaling["truncate"]:
            raise ModelError("rotary scaling 'yarn' with truncate = false is not what llama.cpp computes")
        yield "rope.scaling.original_context_length", round(scaling["original_max_position_embeddings"]), "UINT32"
        yield "rope.scaling.yarn_beta_fast", scaling["beta_fast"], "FLOAT32"
        yield "rope.scaling.yarn_beta_slow", scaling["beta_slow"], "FLOAT32"
        usual = 0.1 * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0
        times = scaling["attention_factor"] / usual  # llama.cpp multiplies it with the one it computes
        if not math.isclose(times, 1.0, rel_tol=1e-6):
            yield "rope.scaling.attn_factor", times, "FLOAT32"


def rope_factors(spec: DecoderSpec) -> np.ndarray[Any, Any] | None:
    """fp32 [head_dim / 2], the tensor that says Llama 3's scaling; None where there is none."""
    import numpy as np

    scaling = spec.rope_scaling
    if scaling is None or scaling["rope_type"] != "llama3":
        return None
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    wavelength = 2 * np.pi * spec.rope_theta ** (np.arange(0, spec.head_dim, 2) / spec.head_dim)
    smooth = np.clip((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth), np.float32)
