"""Shared models: the real one, and a tiny random one with the real tokenizer where speed matters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from still.backends.models import DecoderSpec, Model, load_model
from still.backends.models.layout import head_quantization, matrix_tensors


@pytest.fixture(scope="session")
def model_int8():
    return load_model("smollm2-135m", "int8")


@pytest.fixture(scope="session")
def model_fp32():
    return load_model("smollm2-135m", "fp32")


def random_weights(spec: DecoderSpec, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * (2.0 / columns**0.5)

    heads, kv, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    weights = {"lm_head": matrix(spec.vocab_size, spec.hidden_size), "norm": torch.ones(spec.hidden_size)}
    for i in range(spec.num_layers):
        prefix = f"layers.{i}"
        weights[f"{prefix}.attn_norm"] = torch.ones(spec.hidden_size)
        weights[f"{prefix}.mlp_norm"] = torch.ones(spec.hidden_size)
        weights[f"{prefix}.qkv"] = matrix((heads + 2 * kv) * dim, spec.hidden_size)
        weights[f"{prefix}.o"] = matrix(spec.hidden_size, heads * dim)
        weights[f"{prefix}.gate_up"] = matrix(2 * spec.intermediate_size, spec.hidden_size)
        weights[f"{prefix}.down"] = matrix(spec.hidden_size, spec.intermediate_size)
    return weights


@pytest.fixture(scope="session")
def tiny_model(model_fp32) -> Model:
    """Two random layers over the real vocabulary: grammars and text work, a step costs a millisecond or two."""
    spec = dataclasses.replace(
        model_fp32.spec, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=16,
        attention_scale=0.25,
    )  # fmt: skip
    return dataclasses.replace(model_fp32, name="tiny", digest="0" * 64, spec=spec, weights=random_weights(spec, 0))


def in_format(model: Model, quantization: str) -> Model:
    """An fp32 model with its matrices in another format."""
    weights = {}
    for name, tensor in model.weights.items():
        form = head_quantization(quantization) if name == "lm_head" else quantization
        weights |= matrix_tensors(name, tensor, form) if tensor.ndim == 2 else {name: tensor}
    return dataclasses.replace(model, name=f"tiny-{quantization}", quantization=quantization, weights=weights)


@pytest.fixture(scope="session")
def tiny_int8(tiny_model) -> Model:
    """The tiny model with int8 weights, which the compiled decoder runs."""
    return in_format(tiny_model, "int8")


@pytest.fixture(scope="session", params=["int8", "bf16", "int4"])
def tiny_quantized(request, tiny_model) -> Model:
    """The tiny model in every format that the compiled decoder runs."""
    return in_format(tiny_model, request.param)


@pytest.fixture(scope="session")
def tiny_lm(tiny_int8):
    """A still.LM on the tiny random model: real plans, grammars and pages, nonsense answers."""
    from still import LM
    from still.backends.engine import Engine

    lm = LM("tiny-random-for-tests", cache_tokens=16384)
    lm.local._engine = Engine(tiny_int8, cache_tokens=16384)
    return lm
