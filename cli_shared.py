"""What the commands share: the console, and how arguments name programs, files and values."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from .errors import DatasetError, StillError

# On a pipe rich assumes 80 columns and folds tables: whoever reads a file or greps wants whole lines.
# Texts of programs, data and models are printed as they are: what looks like markup or an emoji is none.
output = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def named(path: str) -> Any:
    """Import NAME from FILE.py. Runs the file: the user named it."""
    file, _, name = path.rpartition(":")
    if not Path(file).is_file():
        raise StillError(f"{path!r}: there is no file {file!r}; write FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic and pickle-free artifacts look classes up by module
    sys.path.insert(0, str(Path(file).resolve().parent))
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise StillError(f"{file} defines no {name!r}")
    return getattr(module, name)


def named_program(path: str) -> Any:
    from .signatures.bridge import Module

    found = named(path)
    program = found() if callable(found) and not isinstance(found, Module) else found
    if not isinstance(program, Module):
        raise StillError(f"{path} is a {type(program).__name__}: name a module, a module class, or a function making one")
    return program


def input_names(program: Any) -> set[str]:
    """What a call takes: the inputs of a predictor's signature, or the parameters of a module's `forward` (`aforward`); only
    where that takes any (`**inputs`) those of its predictors too: what one step tells the next may be a label."""
    from .signatures.bridge import DspyChainOfThought, DspyPredict

    fields = {name for _, predictor in program.named_predictors() for name in predictor.signature.input_fields}
    if isinstance(program, DspyPredict | DspyChainOfThought):
        return fields
    parameters = _called(program).parameters.values()
    names = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return names | fields if any(one.kind is one.VAR_KEYWORD for one in parameters) else names


def _called(program: Any) -> inspect.Signature:
    """Of what a call of a module runs, see `compiler.invocation.call`."""
    for method in ("forward", "aforward"):
        with suppress(AttributeError):
            # Not getattr(program, ...): dspy would log that forward should not be called directly.
            return inspect.signature(object.__getattribute__(program, method))
    return inspect.signature(program)


def present_inputs(file: Path, names: set[str]) -> list[str]:
    """The program's inputs that are columns of the file; which ones are missing is for compile to say."""
    from .backends.readers import read_table

    columns = read_table(file).columns
    found = [column for column in columns if column in names]
    if not found:
        raise DatasetError(f"{file} has columns {list(columns)}, none is an input of the program: {sorted(names)}")
    return found


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DatasetError(f'inputs are not JSON ({error}): write {{"field": "value"}}') from error
    if not isinstance(value, dict):
        raise DatasetError(f"inputs are a JSON {type(value).__name__}: write an object of field names and values")
    return value
