"""The tokenizer wrapper, and the real model's tokenizer against transformers' reading of the same file."""

import itertools
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from still.backends.models import Tokenizer, load_model, resolve
from still.backends.models.checkpoint import TokenizerFiles
from still.errors import ModelError
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend


def tiny(template=None, add_bos=False):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "<|im_end|>", *alphabet, "he", "hel"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[("h", "e"), ("he", "l")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|im_end|>", special=True)])
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    return Tokenizer(TokenizerFiles(backend.to_str(), 0, add_bos, (1,), template))


TINY = tiny()


@given(st.text(st.characters(codec="utf-8")))
def test_round_trip_and_no_control_tokens_from_text(text):
    ids = TINY.encode(text)
    assert TINY.decode(ids, skip_special=False) == text
    assert not {0, 1} & set(ids)


@given(st.lists(st.sampled_from(["<s>", "<|im_end|>", "hello", " ", "<|im", "_end|>"])).map("".join))
def test_control_tokens_are_text_unless_asked_for(text):
    assert not {0, 1} & set(TINY.encode(text))
    assert TINY.decode(TINY.encode(text)) == text
    special = TINY.encode(text, special=True)
    assert special.count(0) == text.count("<s>")
    assert special.count(1) == text.count("<|im_end|>")
    assert TINY.decode(special, skip_special=False) == text


def variants():
    """Tokenizers of every make-up: with and without each part, added tokens inside and outside the vocabulary."""
    vocab = {token: i for i, token in enumerate(["<s>", "\u2581", *"abcdeé ", "ab", "\u2581a", "cd"])}
    for prefix, cut, post in itertools.product([False, True], repeat=3):
        backend = Backend(models.BPE(vocab=vocab, merges=[("a", "b"), ("c", "d"), ("\u2581", "a")]))
        if prefix:
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        if cut:
            backend.pre_tokenizer = pre_tokenizers.Split("d", "isolated")
        if post:
            backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
        backend.decoder = decoders.Fuse()
        backend.add_tokens([AddedToken("<b>", normalized=False), AddedToken("e e", normalized=True)])
        backend.add_special_tokens([AddedToken("<s>"), AddedToken("<new>", lstrip=True), AddedToken("<other>", rstrip=True)])
        backend.add_tokens([AddedToken("aé", single_word=True)])
        yield backend.to_str()


@pytest.mark.parametrize("text", list(variants()))
def test_control_tokens_as_text_by_the_same_rules(text):
    plain = Backend.from_str(text)
    plain.encode_special_tokens = True
    special = Backend.from_str(text)
    tokenizer = Tokenizer(TokenizerFiles(text, 0, False, (), None))
    chosen = random.Random(0)
    for _ in range(200):
        words = "".join(chosen.choices([*"abcdeé ", "<b>", "e e", "<s>", "<new>", " <other> ", " aé "], k=12))
        assert tokenizer.encode(words) == plain.encode(words, add_special_tokens=False).ids
        assert tokenizer.encode(words, special=True) == special.encode(words, add_special_tokens=False).ids


def test_skip_special():
    assert TINY.decode([0, 1, *TINY.encode("hello")]) == "hello"
    assert TINY.decode([1], skip_special=False) == "<|im_end|>"


def test_truncation_and_padding_of_the_file_are_ignored():
    assert len(TINY.encode("x" * 100)) == 100
    assert len(TINY.encode("x")) == 1


def test_threads_do_not_disturb_each_other():
    def work(special):
        return all(TINY.encode("<|im_end|>hello", special) == want[special] for _ in range(300))

    want = {flag: TINY.encode("<|im_end|>hello", flag) for flag in (False, True)}
    assert want[False] != want[True]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [False, True] * 8))


def test_lone_surrogate():
    with pytest.raises(ModelError, match="surrogate"):
        TINY.encode("a\ud800")


def test_damaged_tokenizer():
    with pytest.raises(ModelError, match="damaged"):
        Tokenizer(TokenizerFiles("{}", None, False, (), None))


MESSAGES = [{"role": "user", "content": "<b>ü"}]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s><b>ü<|im_end|>"),
        ("{% if true %}\n  {% if add_generation_prompt %}\nyes\n  {% endif %}\n{% endif %}\n", "yes\n"),
        ("{{ messages | tojson }}", json.dumps(MESSAGES, ensure_ascii=False)),
        ("{{ messages[0] | tojson(indent=1) }}", json.dumps(MESSAGES[0], ensure_ascii=False, indent=1)),
        ("{% for x in [1,2,3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{% if tools is none and documents is none %}none{% endif %}", "none"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}", "3"),
    ],
)
def test_template_dialect(template, text):
    assert tiny(template).render(MESSAGES, True) == text


def test_strftime_now():
    assert len(tiny("{{ strftime_now('%Y') }}").render([], False)) == 4


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "refuses"),
        ("{{ messages[9].content.x }}", "refuses"),
        ("{{ 1 // 0 }}", "refuses"),
        ("{{ 'a' + 1 }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
    ],
)
def test_template_errors(template, message):
    with pytest.raises(ModelError, match=message):
        tiny(template).render(MESSAGES, True)


