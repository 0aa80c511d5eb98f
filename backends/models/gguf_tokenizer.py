"""The tokenizer a GGUF file describes, as the text of a `tokenizer.json`.

Both kinds of BPE are built here: transformers' own reader of GGUF (5.23) takes several seconds and cuts digits wrongly
for `smollm`. For the byte-level kind `tokenizer.ggml.pre` names how text is cut before merging.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ...errors import ModelError
from .checkpoint import END_MARKERS, TokenizerFiles

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_QWEN2 = _WORDS + r"|\p{N}" + _TAIL
_LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Each pattern cuts the pieces of the one before it. The patterns are those the models were trained with.
CUTS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "default": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "tekken": (_TEKKEN,),
}
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "tekken"}  # a word that is a token skips the merges
_ADD_BOS = {"llama-bpe", "llama3", "llama-v3", "tekken"}
_CONTROL, _USER_DEFINED = 3, 4


def tokenizer_files(path: Path, metadata: dict[str, Any], vocab_size: int) -> TokenizerFiles:
    """Build the tokenizer from the file's metadata; raises ModelError naming the key that is missing or impossible."""
    reader = _Vocabulary(path, metadata, vocab_size)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        text = reader.byte_level_json()
    elif kind == "llama":
        text = reader.sentencepiece_json()
    else:
        raise reader.wrong("tokenizer.ggml.model", f"is {kind!r}; supported: 'gpt2', 'llama'")
    return TokenizerFiles(text, reader.token_id("bos"), reader.adds_bos(), reader.end_ids(), reader.chat_template())


class _Vocabulary:
    def __init__(self, path: Path, metadata: dict[str, Any], vocab_size: int) -> None:
        self.path, self.metadata = path, metadata
        self.pre = metadata.get("tokenizer.ggml.pre", "default")
        self.tokens = self.strings("tokenizer.ggml.tokens")
        if not 0 < len(self.tokens) <= vocab_size:
            raise self.wrong("tokenizer.ggml.tokens", f"has {len(self.tokens)} entries for {vocab_size} embeddings")
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self.wrong("tokenizer.ggml.tokens", "names a token twice")
        self.types = metadata.get("tokenizer.ggml.token_type", [1] * len(self.tokens))
        if not isinstance(self.types, list) or len(self.types) != len(self.tokens):
            raise self.wrong("tokenizer.ggml.token_type", "does not have one entry per token")

    def byte_level_json(self) -> str:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

        if self.pre not in CUTS:
            raise self.wrong("tokenizer.ggml.pre", f"is {self.pre!r}; supported: {', '.join(CUTS)}")
        model = models.BPE(vocab=self.ids, merges=self.merges(), ignore_merges=self.pre in _WHOLE_WORDS)
        tokenizer = Tokenizer(model)
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[self.pre]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        typed = list(zip(self.tokens, self.types, strict=True))
        tokenizer.add_special_tokens(
            [AddedToken(t, normalized=False, special=True) for t, k in typed if k == _CONTROL and t]
        )
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == _USER_DEFINED and t])
        return str(tokenizer.to_str())

    def sentencepiece_json(self) -> str:
        from .gguf_sentencepiece import sentencepiece_tokenizer

        scores = self.metadata.get("tokenizer.ggml.scores")
        if not isinstance(scores, list) or len(scores) != len(self.tokens) or not all(map(_is_number, scores)):
            raise self.wrong("tokenizer.ggml.scores", "is missing or not a number per token")
        prefix = bool(self.metadata.get("tokenizer.ggml.add_space_prefix", True))
        return str(sentencepiece_tokenizer(self.tokens, scores, self.types, prefix).to_str())

    def merges(self) -> list[tuple[str, str]]:
        merges: list[tuple[str, str]] = []
        for line in self.strings("tokenizer.ggml.merges"):
            left, _, right = line.partition(" ")
            if left not in self.ids or right not in self.ids or left + right not in self.ids:
                raise self.wrong("tokenizer.ggml.merges", f"joins {line!r}, of which a part is not a token")
            merges.append((left, right))
        return merges

    def end_ids(self) -> tuple[int, ...]:
        named = [i for key in ("eos", "eot", "eom") if (i := self.token_id(key)) is not None]
        marked = [self.ids[t] for t in sorted(END_MARKERS & self.ids.keys()) if self.types[self.ids[t]] == _CONTROL]
        return tuple(dict.fromkeys(named + marked))

    def token_id(self, key: str) -> int | None:
        name = f"tokenizer.ggml.{key}_token_id"
        value = self.metadata.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self.wrong(name, f"is {value!r}, not the id of a token")
        return value

    def adds_bos(self) -> bool:
        default = self.metadata.get("tokenizer.ggml.model") == "llama" or self.pre in _ADD_BOS
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", default)) and self.token_id("bos") is not None

    def chat_template(self) -> str | None:
        template = self.metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise self.wrong("tokenizer.chat_template", f"is {json.dumps(template)[:80]}, not text")
        return template

    def strings(self, key: str) -> list[str]:
        value = self.metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "is missing or not a list of strings")
        return value

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.path}: metadata {key} {what}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
