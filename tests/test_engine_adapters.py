"""LoRA in the engine: against PEFT, the compiled decoder against torch, rows with different adapters in one step."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from still.backends.engine import Decode, Engine, Request
from still.backends.engine.batch import build_batch
from still.backends.engine.decoder import TorchDecoder
from still.backends.engine.kernels import native_level, native_levels
from still.backends.engine.native import NativeDecoder
from still.backends.engine.pages import PAGE_SIZE, Page
from still.backends.engine.scheduler import Chunk
from still.backends.models import Adapter, LowRank, load_adapter, load_model
from still.errors import EngineError, ModelError
from tokenizers import Tokenizer, decoders, models

native = pytest.mark.skipif(native_level() == 0, reason="the compiled decoder does not run on this machine")


def random_adapter(spec, seed, matrices=("qkv", "o", "gate_up", "down"), rank=5):
    generator = torch.Generator().manual_seed(seed)
    hidden, inter, heads = spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim
    kv = spec.num_kv_heads * spec.head_dim
    shapes = {"qkv": (heads + 2 * kv, hidden), "o": (hidden, heads), "gate_up": (2 * inter, hidden), "down": (hidden, inter)}
    cuts = {"qkv": (0, heads, heads + kv, heads + 2 * kv), "gate_up": (0, inter, 2 * inter)}

    def update(name):
        out, width = shapes[name]
        borders = cuts.get(name, (0, out))
        begin = np.repeat(borders[:-1], rank)
        end = np.repeat(borders[1:], rank)
        b = torch.randn(len(begin), out, generator=generator) * 0.3
        for i in range(len(begin)):
            b[i, : begin[i]], b[i, end[i] :] = 0, 0
        a = torch.randn(len(begin), width, generator=generator) * width**-0.5
        return LowRank(a, b, tuple(map(int, begin)), tuple(map(int, end)))

    layers = tuple({name: update(name) for name in matrices} for _ in range(spec.num_layers))
    return Adapter(f"random-{seed}", f"{seed:064x}", layers)


def mixed_batch(adapters, lengths):
    """A chunk for each adapter, over pages of its own."""
    chunks, page = [], 0
    for i, (adapter, length) in enumerate(zip(adapters, lengths, strict=True)):
        pages = [Page(page + p) for p in range(-(-length // PAGE_SIZE))]
        page += len(pages)
        tokens = np.random.default_rng(i).integers(10, 40000, length).tolist()
        chunks.append(Chunk(SimpleNamespace(tokens=tokens, pages=pages, adapter=adapter), 0, length))
    return chunks


@native
@pytest.mark.parametrize("level", native_levels())
def test_compiled_adapters_agree_with_torch(tiny_quantized, level):
    spec = tiny_quantized.spec
    adapters = [random_adapter(spec, 1), None, random_adapter(spec, 2, ("qkv", "down"))]
    batch = build_batch(mixed_batch(adapters, (20, 7, 33)))
    compiled, reference = NativeDecoder(tiny_quantized, 8, 256), TorchDecoder(tiny_quantized, 8, 256)
    compiled._level = level
    with torch.inference_mode():
        ours, theirs = compiled.forward(batch), reference.forward(batch)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99
    assert (ours - theirs).abs().mean() < 0.05


@native
@pytest.mark.parametrize("level", native_levels())
def test_adapters_in_one_step_change_no_bit(tiny_quantized, level):
    spec = tiny_quantized.spec
    adapters = [random_adapter(spec, 1), None, random_adapter(spec, 2), None]
    chunks = mixed_batch(adapters, (20, 7, 33, 1))
    compiled = NativeDecoder(tiny_quantized, 8, 256)
    compiled._level = level
    together = compiled.forward(build_batch(chunks))
    row = 0
    outputs = []
    for chunk in chunks:
        alone = compiled.forward(build_batch([chunk]))
        assert torch.equal(together[row : row + chunk.stop], alone)
        outputs.append(alone)
        row += chunk.stop
    plain = compiled.forward(build_batch([Chunk(SimpleNamespace(**{**vars(chunks[0].sequence), "adapter": None}), 0, 20)]))
    assert (plain - outputs[0]).abs().max() > 0.1, "the adapter does something"


def test_torch_adapters_are_dense_updates(tiny_model):
    """W x + B A x, by merging the update into the weights."""
    adapter = random_adapter(tiny_model.spec, 3)
    merged = dict(tiny_model.weights)
    for i, layer in enumerate(adapter.layers):
        for name, update in layer.items():
            merged[f"layers.{i}.{name}"] = merged[f"layers.{i}.{name}"] + update.b.t() @ update.a
    tiny = SimpleNamespace(**{**vars(tiny_model), "weights": merged})
    (chunk,) = mixed_batch([adapter], (40,))
    (bare,) = mixed_batch([None], (40,))
    with torch.inference_mode():
        ours = TorchDecoder(tiny_model, 4, 256).forward(build_batch([chunk]))
        theirs = TorchDecoder(tiny, 4, 256).forward(build_batch([bare]))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


TOKENS = np.random.default_rng(7).integers(5, 120, 60).tolist()
SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {
    "all": {"r": 4, "lora_alpha": 16, "target_modules": ALL},
    "rslora": {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 4, "target_modules": ALL, "rank_pattern": {"gate_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 40},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random Llama in transformers' format."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    backend.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """PEFT folders with random weights, by name of configuration."""
    folders = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(len(folders))
        network = transformers.LlamaForCausalLM.from_pretrained(base)
        folders[name] = tmp_path_factory.mktemp(name)
        get_peft_model(network, LoraConfig(init_lora_weights=False, **config)).save_pretrained(folders[name])
    return folders


@pytest.fixture(autouse=True)
def cache(request, tmp_path_factory, monkeypatch):
    if "base" in request.fixturenames:
        monkeypatch.setenv("STILL_CACHE", str(tmp_path_factory.mktemp("cache")))


def logprobs(engine, adapter):
    futures = [
        engine.submit(Request(tuple(TOKENS[: i + 1]), (Decode(1, ignore_eos=True),), adapter=adapter))
        for i in range(0, len(TOKENS), 7)
    ]
    steps = [future.result().steps[0] for future in futures]
    return [(step.tokens[0], step.logprobs[0]) for step in steps]


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_equal_peft(base, adapters, name):
    network = PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base), adapters[name]).eval()
    with torch.inference_mode():
        expected = network(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    with Engine(load_model(str(base), "fp32"), cache_tokens=2048) as engine:
        engine.load_adapter("tuned", adapters[name])
        with_adapter, without = logprobs(engine, "tuned"), logprobs(engine, None)
    assert with_adapter != without
    for (token, logprob), row in zip(with_adapter, expected[::7], strict=True):
        assert logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert float(row.max()) - float(row[token]) < 1e-4, "the greedy token"


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "int8", "int4"])
def test_requests_with_several_adapters_answer_as_alone(base, adapters, quantization):
    """One batch, one prompt, three adapters and none: no page is shared across them, and texts are those of solo runs."""
    model = load_model(str(base), quantization)
    names = [None, *CONFIGS]
    requests = [Request(tuple(TOKENS), (Decode(12, ignore_eos=True),), adapter=name) for name in names]

    def engine():
        made = Engine(model, cache_tokens=2048)
        for name, folder in adapters.items():
            made.load_adapter(name, folder)
        return made

    with engine() as together:
        futures = [together.submit(request) for request in requests for _ in range(2)]
        batched = [future.result().steps[0] for future in futures]
        warm = [together.submit(request).result() for request in requests]
    assert [result.usage.cached_tokens for result in warm] == [59] * 4
    for i, request in enumerate(requests):
        with engine() as alone:
            result = alone.submit(request).result()
        assert result.usage.cached_tokens == 0
        assert result.steps[0].tokens == batched[2 * i].tokens == batched[2 * i + 1].tokens == warm[i].steps[0].tokens
    assert len({step.tokens for step in batched}) == 4


def test_adapters_come_and_go_while_requests_run(base, adapters):
    with Engine(load_model(str(base), "int8"), cache_tokens=2048) as engine:
        request = Request(tuple(TOKENS), (Decode(40, ignore_eos=True),), adapter="a")
        with pytest.raises(EngineError, match=r"adapter 'a' is not loaded \(loaded: none\)"):
            engine.submit(request)
        engine.load_adapter("a", adapters["all"])
        first = engine.submit(request)
        engine.load_adapter("a", adapters["rslora"])
        second = engine.submit(request)
        engine.unload_adapter("a")
        assert first.result().steps[0].tokens != second.result().steps[0].tokens
        assert engine.adapters == {}
        with pytest.raises(EngineError, match="adapter 'a' is not loaded"):
            engine.unload_adapter("a")


def edited(folder, tmp_path, config=None, drop=None, tensors=None):
    """A copy of an adapter with other settings or tensors."""
    settings = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name != drop}
    save_file(kept | (tensors or {}), tmp_path / "adapter_model.safetensors")
    return tmp_path


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"peft_type": "IA3"}}, "peft_type 'IA3'"),
        ({"config": {"use_dora": True}}, "use_dora"),
        ({"config": {"bias": "all"}}, "bias = 'all'"),
        ({"config": {"modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ({"config": {"lora_alpha": "much"}}, "lora_alpha = 'much'"),
        ({"config": {"alpha_pattern": {"(": 3}}}, "not a pattern"),
        ({"drop": f"{LAYER}.lora_B.weight"}, "without its partner"),
        ({"tensors": {f"{LAYER}.lora_A.weight": torch.ones(4, 32)}}, "belongs to another model"),
        ({"tensors": {f"{LAYER}.lora_A.weight": torch.full((4, 64), torch.nan)}}, "NaN or infinity"),
        ({"tensors": {LAYER.replace("layers.0", "layers.9") + ".lora_A.weight": torch.ones(4, 64)}}, "lacks"),
        ({"tensors": {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}}, "not supported"),
    ],
)
def test_what_is_not_supported_is_named(base, adapters, tmp_path, changes, message):
    spec = load_model(str(base)).spec
    with pytest.raises(ModelError, match=message):
        load_adapter("bad", edited(adapters["all"], tmp_path, **changes), spec)


def test_damaged_adapter_files_are_named(base, adapters, tmp_path):
    spec = load_model(str(base)).spec
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load_adapter("bad", tmp_path, spec)
    folder = edited(adapters["all"], tmp_path)
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cannot be read"):
            load_adapter("bad", folder, spec)
