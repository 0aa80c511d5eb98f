"""A program's shape as data: its class, its predictors, their fields. Written to artifacts and compared on load."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import TypeAdapter

from ..errors import ArtifactError
from ..signatures.bridge import DspyChainOfThought, DspyPredict, DspySignature, InputField, Module, OutputField
from ..signatures.predict import ChainOfThought, Predict
from .identity import resources
from .schema_types import type_from_schema


def describe(program: Module) -> dict[str, Any]:
    """Return kind, class path and the schema of every predictor."""
    kind = (
        "predict" if isinstance(program, DspyPredict)
        else "chain_of_thought" if isinstance(program, DspyChainOfThought)
        else "module"
    )  # fmt: skip
    return {
        "kind": kind,
        "module": type(program).__module__,
        "class": type(program).__qualname__,
        "predictors": {name: _predictor(predictor) for name, predictor in program.named_predictors()},
    }


def rebuild(description: dict[str, Any]) -> Module:
    """Make a single predictor from its schema. Raises `ArtifactError` for a program that needs its class."""
    if description["kind"] == "module":
        raise ArtifactError(
            f"the program is a {description['module']}.{description['class']}: pass an instance, "
            "still.load(path, program=...), or allow importing it with allow_import=True"
        )
    (predictor,) = description["predictors"].values()
    fields = {
        field["name"]: (
            type_from_schema(field["schema"], field["name"]),
            InputField(desc=field["desc"]) if field["role"] == "input" else OutputField(desc=field["desc"]),
        )
        for field in predictor["fields"]
    }
    signature = DspySignature(fields, predictor["instructions"], predictor["signature"])
    if description["kind"] == "predict":
        return Predict(signature, **predictor["config"])
    program = ChainOfThought(signature.delete("reasoning"), **predictor["config"])
    program.predict.signature = signature
    return program


def import_program(description: dict[str, Any]) -> Module:
    """Import the program's class and make an instance without arguments: runs the user's code."""
    path = f"{description['module']}.{description['class']}"
    try:
        found: Any = importlib.import_module(description["module"])
        for part in description["class"].split("."):
            found = getattr(found, part)
        program = found()
    except Exception as error:
        raise ArtifactError(f"cannot make the program {path}: {error}; pass an instance as program=") from error
    if not isinstance(program, Module):
        raise ArtifactError(f"{path} is not a module: pass an instance as program=")
    return program


def check_same(expected: dict[str, Any], program: Module) -> None:
    """Raise `ArtifactError`, naming predictor and field, unless `program` has the shape that was saved."""
    if not isinstance(program, Module):
        raise ArtifactError(f"program={program!r} is not a module: pass an instance, as in program=MyProgram()")
    actual = describe(program)["predictors"]
    saved = expected["predictors"]
    if set(saved) != set(actual):
        raise ArtifactError(f"the program has predictors {sorted(actual)}, the artifact was saved with {sorted(saved)}")
    for name, predictor in saved.items():
        ours = {field["name"]: field for field in actual[name]["fields"]}
        theirs = {field["name"]: field for field in predictor["fields"]}
        for field in [*theirs, *(set(ours) - set(theirs))]:
            mine, saved_field = ours.get(field), theirs.get(field)
            if mine is None or saved_field is None:
                has, lacks = ("artifact", "program") if mine is None else ("program", "artifact")
                raise ArtifactError(f"predictor {name!r}: field {field!r} is in the {has}, not in the {lacks}: recompile")
            _check_field(f"predictor {name!r}, field {field!r}", mine, saved_field)


def _check_field(where: str, ours: dict[str, Any], saved: dict[str, Any]) -> None:
    for key in ("role", "schema"):
        if ours[key] != saved[key]:
            raise ArtifactError(f"{where}: {key} is {ours[key]}, the artifact was compiled for {saved[key]}: recompile")
    # The artifact's states do not hold descriptions: those of the program go into the prompts.
    if ours["desc"] != saved["desc"]:
        raise ArtifactError(
            f"{where}: its description is {ours['desc']!r:.80}, the artifact was compiled with {saved['desc']!r:.80}: pass "
            "a program with that one (if it is from a state of DSPy, still.import_dspy of the same file), or recompile"
        )


def check_resources(expected: dict[str, dict[str, str]], program: Module) -> None:
    """Raise `ArtifactError`, naming module and resource, unless the program reads what it read when it was compiled."""
    found = resources(program)
    for path, digests in expected.items():
        for name, digest in digests.items():
            ours = found.get(path, {}).get(name)
            if ours != digest:
                raise ArtifactError(
                    f"module {path or 'the program'!r}: its {name} is {_short(ours)}, the artifact was compiled with "
                    f"{_short(digest)}: pass a program with that {name}, or compile again"
                )


def _short(digest: str | None) -> str:
    return "missing" if digest is None else f"{digest[:12]}…" if len(digest) == 64 else repr(digest)


def _predictor(predictor: Any) -> dict[str, Any]:
    signature = predictor.signature
    fields = [
        {
            "name": name,
            "role": "input" if name in signature.input_fields else "output",
            "desc": info.json_schema_extra["desc"],
            "schema": TypeAdapter(info.rebuild_annotation()).json_schema(),
        }
        for name, info in signature.fields.items()
    ]
    return {
        "signature": signature.__name__,
        "instructions": signature.instructions,
        # Trained weights are part of the state.
        "config": {name: value for name, value in predictor.config.items() if name != "adapter"},
        "fields": fields,
    }