def test_no_template():
    assert not TINY.has_chat_template
    with pytest.raises(ModelError, match="no chat template"):
        TINY.render(MESSAGES, True)


@pytest.fixture(scope="module")
def real():
    try:
        return load_model("smollm2-135m")
    except ModelError as error:
        pytest.skip(f"the real model cannot be had: {str(error)[:200]}")


@pytest.fixture(scope="module")
def reference(real):
    import transformers

    path = resolve("smollm2-135m").path
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers 5.23 forgets that this vocabulary was learned with digits apart (SmolLM2's own tokenizer.json says
    # Digits, then ByteLevel), so its reference is put right here.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


TEXTS = [
    "Hello, world!  Two  spaces, a\ttab\r\n\r\nand 12345 + 6.78 = ?",
    "a  2 b   34    567",
    "I'll don't WE'RE it's '90s",
    "naïve café Ångström über straße ﬁ ½ ² ٣٤ ५ Ⅷ",
    "日本語のテキスト 中文，测试。한국어",
    "👩‍👩‍👧 🇩🇪 e\u0301 \u200b \ufeff \u00a0 \u3000 \x00\x7f",
    "def f(x):\n    return x ** 2  # comment\n\n\n",
    "   leading and trailing   ",
    "",
    '{"name": "x", "list": [1, 2, 3], "nested": {"a": null}}',
]


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_real_tokenizer_equals_transformers(real, reference, text):
    wanted = reference.encode(text, add_special_tokens=False)
    assert real.tokenizer.encode(text) == wanted
    assert real.tokenizer.decode(wanted) == text


@pytest.mark.model
def test_real_control_tokens(real, reference):
    text = "<|im_start|>user\nIgnore 7 things<|im_end|>\n<|endoftext|>"
    special = real.tokenizer.encode(text, special=True)
    assert special == reference.encode(text, add_special_tokens=False)
    assert (special[0], special.count(2), special[-1]) == (1, 1, 0)
    plain = real.tokenizer.encode(text)
    assert not {0, 1, 2} & set(plain)
    assert real.tokenizer.decode(plain, skip_special=False) == text
    reference.backend_tokenizer.encode_special_tokens = True
    try:
        assert plain == reference.backend_tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        reference.backend_tokenizer.encode_special_tokens = False


@pytest.mark.model
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<tag> & 'ü'"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ],
)
def test_real_template_equals_transformers(real, reference, messages, prompt):
    wanted = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert real.tokenizer.render(messages, prompt) == wanted


@pytest.mark.model
def test_real_vocabulary(real, reference):
    assert real.tokenizer.vocab_size == real.spec.vocab_size == len(reference)
    assert real.tokenizer.bos_id == reference.bos_token_id
    assert reference.eos_token_id in real.tokenizer.eos_ids
    assert real.tokenizer.eos_ids == {0, 2}
    assert real.tokenizer.add_bos is False
    backend = Backend.from_str(real.tokenizer.json)
    assert backend.encode("Hello", add_special_tokens=False).ids == real.tokenizer.encode("Hello")


@pytest.mark.model
def test_real_weights_are_those_of_the_file(real):
    import gguf
    import torch

    reader = gguf.GGUFReader(resolve("smollm2-135m").path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def stored(name):
        tensor = tensors[name]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    def unpermuted(rows, heads):  # the inverse of llama.cpp's reshape(heads, 2, size / 2).swapaxes(1, 2)
        return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)

    for layer in (0, 29):
        blk, new = f"blk.{layer}.", f"layers.{layer}."
        q, k = unpermuted(stored(blk + "attn_q.weight"), 9), unpermuted(stored(blk + "attn_k.weight"), 3)
        wanted = {
            "qkv": torch.cat([q, k, stored(blk + "attn_v.weight")]),
            "o": stored(blk + "attn_output.weight"),
            "gate_up": torch.cat([stored(blk + "ffn_gate.weight"), stored(blk + "ffn_up.weight")]),
            "down": stored(blk + "ffn_down.weight"),
        }
        for name, matrix in wanted.items():
            scale = real.weights[f"{new}{name}.scale"][:, None]
            assert ((real.weights[f"{new}{name}.q"] * scale - matrix).abs() <= scale * 0.5001).all()
        assert torch.equal(real.weights[new + "attn_norm"], stored(blk + "attn_norm.weight"))
    scale = real.weights["lm_head.scale"][:, None]
    assert ((real.weights["lm_head.q"] * scale - stored("token_embd.weight")).abs() <= scale * 0.5001).all()


@pytest.mark.model
def test_warm_load_does_without_the_heavy_libraries(real):
    script = (
        "import sys; from still.backends.models import load_model; "
        f"assert load_model('smollm2-135m').digest == {real.digest!r}; "
        "print([m for m in ('transformers', 'gguf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
