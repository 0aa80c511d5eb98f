"""The engine's text against transformers."""

import math

import pytest
import torch
from still.backends.engine import Decode, Engine, Forced, Request

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea, there lived a",
]
TEXT = (
    "The kettle boils water in about four minutes. If the light under the switch stays on, unplug the base, wait a "
    "minute, and try again. Most faults come from lime: fill the kettle with water and a spoon of vinegar, let it stand "
    "overnight, and rinse it twice. The handle is cool to the touch, but the lid is not, so open it with a cloth. Should "
    "the water taste of plastic on the first days, boil it once or twice and pour it away; the taste goes."
)


@pytest.fixture(scope="module")
def reference(model_fp32):
    """The same weights in transformers' own implementation."""
    from transformers import LlamaConfig, LlamaForCausalLM

    spec, weights = model_fp32.spec, model_fp32.weights
    config = LlamaConfig(
        vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers, num_attention_heads=spec.num_heads, num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim, rms_norm_eps=spec.rms_eps, max_position_embeddings=spec.max_position,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta}, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    kv = spec.num_kv_heads * spec.head_dim
    state = {"model.embed_tokens.weight": weights["lm_head"], "model.norm.weight": weights["norm"]}
    state["lm_head.weight"] = weights["lm_head"]
    for i in range(spec.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        q, k, v = weights[ours + "qkv"].split([spec.num_heads * spec.head_dim, kv, kv])
        gate, up = weights[ours + "gate_up"].chunk(2)
        parts = {"q": q, "k": k, "v": v, "o": weights[ours + "o"]}
        state |= {f"{theirs}self_attn.{name}_proj.weight": tensor for name, tensor in parts.items()}
        parts = {"gate": gate, "up": up, "down": weights[ours + "down"]}
        state |= {f"{theirs}mlp.{name}_proj.weight": tensor for name, tensor in parts.items()}
        state[theirs + "input_layernorm.weight"] = weights[ours + "attn_norm"]
        state[theirs + "post_attention_layernorm.weight"] = weights[ours + "mlp_norm"]
    network.load_state_dict(state, assign=True)
    network.model.rotary_emb = type(network.model.rotary_emb)(config)  # its buffers were on meta too
    return network.eval()


def greedy(network, tokens, count, eos):
    with torch.inference_mode():
        out = network.generate(torch.tensor([tokens]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    new = out[0, len(tokens) :].tolist()
    return new[: next((i for i, t in enumerate(new) if t in eos), len(new))]


@pytest.mark.model
def test_fp32_greedy_text_equals_transformers_token_for_token(model_fp32, reference):
    tokenizer = model_fp32.tokenizer
    with Engine(model_fp32, cache_tokens=4096) as engine:
        prompts = [tokenizer.encode(text, special=True) for text in PROMPTS]
        futures = [engine.submit(Request(tuple(p), (Decode(32),))) for p in prompts]
        for prompt, future in zip(prompts, futures, strict=True):
            assert list(future.result().steps[0].tokens) == greedy(reference, prompt, 32, tokenizer.eos_ids)


@pytest.mark.model
def test_fp32_scores_equal_transformers(model_fp32, reference):
    tokens = model_fp32.tokenizer.encode(TEXT)
    with Engine(model_fp32, cache_tokens=4096) as engine:
        (scores,) = engine.score(tokens[:1], [tokens[1:]])
    with torch.inference_mode():
        logprobs = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = logprobs[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(scores), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.model
def test_int8_stays_close_to_fp32(model_int8, reference):
    """Bounds for negative log-likelihood and top-1 agreement; measured values are in docs/benchmarks.md."""
    tokens = model_int8.tokenizer.encode(TEXT)
    with Engine(model_int8, cache_tokens=4096) as engine:
        (scores,) = engine.score(tokens[:1], [tokens[1:]])
        picks = [
            engine.submit(Request(tuple(tokens[: i + 1]), (Decode(1, ignore_eos=True),)))
            for i in range(len(tokens) - 1)
        ]
        ours = [future.result().steps[0].tokens[0] for future in picks]
    with torch.inference_mode():
        logits = reference(torch.tensor([tokens])).logits[0, :-1]
    logits = logits.clone()
    logits[:, sorted(model_int8.tokenizer.eos_ids)] = float("-inf")  # as ignore_eos does
    exact = -logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None]).mean().item()
    assert math.fsum(-s for s in scores) / len(scores) - exact < 0.15
    agreement = sum(a == b for a, b in zip(ours, logits.argmax(-1).tolist(), strict=True)) / len(ours)
    assert agreement > 0.7  # 0.79 to 0.87 measured, by instruction set


@pytest.mark.model
def test_forced_text_between_decodes_is_part_of_the_context(model_int8):
    """Steps in one request give what a request per step gives."""
    encode = model_int8.tokenizer.encode
    prompt = tuple(encode("Colours of fruit.\nbanana:"))
    grammar = 'start: " " ("red" | "yellow" | "green") "\\n"'
    middle = tuple(encode("lime:"))
    with Engine(model_int8, cache_tokens=4096) as engine:
        whole = engine.submit(
            Request(prompt, (Decode(8, grammar), Forced(middle), Decode(8, grammar)))
        ).result()
        first = engine.submit(Request(prompt, (Decode(8, grammar),))).result()
        second = engine.submit(Request((*prompt, *first.steps[0].tokens, *middle), (Decode(8, grammar),))).result()
    assert whole.steps[0] == first.steps[0]
    assert whole.steps[1].tokens == middle
    assert whole.steps[2].tokens == second.steps[0].tokens
