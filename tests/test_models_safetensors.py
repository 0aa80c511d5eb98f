"""Hugging Face folders: every weight against the checkpoint it came from, every refusal by name."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from still.backends.models import load_model, resolve
from still.backends.models.convert import open_checkpoint
from still.backends.models.quantize import quantize_rows
from still.errors import ModelError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
FAMILIES = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {"head_dim": 16, "sliding_window": 32}),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {"sliding_window": 32}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"head_dim": 16}),
    "gemma3": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, {"head_dim": 16, "sliding_window": 32}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("STILL_CACHE", str(folder))
    return folder


def write_tokenizer(folder):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def write(folder, family="llama", tied=False, dtype=torch.float32, shard="5GB", **changes):
    model_class, config_class, extra = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(**{**SIZES, **extra, "tie_word_embeddings": tied, **changes})
    model = model_class(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start as constants, which would hide a mix-up
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def edit(folder, name="config.json", **changes):
    data = json.loads((folder / name).read_text())
    data.update(changes)
    (folder / name).write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def expected(state, spec):
    """The canonical weights, put together from transformers' state dict."""
    wanted = {"norm": state["model.norm.weight"], "lm_head": state["lm_head.weight"]}
    if not spec.tie_embeddings:
        wanted["embed"] = state["model.embed_tokens.weight"]
    gemma = spec.architecture == "gemma3"
    if gemma:  # its norms multiply by 1 + weight
        state = {name: tensor + 1 if name.endswith("norm.weight") else tensor for name, tensor in state.items()}
        wanted["norm"] = state["model.norm.weight"]
    for i in range(spec.num_layers):
        old, new = f"model.layers.{i}.", f"layers.{i}."
        wanted[new + "attn_norm"] = state[old + "input_layernorm.weight"]
        before_mlp = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        wanted[new + "mlp_norm"] = state[f"{old}{before_mlp}.weight"]
        if gemma:
            wanted[new + "attn_post_norm"] = state[old + "post_attention_layernorm.weight"]
            wanted[new + "mlp_post_norm"] = state[old + "post_feedforward_layernorm.weight"]
        wanted[new + "qkv"] = torch.cat([state[f"{old}self_attn.{c}_proj.weight"] for c in "qkv"])
        wanted[new + "o"] = state[old + "self_attn.o_proj.weight"]
        wanted[new + "gate_up"] = torch.cat([state[f"{old}mlp.{c}_proj.weight"] for c in ("gate", "up")])
        wanted[new + "down"] = state[old + "mlp.down_proj.weight"]
        if spec.attention_bias:
            wanted[new + "qkv.bias"] = torch.cat([state[f"{old}self_attn.{c}_proj.bias"] for c in "qkv"])
        if spec.qk_norm:
            wanted[new + "q_norm"] = state[old + "self_attn.q_norm.weight"]
            wanted[new + "k_norm"] = state[old + "self_attn.k_norm.weight"]
    return wanted


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_weights_are_the_checkpoints(tmp_path, family, tied):
    state = write(tmp_path, family, tied)
    model = load_model(str(tmp_path), "fp32")
    wanted = expected(state, model.spec)
    assert model.weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert model.weights[name].dtype == torch.float32, name
        assert torch.equal(model.weights[name], tensor), name
    assert model.spec.tie_embeddings == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_weights_are_within_half_a_step(tmp_path, family):
    state = write(tmp_path, family, tied=family == "qwen2")
    model = load_model(str(tmp_path))
    assert model.quantization == "int8"
    wanted = expected(state, model.spec)
    for name, tensor in wanted.items():
        if name == "embed":
            assert torch.equal(model.weights[name], tensor.to(torch.bfloat16))
        elif tensor.dim() == 1:
            assert torch.equal(model.weights[name], tensor), name
        else:
            q, scale = model.weights[name + ".q"], model.weights[name + ".scale"]
            assert (q.dtype, scale.dtype, q.shape, scale.shape) == (
                torch.int8,
                torch.float32,
                tensor.shape,
                tensor.shape[:1],
            )
            error = (q.float() * scale[:, None] - tensor).abs()
            assert (error <= scale[:, None] * 0.5001).all(), name
            assert name not in model.weights


