"""A model over bytes: the first rows of another model's vocabulary under a tokenizer of 256 bytes and an end token.

Drawing costs next to nothing, and text is full of bytes that are no whole character.
"""

from dataclasses import replace

from still.backends.models import Tokenizer
from still.backends.models.checkpoint import TokenizerFiles
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

END = 256


def byte_model(model):
    """`model` with all but the first 257 tokens cut off."""
    weights = dict(model.weights)
    for name in ("lm_head", "lm_head.q", "lm_head.scale"):
        if name in weights:
            weights[name] = weights[name][: END + 1].clone()
    spec = replace(model.spec, vocab_size=END + 1)
    return replace(model, name="bytes", spec=spec, weights=weights, tokenizer=byte_tokenizer())


def byte_tokenizer():
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(byte_letters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(TokenizerFiles(backend.to_str(), bos_id=None, add_bos=False, eos_ids=(END,), chat_template=None))


def byte_letters():
    """The letter that stands for each byte: itself where it is visible, else one from 256 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
