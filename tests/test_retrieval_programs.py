"""The ready-made programs over a small folder, with a model of random weights: what holds whatever it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import still
from still.programs.multihop import MultiHopAnswer
from still.programs.rag import Rag, index, show
from still.signatures.knob import named_knobs


def letters(texts):
    return [[text.lower().count(letter) + 0.1 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "kettle.md").write_text("# Kettle\n\nBoil water. " + "It takes minutes. " * 60, "utf-8")
    (folder / "hose.txt").write_text("The garden hose is long.", "utf-8")
    (folder / "lid.html").write_text("<h1>Lid</h1><p>The lid is red.", "utf-8")
    return folder


@pytest.mark.parametrize("kind", [lambda c: Rag(c, letters, None, 400), lambda c: MultiHopAnswer(c, letters, 2, 400)])
def test_answers_cite_passages_that_are_parts_of_the_files(docs, tmp_path, tiny_lm, capsys, kind):
    program = kind(index(docs, tmp_path))
    program.answer.demos = []
    with still.context(lm=tiny_lm):
        prediction = program(question="How long is the hose?")
    shown = show("How long is the hose?", prediction)
    assert prediction.passages and set(shown["citations"]) <= set(shown["passages"])
    for passage in prediction.passages:
        path = Path(passage.source)
        if path.suffix != ".html":
            assert passage.text in path.read_text("utf-8")[passage.start : passage.end]
    assert "How long is the hose?" in capsys.readouterr().out
    assert any(path.endswith("find.chunk_size") for path, _, _ in named_knobs(program))


def test_a_folder_keeps_one_corpus_however_it_is_named(docs, tmp_path, monkeypatch):
    first = index(docs, tmp_path)
    monkeypatch.chdir(docs.parent)
    (docs / "lid.html").unlink()
    second = index(Path("docs"), tmp_path)
    assert first.path == second.path and len(second) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.md").write_text("text", "utf-8")
    assert index(tmp_path / "other", tmp_path).path != first.path
