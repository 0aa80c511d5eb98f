"""What text a value may have: the base of all constraints."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as member
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import ConstraintError


@dataclass(frozen=True)
class Constraint(ABC):
    """Says exactly how the value of one output field is written, and reads it back.

    The grammar lets pass only texts that `parse` accepts, up to what no grammar can say (a validator written in Python,
    the number of distinct items in a set, bounds of a date): those `parse` refuses. Nothing outside `annotation` is
    ever returned.
    """

    field: str
    annotation: Any = member(hash=False)
    """The declared type with its bounds, as `Annotated[...]`; pydantic validates against it."""

    @abstractmethod
    def rules(self, name: str) -> str:
        """llguidance Lark text defining the rule `name`, which matches a value's text; helpers are named after it."""

    @abstractmethod
    def describe(self) -> str:
        """The constraint in words, for prompts: "one of: a, b", "integer from 1 to 5", "text"."""

    @abstractmethod
    def _write(self, value: Any) -> str:
        """Text of a value that has been validated."""

    @abstractmethod
    def _read(self, text: str) -> Any:
        """Value of a text, validated once. Raises `ValueError` (pydantic's is one) when it is none."""

    @property
    def options(self) -> tuple[str, ...] | None:
        """The texts of a closed set, else None."""
        return None

    @property
    def option_values(self) -> tuple[Any, ...]:
        """Its values, in the same order, as the type declares them: validators of the user's have not seen them."""
        return ()

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Enough tokens for any text the grammar accepts, or a budget where that is unbounded."""

    @property
    def quoted(self) -> frozenset[str]:
        """Names of the inputs that the value has to be copied from."""
        return frozenset()

    @property
    def context(self) -> dict[str, str]:
        """What pydantic's validators are told: texts of the inputs that are quoted, where this is of one call."""
        return {}

    def bound(self, inputs: Mapping[str, Any]) -> Constraint:
        """The constraint of one call, where what a value may be depends on the inputs."""
        return self

    def shown(self, text: str) -> str:
        """What a reader sees of the beginning of a value's text, while it is written."""
        return text

    def validate(self, value: Any) -> Any:
        """Return a Python value as the declared type, converted where pydantic converts it.

        Raises `ConstraintError` naming field, value and expectation.
        """
        try:
            return self._adapter.validate_python(value, context=self.context)
        except ValidationError as error:
            raise self._refuse(repr(value), _first(error)) from None
        except Exception as error:  # a validator of the user's: pydantic lets all but ValueError and AssertionError pass
            raise self._refuse(repr(value), f"its validator raised {type(error).__name__}: {error}") from error

    def checked(self, value: Any) -> Any:
        """A value of the type, unless this call refuses it: then `ConstraintError` is raised."""
        return value

    def coerce(self, value: Any) -> Any:
        """`validate`, or for a string that is no value itself, `parse`: data files know only strings."""
        try:
            return self.validate(value)
        except ConstraintError:
            if not isinstance(value, str):
                raise
            return self.parse(value)

    def render(self, value: Any) -> str:
        """Text of a value; `parse` is the inverse. Raises `ConstraintError` for a value that is not of the type."""
        return self._write(self.coerce(value))

    def parse(self, text: str) -> Any:
        """Value of a text. Raises `ConstraintError` naming field, text and expectation."""
        try:
            return self._read(text)
        except ConstraintError:  # it says so itself
            raise
        except ValidationError as error:
            raise self._refuse(repr(text), _first(error)) from None
        except ValueError as error:
            raise self._refuse(repr(text), str(error)) from None
        except Exception as error:
            raise self._refuse(repr(text), f"its validator raised {type(error).__name__}: {error}") from error

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)

    def _refuse(self, what: str, why: str) -> ConstraintError:
        what = what if len(what) <= 200 else what[:200] + "…"
        detail = f" ({why})" if why else ""
        return ConstraintError(f"field {self.field!r}: {what} is not valid{detail}; expected {self.describe()}")


def literal(text: str) -> str:
    """`text` as a Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(step) for step in detail["loc"])
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])