def test_spec_of_each_family(tmp_path):
    specs = {}
    for family in FAMILIES:
        write(tmp_path / family, family)
        specs[family] = load_model(str(tmp_path / family), "fp32").spec
    for family, spec in specs.items():
        assert (spec.architecture, spec.vocab_size, spec.hidden_size, spec.num_layers) == (family, 300, 48, 2)
        assert (spec.num_heads, spec.num_kv_heads, spec.rms_eps, spec.max_position) == (6, 2, 1e-5, 128)
    assert [specs[f].head_dim for f in FAMILIES] == [8, 16, 8, 16, 16]
    assert [specs[f].attention_bias for f in FAMILIES] == [False, False, True, False, False]
    assert [specs[f].qk_norm for f in FAMILIES] == [False, False, False, True, True]
    # Qwen's window counts only with use_sliding_window.
    assert [specs[f].sliding_window for f in FAMILIES] == [None, 32, None, None, 32]


def test_rope_in_the_spelling_of_transformers_4_and_5(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    write(tmp_path, rope_parameters={"rope_theta": 5e5, **scaling})
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    new = load_model(str(tmp_path), "fp32").spec
    edit(tmp_path, rope_parameters=..., rope_theta=5e5, rope_scaling=scaling)
    old = load_model(str(tmp_path), "fp32").spec
    assert new == old
    assert (new.rope_theta, new.rope_scaling) == (5e5, scaling)
    edit(tmp_path, rope_scaling=None, rope_theta=...)
    plain = load_model(str(tmp_path), "fp32").spec
    assert (plain.rope_theta, plain.rope_scaling) == (1e4, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_several_shards(tmp_path, dtype):
    state = write(tmp_path, dtype=dtype, shard="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = load_model(str(tmp_path), "fp32")
    for name, tensor in expected(state, model.spec).items():
        assert torch.equal(model.weights[name], tensor), name


def test_tokenizer_of_a_folder(tmp_path):
    write(tmp_path)
    tokenizer = load_model(str(tmp_path)).tokenizer
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the quick brown cat, über <|end|>"
    assert tokenizer.encode(text, special=True) == reference.encode(text, add_special_tokens=False)
    assert (tokenizer.bos_id, tokenizer.add_bos) == (reference.bos_token_id, False)
    assert reference.eos_token_id in tokenizer.eos_ids
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render(messages, True) == "<s>[user]hi<|end|>"


def test_eos_ids_from_every_file(tmp_path):
    write(tmp_path)
    edit(tmp_path, "generation_config.json", eos_token_id=[5, 7])
    edit(tmp_path, eos_token_id=9)
    assert load_model(str(tmp_path)).tokenizer.eos_ids == {1, 5, 7, 9}


def test_named_templates_take_the_default(tmp_path):
    write(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    edit(tmp_path, "tokenizer_config.json", chat_template=named)
    assert load_model(str(tmp_path)).tokenizer.render([], False) == "yes"


def test_digest_follows_weights_and_configuration(tmp_path):
    write(tmp_path)
    first = load_model(str(tmp_path)).digest
    assert first == load_model(str(tmp_path), "fp32").digest
    (tmp_path / "notes.txt").write_text("not part of the model")
    assert resolve(str(tmp_path)).digest() == first
    edit(tmp_path, rms_norm_eps=1e-4)
    changed = load_model(str(tmp_path))
    assert changed.digest != first
    assert changed.spec.rms_eps == 1e-4


def replace_tensor(folder, name, tensor):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f, model_type="gpt_oss"), "gpt_oss.*llama, mistral, qwen2, qwen3, gemma3_text"),
        (lambda f: edit(f, quantization_config={"bits": 4}), "quantization_config"),
        (lambda f: edit(f, hidden_act="gelu"), "hidden_act"),
        (lambda f: edit(f, hidden_size="48"), "hidden_size"),
        (lambda f: edit(f, num_hidden_layers=...), "num_hidden_layers"),
        (lambda f: edit(f, num_hidden_layers=10**9), "layers.2.input_layernorm.weight.*missing"),
        (lambda f: edit(f, num_key_value_heads=4), "num_heads"),
        (lambda f: edit(f, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "longrope"),
        (lambda f: edit(f, rms_norm_eps=0), "rms_eps"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "pickled"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), "model.safetensors"),
        (lambda f: replace_tensor(f, DOWN, None), f"{DOWN}.*missing"),
        (lambda f: replace_tensor(f, DOWN, torch.zeros(48, 79)), rf"{DOWN}.*\[48, 79\], expected \[48, 80\]"),
        (lambda f: replace_tensor(f, DOWN, torch.zeros(48, 80, dtype=torch.int8)), f"{DOWN}.*int8"),
        (lambda f: replace_tensor(f, DOWN, torch.full((48, 80), torch.nan)), "layers.1.down.*NaN"),
        (lambda f: replace_tensor(f, "model.layers.0.self_attn.o_proj.bias", torch.zeros(48)), "o_proj.bias"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path))


def test_truncated_weights_are_refused(tmp_path):
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model(str(tmp_path))


def test_index_may_not_leave_the_folder(tmp_path):
    write(tmp_path / "inside")
    (tmp_path / "inside" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (tmp_path / "inside" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside the folder"):
        load_model(str(tmp_path / "inside"))


def test_old_rotary_buffers_are_ignored(tmp_path):
    write(tmp_path)
    replace_tensor(tmp_path, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
    assert load_model(str(tmp_path)).spec.num_layers == 2


def test_quantize_rows_at_its_edges():
    weight = torch.tensor([[0.0, 0.0], [1.0, -127.0], [1e-44, -1e-44], [3e38, -1e38]])
    q, scale = quantize_rows(weight)
    assert scale[0] == 1
    assert q[0].tolist() == [0, 0]
    assert q[1].tolist() == [1, -127]
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert q[3].tolist() == [127, -42]


def test_checkpoint_tensors_belong_to_the_caller(tmp_path):
    write(tmp_path)
    checkpoint = open_checkpoint(resolve(str(tmp_path)))
    before = checkpoint.read("norm").clone()
    checkpoint.read("norm").zero_()
    assert torch.equal(checkpoint.read("norm"), before)


def test_writing_to_weights_does_not_reach_the_cache(tmp_path):
    write(tmp_path)
    model = load_model(str(tmp_path), "fp32")
    before = model.weights["norm"].clone()
    model.weights["norm"].zero_()
    assert torch.equal(load_model(str(tmp_path), "fp32").weights["norm"], before)


@pytest.mark.parametrize("victim", ["model.json", "outer.safetensors", "layer-0001.safetensors"])
def test_damaged_cache_is_rebuilt(tmp_path, cache, victim):
    write(tmp_path)
    first = load_model(str(tmp_path))
    [folder] = [f for f in (cache / "converted").iterdir() if f.is_dir()]
    file = folder / victim
    for content in (None, b"", file.read_bytes()[:-3], b"\0" * file.stat().st_size):
        file.unlink() if content is None else file.write_bytes(content)
        again = load_model(str(tmp_path))
        for name, tensor in first.weights.items():
            assert torch.equal(again.weights[name], tensor), (content, name)
    assert [f for f in (cache / "converted").iterdir() if f.is_dir()] == [folder]


def test_conversion_that_fails_leaves_nothing(tmp_path, cache):
    write(tmp_path)
    replace_tensor(tmp_path, DOWN, torch.full((48, 80), torch.inf))
    with pytest.raises(ModelError, match="infinity"):
        load_model(str(tmp_path))
    assert not [f for f in (cache / "converted").iterdir() if f.is_dir()]


def test_unknown_quantization(tmp_path):
    with pytest.raises(ModelError, match=r"int3.*int8, int4, bf16, fp32"):
        load_model(str(tmp_path), "int3")


def test_loading_at_once_converts_once(tmp_path, cache, monkeypatch):
    from still.backends.models import convert

    builds = []

    def counted(*arguments, build=convert._build):
        builds.append(arguments)
        build(*arguments)

    monkeypatch.setattr(convert, "_build", counted)
    write(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_model, [str(tmp_path)] * 4))
    assert len(builds) == 1
    for model in loaded:
        assert torch.equal(model.weights["lm_head.q"], loaded[0].weights["lm_head.q"])
    assert len([f for f in (cache / "converted").iterdir() if f.is_dir()]) == 1
