"""`Signature`: a typed declaration of what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, dataclass_transform

from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import SchemaError

from ..errors import SignatureError
from .aliases import replace_aliases
from .bridge import DspyPrediction, DspySignature, SignatureMeta
from .fields import Input, Output
from .fieldset import scorings, special_fields
from .lowering import lower_type

__all__ = ["Input", "Output", "Signature", "check_signature", "with_instructions"]

NO_INSTRUCTIONS = " "
"""dspy fills in a default for an empty text, also where it edits the fields of a signature that has none."""

# dspy.Predict takes the first five out of the inputs of a call, and what it calls on the way has the others as parameters.
_RESERVED = frozenset({"signature", "new_signature", "demos", "config", "lm", "self", "instance", "completions"})


def with_instructions(signature: Any, instructions: str) -> Any:
    """The signature with these instructions, none where they are blank."""
    return signature.with_instructions(instructions if instructions.strip() else NO_INSTRUCTIONS)


def check_signature(signature: Any) -> None:
    """Raise `SignatureError` for fields that cannot work: reserved names, types without values or without a grammar."""
    for name in signature.input_fields:
        if name in _RESERVED:
            raise SignatureError(f"input {name!r} of {signature.__name__} is a name that calls need themselves: rename it")
    for name in signature.output_fields:
        if hasattr(DspyPrediction, name):
            what = "a method" if callable(getattr(DspyPrediction, name)) else "an attribute"
            raise SignatureError(
                f"output {name!r} of {signature.__name__} is the name of {what} of dspy.Prediction, which is what "
                f"answer.{name} would be: rename it ({name}_found, say)"
            )
    if signature.output_fields and not special_fields(signature):
        scorings(signature)


def _blame(namespace: dict[str, Any]) -> None:
    """Raise `SignatureError` for the field that cannot be: pydantic's own error does not name it."""
    for name, annotation in namespace.get("__annotations__", {}).items():
        field = namespace.get(name)
        if isinstance(field, FieldInfo) and not isinstance(annotation, str):
            lower_type(annotation, field.metadata, name)


class _Meta(SignatureMeta):  # type: ignore[misc]  # dspy ships no types
    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        try:
            signature = super().__new__(mcs, name, bases, namespace, **options)
        # An empty Literal fails an assertion, an e-mail address needs a package.
        except (SchemaError, PydanticUserError, AssertionError, ImportError) as error:
            _blame(namespace)
            raise SignatureError(f"signature {name}: pydantic refuses a field: {error}") from error
        # A class with names not defined yet is checked when it is lowered.
        if signature.__pydantic_complete__:
            replace_aliases(signature)
            check_signature(signature)
        return signature

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not Signature:
            return super().__call__(*args, **kwargs)
        signature = DspySignature(*args, **kwargs)
        check_signature(signature)
        return signature


if TYPE_CHECKING:
    from .executor import Completion

    @dataclass_transform(kw_only_default=True, field_specifiers=(Input, Output))
    class Signature:
        """Subclass it: the docstring is the instruction, the fields are `Input()` and `Output()`."""

        def __init__(self, signature: str, instructions: str | None = None) -> None: ...

        @property
        def reasoning(self) -> Any:
            """Of an answer by `ChainOfThought`; a signature may have a field of this name."""

        @property
        def probabilities(self) -> Mapping[str, Mapping[Any, float]]:
            """Of an answer: for each output that was scored, the probability of every value it may have."""

        @property
        def truncated(self) -> tuple[str, ...]:
            """Of an answer: the outputs whose text was cut off and brought to the shortest end their type allows."""

        @property
        def completion(self) -> Completion:
            """Of an answer: texts, scores and costs behind the values."""

else:

    class Signature(DspySignature, metaclass=_Meta):
        # dspy would take a docstring here for the instructions of every signature without one.
        """"""
