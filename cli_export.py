"""`still export`: a compiled program, or the weights behind it, for use without Still."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .cli_shared import named_program
from .cli_shared import output as console
from .errors import StillError

_WEIGHTS = ("peft", "hf", "gguf", "modelfile")


def export(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    path: Annotated[Path | None, typer.Argument(help="File to write (dspy; it ends in .json) or folder to make.")] = None,
    to: Annotated[
        str,
        typer.Option(
            help="dspy: the state that a DSPy program's load() reads; peft: the adapter; hf: a folder for transformers, "
            "gguf: a file for llama.cpp, modelfile: that with a Modelfile for Ollama; adapters are merged in."
        ),
    ] = "dspy",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The same as PATH.")] = None,
    precision: Annotated[str, typer.Option(help="f32, f16, bf16; for GGUF also q8_0, q5_1, q5_0, q4_1, q4_0.")] = "",
    adapter: Annotated[str, typer.Option(help="A PEFT folder, or which of the artifact's adapters.")] = "",
    program: Annotated[str, typer.Option(help="FILE.py:NAME of the program, where it is a module.")] = "",
    lossy: Annotated[bool, typer.Option(help="dspy: leave out what the format cannot say.")] = False,
    allow_import: Annotated[bool, typer.Option(help="Import the program's class: runs its code.")] = False,
) -> None:
    """Write a compiled program, or its model with what was trained, for use without Still.

    Example: still export router.still --to gguf -o router-gguf
    """
    target = path if path is not None else output
    if target is None or (path is not None and output is not None):
        raise StillError("say once where to write: still export ARTIFACT --to FORMAT -o PATH")
    module = named_program(program) if program else None
    if to == "dspy":
        if precision or adapter:
            raise StillError("--precision and --adapter are about weights: --to peft, hf, gguf or modelfile")
        _export_dspy(artifact, target, module, lossy, allow_import)
    elif to in _WEIGHTS:
        _export_weights(artifact, target, to, adapter or None, precision or None, module, allow_import)
    else:
        raise StillError(f"--to {to}: the formats are dspy, {', '.join(_WEIGHTS)}")


def _export_dspy(artifact: Path, target: Path, module: Any, lossy: bool, allow_import: bool) -> None:
    from .compiler.artifact import read_artifact
    from .compiler.dspy_state import export_dspy

    written = export_dspy(read_artifact(artifact).program(module, allow_import=allow_import), target, lossy=lossy)
    for loss in written.lost:
        console.print(f"not in the file: {loss}", markup=False)
    console.print(f"wrote {written.path}", markup=False)


def _export_weights(
    artifact: Path, target: Path, to: Any, adapter: str | None, precision: str | None, module: Any, allow_import: bool
) -> None:
    from .compiler.weights_export import export_weights

    errors = Console(stderr=True)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task(f"writing {target.name}", total=None)
        written = export_weights(
            artifact, target, to=to, adapter=adapter, precision=precision, program=module, allow_import=allow_import,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    for loss in written.lost:
        console.print(f"not in the Modelfile: {loss}", markup=False)
    for file in written.files:
        console.print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)", markup=False)
