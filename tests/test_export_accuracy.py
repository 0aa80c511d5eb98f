"""The benchmark that says what a quantized base does to an adapter: its figures against transformers and PEFT."""

import sys
from pathlib import Path

import pytest
import torch
from export_models import logits, network_of, write_adapter, write_base
from still.backends.models import load_model

TEXTS = [(f"what is {i} the model", label) for i, label in enumerate(["asked", "write", "nothing", "else", "asked", "here"])]


@pytest.fixture
def adapters(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import adapters

    yield adapters
    for name in ("adapters", "adapters_training", "cells"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("quantization", ["fp32", "int4"])
def test_the_figures_are_those_of_the_formulas(adapters, tmp_path, monkeypatch, quantization):
    from adapters_training import pairs

    monkeypatch.setenv("STILL_CACHE", str(tmp_path / "cache"))
    base = write_base(tmp_path / "base", hidden_size=128, tie_word_embeddings=False)
    network = write_adapter(tmp_path / "adapter", network_of(base))
    metrics = adapters.compare(str(base), tmp_path / "adapter", TEXTS, quantization)
    terms = []
    for prompt, completion in pairs(load_model(str(base), "fp32").tokenizer, TEXTS):
        rows = logits(network, [*prompt, *completion]).log_softmax(-1)[len(prompt) - 1 : -1]
        terms += rows.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
    exact = -sum(terms) / len(terms)
    assert metrics["nll"] - metrics["nll_added"] == pytest.approx(exact, abs=1e-4)
    if quantization == "fp32":
        assert metrics["nll_added"] == 0
        assert metrics["agreement"] == metrics["token_agreement"] == metrics["base_token_agreement"] == 1
    else:
        assert 0 < abs(metrics["nll_added"]) < 1
        assert metrics["token_agreement"] < 1 or metrics["base_token_agreement"] < 1, "random logits lie close together"
