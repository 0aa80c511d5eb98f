"""Knobs: values of a module that the compiler may choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from ..errors import SignatureError

T = TypeVar("T")

_STORE = "_knobs"
"""Where an instance keeps the values that were set, by name."""

CHOICES = "_knob_choices"
"""Where an instance keeps what the compiler may choose from, by name, if it is less than the knob has."""

Plain = str | int | float | bool | None


class Knob(Generic[T]):
    """Declares a knob as a class attribute; on an instance it is its value.

        class Search(still.Module):
            k = still.Knob(choices=(2, 4, 8), default=4)

            def forward(self, question):
                return self.answer(passages=self.find(question, self.k), question=question)

    choices: plain values (text, numbers, true and false, None). range: (lowest, highest), both included; of two ints, all
    whole numbers between. default: the first choice, or the lowest value. Raises `SignatureError` for what is none of these.
    """

    @overload
    def __init__(self, *, choices: Sequence[T], default: T | None = None) -> None: ...
    @overload
    def __init__(self, *, range: tuple[T, T], default: T | None = None) -> None: ...
    def __init__(
        self, *, choices: Sequence[T] | None = None, range: tuple[T, T] | None = None, default: T | None = None
    ) -> None:
        self.name = "?"
        if (choices is None) == (range is None):
            raise SignatureError("a knob has either choices=(...) or range=(lowest, highest)")
        if choices is not None and (not choices or any(not isinstance(choice, Plain) for choice in choices)):
            raise SignatureError(f"knob choices {choices!r}: give at least one text, number, bool or None")
        if range is not None and not _is_range(range):
            raise SignatureError(f"knob range {range!r}: give two numbers, the lower first")
        self.choices = None if choices is None else tuple(choices)
        self.range = range
        first: Any = self.choices[0] if self.choices is not None else range[0] if range is not None else None
        self.default: T = first if default is None else default
        self.check(self.default)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = instance.__dict__.get(_STORE, {}).get(self.name, self.default)
        return value

    def __set__(self, instance: object, value: T) -> None:
        self.check(value)
        # A new dict: copies of a module share the old one.
        instance.__dict__[_STORE] = {**instance.__dict__.get(_STORE, {}), self.name: value}

    def check(self, value: Any) -> None:
        """Raise `SignatureError` for a value that the knob does not have."""
        if self.choices is not None:
            if not any(type(choice) is type(value) and choice == value for choice in self.choices):
                raise SignatureError(f"knob {self.name!r}: {value!r} is none of {', '.join(map(repr, self.choices))}")
            return
        low, high = self._bounds
        whole = isinstance(low, int) and isinstance(high, int)
        kind = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            what = "whole number" if whole else "number"
            raise SignatureError(f"knob {self.name!r}: {value!r} is no {what} from {low} to {high}")

    @property
    def _bounds(self) -> Any:
        return self.range


def _is_range(bounds: Any) -> bool:
    numbers = len(bounds) == 2 and all(isinstance(b, int | float) and not isinstance(b, bool) for b in bounds)
    return bool(numbers and bounds[0] <= bounds[1])


def named_knobs(program: Any) -> Iterator[tuple[str, Any, Knob[Any]]]:
    """Every knob of a program and its sub-modules: (path such as "finder.k", the module that has it, the knob)."""
    for path, module in program.named_sub_modules():
        prefix = path.removeprefix("self").removeprefix(".")
        for name in dir(type(module)):
            knob = getattr(type(module), name, None)
            if isinstance(knob, Knob):
                yield f"{prefix}.{name}".removeprefix("."), module, _offered(knob, module)


def offer(module: Any, name: str, choices: Sequence[Any]) -> None:
    """Let the compiler choose a knob of this instance from these values only; from none: it stays as it is.

    Raises `SignatureError` for a knob the module does not have, or a value the knob does not have.
    """
    knob = getattr(type(module), name, None)
    if not isinstance(knob, Knob):
        raise SignatureError(f"knob {name!r} is not one of {type(module).__name__}")
    for choice in choices:
        knob.check(choice)
    module.__dict__[CHOICES] = {**module.__dict__.get(CHOICES, {}), name: tuple(dict.fromkeys(choices))}


def _offered(knob: Knob[Any], module: Any) -> Knob[Any]:
    """The knob with what this instance offers of it. Its default stays that of the class."""
    choices = module.__dict__.get(CHOICES, {}).get(knob.name)
    if choices is None:
        return knob
    # What the program has is there too, or nothing could be compared with the program as it is.
    made: Knob[Any] = Knob(choices=tuple(dict.fromkeys((*choices, getattr(module, knob.name)))))
    made.name, made.default = knob.name, knob.default
    return made


def knob_values(program: Any) -> dict[str, Plain]:
    """The values of all knobs that are not at their default, by path."""
    values = {path: getattr(module, knob.name) for path, module, knob in named_knobs(program)}
    defaults = {path: knob.default for path, _, knob in named_knobs(program)}
    return {path: value for path, value in values.items() if value != defaults[path]}


def set_knobs(program: Any, values: dict[str, Any]) -> None:
    """Set knobs by path, in place. Raises `SignatureError` for an unknown path or a value it does not have."""
    known = {path: (module, knob) for path, module, knob in named_knobs(program)}
    for path, value in values.items():
        if path not in known:
            raise SignatureError(f"knob {path!r} is not in the program, which has: {', '.join(sorted(known)) or 'none'}")
        module, knob = known[path]
        setattr(module, knob.name, value)
