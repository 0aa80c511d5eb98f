"""A Hugging Face `config.json` as a DecoderSpec, in the spelling of transformers 4 and of 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ModelError
from .spec import DecoderSpec

_MODEL_TYPES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
_HEAD_DIMS = {"qwen3": 128, "gemma3": 256}  # what transformers assumes where a config does not say
_NOT_SCALING = ("rope_theta", "type", "partial_rotary_factor")


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


def read_spec(path: Path, config: dict[str, Any], has_lm_head: bool) -> DecoderSpec:
    """The spec in a config. Raises ModelError naming what is missing or not supported."""
    reader = _Config(path, config)
    architecture = _MODEL_TYPES.get(str(config.get("model_type")))
    if architecture is None:
        raise reader.wrong("model_type", f"supported: {', '.join(_MODEL_TYPES)}")
    if config.get("quantization_config"):
        raise reader.wrong("quantization_config", "use the unquantized weights; Still quantizes them itself")
    gemma = architecture == "gemma3"
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    head_dim = reader.integer("head_dim", _HEAD_DIMS.get(architecture, hidden // heads))
    theta, scaling = reader.rope()
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
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=reader.integer("max_position_embeddings"),
        tie_embeddings=bool(config.get("tie_word_embeddings", gemma or not has_lm_head)),
        attention_bias=architecture == "qwen2" or bool(config.get("attention_bias", False)),
        qk_norm=architecture == "qwen3" or gemma,
        sliding_window=reader.window(),
        full_attention_every=reader.full_attention_every() if gemma else 0,
        local_rope_theta=reader.local_theta() if gemma else None,
        activation=reader.activation(gemma),
        post_norms=gemma,
        embed_scale=hidden**0.5 if gemma else 1.0,
        attention_scale=reader.number("query_pre_attn_scalar", 256.0) ** -0.5 if gemma else head_dim**-0.5,
    )


class _Config:
    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path / "config.json", config

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "must be a positive integer")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.wrong(key, "must be a number")
        return float(value)

    def rope(self) -> tuple[float, dict[str, Any] | None]:
        """Base and scaling. transformers 5 keeps both in `rope_parameters`, 4 in `rope_theta` and `rope_scaling`."""
        given = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        if isinstance(given, dict):
            given = given.get("full_attention", given)  # Gemma has one for each kind of layer
        if not isinstance(given, dict):
            raise self.wrong("rope_scaling", "must be an object")
        default = 1e6 if self.config["model_type"] == "gemma3_text" else 1e4
        theta = given.get("rope_theta", self.config.get("rope_theta", default))
        if not isinstance(theta, (int, float)):
            raise self.wrong("rope_theta", "must be a number")
        if given.get("partial_rotary_factor", self.config.get("partial_rotary_factor", 1.0)) != 1.0:
            raise self.wrong("partial_rotary_factor", "only whole heads can be rotated")
        kind = given.get("rope_type", given.get("type", "default"))
        if kind == "default":
            return float(theta), None
        scaling = {key: value for key, value in given.items() if key not in _NOT_SCALING} | {"rope_type": kind}
        if kind in ("llama3", "yarn"):
            scaling.setdefault("original_max_position_embeddings", self.config.get("max_position_embeddings"))
        return float(theta), scaling

    def window(self) -> int | None:
        """The sliding window, where it holds for all layers. Qwen models name one they do not use."""
        size = self.config.get("sliding_window")
        if size is None or self.config.get("model_type") == "llama":
            return None
        if self.config["model_type"] not in ("mistral", "gemma3_text"):
            if not self.config.get("use_sliding_window", False):
                return None
            if self.config.get("max_window_layers", 28) > 0:
                raise self.wrong("max_window_layers", "a window on some layers only is not supported")
        return self.integer("sliding_window")

    def full_attention_every(self) -> int:
        """Gemma's pattern: every n-th layer sees everything, the others have a window."""
        kinds = self.config.get("layer_types")
        if kinds is None:
            return self.integer("sliding_window_pattern", self.integer("_sliding_window_pattern", 6))
        if not isinstance(kinds, list) or len(kinds) != self.integer("num_hidden_layers"):
            raise self.wrong("layer_types", "must name a kind for each layer")
        every = kinds.index("full_attention") + 1 if "full_attention" in kinds else 0
        expected = ["sliding_attention" if not every or (i + 1) % every else "full_attention" for i in range(len(kinds))]
        if kinds != expected:
            raise self.wrong("layer_types", "only patterns in which every n-th layer is full_attention are supported")
        return every

    def local_theta(self) -> float:
        """Base of the rotary positions of Gemma's windowed layers."""
        given = (self.config.get("rope_parameters") or {}).get("sliding_attention") or {}
        if given.get("rope_type", "default") != "default":
            raise self.wrong("rope_parameters", "scaling of the windowed layers is not supported")
        theta = given.get("rope_theta", self.config.get("rope_local_base_freq", 1e4))
        if not isinstance(theta, (int, float)):
            raise self.wrong("rope_local_base_freq", "must be a number")
        return float(theta)

    def activation(self, gemma: bool) -> str:
        for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
            if gemma and self.config.get(key):
                raise self.wrong(key, "is not supported")
        key = "hidden_activation" if gemma else "hidden_act"
        accepted = ("gelu_pytorch_tanh",) if gemma else ("silu", "swish")
        if self.config.get(key, accepted[0]) not in accepted:
            raise self.wrong(key, f"only {accepted[0]!r} is supported")
        return "gelu_tanh" if gemma else "silu"

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.path}: {key} = {self.config.get(key)!r}: {what}")
