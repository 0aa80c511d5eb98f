"""What a decoder looks like: the numbers every weight shape follows from, and those shapes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import ModelError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
ACTIVATIONS = ("silu", "gelu_tanh")
ROPE_TYPES = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer: RMSNorm, rotary positions ("rotate half"), gated feed-forward.

    `rope_scaling` is None or has the keys of a Hugging Face `rope_scaling` with `rope_type` one of `ROPE_TYPES`.
    `attention_bias` is about q, k and v only. `sliding_window` counts tokens, a query's own included; it holds for every
    layer but each `full_attention_every`-th (0: for every layer). Windowed layers turn by `local_rope_theta`, unscaled,
    where it is given. `post_norms`: what attention and feed-forward give is normed too before it is added (Gemma).
    Embeddings are multiplied by `embed_scale`, scores by `attention_scale`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    max_position: int
    tie_embeddings: bool
    attention_bias: bool
    qk_norm: bool
    sliding_window: int | None
    full_attention_every: int
    local_rope_theta: float | None
    activation: str
    post_norms: bool
    embed_scale: float
    attention_scale: float

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ModelError(f"architecture {self.architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
        for name in _POSITIVE_INTS:
            self._require(name, isinstance(getattr(self, name), int) and getattr(self, name) > 0, "a positive integer")
        self._require("activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        every = self.full_attention_every
        self._require("full_attention_every", isinstance(every, int) and every >= 0, "a whole number")
        if self.local_rope_theta is not None:
            self._require("local_rope_theta", 0 < self.local_rope_theta < math.inf, "a positive number or None")
        for name in ("rms_eps", "rope_theta", "embed_scale", "attention_scale"):
            value = getattr(self, name)
            self._require(name, isinstance(value, float) and math.isfinite(value) and value > 0, "a positive number")
        self._require("head_dim", self.head_dim % 2 == 0, "even (rotary positions turn pairs)")
        self._require("num_heads", self.num_heads % self.num_kv_heads == 0, f"a multiple of {self.num_kv_heads} kv heads")
        window = self.sliding_window
        self._require("sliding_window", window is None or (isinstance(window, int) and window > 0), "positive or None")
        if self.rope_scaling is not None and self.rope_scaling.get("rope_type") not in ROPE_TYPES:
            raise ModelError(
                f"rope_scaling: rope_type {self.rope_scaling.get('rope_type')!r} is not supported; "
                f"supported: {', '.join(ROPE_TYPES)}"
            )

    @classmethod
    def of(cls, source: object, **values: Any) -> DecoderSpec:
        """A spec read from `source`, which an error names."""
        try:
            return cls(**values)
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from error

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ModelError(f"{name} = {getattr(self, name)!r} must be {what}: the model's configuration is damaged")

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees, itself included; None: all before it."""
        every = self.full_attention_every
        return None if every and (layer + 1) % every == 0 else self.sliding_window

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DecoderSpec:
        """Inverse of `to_json`; raises ModelError when a field is missing, unknown or impossible."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ModelError(f"decoder spec has fields {sorted(data)}, expected {sorted(names)}")
        return cls(**data)

    def part_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one layer's tensors as checkpoints hold them (q, k, v and gate, up apart), [out, in]."""
        d, q, kv = self.head_dim, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inter = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "q": (q, hidden),
            "k": (kv, hidden),
            "v": (kv, hidden),
            "o": (hidden, q),
            "mlp_norm": (hidden,),
            "gate": (inter, hidden),
            "up": (inter, hidden),
            "down": (hidden, inter),
        }
        if self.attention_bias:
            shapes |= {"q.bias": (q,), "k.bias": (kv,), "v.bias": (kv,)}
        if self.qk_norm:
            shapes |= {"q_norm": (d,), "k_norm": (d,)}
        if self.post_norms:
            shapes |= {"attn_post_norm": (hidden,), "mlp_post_norm": (hidden,)}
        return {f"layers.{layer}.{name}": shape for name, shape in shapes.items()}

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors outside the layers; `lm_head` only where it is not tied to `embed`."""
        matrix = (self.vocab_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {"embed": matrix, "norm": (self.hidden_size,)}
        return shapes if self.tie_embeddings else {**shapes, "lm_head": matrix}


_POSITIVE_INTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position",
)
