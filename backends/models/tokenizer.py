"""Text to token ids and back, and the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .checkpoint import TokenizerFiles

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer as Backend


class Tokenizer:
    """A `tokenizers.Tokenizer` and a sandboxed chat template. Safe to use from several threads.

    `encode` adds no token of its own; callers put `bos_id` first where `add_bos` says so.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        """Raises ModelError when the text is not a tokenizer.json."""
        from tokenizers import Tokenizer as Backend

        try:
            # Whether control tokens are text is a switch on the tokenizer: two of them, so that threads never flip it.
            self._special = Backend.from_str(files.json)
            self._plain = _twin(self._special) or Backend.from_str(files.json)
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"the tokenizer of the model is damaged: {error}") from error
        self._plain.encode_special_tokens = True
        for backend in (self._special, self._plain):
            backend.no_truncation()
            backend.no_padding()
        self._files = files
        self.eos_ids = frozenset(files.eos_ids)
        self.bos_id = files.bos_id
        self.add_bos = files.add_bos
        self.vocab_size = int(self._special.get_vocab_size(with_added_tokens=True))

    @property
    def json(self) -> str:
        """The text of the tokenizer.json."""
        return self._files.json

    @property
    def has_chat_template(self) -> bool:
        return self._files.chat_template is not None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text. Control tokens spelled in it become themselves only with `special=True`.

        Raises ModelError for text that is not Unicode (a lone surrogate).
        """
        backend = self._special if special else self._plain
        try:
            return list(backend.encode(text, add_special_tokens=False).ids)
        except TypeError as error:  # what tokenizers makes of a string that is not valid Unicode
            raise ModelError(f"text {text[:80]!r} contains a lone surrogate and cannot be tokenized; remove it") from error

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids, without control tokens by default; bytes that are no whole character become U+FFFD."""
        return str(self._special.decode(list(ids), skip_special_tokens=skip_special))

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The chat template's text for these messages, to be encoded with `special=True`.

        Raises ModelError when the model has no template, or the template refuses the messages.
        """
        import jinja2

        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                bos_token=self._text_of(self.bos_id),
                eos_token=self._text_of(self._files.eos_ids[0] if self._files.eos_ids else None),
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            roles = [message.get("role") for message in messages]
            raise ModelError(f"the model's chat template refuses messages with roles {roles}: {error}") from error

    @cached_property
    def _template(self) -> Template:
        if self._files.chat_template is None:
            raise ModelError("the model has no chat template; use an instruction-tuned model or write the prompt as text")
        template: Template = _environment().from_string(self._files.chat_template)
        return template

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else self._special.id_to_token(token) or ""


def _twin(backend: Backend) -> Backend | None:
    """A second tokenizer over the same vocabulary and merges, which need not be read again (a second for Gemma's).

    None when the added tokens do not come out as they are, so that the text has to be read after all.
    """
    twin = type(backend)(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(twin, part, value)
    added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
    for special, tokens in groupby(added, key=lambda token: token.special):
        (twin.add_special_tokens if special else twin.add_tokens)(list(tokens))
    return twin if _added(twin) == _added(backend) else None


def _added(backend: Backend) -> dict[int, str]:
    return {index: repr(token) for index, token in backend.get_added_tokens_decoder().items()}


def _environment() -> Any:
    """The dialect of chat templates, as transformers defines it (`utils/chat_template_utils.py`)."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _generation_tag() -> Any:
    """Templates may mark the assistant's words with `{% generation %}`, for training; rendering ignores the mark."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it an instance attribute

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
