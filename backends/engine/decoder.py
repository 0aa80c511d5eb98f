"""The decoder: Llama, SmolLM, Mistral, Qwen2, Qwen3 and Gemma 3 from one description.

RMSNorm → attention (grouped query heads, RoPE; bias, q/k norm, window where the model has them) → RMSNorm → gated
feed-forward, over a flat batch: the new tokens of all sequences are rows of one matrix; only attention knows which row
belongs to which sequence.
"""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, rms_norm, silu

from ..models import DecoderSpec, LowRank, Model
from .attention import AttentionPlan, attend, plan_attention
from .batch import Batch
from .linear import Linear, embedding, linear
from .pages import PAGE_SIZE
from .rope import Tables, local_rope_tables, rope_tables, rotate
from .sampler import Masks, Picks, pick


class Layer:
    """One block's weights."""

    def __init__(self, weights: dict[str, torch.Tensor], index: int, window: int | None) -> None:
        self.window = window
        prefix = f"layers.{index}"
        self.attn_norm = weights[f"{prefix}.attn_norm"]
        self.mlp_norm = weights[f"{prefix}.mlp_norm"]
        self.qkv: Linear = linear(weights, f"{prefix}.qkv")
        self.o: Linear = linear(weights, f"{prefix}.o")
        self.gate_up: Linear = linear(weights, f"{prefix}.gate_up")
        self.down: Linear = linear(weights, f"{prefix}.down")
        self.q_norm = weights.get(f"{prefix}.q_norm")
        self.k_norm = weights.get(f"{prefix}.k_norm")
        self.attn_post_norm = weights.get(f"{prefix}.attn_post_norm")
        self.mlp_post_norm = weights.get(f"{prefix}.mlp_post_norm")


class Projections:
    """A layer's products for one step: base weights, plus each adapter's update on the rows that use it."""

    def __init__(self, layer: Layer, updates: list[tuple[dict[str, LowRank], torch.Tensor]]) -> None:
        self._layer, self._updates = layer, updates

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """float32 [rows, in] through the matrix `name` (`qkv`, `o`, `gate_up` or `down`)."""
        y: torch.Tensor = getattr(self._layer, name)(x)
        for matrices, rows in self._updates:
            if update := matrices.get(name):
                y[rows] += x[rows] @ update.a.t() @ update.b
        return y


class TorchDecoder:
    """The reference: plain torch, any quantization, any machine. Keys and values are bf16 beside int8 weights, float32
    beside float32 ones; the pool is [layers, slots, kv_heads, head_dim]."""

    def __init__(self, model: Model, num_pages: int, max_context: int) -> None:
        spec = model.spec
        self.spec: DecoderSpec = spec
        self._weights = model.weights
        self.norm = model.weights["norm"]
        self.lm_head: Linear = linear(model.weights, "lm_head")
        # A window that no sequence can outgrow is none.
        windows = [spec.window(i) for i in range(spec.num_layers)]
        self.layers = [
            Layer(model.weights, i, None if window is None or window >= max_context else window)
            for i, window in enumerate(windows)
        ]
        tables, local = rope_tables(spec, max_context), local_rope_tables(spec, max_context)
        self._tables: list[Tables] = [tables if window is None else local for window in windows]
        dtype = torch.float32 if model.quantization == "fp32" else torch.bfloat16
        shape = (spec.num_layers, num_pages * PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
        # empty, not zeros: the operating system then hands out memory only for pages that are really used
        self._keys, self._values = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the hidden states, float32 [rows, hidden], after the final norm; writes keys and values to the pool.

        All of a layer's new keys are written before its attention, so rows of one step may share pages.
        """
        slots, positions = torch.from_numpy(batch.slots), torch.from_numpy(batch.positions)
        plans = {window: plan_attention(batch, window) for window in {layer.window for layer in self.layers}}
        x = embedding(self._weights, torch.from_numpy(batch.tokens)) * self.spec.embed_scale
        adapted = [(adapter, torch.from_numpy(rows)) for adapter, rows in batch.adapted().items()]
        for i, layer in enumerate(self.layers):
            tables = self._tables[i][0][positions], self._tables[i][1][positions]
            project = Projections(layer, [(adapter.layers[i], rows) for adapter, rows in adapted])
            y = self._attention(layer, project, x, tables, slots, self._keys[i], self._values[i], plans[layer.window])
            x = x + (y if layer.attn_post_norm is None else self._norm(y, layer.attn_post_norm))
            y = self._feed_forward(layer, project, x)
            x = x + (y if layer.mlp_post_norm is None else self._norm(y, layer.mlp_post_norm))
        return self._norm(x, self.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, hidden] → float32 [rows, vocab]."""
        return self.lm_head(hidden)

    def pick(self, logits: torch.Tensor, masks: Masks) -> Picks:
        """Best allowed token and normalizer of each row; see `sampler.pick`."""
        return pick(logits, masks)

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole pages (source, target), one pair after the other: a target may be a later pair's source."""
        for pool in (self._keys, self._values):
            for source, target in pairs:
                from_, to = source * PAGE_SIZE, target * PAGE_SIZE
                pool[:, to : to + PAGE_SIZE] = pool[:, from_ : from_ + PAGE_SIZE]

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (x.shape[-1],), weight, self.spec.rms_eps)

    def _feed_forward(self, layer: Layer, project: Projections, x: torch.Tensor) -> torch.Tensor:
        gate, up = project("gate_up", self._norm(x, layer.mlp_norm)).chunk(2, dim=-1)
        active = gelu(gate, approximate="tanh") if self.spec.activation == "gelu_tanh" else silu(gate)
        return project("down", active * up)

    def _attention(
        self, layer: Layer, project: Projections, x: torch.Tensor, tables: Tables, slots: torch.Tensor,
        keys: torch.Tensor, values: torch.Tensor, plan: AttentionPlan,
    ) -> torch.Tensor:  # fmt: skip
        spec = self.spec
        rows, kv, dim = x.shape[0], spec.num_kv_heads, spec.head_dim
        qkv = project("qkv", self._norm(x, layer.attn_norm)).view(rows, -1, dim)
        q, k, v = torch.split(qkv, [spec.num_heads, kv, kv], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        keys[slots] = rotate(k, *tables).to(keys.dtype)
        values[slots] = v.to(values.dtype)
        q = rotate(q, *tables).to(keys.dtype).view(rows, kv, spec.num_heads // kv, dim)
        attended = attend(q, keys, values, plan, spec.attention_scale)
        return project("o", attended.reshape(rows, -1).float())
