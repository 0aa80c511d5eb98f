"""A `tokenizer.json` as GGUF's metadata, kept only if it cuts texts as the tokenizer does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ..models.checkpoint import TokenizerFiles
from ..models.gguf_tokenizer import CUTS, tokenizer_files
from .gguf_metadata import Entry

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_TRIED = ("qwen2", "llama-bpe", "tekken", "smollm", "gpt-2")
"""Ways of cutting text that llama.cpp knows by these names, and `models.gguf_tokenizer` too: those that cut more first."""
_SAMPLES = (
    "Hello world, it's 12345 o'clock; they'll've DON'T we'RE.",
    "  leading and   inner\tspaces \n\n\r\n  and lines\n",
    "def f(x: int) -> dict[str, float]:\n    return {'a': 3.1415e-10}  # $%&/()=?\n",
    "Żółć gęślą jaźń. Äpfel, œuvre, İstanbul; Привет, мир! Γειά σου Κόσμε",
    "你好,世界。こんにちは 안녕하세요 ١٢٣ हिन्दी ไทย",
    "0123456789 2024-11-24 1,000,000.50 0x1F 00 007",
    "👍🏽 naïve café - “quotes” … ½ ™ A1b2C3 camelCaseHTMLParser",
)


def vocabulary(files: TokenizerFiles, vocab_size: int) -> list[Entry]:
    """The entries `tokenizer.*`. Raises ModelError for a tokenizer that GGUF has no words for."""
    from tokenizers import Tokenizer

    data = json.loads(files.json)
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        raise ModelError(f"a tokenizer of type {model.get('type')!r} cannot be written to GGUF; supported: BPE")
    tokenizer = Tokenizer.from_str(files.json)
    common = _common(files, data, vocab_size)
    if model.get("byte_fallback"):
        candidates = [common | _sentencepiece(tokenizer, model, common)]
    else:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        byte_level = {"model": "gpt2", "merges": merges}
        patterns = _patterns(data.get("pre_tokenizer"))
        named_first = sorted(_TRIED, key=lambda cut: list(CUTS[cut]) != patterns)
        candidates = [common | byte_level | {"pre": cut} for cut in named_first]
    for candidate in candidates:
        if _agrees(candidate, tokenizer, vocab_size):
            return [_entry(key, value) for key, value in candidate.items()]
    raise ModelError("the tokenizer cuts texts in a way that GGUF has no name for: llama.cpp would misread prompts")


def _patterns(node: Any) -> list[str]:
    """The regular expressions of a tokenizer.json's `pre_tokenizer`, in order."""
    if isinstance(node, list):
        return [pattern for item in node for pattern in _patterns(item)]
    if not isinstance(node, dict):
        return []
    return [node["Regex"]] if "Regex" in node else _patterns(list(node.values()))


def _common(files: TokenizerFiles, data: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    for token, index in data["model"]["vocab"].items():
        tokens[index], types[index] = token, _NORMAL
    for added in data.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    common: dict[str, Any] = {"tokens": tokens, "token_type": types, "add_bos_token": files.add_bos}
    if files.bos_id is not None:
        common["bos_token_id"] = files.bos_id
    if files.eos_ids:
        common |= {"eos_token_id": files.eos_ids[0], "padding_token_id": files.eos_ids[0]}
    if files.chat_template is not None:
        common["chat_template"] = files.chat_template
    return common


def _sentencepiece(tokenizer: Any, model: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Scores in the order of the merges: SentencePiece joins the pair whose union has the best score."""
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(pairs):
        rank.setdefault(left + right, index)
    scores = [-float(rank.get(token, len(pairs))) for token in common["tokens"]]
    types = [
        _BYTE if kind == _NORMAL and len(token) == 6 and token.startswith("<0x") else kind
        for token, kind in zip(common["tokens"], common["token_type"], strict=True)
    ]
    own: dict[str, Any] = {"model": "llama", "pre": "default", "scores": scores, "token_type": types}
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = _UNKNOWN
        own["unknown_token_id"] = unknown
    # Whether a text is read as if a space stood before it shows in its first token.
    own["add_space_prefix"] = tokenizer.encode("a", add_special_tokens=False).tokens[:1] != ["a"]
    return own


def _agrees(candidate: dict[str, Any], tokenizer: Any, vocab_size: int) -> bool:
    from tokenizers import Tokenizer

    metadata = {_key(key): value for key, value in candidate.items()}
    written = Tokenizer.from_str(tokenizer_files(Path("tokenizer.json"), metadata, vocab_size).json)
    return all(
        written.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, add_special_tokens=False).ids
        for text in _SAMPLES
    )


def _key(key: str) -> str:
    return "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"


def _entry(key: str, value: Any) -> Entry:
    if isinstance(value, list):
        inner = {str: "STRING", int: "INT32", float: "FLOAT32"}[type(value[0])]
        return Entry(_key(key), value, "ARRAY", inner)
    return Entry(_key(key), value, {str: "STRING", bool: "BOOL", int: "UINT32"}[type(value)])
