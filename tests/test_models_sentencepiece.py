"""SentencePiece vocabularies out of GGUF: the same tokens as joining neighbours by best score, step by step."""

import random
from itertools import pairwise

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.models import Tokenizer
from still.backends.models.cache import cache_folder
from still.backends.models.gguf_file import GGUFFile
from still.backends.models.gguf_tokenizer import tokenizer_files
from still.backends.models.registry import KNOWN
from still.errors import ModelError

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"]
USER = ["\n", "\n\n", "\n\n\n", "  ", "   ", "    ", "<b>", "\t"]


def reference(text, scores, prefix):
    """SentencePiece's own rule (bpe_model.cc) without its bookkeeping."""
    pieces = list((SPACE if prefix and text else "") + text.replace(" ", SPACE))
    while True:
        joins = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not joins:
            break
        _, i = min(joins)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    spelled = [[p] if p in scores else [f"<0x{byte:02X}>" for byte in p.encode()] for p in pieces]
    return [token for tokens in spelled for token in tokens]


def build(pieces, prefix=False, user=(), **changes):
    tokens = [*CONTROL, *user, *BYTES, *pieces]
    types = [3, 3, 3, 2, 3, *[4] * len(user), *[6] * 256, *[1] * len(pieces)]
    scores = [-1000.0] * (len(tokens) - len(pieces)) + list(pieces.values())
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        **changes,
    }
    metadata = {key: value for key, value in metadata.items() if value is not ...}
    return Tokenizer(tokenizer_files("m.gguf", metadata, len(tokens))), tokens


def random_pieces(seed):
    """Every letter, and words of any of them: many can be cut in several ways, some can never be made."""
    chosen = random.Random(seed)
    letters = [*"abcdé日", SPACE]
    words = {"".join(chosen.choices(letters, k=chosen.randint(2, 6))) for _ in range(60)}
    pieces = [*sorted(words), *letters]
    chosen.shuffle(pieces)
    return {piece: -float(rank) for rank, piece in enumerate(pieces)}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 30), st.booleans(), st.text("abcdé日 \u00fc🦙", max_size=30))
def test_tokens_are_those_of_sentencepiece(seed, prefix, text):
    pieces = random_pieces(seed)
    tokenizer, tokens = build(pieces, prefix)
    assert [tokens[i] for i in tokenizer.encode(text)] == reference(text, pieces, prefix)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_runs_of_one_letter_are_joined_from_the_left():
    pieces = {"a": -9.0, "aa": -1.0, "aaaa": -2.0, "aaa": -3.0}
    tokenizer, tokens = build(pieces)
    for length in range(1, 40):
        assert [tokens[i] for i in tokenizer.encode("a" * length)] == reference("a" * length, pieces, False)


def test_user_defined_tokens_cut_the_text_first():
    tokenizer, tokens = build({"a": -9.0, "b": -8.0, SPACE: -7.0, SPACE + "a": -1.0}, user=USER)

    def cut(text):
        return [tokens[i] for i in tokenizer.encode(text)]

    assert cut("a a") == ["a", SPACE + "a"]
    assert cut("a   a") == ["a", "   ", "a"]
    assert cut(" " * 6 + "a") == ["    ", "  ", "a"]
    assert cut("\n\n\n\n\t<b>b") == ["\n\n\n", "\n", "\t", "<b>", "b"]
    text = "a \n\n  b\t<b> a   é"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_only_where_asked_for():
    tokenizer, _tokens = build({"a": -9.0, "<": -1.0})
    assert tokenizer.encode("<start_of_turn>a", special=True)[0] == 4
    assert 4 not in tokenizer.encode("<start_of_turn>a")
    assert tokenizer.decode([2, *tokenizer.encode("a"), 1]) == "a"
    assert tokenizer.decode(tokenizer.encode("<start_of_turn>a")) == "<start_of_turn>a"
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (2, True, {1})


