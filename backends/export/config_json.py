"""A decoder's spec as the `config.json` that transformers reads: the inverse of `models.hf_config`."""

from __future__ import annotations

from typing import Any

from ...errors import ModelError
from ..models.spec import DecoderSpec

_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def config_json(spec: DecoderSpec, dtype: str) -> dict[str, Any]:
    """The configuration, for weights of this dtype ("float32", "float16", "bfloat16"). Rotary positions are spelled as
    transformers 4 spells them and 5 reads too, but for Gemma 3, whose two rotations only 5 can say in one object."""
    model_type, architecture = _CLASSES[_family(spec)]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": dtype,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.rms_eps,
        "max_position_embeddings": spec.max_position,
        "tie_word_embeddings": spec.tie_embeddings,
        "attention_bias": False,  # Qwen 2, which has biases, has no such setting
        "use_cache": True,
    }
    return config | (_gemma3(spec) if spec.architecture == "gemma3" else _plain(spec))


def _family(spec: DecoderSpec) -> str:
    """The family whose class in transformers computes what the spec says: GGUF calls more than Llamas "llama"."""
    if spec.architecture == "llama" and spec.sliding_window is not None and not spec.attention_bias:
        return "mistral"
    if spec.architecture == "llama" and spec.attention_bias:  # transformers' Llama has a bias on the output too
        return "qwen2"
    if spec.architecture in ("mistral", "qwen3") and spec.attention_bias:
        raise ModelError(f"{spec.architecture} with biases on q, k and v has no class in transformers: use another base")
    return spec.architecture


def _plain(spec: DecoderSpec) -> dict[str, Any]:
    own: dict[str, Any] = {"hidden_act": _ACTIVATIONS[spec.activation], "rope_theta": spec.rope_theta}
    if spec.rope_scaling is not None:
        own["rope_scaling"] = spec.rope_scaling
    if _family(spec) == "mistral":
        own["sliding_window"] = spec.sliding_window
    elif spec.sliding_window is not None:
        own |= {"sliding_window": spec.sliding_window, "use_sliding_window": True, "max_window_layers": 0}
    return own


def _gemma3(spec: DecoderSpec) -> dict[str, Any]:
    windowed = spec.sliding_window is not None
    full = {"rope_type": "default", **(spec.rope_scaling or {}), "rope_theta": spec.rope_theta}
    local = {"rope_type": "default", "rope_theta": spec.local_rope_theta or spec.rope_theta}
    kinds = ["full_attention" if spec.window(layer) is None else "sliding_attention" for layer in range(spec.num_layers)]
    return {
        "hidden_activation": _ACTIVATIONS[spec.activation],
        "query_pre_attn_scalar": round(spec.attention_scale**-2),
        "sliding_window": spec.sliding_window if windowed else 4096,  # unused where no layer has one
        "layer_types": kinds,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
