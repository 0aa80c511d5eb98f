"""Tiny random models as other programs write them: transformers' folders and the gguf package's files."""

import gguf
import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
GEMMA = {"query_pre_attn_scalar": 24, "sliding_window": 8, "pad_token_id": 0}
TEXT, ARRAY, INT, FLOAT, BOOL = (gguf.GGUFValueType[name] for name in ("STRING", "ARRAY", "UINT32", "FLOAT32", "BOOL"))


def random_model(model_class, config):
    """A model of transformers with no weight left constant, which would hide a mix-up."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def gemma3(**changes):
    return random_model(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(**{**SIZES, **GEMMA, **changes}))


def write_gguf(path, architecture, metadata, tensors):
    """A GGUF file of `<architecture>.<key>` (or a whole key with a dot in front) and of name: (bytes, type)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, (value, kind) in metadata.items():
        writer.add_key_value(key[1:] if key.startswith(".") else f"{architecture}.{key}", value, kind)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gemma3_gguf(path, model, tokenizer=None, **changes):
    """What llama.cpp's converter writes for this model: its names, and 1 added to every norm."""
    config = model.config
    metadata = {
        "context_length": (config.max_position_embeddings, INT),
        "embedding_length": (config.hidden_size, INT),
        "block_count": (config.num_hidden_layers, INT),
        "feed_forward_length": (config.intermediate_size, INT),
        "attention.head_count": (config.num_attention_heads, INT),
        "attention.head_count_kv": (config.num_key_value_heads, INT),
        "attention.layer_norm_rms_epsilon": (config.rms_norm_eps, FLOAT),
        "attention.key_length": (config.head_dim, INT),
        "attention.value_length": (config.head_dim, INT),
        "attention.sliding_window": (config.sliding_window, INT),
        "rope.freq_base": (config.rope_parameters["full_attention"]["rope_theta"], FLOAT),
        **(tokenizer or sentencepiece_vocabulary(config.vocab_size)),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.float().numpy()
        for old, new in GGUF_NAMES.items():
            name = name.replace(old + ".", new + ".")
        tensors[name] = (values + 1 if name.endswith("norm.weight") else values, gguf.GGMLQuantizationType.F32)
    write_gguf(path, "gemma3", {k: v for k, v in metadata.items() if v is not None}, tensors)


def sentencepiece_vocabulary(size):
    """Metadata of a small Gemma-like vocabulary."""
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", "  ", "<end_of_turn>"]
    pieces = ["\u2581", *"abcdehilnort", "th", "the", "\u2581the", "an", "and", "\u2581and"]
    tokens = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [3, 3, 3, 2, 4, 4, 4, 3, *[6] * 256, *[1] * len(pieces)]
    assert len(tokens) <= size
    return {
        ".tokenizer.ggml.model": ("llama", TEXT),
        ".tokenizer.ggml.pre": ("default", TEXT),
        ".tokenizer.ggml.tokens": (tokens, ARRAY),
        ".tokenizer.ggml.token_type": (types, ARRAY),
        ".tokenizer.ggml.scores": ([-1000.0] * 264 + [-float(i) for i in range(len(pieces))], ARRAY),
        ".tokenizer.ggml.bos_token_id": (2, INT),
        ".tokenizer.ggml.eos_token_id": (1, INT),
        ".tokenizer.ggml.add_bos_token": (True, BOOL),
        ".tokenizer.ggml.add_space_prefix": (False, BOOL),
    }


def finite_blocks(kind, rows, columns, seed=0):
    """Bytes [rows, bytes] of a type, as the gguf package quantizes, or random ones whose values are finite."""
    generator = np.random.default_rng(seed)
    try:
        return gguf.quants.quantize(generator.standard_normal((rows, columns)).astype(np.float32), kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        wanted = rows * columns // block
        drawn = generator.integers(0, 256, (20 * wanted, size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            finite = np.isfinite(gguf.quants.dequantize(drawn, kind)).all(axis=1)
        assert finite.sum() >= wanted
        return drawn[finite][:wanted].reshape(rows, -1)
