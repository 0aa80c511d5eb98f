"""Typed access to the keys of a Hugging Face `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ModelError
from .rope import complete_scaling

_LARGEST = 2**31  # no size of a model is larger; a damaged one must not overflow what is computed from it


class Config:
    """A configuration and the file it is from, for messages. Every method raises ModelError naming key and value."""

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self.file, self.config = file, config

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LARGEST:
            raise self.wrong(key, "must be a positive integer")
        return value

    def number(self, key: str, default: float) -> float:
        return self.checked(key, self.config.get(key, default))

    def checked(self, key: str, value: Any) -> float:
        """A number from wherever in the config it stands; `key` is for the message."""
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e30:
            raise ModelError(f"{self.file}: {key} = {value!r}: must be a number")
        return float(value)

    def rope(self) -> tuple[float, dict[str, Any] | None]:
        """Base and scaling. transformers 5 keeps both in `rope_parameters`, 4 in `rope_theta` and `rope_scaling`."""
        given = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        if not isinstance(given, dict):
            raise self.wrong("rope_scaling", "must be an object")
        original = self.config.get("original_max_position_embeddings")
        if original is not None:  # some keep it beside the others, and transformers lets that one win
            given = {**given, "original_max_position_embeddings": original}
        return self.turning(given, self.config.get("rope_theta", 10000.0))

    def turning(self, given: dict[str, Any], theta: Any) -> tuple[float, dict[str, Any] | None]:
        """Base and scaling of one object of rotary parameters; `theta` where it names no base."""
        base = self.checked("rope_theta", given.get("rope_theta", theta))
        if given.get("partial_rotary_factor", self.config.get("partial_rotary_factor", 1.0)) != 1.0:
            raise self.wrong("partial_rotary_factor", "only whole heads can be rotated")
        kind = given.get("rope_type", given.get("type", "default"))
        if kind == "default":
            return base, None
        return base, complete_scaling(self.file, {**given, "rope_type": kind}, self.integer("max_position_embeddings"))

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.file}: {key} = {self.config.get(key)!r}: {what}")
