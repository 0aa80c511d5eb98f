"""A model ready to run: its spec, its weights mapped from the cache, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ModelError
from .convert import converted
from .quantize import QUANTIZATIONS, Quantization
from .source import ModelSource, resolve
from .spec import DecoderSpec
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Model:
    """Weights under canonical names, every matrix [out, in], rotary positions in "rotate half" order.

    `norm` [hidden], `lm_head` [vocab, hidden], and where it is not tied to the head `embed` [vocab, hidden] (fp32 or bf16);
    for each layer i `layers.{i}.` and `attn_norm`, `mlp_norm` [hidden], `qkv` [(heads + 2 * kv_heads) * head_dim, hidden],
    `o`, `gate_up` [2 * intermediate, hidden], `down`, and where the spec says so `qkv.bias`, `q_norm`, `k_norm` [head_dim],
    `attn_post_norm`, `mlp_post_norm` [hidden]. Norms multiply by their weight as it is: Gemma's "1 + weight" has its 1.
    A matrix `w` is, by quantization, "fp32" and "bf16": `w` itself; "int8": `w.q` int8 and `w.scale` fp32 [out],
    w ≈ q * scale[:, None]; "int4": `w.q4`, `w.group_scale`, `w.group_min` (see `quantize.Groups`), its `lm_head` in int8.
    Activations meet int8 matrices in eight bits, the int8 head in twice eight; int4 and bf16 matrices in bf16.
    Vectors are fp32. Weights are private maps of cache files: reading shares memory between processes, writing does not
    reach the file.
    """

    name: str
    digest: str
    """sha256, hex, of the source the weights came from."""
    quantization: Quantization
    spec: DecoderSpec
    weights: dict[str, torch.Tensor]
    tokenizer: Tokenizer


def load_model(source: ModelSource | str, quantization: Quantization = "int8") -> Model:
    """Load a model by name or source; the first use downloads and converts it, later ones map the result.

    Raises ModelError naming the model and what to do.
    """
    if quantization not in QUANTIZATIONS:
        raise ModelError(f"quantization {quantization!r} is not known; use one of {', '.join(QUANTIZATIONS)}")
    if isinstance(source, str):
        source = resolve(source)
    digest = source.digest()
    spec, weights, tokenizer = converted(source, digest, quantization)
    return Model(source.name, digest, quantization, spec, weights, Tokenizer(tokenizer))