def test_prefix_is_there_unless_the_file_says_no():
    pieces = {"a": -9.0, SPACE: -8.0, SPACE + "a": -1.0}
    assert build(pieces, **{"tokenizer.ggml.add_space_prefix": ...})[0].encode("a") == build(pieces, True)[0].encode("a")
    assert build(pieces, True)[0].encode("a") != build(pieces)[0].encode("a")


@pytest.mark.parametrize("scores", [..., [], [0.0], ["x"] * 262, [float("nan")] * 262, 5])
def test_scores_that_are_no_scores_are_named(scores):
    with pytest.raises(ModelError, match=r"m\.gguf: metadata tokenizer\.ggml\.scores"):
        build({"a": -9.0}, **{"tokenizer.ggml.scores": scores})


def test_types_of_the_gguf_package():
    kinds = gguf.TokenType
    assert (kinds.NORMAL, kinds.UNKNOWN, kinds.CONTROL, kinds.USER_DEFINED, kinds.BYTE) == (1, 2, 3, 4, 6)


# What llama.cpp's tokenizer (xllamacpp 2026.10) gives for Gemma's own file, control tokens not read.
# fmt: off
GEMMA_TOKENS = {
    ' leading': [5830],
    'x                                        y': [236781, 167, 145, 236762],
    'a\n b\n\n  c\t\td': [236746, 107, 518, 108, 138, 236755, 255969, 236753],
    '1234567890 3.14159 1e-5 2026-11-23': [236770, 236778, 236800, 236812, 236810, 236825, 236832, 236828, 236819,
        236771, 236743, 236800, 236761, 236770, 236812, 236770, 236810, 236819, 236743, 236770, 236744, 236772,
        236810, 236743, 236778, 236771, 236778, 236825, 236772, 236770, 236770, 236772, 236778, 236800],
    'def f(x):\n    return x**2  # \xbfqu\xe9?\n\n\nclass A:\n\tpass\n': [2063, 517, 236769, 236781, 1473, 107, 140,
        2060, 1123, 1018, 236778, 138, 236865, 7196, 24360, 236881, 109, 1999, 562, 236787, 107, 255968, 4373, 107],
    'über straße ñandú Ωμέγα Привет мир': [28223, 5875, 16756, 131079, 624, 237066, 76858, 20961, 103132, 15745,
        8362, 58562],
    '日本語のテキスト、漢字とかな。': [94951, 236945, 95830, 236951, 201637, 237032, 19735, 236924],
'\U0001f999\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3f3\ufe0f\u200d\U0001f308':
        [478, 397, 404, 391, 240731, 243874, 237243, 243767, 237243, 244814, 237243, 244990, 248177, 238178, 237243,
        243712],
    '<h1>Title</h1><b>bold</b>': [184, 7396, 191, 200, 15640, 209],
    'ᚠᛇᚻ᛫ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈': [463, 392, 398, 463, 393, 373, 463, 392, 425, 463, 393, 409, 236743, 478, 395, 386, 390, 478,
        395, 386, 409, 254865, 478, 395, 386, 398, 255458, 478, 395, 386, 399, 478, 395, 386, 400, 236743, 478, 382,
        379, 374],
    '\r\n\r\n': [251, 107, 251, 107],
}
# fmt: on


def test_gemmas_own_vocabulary():
    file = cache_folder() / "models" / KNOWN["gemma3-270m"].filename
    if not file.is_file():
        pytest.skip("gemma3-270m has not been pulled")
    tokenizer = Tokenizer(GGUFFile(file).tokenizer())
    assert {text: tokenizer.encode(text) for text in GEMMA_TOKENS} == GEMMA_TOKENS
    assert [tokenizer.decode(ids) for ids in GEMMA_TOKENS.values()] == list(GEMMA_TOKENS)
    turn = "<start_of_turn>user\nhi<end_of_turn>"
    assert tokenizer.encode(turn, special=True) == [105, 2364, 107, 2202, 106]
    assert 105 not in tokenizer.encode(turn)
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (2, True, {1, 106})
