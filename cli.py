"""The command line: `still demo | pull | compile | run | export | explain | ledger`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .errors import DatasetError, StillError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

app = typer.Typer(
    help="A compiler for language-model programs. Everything runs on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# On a pipe rich assumes 80 columns and folds tables: whoever reads a file or greps wants whole lines.
output = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


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
    """Fetch a model and convert it, so that the first call does not have to.

    Example: still pull smollm2-135m
    """
    from .backends.models import load_model

    loaded = load_model(model, quantization)  # type: ignore[arg-type]  # checked, with a message, by load_model
    spec = loaded.spec
    size = sum(tensor.numel() * tensor.element_size() for tensor in loaded.weights.values())
    output.print(
        f"{loaded.name}: {spec.architecture}, {spec.num_layers} layers, {spec.max_position} tokens of context, "
        f"{loaded.quantization} {size / 1e6:.0f} MB, sha256 {loaded.digest[:16]}"
    )


@app.command(name="compile")
def compile_(
    program: Annotated[str, typer.Argument(help="FILE.py:NAME of a module, or of a function that returns one.")],
    train: Annotated[Path, typer.Argument(help="csv, jsonl or parquet with inputs and labels.")],
    to: Annotated[Path, typer.Option("--output", "-o", help="Artifact folder to write.")],
    dev: Annotated[Path | None, typer.Option(help="Examples to choose by; default: 40 % of train.")] = None,
    metric: Annotated[str, typer.Option(help="exact, normalized, or FILE.py:FUNCTION.")] = "exact",
    level: Annotated[str, typer.Option(help="O0 (measure only) or O1 (demonstrations).")] = "O1",
    model: Annotated[str, typer.Option(help="Local model to compile for.")] = "smollm2-135m",
    ledger: Annotated[Path, typer.Option(help="Where results are kept.")] = Path(".still/ledger.duckdb"),
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Compile a program on a dataset. Run it again after an interruption: it goes on where it stopped.

    Example: still compile router.py:router tickets.csv --output router.still
    """
    from .compiler.compile import compile as compile_program
    from .compiler.dataset import Dataset

    module = _program(program)
    inputs = _inputs(module)
    scorer = _named(metric) if ":" in metric else metric
    result = compile_program(
        module,
        Dataset.read(train, inputs=_present(train, inputs)),
        None if dev is None else Dataset.read(dev, inputs=_present(dev, inputs)),
        scorer,
        level=level,  # type: ignore[arg-type]  # checked, with a message, by compile
        lm=model,
        ledger=ledger,
        seed=seed,
    )
    output.print(str(result.report))
    output.print(f"saved {result.save(to)}")


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    inputs: Annotated[str, typer.Argument(help="A JSON object of inputs, or a csv, jsonl or parquet file of them.")],
    allow_import: Annotated[bool, typer.Option(help="Import the program's class: runs its code.")] = False,
) -> None:
    """Answer with a compiled program: one JSON line per input.

    Example: still run router.still '{"message": "Where is my parcel?"}'
    """
    from pydantic_core import to_jsonable_python

    from .compiler.dataset import Dataset
    from .compiler.invocation import call
    from .compiler.load import load

    program = load(artifact, allow_import=allow_import)
    if inputs.lstrip().startswith("{"):
        rows = [_json_object(inputs)]
    else:
        names = _inputs(program)
        dataset = Dataset.read(inputs, inputs=_present(Path(inputs), names))
        rows = [{name: example[name] for name in dataset.inputs} for example in dataset]
    for row in rows:
        print(json.dumps(to_jsonable_python(call(program, row).toDict()), ensure_ascii=False), flush=True)


@app.command()
def export(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    path: Annotated[Path, typer.Argument(help="File to write; it ends in .json.")],
    to: Annotated[str, typer.Option(help="The format: dspy, the state that a DSPy program's load() reads.")] = "dspy",
    program: Annotated[str, typer.Option(help="FILE.py:NAME of the program, where it is a module.")] = "",
    lossy: Annotated[bool, typer.Option(help="Leave out what the format cannot say.")] = False,
    allow_import: Annotated[bool, typer.Option(help="Import the program's class: runs its code.")] = False,
) -> None:
    """Write a compiled program for use without Still.

    Example: still export router.still --to dspy router.json
    """
    from .compiler.artifact import read_artifact
    from .compiler.dspy_state import export_dspy

    if to != "dspy":
        raise StillError(f"--to {to}: the only format is dspy")
    compiled = read_artifact(artifact).program(_program(program) if program else None, allow_import=allow_import)
    written = export_dspy(compiled, path, lossy=lossy)
    for loss in written.lost:
        output.print(f"not in the file: {loss}", markup=False)
    output.print(f"wrote {written.path}", markup=False)


