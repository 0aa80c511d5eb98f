"""The Modelfile with which Ollama takes a GGUF file in (docs.ollama.com/modelfile)."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ArtifactError
from ..models.tokenizer import Tokenizer
from .chat_family import Message, chat_family

BARE = "{{ .Prompt }}"
"""TEMPLATE of a model without a chat template: it goes on from the text it is given."""


def modelfile(
    tokenizer: Tokenizer,
    weights: str,
    *,
    system: str | None = None,
    messages: Sequence[Message] = (),
    temperature: float = 0.0,
    comments: Sequence[str] = (),
) -> str:
    """The text. weights: the GGUF file's path as FROM has it. system: instead of what the chat template says by itself.
    messages: a conversation that goes before every other one (demonstrations).

    Raises ArtifactError for a chat template of no known family, and for texts that a Modelfile cannot quote.
    """
    lines = [f"# {' '.join(comment.split())}" for comment in comments]
    lines.append(f"FROM {weights}")
    template = BARE
    stops: tuple[str, ...] = ()
    if tokenizer.has_chat_template:
        family, default = chat_family(tokenizer)
        template, stops = family.go_template(), family.stops
        system = default if system is None else system
        if system and not family.takes_system:
            raise ArtifactError(f"the model's chat template ({family.name}) takes no system message: export as gguf")
    lines.append(f"TEMPLATE {_quoted(template)}")
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"MESSAGE {role} {_quoted(content)}" for role, content in messages]
    lines.append(f"PARAMETER temperature {temperature:g}")
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    bare = text == text.strip() and len(text.splitlines()) == 1 and not text.startswith('"')
    if text.endswith('"') and bare:
        return text  # three quotes would end one too early, and a line needs none
    if '"""' in text or text.endswith('"'):
        raise ArtifactError(f'a Modelfile cannot hold a text with """ in it or a quote at its end: {text[-60:]!r}')
    return f'"""{text}"""'
