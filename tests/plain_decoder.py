"""A decoder in as few words as possible, from nothing but a model's spec and weights: what they mean, in short."""

import torch
import transformers
from still.backends.models import load_model
from torch.nn.functional import gelu, silu
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ACTIVATIONS = {"silu": silu, "gelu_tanh": lambda x: gelu(x, approximate="tanh")}


def frequencies(spec, windowed):
    """Inverse frequencies and the factor of cosine and sine, by transformers from what the spec says."""
    if windowed and spec.local_rope_theta:
        theta, scaling = spec.local_rope_theta, None
    else:
        theta, scaling = spec.rope_theta, spec.rope_scaling
    if scaling is None:
        return 1.0 / theta ** (torch.arange(0, spec.head_dim, 2).float() / spec.head_dim), 1.0
    sizes = {"hidden_size": spec.num_heads * spec.head_dim, "num_attention_heads": spec.num_heads}
    config = transformers.LlamaConfig(**sizes, rope_parameters={**scaling, "rope_theta": theta})
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)


def logits(model, ids):
    spec, w = model.spec, model.weights

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.rms_eps) * w[name]

    def rotated(x, cos, sin):
        low, high = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None]

    positions = torch.arange(len(ids))
    distance = positions[:, None] - positions
    x = w.get("embed", w["lm_head"])[ids] * spec.embed_scale
    for i in range(spec.num_layers):
        p, window = f"layers.{i}.", spec.window(i)
        freqs, factor = frequencies(spec, window is not None)
        angles = torch.outer(positions.float(), freqs).repeat(1, 2)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        h = norm(x, p + "attn_norm") @ w[p + "qkv"].T + w.get(p + "qkv.bias", 0)
        q, k, v = h.view(len(ids), -1, spec.head_dim).split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
        if spec.qk_norm:
            q, k = norm(q, p + "q_norm"), norm(k, p + "k_norm")
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        k, v = (t.repeat_interleave(spec.num_heads // spec.num_kv_heads, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * spec.attention_scale
        hidden = (distance < 0) | (distance >= (window or len(ids)))
        seen = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        h = seen.reshape(len(ids), -1) @ w[p + "o"].T
        x = x + (norm(h, p + "attn_post_norm") if spec.post_norms else h)
        gate, up = (norm(x, p + "mlp_norm") @ w[p + "gate_up"].T).chunk(2, dim=-1)
        h = (ACTIVATIONS[spec.activation](gate) * up) @ w[p + "down"].T
        x = x + (norm(h, p + "mlp_post_norm") if spec.post_norms else h)
    return norm(x, "norm") @ w["lm_head"].T


def check_logits(reference, path):
    """The model at the path computes what transformers' model does, on a text longer than any window in the tests."""
    ids = torch.randint(0, reference.get_output_embeddings().out_features, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = reference(ids[None]).logits[0]
    got = logits(load_model(str(path), "fp32"), ids)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-4)
