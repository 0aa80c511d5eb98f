"""The text of a plan's outputs, piece by piece, from the steps of an engine's stream."""

from __future__ import annotations

from itertools import pairwise

from ..signatures.executor import Piece
from ..signatures.plan import Decode, Part, Plan, Text


def _text(part: Part) -> str:
    text = part.text if isinstance(part, Text) else ""
    return text.lstrip() if text.startswith(" {") else text


class FieldText:
    """Turns a step's text into what a reader should see: without the space before a value and the newline after it."""

    def __init__(self, plan: Plan, steps: tuple[object, ...], attempt: int) -> None:
        from .engine import Forced

        # The plan's markers are steps too, or the end of the prompt: outputs are the steps that are not forced.
        places = [i for i, step in enumerate(steps) if not isinstance(step, Forced)]
        self._parts: dict[int, Decode] = dict(zip(places, plan.decodes, strict=True))
        parts = plan.turns[-1].parts
        # A member's key stands before it, and belongs to the field.
        self._keys = {id(part): _text(before) for before, part in pairwise(parts) if isinstance(part, Decode) and part.path}
        self._attempt = attempt
        self._step = -1
        self._text = ""
        self._given = 0

    def take(self, step: int, text: str) -> Piece | None:
        """The piece to show for more text of a step; None if there is nothing to show yet."""
        if step != self._step:
            self._step, self._text, self._given = step, "", 0
        part = self._parts[step]
        self._text += text
        # White space at the end may be the last of the value, and no part of it.
        if part.path:
            shown = self._keys[id(part)] + self._text.rstrip()
        else:
            shown = part.constraint.shown(self._text.removeprefix(" ").rstrip())
        piece, self._given = shown[self._given :], max(self._given, len(shown))
        return Piece(part.field, piece, self._attempt) if piece else None
