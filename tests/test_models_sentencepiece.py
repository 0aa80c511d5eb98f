"""SentencePiece vocabularies out of GGUF: the same tokens as joining neighbours by best score, step by step."""

import random
from itertools import pairwise

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.models import Tokenizer
from still.backends.models.gguf_tokenizer import tokenizer_files
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
