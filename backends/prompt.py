"""Chat messages to token ids, such that text in a message can never become a control token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from .models import Tokenizer

_MARK = "\ue000{}\ue001"  # private-use characters: they survive any template and are never looked at by one
_MARKS = re.compile("\ue000(\\d+)\ue001")


class Prompter:
    """Renders messages through the model's own chat template. Thread-safe.

    The template is rendered with marks in place of the contents; its own text is tokenized with control tokens, each
    content without. Contents keep their token ids from call to call, so demonstrations are tokenized once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = lru_cache(maxsize=1024)(lambda text: tuple(tokenizer.encode(text, special=True)))
        self.encode = lru_cache(maxsize=8192)(lambda text: tuple(tokenizer.encode(text)))
        self.decode = tokenizer.decode

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of (role, content) messages up to where the assistant's answer begins.

        A model without a chat template gets the contents as paragraphs.
        """
        tokens: list[int] = []
        tokenizer = self._tokenizer
        if not tokenizer.has_chat_template:
            if tokenizer.add_bos and tokenizer.bos_id is not None:
                tokens.append(tokenizer.bos_id)
            for _, content in messages:
                tokens.extend(self.encode(content + "\n\n"))
            return tokens
        marked = [{"role": role, "content": _MARK.format(i)} for i, (role, _) in enumerate(messages)]
        # Splitting on a pattern with a group yields template text and mark numbers in turn.
        for i, piece in enumerate(_MARKS.split(tokenizer.render(marked, add_generation_prompt=True))):
            tokens.extend(self.encode(messages[int(piece)][1]) if i % 2 else self._control(piece))
        return tokens
