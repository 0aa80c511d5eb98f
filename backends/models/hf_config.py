"""A Hugging Face `config.json` as a DecoderSpec, in the spelling of transformers 4 and of 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ModelError
from .hf_gemma import gemma3_config, gemma3_fields
from .hf_values import Config
from .spec import ARCHITECTURES, DecoderSpec

_MODEL_TYPES = {name: name for name in ARCHITECTURES if name != "gemma3"} | {"gemma3_text": "gemma3"}


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object from a JSON file; `missing` when there is no such file and it is given. Raises ModelError."""
    if missing is not None and not path.is_file():
        return missing
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: holds {type(data).__name__}, expected an object")
    return data


def text_part(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config of the decoder alone: of a Gemma 3 that takes images too, the text model in it."""
    if config.get("model_type") != "gemma3":
        return config
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise ModelError(f"{path / 'config.json'}: text_config = {text!r}: must be an object")
    outer = {key: value for key, value in config.items() if key not in ("text_config", "vision_config")}
    tied = config.get("tie_word_embeddings", True)  # the outer one counts
    return outer | text | {"model_type": "gemma3_text", "tie_word_embeddings": tied}


def read_spec(path: Path, config: dict[str, Any], has_lm_head: bool) -> DecoderSpec:
    """The spec in what `text_part` gives of a folder's config. Raises ModelError naming what is missing or unknown."""
    file = path / "config.json"
    reader = Config(file, config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _MODEL_TYPES:
        raise reader.wrong("model_type", f"supported: {', '.join(_MODEL_TYPES)}")
    if config.get("quantization_config"):
        raise reader.wrong("quantization_config", "use the unquantized weights; Still quantizes them itself")
    architecture = _MODEL_TYPES[kind]
    gemma = architecture == "gemma3"
    if gemma:
        reader = Config(file, gemma3_config(reader))
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    head_dim = reader.integer("head_dim", 128 if architecture == "qwen3" else hidden // heads)
    own = gemma3_fields(reader) if gemma else _plain_fields(reader, architecture, head_dim)
    return DecoderSpec.of(
        path,
        architecture=architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=reader.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=reader.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        rms_eps=reader.number("rms_norm_eps", 1e-6),
        max_position=reader.integer("max_position_embeddings"),
        tie_embeddings=bool(reader.config.get("tie_word_embeddings", not has_lm_head)),
        attention_bias=architecture == "qwen2" or bool(reader.config.get("attention_bias", False)),
        **own,
    )


def _plain_fields(reader: Config, architecture: str, head_dim: int) -> dict[str, Any]:
    """The fields in which Llama, Mistral and Qwen differ from Gemma."""
    if reader.config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise reader.wrong("hidden_act", "only 'silu' is supported")
    theta, scaling = reader.rope()
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": architecture == "qwen3",
        "sliding_window": _window(reader, architecture),
        "full_attention_every": 0,
        "local_rope_theta": None,
        "activation": "silu",
        "post_norms": False,
        "embed_scale": 1.0,
        "attention_scale": head_dim**-0.5,
    }


def _window(reader: Config, architecture: str) -> int | None:
    """The sliding window, where it holds for all layers. Qwen models name one they do not use."""
    if reader.config.get("sliding_window") is None or architecture == "llama":
        return None
    if architecture != "mistral":
        if not reader.config.get("use_sliding_window", False):
            return None
        layers = reader.config.get("max_window_layers", 28)
        if layers != 0:
            raise reader.wrong("max_window_layers", "a window on some layers only is not supported")
    return reader.integer("sliding_window")