@app.command()
def explain(
    what: Annotated[str, typer.Argument(help="An artifact folder, or FILE.py:NAME of a program.")],
    inputs: Annotated[str, typer.Option("--input", help="A JSON object of inputs: run it, show what the call costs.")] = "",
    model: Annotated[str, typer.Option(help="Local model, for FILE.py:NAME.")] = "smollm2-135m",
    allow_import: Annotated[bool, typer.Option(help="Import the program's class: runs its code.")] = False,
) -> None:
    """Show each predictor's plan: what is fixed, what varies, what is decoded under which constraint.

    Example: still explain router.still --input '{"message": "Where is my parcel?"}'
    """
    from .compiler.artifact import read_artifact
    from .signatures.layout import lower

    if ":" in what and not Path(what).exists():
        program = _program(what)
        for name, predictor in program.named_predictors():
            output.print(f"# {name}\n{lower(predictor.signature, list(predictor.demos))}\n", markup=False)
        if inputs:
            from .backends.lm import LM

            _print_costs(program, inputs, LM(model))
        return
    artifact = read_artifact(what)
    compiled_for = artifact.manifest["model"]["name"]
    output.print(f"{what}: compiled for {compiled_for}, winner {artifact.report.winner}\n", markup=False)
    for file in sorted((artifact.path / "plans").glob("*.txt")):
        output.print(f"# {file.stem}\n{file.read_text('utf-8')}", markup=False)
    output.print(str(artifact.report), markup=False)
    if inputs:
        from .compiler.load import load

        program = load(what, allow_import=allow_import)
        _print_costs(program, inputs, program.get_lm())


def _print_costs(program: Any, inputs: str, lm: Any) -> None:
    from .compiler.explain import call_tables

    for table in call_tables(program, _json_object(inputs), lm):
        output.print()
        output.print(table)


@app.command()
def ledger(
    query: Annotated[str, typer.Argument(help="A ready query's name, or SQL (read only). Nothing: list the names.")] = "",
    path: Annotated[Path, typer.Option(help="The ledger file.")] = Path(".still/ledger.duckdb"),
) -> None:
    """Ask the ledger what happened; works while a compile runs.

    Example: still ledger candidates
    """
    from .compiler.ledger import READY_QUERIES, Ledger

    if not query:
        for name, (description, _) in READY_QUERIES.items():
            output.print(f"{name:14} {description}")
        return
    if not path.is_file():
        raise StillError(f"there is no ledger at {path}: compile something first, or pass --path")
    sql = READY_QUERIES[query][1] if query in READY_QUERIES else query
    with Ledger(path) as book:
        columns, rows = book.query(sql)
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    output.print(table)


def main() -> None:
    """Entry point: Still's own errors are messages, everything else is a traceback."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app()
    except StillError as error:
        errors.print(f"error: {error}", markup=False)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            errors.print("interrupted; what was computed is in the ledger: run the same command to go on")
        raise


def _named(path: str) -> Any:
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


def _program(path: str) -> Any:
    from .signatures.bridge import Module

    found = _named(path)
    program = found() if callable(found) and not isinstance(found, Module) else found
    if not isinstance(program, Module):
        raise StillError(f"{path} is a {type(program).__name__}: name a module, a module class, or a function making one")
    return program


def _inputs(program: Any) -> set[str]:
    return {name for _, predictor in program.named_predictors() for name in predictor.signature.input_fields}


def _present(file: Path, names: set[str]) -> list[str]:
    """The program's input fields that are columns of the file; which ones are missing is for compile to say."""
    from .compiler.readers import read_table

    columns = read_table(file).columns
    found = [column for column in columns if column in names]
    if not found:
        raise DatasetError(f"{file} has columns {list(columns)}, none is an input of the program: {sorted(names)}")
    return found


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DatasetError(f'inputs are not JSON ({error}): write {{"field": "value"}}') from error
    if not isinstance(value, dict):
        raise DatasetError(f"inputs are a JSON {type(value).__name__}: write an object of field names and values")
    return value


if __name__ == "__main__":
    main()
