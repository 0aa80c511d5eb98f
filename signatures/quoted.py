"""`Quoted`: text that is copied from an input, word for word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ..errors import ConstraintError, SignatureError
from .values import value_text

KEY = "x-quoted"
"""Where a JSON schema of a string names the input."""
KEYS = "x-quoted-keys"
"""Where that of an object names the input that its keys are copied from."""
LONGEST = 40
"""A quote has at most so many words and signs: the pattern has all that begin at each of them."""
_PIECE = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Quoted:
    """Metadata of a `str`, of an output or anywhere inside one (the keys of a dict too): the value is a run of words of the
    input of this name.

        place: Annotated[str, still.Quoted("message")] | None = still.Output()

    Inside a model it comes after other metadata, so that pydantic sees those.
    White space counts as one space, up to `LONGEST` words and punctuation marks make a quote, and none begins or ends inside
    a word. While a local model writes, the grammar lets nothing else pass; what a server says is checked, and asked for
    again.
    """

    input: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        inner = handler(source)
        if inner["type"] != "str":
            raise SignatureError(f"Quoted({self.input!r}) is on {source!r}: only a str can be quoted")
        return core_schema.with_info_after_validator_function(self._checked, inner)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), KEY: self.input}

    def _checked(self, value: str, info: core_schema.ValidationInfo) -> str:
        """Where the call's inputs are known, `context` has them."""
        source = (info.context or {}).get(self.input)
        if source is not None and not _is_quote(" ".join(value.split()), source):
            raise PydanticCustomError("quoted", "is no quote from {input}", {"input": self.input})
        return value


def _is_quote(value: str, source: str) -> bool:
    """Whether it is in the source, and ends there where words do."""
    left, right = (r"\b" if re.match(r"\w", end) else "" for end in (value[:1], value[-1:]))
    return bool(value) and re.search(f"{left}{re.escape(value)}{right}", source) is not None


def quoted_text(inputs: Mapping[str, Any], name: str, field: str) -> str:
    """What of an input can be quoted: its text as the prompt has it, white space as one space.

    Raises `SignatureError` for an input that is missing, `ConstraintError` for one without a word.
    """
    if name not in inputs:
        raise SignatureError(f"field {field!r} quotes {name!r}, which is not among the inputs: {', '.join(inputs)}")
    text = " ".join(value_text(inputs[name], name).split())
    if not _PIECE.search(text):
        raise ConstraintError(f"field {field!r} quotes {name!r}, which is {inputs[name]!r}: there is no word to quote")
    return text


@lru_cache(maxsize=256)
def quote_pattern(text: str) -> str:
    """A regex of all quotes from a text. One nested group for each place where a quote may begin: what llguidance is given
    grows with the text (150 KB and 75 ms for 600 words), the automaton only as far as a model writes."""
    pieces = list(_PIECE.finditer(text))
    return "(?:" + "|".join(dict.fromkeys(_quotes_at(text, pieces, i) for i in range(len(pieces)))) + ")"


def _quotes_at(text: str, pieces: list[re.Match[str]], first: int) -> str:
    found = ""
    for i in range(min(first + LONGEST, len(pieces)) - 1, first - 1, -1):
        gap = " " if i > first and text[pieces[i].start() - 1] == " " else ""
        found = f"{gap}{_escaped(pieces[i][0])}" + (f"(?:{found})?" if found else "")
    return found


def _escaped(piece: str) -> str:
    return piece if piece.replace("_", "a").isalnum() else "".join(f"\\x{{{ord(sign):x}}}" for sign in piece)


def quoted_inputs(schema: Any) -> Iterator[str]:
    """Inputs that a JSON schema's strings are quotes of."""
    if isinstance(schema, list):
        for part in schema:
            yield from quoted_inputs(part)
    elif isinstance(schema, dict):
        for key in (KEY, KEYS):
            if isinstance(name := schema.get(key), str):  # a property may have that name
                yield name
        for part in schema.values():
            yield from quoted_inputs(part)


def with_quotes(schema: Any, sources: Mapping[str, str]) -> Any:
    """The schema with quotes as patterns; a string's own pattern must match too. That of a key is left to pydantic."""
    if isinstance(schema, list):
        return [with_quotes(part, sources) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: with_quotes(part, sources) for key, part in schema.items()}
    if isinstance(name := schema.get(KEYS), str):
        del found[KEYS]
        (values,) = found["patternProperties"].values()
        return {**found, "patternProperties": {f"^{quote_pattern(sources[name])}$": values}}
    if not isinstance(name := schema.get(KEY), str):
        return found
    del found[KEY]
    own = [{"type": "string", "pattern": found["pattern"]}] if "pattern" in found else []
    return {**found, "pattern": f"^{quote_pattern(sources[name])}$", **({"allOf": own} if own else {})}
