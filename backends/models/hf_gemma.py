"""What a Gemma 3 configuration says beyond the other families': two kinds of layers, each with its own rotation."""

from __future__ import annotations

from typing import Any

from .hf_values import Config

# Gemma's configurations leave out what is as transformers' Gemma3TextConfig has it.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_THETA, _LOCAL_THETA, _PATTERN = 1e6, 1e4, 6
_FULL, _SLIDING = "full_attention", "sliding_attention"


def gemma3_config(reader: Config) -> dict[str, Any]:
    """The text model's settings with defaults filled in; what changes the computation and is not ours is refused."""
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if reader.config.get(key) is not None:
            raise reader.wrong(key, "softcapping is not supported")
    if reader.config.get("use_bidirectional_attention"):
        raise reader.wrong("use_bidirectional_attention", "the model embeds texts; Still runs models that write them")
    return _DEFAULTS | reader.config


def gemma3_fields(reader: Config) -> dict[str, Any]:
    """The fields of a DecoderSpec in which Gemma 3 differs from the other families."""
    if reader.config["hidden_activation"] != "gelu_pytorch_tanh":
        raise reader.wrong("hidden_activation", "only 'gelu_pytorch_tanh' is supported")
    every = _full_every(reader)
    windowed = every != 1
    theta, scaling, local_theta = _rope(reader, windowed)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": True,
        "sliding_window": reader.integer("sliding_window") if windowed else None,
        "full_attention_every": every if windowed else 0,
        "local_rope_theta": local_theta if windowed else None,
        "activation": "gelu_tanh",
        "post_norms": True,
        "embed_scale": reader.integer("hidden_size") ** 0.5,
        "attention_scale": reader.integer("query_pre_attn_scalar") ** -0.5,
    }


def _full_every(reader: Config) -> int:
    """n where each n-th layer sees everything; 0 where none does, 1 where all do."""
    types = reader.config.get("layer_types")
    if types is None:
        return reader.integer("sliding_window_pattern", _PATTERN)
    layers = reader.integer("num_hidden_layers")
    if not isinstance(types, list) or len(types) != layers:
        raise reader.wrong("layer_types", f"must name the kind of each of the {layers} layers")
    every = types.index(_FULL) + 1 if _FULL in types else 0
    if types != [_FULL if every and (layer + 1) % every == 0 else _SLIDING for layer in range(layers)]:
        raise reader.wrong("layer_types", f"supported: {_SLIDING!r} for all layers but each n-th, which is {_FULL!r}")
    return every


def _rope(reader: Config, windowed: bool) -> tuple[float, dict[str, Any] | None, float]:
    """Base and scaling of the layers that see everything, and the base of the windowed ones."""
    nested = reader.config.get("rope_parameters")
    full: Any
    local: Any
    if nested is None:  # transformers 4
        full, local = reader.config.get("rope_scaling") or {}, {}
    elif isinstance(nested, dict) and nested.keys() <= {_FULL, _SLIDING}:
        full, local = nested.get(_FULL) or {}, nested.get(_SLIDING) or {}
    else:
        raise reader.wrong("rope_parameters", f"must have the keys {_FULL!r} and {_SLIDING!r}")
    if not isinstance(full, dict) or not isinstance(local, dict):
        raise reader.wrong("rope_scaling" if nested is None else "rope_parameters", "must hold objects")
    theta, scaling = reader.turning(full, reader.config.get("rope_theta", _THETA))
    local_theta, local_scaling = reader.turning(local, reader.config.get("rope_local_base_freq", _LOCAL_THETA))
    if windowed and local_scaling is not None:
        raise reader.wrong("rope_parameters", "scaled rotary positions in windowed layers are not supported")
    return theta, scaling, local_theta
