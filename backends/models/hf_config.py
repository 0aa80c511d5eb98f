"""A Hugging Face `config.json` as a DecoderSpec, in the spelling of transformers 4 and of 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ModelError
from .spec import ARCHITECTURES, DecoderSpec

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
    architecture = config.get("model_type")
    if architecture not in ARCHITECTURES:
        raise reader.wrong("model_type", f"supported: {', '.join(ARCHITECTURES)}")
    if config.get("quantization_config"):
        raise reader.wrong("quantization_config", "use the unquantized weights; Still quantizes them itself")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise reader.wrong("hidden_act", "only 'silu' is supported")
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    qwen3 = architecture == "qwen3"
    head_dim = reader.integer("head_dim", 128 if qwen3 else hidden // heads)
    theta, scaling = reader.rope()
    return DecoderSpec(
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
        tie_embeddings=bool(config.get("tie_word_embeddings", not has_lm_head)),
        attention_bias=architecture == "qwen2" or bool(config.get("attention_bias", False)),
        qk_norm=qwen3,
        sliding_window=reader.window(),
        full_attention_every=0,
        local_rope_theta=None,
        activation="silu",
        post_norms=False,
        embed_scale=1.0,
        attention_scale=head_dim**-0.5,
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
        if not isinstance(given, dict):
            raise self.wrong("rope_scaling", "must be an object")
        theta = given.get("rope_theta", self.config.get("rope_theta", 10000.0))
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
        if self.config["model_type"] != "mistral":
            if not self.config.get("use_sliding_window", False):
                return None
            if self.config.get("max_window_layers", 28) > 0:
                raise self.wrong("max_window_layers", "a window on some layers only is not supported")
        return self.integer("sliding_window")

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.path}: {key} = {self.config.get(key)!r}: {what}")
