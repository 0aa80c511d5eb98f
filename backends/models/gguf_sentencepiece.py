"""A SentencePiece BPE vocabulary, as GGUF holds it, as a `tokenizers.Tokenizer`.

SentencePiece joins, again and again, the neighbours whose union has the best score, the leftmost first. `tokenizers`
joins by a ranked list of pairs instead, which has to be recovered from the scores: within a token, whatever surrounds
it, the joins run as they do in the token alone, so each token is made by one pair, the last one of its own encoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


def sentencepiece_tokenizer(tokens: list[str], scores: list[float], types: list[int], prefix: bool) -> Tokenizer:
    """The tokenizer; `prefix`: whether a text is read as if a space stood before it.

    Texts are cut at user-defined and control tokens first, which are spelled as in a text, spaces and all.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    ids = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    merges = recovered_merges(tokens, scores, types)
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    joined = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    tokenizer.decoder = decoders.Sequence(joined)
    typed = [(token, kind) for token, kind in zip(tokens, types, strict=True) if token]
    special = [AddedToken(token, normalized=False, special=True) for token, kind in typed if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in typed if kind == _USER_DEFINED])
    return tokenizer


def recovered_merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """The pair that makes each token that can be made, best score first."""
    normal = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == _NORMAL}
    found = [(token, pair) for token in normal if (pair := _last_pair(token, normal)) is not None]
    found.sort(key=lambda entry: -normal[entry[0]])
    return [pair for _, pair in found]


def _last_pair(token: str, scores: dict[str, float]) -> tuple[str, str] | None:
    """The two pieces that are left of a token before the join that completes it; None when joins end otherwise."""
    pieces = list(token)
    while len(pieces) > 2:
        best, at = None, -1
        for i in range(len(pieces) - 1):
            score = scores.get(pieces[i] + pieces[i + 1])
            if score is not None and (best is None or score > best):
                best, at = score, i
        if best is None:
            return None
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return (pieces[0], pieces[1]) if len(pieces) == 2 and all(piece in scores for piece in pieces) else None
