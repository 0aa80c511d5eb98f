"""The command line: `still demo | rag | multihop | pull | compile | report | run | export | explain | ledger`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .cli_compile import compile_, report
from .cli_export import export
from .cli_ledger import ledger
from .cli_retrieval import register
from .cli_shared import input_names, json_object, named_program, output, present_inputs
from .errors import StillError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

app = typer.Typer(
    help="A compiler for language-model programs. Everything runs on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where ledger and artifact are written.")] = Path(".still"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line at the end.")] = False,
) -> None:
    """Compile the help desk program and answer three new messages with the result.

    Example: still demo --json
    """
    from .programs.helpdesk import run_demo

    summary = run_demo(folder)
    if as_json:
        print(json.dumps(summary))


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="Short name, hub id, folder or GGUF file.")] = "smollm2-135m",
    quantization: Annotated[str, typer.Option(help="int8, int4, bf16 or fp32.")] = "int8",
) -> None:
    """Fetch a model and convert it, so that the first call does not have to. Embedders (minilm) too.

    Example: still pull smollm2-135m
    """
    from .backends.models import load_model
    from .backends.retrieval.model_folder import KNOWN, find_folder, folder_digest

    if model in KNOWN:
        output.print(f"{model}: {KNOWN[model].about}, sha256 {folder_digest(find_folder(model))[:16]}")
        return
    loaded = load_model(model, quantization)  # type: ignore[arg-type]  # checked, with a message, by load_model
    spec = loaded.spec
    size = sum(tensor.numel() * tensor.element_size() for tensor in loaded.weights.values())
    output.print(
        f"{loaded.name}: {spec.architecture}, {spec.num_layers} layers, {spec.max_position} tokens of context, "
        f"{loaded.quantization} {size / 1e6:.0f} MB, sha256 {loaded.digest[:16]}"
    )


app.command(name="compile")(compile_)
app.command()(report)
app.command()(ledger)


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    inputs: Annotated[str, typer.Argument(help="A JSON object of inputs, or a csv, jsonl or parquet file of them.")],
    program: Annotated[str, typer.Option(help="FILE.py:NAME of the program, where it is a module.")] = "",
    allow_import: Annotated[bool, typer.Option(help="Import the program's class: runs its code.")] = False,
) -> None:
    """Answer with a compiled program: one JSON line per input.

    Example: still run router.still '{"message": "Where is my parcel?"}'
    """
    from pydantic_core import to_jsonable_python

    from .compiler.dataset import Dataset
    from .compiler.invocation import call
    from .compiler.load import load

    compiled = load(artifact, named_program(program) if program else None, allow_import=allow_import)
    if inputs.lstrip().startswith("{"):
        rows = [json_object(inputs)]
    else:
        names = input_names(compiled)
        dataset = Dataset.read(inputs, inputs=present_inputs(Path(inputs), names))
        rows = [{name: example[name] for name in dataset.inputs} for example in dataset]
    for row in rows:
        print(json.dumps(to_jsonable_python(call(compiled, row).toDict()), ensure_ascii=False), flush=True)


app.command()(export)


@app.command()
def explain(
    what: Annotated[str, typer.Argument(help="An artifact folder, or FILE.py:NAME of a program.")],
    inputs: Annotated[str, typer.Option("--input", help="A JSON object of inputs: run it, show what the call costs.")] = "",
    model: Annotated[str, typer.Option(help="Local model, for FILE.py:NAME.")] = "smollm2-135m",
    program: Annotated[str, typer.Option(help="FILE.py:NAME of an artifact's program, where it is a module.")] = "",
    allow_import: Annotated[bool, typer.Option(help="Import the program's class: runs its code.")] = False,
) -> None:
    """Show each predictor's plan: what is fixed, what varies, what is decoded under which constraint.

    Example: still explain router.still --input '{"message": "Where is my parcel?"}'
    """
    from .compiler.artifact import read_artifact
    from .compiler.evidence import prompt_text

    if ":" in what and not Path(what).exists():
        named = named_program(what)
        for name, predictor in named.named_predictors():
            output.print(f"# {name}\n{prompt_text(predictor)}\n", markup=False)
        if inputs:
            from .backends.lm import LM

            _print_costs(named, inputs, LM(model))
        return
    artifact = read_artifact(what)
    compiled_for = artifact.manifest["model"]["name"]
    output.print(f"{what}: compiled for {compiled_for}, winner {artifact.report.winner}\n", markup=False)
    for file in sorted((artifact.path / "plans").glob("*.txt")):
        output.print(f"# {file.stem}\n{file.read_text('utf-8')}", markup=False)
    output.print(str(artifact.report), markup=False)
    if inputs:
        from .compiler.load import load

        compiled = load(what, named_program(program) if program else None, allow_import=allow_import)
        _print_costs(compiled, inputs, compiled.get_lm())


def _print_costs(program: Any, inputs: str, lm: Any) -> None:
    from .compiler.explain import call_tables

    for table in call_tables(program, json_object(inputs), lm):
        output.print()
        output.print(table)


register(app)


def main() -> None:
    """Entry point: Still's own errors are messages, everything else is a traceback."""
    errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        app()
    except StillError as error:
        errors.print(f"error: {error}")
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            errors.print("interrupted; what was computed is in the ledger: run the same command to go on")
        raise


if __name__ == "__main__":
    main()
