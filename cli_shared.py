"""What the commands share: the console, and how arguments name programs, files and values."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from .errors import DatasetError, StillError

# On a pipe rich assumes 80 columns and folds tables: whoever reads a file or greps wants whole lines.
output = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


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
    return {name for _, predictor in program.named_predictors() for name in predictor.signature.input_fields}


def present_inputs(file: Path, names: set[str]) -> list[str]:
    """The program's input fields that are columns of the file; which ones are missing is for compile to say."""
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
