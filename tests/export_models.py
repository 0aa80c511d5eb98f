"""Tiny random models with a real byte-level tokenizer, adapters for them, and llama.cpp as the judge of GGUF files."""

import dataclasses
import json
import urllib.request

import torch
import transformers
from peft import LoraConfig, get_peft_model
from still.backends.engine import Decode, Engine, Request
from still.backends.models import load_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
KINDS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-untied": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"rope_parameters": SCALED}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 200}),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {"rope_parameters": YARN, "head_dim": 16}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"tie_word_embeddings": True}),
    "gemma3": (
        transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig,
        {"query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 6},
    ),
}  # fmt: skip
WORDS = "the model writes what it was asked to write and nothing else, 12 times or 345; don't stop here. "
TOKENS = torch.randint(5, 300, (24,), generator=torch.Generator().manual_seed(3)).tolist()


def byte_tokenizer(cuts=(r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")):
    backend = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in CONTROL]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([WORDS, WORDS.upper(), "12 345 6789 \n\n  \t" * 3] * 20, trainer)
    return backend


def write_base(folder, kind="llama", tokenizer=None, **changes):
    """A model of a kind in transformers' own folder; no weight is left constant, which would hide a mix-up."""
    network_class, config_class, own = KINDS[kind]
    torch.manual_seed(0)
    network = network_class(config_class(**{**SIZES, **own, **changes})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    network.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or byte_tokenizer(), eos_token="<|im_end|>", chat_template=CHATML
    )
    fast.save_pretrained(folder)
    return folder


def write_adapter(folder, network, seed=0, **config):
    """A PEFT folder with random weights; returns the network with the adapter."""
    torch.manual_seed(seed)
    tuned = get_peft_model(network, LoraConfig(**{"init_lora_weights": False, "target_modules": ALL, "r": 4, **config}))
    tuned.save_pretrained(folder)
    return tuned.eval()


def network_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def logits(network, tokens=TOKENS):
    with torch.inference_mode():
        return network(torch.tensor([tokens])).logits[0].float()


def greedy(network, prompt, count):
    """Tokens of the highest logit, by a plain loop without cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(network, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def engine_greedy(model, prompts, count, adapter=None):
    """Our engine's, in fp32, of the model at a path or name."""
    with Engine(load_model(str(model), "fp32"), cache_tokens=1024) as engine:
        if adapter is not None:
            engine.load_adapter("tuned", adapter)
        decode = (Decode(count, ignore_eos=True),)
        name = None if adapter is None else "tuned"
        futures = [engine.submit(Request(tuple(prompt), decode, adapter=name)) for prompt in prompts]
        return [list(future.result().steps[0].tokens) for future in futures]


@dataclasses.dataclass
class LlamaCpp:
    """A GGUF file in llama.cpp."""

    path: object

    def __post_init__(self):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self.path)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 200, 1, False, 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(parameters)

    def greedy(self, prompt, count):
        request = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return self._post("completion", {**request, "return_tokens": True})["tokens"]

    def tokenize(self, text):
        return self._post("tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def _post(self, what, body):
        request = urllib.request.Request(f"{self.server.listening_address}/{what}", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
