"""The commands `still rag` and `still multihop`: the ready-made programs over documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

_Questions = Annotated[list[str] | None, typer.Argument(help="What to ask; without any, a few questions of its own.")]
_Docs = Annotated[Path | None, typer.Option(help="Folder of .txt, .md and .html files; default: Still's own documentation.")]
_Folder = Annotated[Path, typer.Option(help="Where the corpus is kept.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the answers as one JSON line at the end.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(rag)
    app.command()(multihop)


def rag(
    questions: _Questions = None, docs: _Docs = None, folder: _Folder = Path(".still"), as_json: _Json = False
) -> None:
    """Answer questions from a folder of documents, with the passages the answers are from.

    Example: still rag --docs docs "What does an artifact contain?"
    """
    from .programs import rag as program

    rows = program.run(tuple(questions or program.QUESTIONS), docs or program.DOCS, folder)
    if as_json:
        print(json.dumps(rows))


def multihop(
    questions: _Questions = None, docs: _Docs = None, folder: _Folder = Path(".still"), as_json: _Json = False
) -> None:
    """Like rag, for questions that take more than one document: it searches again for what the first passages leave open.

    Example: still multihop --docs docs "Which algorithm finds the end of a value that was cut off?"
    """
    from .programs import multihop as program
    from .programs.rag import DOCS

    rows = program.run(tuple(questions or program.QUESTIONS), docs or DOCS, folder)
    if as_json:
        print(json.dumps(rows))
