"""The decoder: Llama, SmolLM, Mistral, Qwen2 and Qwen3 from one description.

RMSNorm → attention (grouped query heads, RoPE, optional bias, optional q/k norm) → RMSNorm → SwiGLU, over a flat batch:
the new tokens of all sequences are rows of one matrix; only attention knows which row belongs to which sequence.
"""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm, silu

from ...errors import ModelError
from ..models import DecoderSpec, Model
from .attention import AttentionPlan, attend, plan_attention
from .batch import Batch
from .linear import Linear, linear
from .pages import PAGE_SIZE
from .rope import rope_tables, rotate
from .sampler import Masks, Picks, pick


class Layer:
    """One block's weights."""

    def __init__(self, weights: dict[str, torch.Tensor], index: int) -> None:
        prefix = f"layers.{index}"
        self.attn_norm = weights[f"{prefix}.attn_norm"]
        self.mlp_norm = weights[f"{prefix}.mlp_norm"]
        self.qkv: Linear = linear(weights, f"{prefix}.qkv")
        self.o: Linear = linear(weights, f"{prefix}.o")
        self.gate_up: Linear = linear(weights, f"{prefix}.gate_up")
        self.down: Linear = linear(weights, f"{prefix}.down")
        self.q_norm = weights.get(f"{prefix}.q_norm")
        self.k_norm = weights.get(f"{prefix}.k_norm")


class TorchDecoder:
    """The reference: plain torch, any quantization, any machine. Keys and values are bf16 beside int8 weights, float32
    beside float32 ones; the pool is [layers, slots, kv_heads, head_dim]."""

    def __init__(self, model: Model, num_pages: int, max_context: int) -> None:
        spec = model.spec
        if spec.sliding_window is not None and spec.sliding_window < max_context:
            raise ModelError(
                f"{model.name}: sliding-window attention over {spec.sliding_window} tokens is not implemented for a "
                f"context of {max_context}: pass max_context={spec.sliding_window}"
            )
        self.spec: DecoderSpec = spec
        self.embed = model.weights["embed"]
        self.norm = model.weights["norm"]
        self.lm_head: Linear = linear(model.weights, "lm_head")
        self.layers = [Layer(model.weights, i) for i in range(spec.num_layers)]
        self.cos, self.sin = rope_tables(spec, max_context)
        self._scale = spec.head_dim**-0.5
        dtype = torch.float32 if model.quantization == "fp32" else torch.bfloat16
        shape = (spec.num_layers, num_pages * PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
        # empty, not zeros: the operating system then hands out memory only for pages that are really used
        self._keys, self._values = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the hidden states, float32 [rows, hidden], after the final norm; writes keys and values to the pool.

        All of a layer's new keys are written before its attention, so rows of one step may share pages.
        """
        slots, positions = torch.from_numpy(batch.slots), torch.from_numpy(batch.positions)
        plan = plan_attention(batch)
        x = self.embed[torch.from_numpy(batch.tokens)].float()
        cos, sin = self.cos[positions], self.sin[positions]
        for layer, keys, values in zip(self.layers, self._keys, self._values, strict=True):
            x = x + self._attention(layer, x, cos, sin, slots, keys, values, plan)
            gate, up = layer.gate_up(self._norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(silu(gate) * up)
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

    def _attention(
        self, layer: Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, slots: torch.Tensor,
        keys: torch.Tensor, values: torch.Tensor, plan: AttentionPlan,
    ) -> torch.Tensor:  # fmt: skip
        spec = self.spec
        rows, kv, dim = x.shape[0], spec.num_kv_heads, spec.head_dim
        qkv = layer.qkv(self._norm(x, layer.attn_norm)).view(rows, -1, dim)
        q, k, v = torch.split(qkv, [spec.num_heads, kv, kv], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        keys[slots] = rotate(k, cos, sin).to(keys.dtype)
        values[slots] = v.to(values.dtype)
        q = rotate(q, cos, sin).to(keys.dtype).view(rows, kv, spec.num_heads // kv, dim)
        return layer.o(attend(q, keys, values, plan, self._scale).reshape(rows, -1).float())
