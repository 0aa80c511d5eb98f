"""DSPy's own state format: a compiled program written as `dspy.Module.save` writes one, and such a file read back.

A state is JSON: per predictor its instructions, a prefix and a description per field (by position, without names), its
demonstrations and its LM; for a program that is itself one predictor the same without the level of names. `metadata` holds
the versions it was written with.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..errors import ArtifactError, ConstraintError
from ..optimizers.balanced import balanced
from ..optimizers.candidate import Candidate, Demonstration, PredictorState, current_state
from ..optimizers.nearest import NearestDemonstrations
from ..signatures.bridge import LM, DspyPredict, Module, dependency_versions
from ..signatures.constraint import Constraint
from ..signatures.fieldset import constraints, special_fields
from ..signatures.knob import knob_values
from ..signatures.layout import is_complete


class Compiled(Protocol):
    """A compiled program with what was chosen for it: a `Result`."""

    @property
    def program(self) -> Module:
        """The program."""

    @property
    def winner(self) -> Candidate:
        """What was chosen."""


@dataclass(frozen=True, slots=True)
class DspyExport:
    """What `export_dspy` wrote."""

    path: Path
    lost: tuple[str, ...] = ()
    """A sentence for each thing of the compiled program that the file does not say."""


def export_dspy(compiled: Compiled | Module, path: str | Path, *, lossy: bool = False) -> DspyExport:
    """Write the state of a compiled program to `path` (.json), for `dspy_program.load(path)` of the same DSPy program.

    Instructions, descriptions and fixed demonstrations are written; those that the compiled program leaves out because they
    lack a field are not. The LM is written if it is a plain dspy.LM (never its key); a local one is for `dspy.configure`.

    DSPy's format has no demonstrations chosen per input, no scored outputs or calibrations, no knobs, and no adapters. A
    program that has any is refused, unless `lossy`: then the first of a pool, balanced by label, become fixed
    demonstrations, the rest is left out, and `lost` says so. A setting that the program's own class makes is counted too,
    though DSPy will have it.

    Raises `ArtifactError` for what cannot be said or written.
    """
    target = Path(path)
    if target.suffix != ".json":
        raise ArtifactError(f"{target}: DSPy reads states from .json files: give the path this ending")
    program, turned = (compiled, {}) if isinstance(compiled, Module) else (compiled.program, compiled.winner.knobs)
    lost = tuple(_losses(program, {**knob_values(program), **turned}))
    if lost and not lossy:
        listed = "".join(f"\n  {loss}" for loss in lost)
        raise ArtifactError(
            f"DSPy's state format cannot say:{listed}\nWrite the rest with lossy=True (still export --lossy)"
        )
    states = {name: _state(name, parameter) for name, parameter in program.named_parameters()}
    state = states["self"] if isinstance(program, DspyPredict) else states
    _write(target, {**state, "metadata": {"dependency_versions": dependency_versions()}})
    return DspyExport(target, lost)


def import_dspy(path: str | Path, program: Module) -> Module:
    """Return a copy of `program` in the state that DSPy saved to `path`; see `read_dspy`, also for errors."""
    return read_dspy(path, program).apply(program)


def read_dspy(path: str | Path, program: Module) -> Candidate:
    """Read a state that `dspy.Module.save` wrote (.json) as a candidate for `program`.

    Demonstrations keep what belongs to the predictor's fields; one without all fields is kept, and shown by plans no more
    than any other incomplete one. The LM in the file is not read: a file should not say where a program sends its inputs.

    Raises `ArtifactError`, naming predictor and field, for a state of another program or a value that is not of its type.
    """
    file = Path(path)
    state = _read(file)
    predictors = dict(program.named_predictors())
    if isinstance(program, DspyPredict):
        state = {"self": state}
    else:
        _check_names(file, state, program)
    return Candidate(
        file.stem, "dspy", {name: _predictor_state(file, name, p, state[name]) for name, p in predictors.items()}
    )


def _losses(program: Module, knobs: Mapping[str, Any]) -> Iterator[str]:
    for name, predictor in program.named_predictors():
        state = current_state(predictor)
        if state.nearest:
            yield (
                f"predictor {name!r}: the {state.nearest} demonstrations nearest to each input, of "
                f"{len(state.demonstrations)}; {state.nearest} fixed ones in their place"
            )
        for field, given in state.fields.items():
            settings = ", ".join(key if isinstance(value, dict) else f"{key}={value!r}" for key, value in given.items())
            yield f"predictor {name!r}, field {field!r}: {settings}"
        if state.adapter is not None:
            yield f"predictor {name!r}: the adapter that was trained for it; `still export --to peft` writes it"
    for path, value in sorted(knobs.items()):
        yield f"knob {path!r}: {value!r}"


def _state(name: str, parameter: Any) -> dict[str, Any]:
    if not isinstance(parameter, DspyPredict):
        try:
            state: dict[str, Any] = parameter.dump_state(json_mode=True)
        except Exception as error:  # a class of the user's
            raise ArtifactError(f"{name!r} ({type(parameter).__name__}) cannot be saved by DSPy: {error}") from error
        return state
    written = {
        "traces": [],
        "train": [],
        "demos": [_plain(name, i, demo) for i, demo in enumerate(_fixed(parameter))],
        "signature": parameter.signature.dump_state(),
        "lm": parameter.lm.dump_state() if type(parameter.lm) is LM else None,
    }
    return {**written, "fields": parameter.fields} if parameter.fields else written


def _fixed(predictor: Any) -> list[Demonstration]:
    """The demonstrations that a prompt of the predictor shows, or for a pool, as many balanced ones as a call is shown."""
    demos = predictor.demos
    shown = [dict(demo) for demo in demos]
    if not special_fields(predictor.signature):  # those go through DSPy's own format, which shows incomplete ones
        shown = [demo for demo in shown if is_complete(predictor.signature, demo)]
    if isinstance(demos, NearestDemonstrations):
        return balanced(shown, demos.count_per_input, list(predictor.signature.output_fields))
    return shown


def _plain(name: str, index: int, demonstration: Demonstration) -> dict[str, Any]:
    plain = {}
    for field, value in demonstration.items():
        try:
            plain[field] = to_jsonable_python(value)
            json.dumps(plain[field], allow_nan=False, ensure_ascii=False).encode()
        except (PydanticSerializationError, ValueError) as error:
            raise ArtifactError(
                f"predictor {name!r}, demonstration {index}, field {field!r}: {value!r:.80} has no JSON form ({error}): "
                "leave this demonstration out"
            ) from error
    return plain


def _write(target: Path, state: dict[str, Any]) -> None:
    content = json.dumps(state, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).chmod(0o644)  # mkstemp makes it private
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArtifactError(f"cannot write {target}: {error.strerror or error}") from error


def _read(file: Path) -> dict[str, Any]:
    if file.suffix != ".json":
        raise ArtifactError(f"{file}: states are read from .json files (pickle runs code): save it with .save('name.json')")
    try:
        state = json.loads(file.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"{file} is not JSON ({error}): save the DSPy program again") from error
    if not isinstance(state, dict):
        raise ArtifactError(f"{file} holds a {type(state).__name__}, not a state: save it with dspy_program.save(...)")
    return state


def _check_names(file: Path, state: Mapping[str, Any], program: Module) -> None:
    found = state.keys() - {"metadata"}
    if {"demos", "signature"} <= found and not isinstance(state["demos"], dict):
        raise ArtifactError(
            f"{file} is the state of a single predictor, {type(program).__name__} is a module: pass the predictor"
        )
    named = {name for name, _ in program.named_parameters()}
    for name in [name for name, _ in program.named_predictors()]:
        if name not in found:
            raise ArtifactError(f"predictor {name!r} is not in {file}, which has: {', '.join(sorted(found)) or 'none'}")
    for name in sorted(found - named):
        raise ArtifactError(f"predictor {name!r} of {file} is not in the program, which has: {', '.join(sorted(named))}")


def _predictor_state(file: Path, name: str, predictor: Any, state: Any) -> PredictorState:
    where = f"{file}, predictor {name!r}"
    if not isinstance(state, dict):
        raise ArtifactError(f"{where}: the state is a {type(state).__name__}: save it with DSPy 2.6 or later")
    if state.get("fields"):
        raise ArtifactError(
            f"{where}: decision settings of {', '.join(map(repr, state['fields']))} have no counterpart: remove 'fields'"
        )
    saved, demos = state.get("signature"), state.get("demos")
    if not isinstance(saved, dict) or not isinstance(saved.get("instructions"), str) or not isinstance(demos, list):
        raise ArtifactError(f"{where}: it has no signature or demos: save this program again, with DSPy 2.6 or later")
    signature = predictor.signature
    reader = {} if special_fields(signature) else constraints(signature)
    return PredictorState(
        tuple(_demonstration(f"{where}, demonstration {i}", signature, reader, demo) for i, demo in enumerate(demos)),
        instructions=saved["instructions"],
        fields=_descriptions(where, signature, saved.get("fields")),
    )


def _descriptions(where: str, signature: Any, saved: Any) -> dict[str, dict[str, Any]]:
    """Prefixes and descriptions that differ from the signature's. The file has no names: fields go by position."""
    names = list(signature.fields)
    if not isinstance(saved, list) or len(saved) != len(names):
        count = len(saved) if isinstance(saved, list) else "no"
        raise ArtifactError(f"{where}: it was saved with {count} fields, the program's has {len(names)}: {', '.join(names)}")
    changed = {}
    for name, given in zip(names, saved, strict=True):
        if not isinstance(given, dict) or not {"prefix", "description"} <= given.keys():
            raise ArtifactError(f"{where}, field {name!r}: it has no prefix and description: save the program again")
        now, then = signature.fields[name].json_schema_extra, {"prefix": given["prefix"], "desc": given["description"]}
        if different := {key: value for key, value in then.items() if value != now[key]}:
            changed[name] = different
    return changed


def _demonstration(where: str, signature: Any, reader: Mapping[str, Constraint], demo: Any) -> Demonstration:
    if not isinstance(demo, dict):
        raise ArtifactError(f"{where}: it is a {type(demo).__name__}: make it an object of field names and values")
    kept: Demonstration = {}
    for name, field in signature.fields.items():
        if name in demo:  # what is no field is dspy's own: `augmented`, ids of its data sets
            kept[name] = _by_alias(field, demo[name])
            if name in reader and kept[name] is not None:
                try:
                    reader[name].render(kept[name])
                except ConstraintError as error:
                    raise ArtifactError(f"{where}: {error}; correct it or leave the demonstration out") from error
    return kept


def _by_alias(field: Any, value: Any) -> Any:
    """A value with models' keys as prompts have them: dspy saves a model by its fields' names, not their aliases."""
    if not isinstance(value, dict | list):
        return value
    try:
        return to_jsonable_python(TypeAdapter(field.annotation).validate_python(value, by_alias=True, by_name=True))
    except (ValidationError, PydanticUserError):
        return value
