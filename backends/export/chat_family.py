"""Families of chat templates: told apart by what a template renders, and written again as Go templates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ...errors import ArtifactError, ModelError
from ..models.tokenizer import Tokenizer

Message = tuple[str, str]
"""Role and content."""
_SYSTEM, _USER, _ANSWER, _AGAIN = "Be brief.", "What is 2 + 2?", "It is 4.", "And 3 + 3?"
_PROBES: tuple[tuple[Message, ...], ...] = (
    (("user", _USER),),
    (("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)),
    (("system", _SYSTEM), ("user", _USER)),
    (("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)),
)


@dataclass(frozen=True)
class ChatFamily:
    """What stands before and after each role's content. system None: it stands, and an empty line, before the first
    user's words; takes_system False: the template refuses one."""

    name: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] | None
    generation: str
    stops: tuple[str, ...]
    takes_system: bool = True

    def render(self, messages: tuple[Message, ...]) -> str:
        """The text of a conversation up to where the assistant answers, without a token that begins it."""
        around = {"user": self.user, "assistant": self.assistant}
        if self.system is not None:
            around["system"] = self.system
        elif messages[0][0] == "system":
            first = messages[1][1]
            messages = (("user", f"{messages[0][1]}\n\n{first}"), *messages[2:])
        return "".join(around[role][0] + content + around[role][1] for role, content in messages) + self.generation

    def go_template(self) -> str:
        """The same as Ollama reads it: Go's text/template over `.Messages`."""
        content = "{{ .Content }}"
        system = "" if self.system is None else _branch("if", "system", self.system, content)
        first = "" if self.system is not None else "{{ if and $.System (eq $i 1) }}{{ $.System }}\n\n{{ end }}"
        user = _branch("else if" if system else "if", "user", self.user, first + content)
        assistant = _branch("else if", "assistant", self.assistant, content)
        return f"{{{{ range $i, $_ := .Messages }}}}{system}{user}{assistant}{{{{ end }}}}{{{{ end }}}}{self.generation}"


def _branch(word: str, role: str, around: tuple[str, str], content: str) -> str:
    return f'{{{{ {word} eq .Role "{role}" }}}}{around[0]}{content}{around[1]}'


def _headed(role: str) -> tuple[str, str]:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"


def _marked(role: str, end: str) -> tuple[str, str]:
    return f"<|{role}|>\n", f"{end}\n"


def _zephyr(name: str, end: str) -> ChatFamily:
    mark = partial(_marked, end=end)
    turns = mark("user"), mark("assistant"), mark("system")
    return ChatFamily(name, *turns, "<|assistant|>\n", (end, "<|user|>"))


def _mistral(name: str, user: tuple[str, str], assistant: tuple[str, str]) -> ChatFamily:
    return ChatFamily(name, user, assistant, None, "", ("</s>", "[INST]"), takes_system=False)


_CHATML = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("user", "assistant", "system")}
FAMILIES = (
    ChatFamily(
        "chatml", _CHATML["user"], _CHATML["assistant"], _CHATML["system"], "<|im_start|>assistant\n",
        ("<|im_end|>", "<|im_start|>"),
    ),
    ChatFamily(
        "llama3", _headed("user"), _headed("assistant"), _headed("system"), _headed("assistant")[0],
        ("<|eot_id|>", "<|start_header_id|>"),
    ),
    ChatFamily(
        "gemma", ("<start_of_turn>user\n", "<end_of_turn>\n"), ("<start_of_turn>model\n", "<end_of_turn>\n"), None,
        "<start_of_turn>model\n", ("<end_of_turn>", "<start_of_turn>"),
    ),
    _zephyr("zephyr", "</s>"),
    _zephyr("phi3", "<|end|>"),
    _mistral("mistral", ("[INST] ", " [/INST]"), (" ", "</s>")),
    _mistral("mistral-v3", ("[INST] ", "[/INST]"), (" ", "</s>")),
)  # fmt: skip


def chat_family(tokenizer: Tokenizer) -> tuple[ChatFamily, str | None]:
    """The family of a model's chat template, and the system message that the template adds where there is none.

    Raises ArtifactError for a template that renders conversations as no known family does.
    """
    texts = [_rendered(tokenizer, probe) for probe in _PROBES]
    for family in FAMILIES:
        default = _default_system(family, texts[0])
        if all(_explains(family, default, probe, text) for probe, text in zip(_PROBES, texts, strict=True)):
            return family, default
    known = ", ".join(family.name for family in FAMILIES)
    raise ArtifactError(
        f"the model's chat template is of no family that can be written as a Go template ({known}): export as gguf and "
        "write the Modelfile's TEMPLATE by hand"
    )


def _rendered(tokenizer: Tokenizer, messages: tuple[Message, ...]) -> str | None:
    try:
        text = tokenizer.render([{"role": role, "content": content} for role, content in messages], True)
    except ModelError:
        return None  # it refuses these roles
    begins = "" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id], skip_special=False)
    # llama.cpp puts the token that begins a text itself, where the model wants one.
    return text.removeprefix(begins) if tokenizer.add_bos else text


def _default_system(family: ChatFamily, text: str | None) -> str | None:
    """What is said as the system's words in a conversation that has none, by the family's own form."""
    if text is None or family.system is None:
        return None
    plain, (before, after) = family.render(_PROBES[0]), family.system
    if text == plain or not text.startswith(before) or not text.endswith(after + plain):
        return None
    return text[len(before) : len(text) - len(after + plain)]


def _explains(family: ChatFamily, default: str | None, probe: tuple[Message, ...], text: str | None) -> bool:
    has_system = probe[0][0] == "system"
    if text is None:
        return has_system and not family.takes_system
    if default is not None and not has_system:
        probe = (("system", default), *probe)
    return family.render(probe) == text
