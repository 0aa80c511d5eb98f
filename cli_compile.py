"""`still compile` and `still report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_shared import input_names, named, named_program, output, present_inputs
from .errors import ArtifactError, StillError

if TYPE_CHECKING:
    from .optimizers.budget import Budget


def compile_(
    program: Annotated[str, typer.Argument(help="FILE.py:NAME of a module, or of a function that returns one.")],
    train: Annotated[Path, typer.Argument(help="csv, jsonl or parquet with inputs and labels.")],
    to: Annotated[Path | None, typer.Option("--output", "-o", help="Artifact folder to write.")] = None,
    dev: Annotated[Path | None, typer.Option(help="Examples to choose by; default: 40 % of train.")] = None,
    metric: Annotated[
        str, typer.Option(help="exact, normalized, f1, set_f1, span_f1, close, json_fields, or FILE.py:NAME.")
    ] = "exact",
    level: Annotated[
        str, typer.Option(help="O0 measures; O1 demonstrations, decisions; O2 instructions, knobs; O3 weights.")
    ] = "O1",
    model: Annotated[str, typer.Option(help="Local model to compile for.")] = "smollm2-135m",
    teacher: Annotated[
        str | None, typer.Option(help="Proposes instructions, runs what is shown: FILE.py:NAME of an LM, or a local model.")
    ] = None,
    objective: Annotated[str, typer.Option(help="quality, latency, or both with a comma: the first decides.")] = "quality",
    embedder: Annotated[str, typer.Option(help="Finds the nearest examples: minilm, a folder, a hub id; words.")] = "minilm",
    plan: Annotated[bool, typer.Option("--plan", help="Time a few calls, say what it would cost, and stop.")] = False,
    seconds: Annotated[float | None, typer.Option(help="Budget: seconds.")] = None,
    calls: Annotated[int | None, typer.Option(help="Budget: calls of language models.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget: prompt and decoded tokens.")] = None,
    ledger: Annotated[Path, typer.Option(help="Where results are kept.")] = Path(".still/ledger.duckdb"),
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Compile a program on a dataset. Run it again after an interruption: it goes on where it stopped.

    Example: still compile router.py:router tickets.csv --output router.still --calls 2000
    """
    from .compiler.compile import compile as compile_program
    from .compiler.dataset import Dataset
    from .compiler.estimate import estimate

    if to is None and not plan:
        raise StillError("--output is missing: name the artifact folder to write, or pass --plan to see what it would cost")
    module = named_program(program)
    names = input_names(module)
    data = Dataset.read(train, inputs=present_inputs(train, names))
    given = None if dev is None else Dataset.read(dev, inputs=present_inputs(dev, names))
    options: dict[str, Any] = {
        "metric": named(metric) if ":" in metric else metric, "level": level, "lm": model, "seed": seed,
        "teacher": named(teacher) if teacher and ".py:" in teacher else teacher,
        "budget": _budget(seconds, calls, tokens), "objective": tuple(part.strip() for part in objective.split(",")),
        "embedder": None if embedder == "words" else embedder,
    }  # fmt: skip
    if plan or to is None:
        output.print(str(estimate(module, data, given, **options)))
        return
    result = compile_program(module, data, given, ledger=ledger, **options)
    saved = result.save(to)  # first: a report that cannot be printed must not cost what was compiled
    output.print(str(result.report), markup=False)
    output.print(f"saved {saved}", markup=False)


def _budget(seconds: float | None, calls: int | None, tokens: int | None) -> Budget | None:
    from .optimizers.budget import Budget

    budget = Budget(seconds=seconds, calls=calls, tokens=tokens)
    return None if budget == Budget() else budget


def report(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    to: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show how a program was compiled: as text, JSON, or a page that needs no network.

    Example: still report router.still --output report.html
    """
    import json

    from .compiler.artifact import read_artifact

    found = read_artifact(artifact).report
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    if to is None:
        if not as_json:
            output.print(str(found), markup=False)
        return
    try:
        to.write_text(found.page(), "utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot write {to}: {error.strerror or error}") from error
    if not as_json:
        output.print(f"wrote {to}", markup=False)
