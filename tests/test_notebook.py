"""The quickstart notebook runs from top to bottom in a fresh folder."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "programs" / "quickstart.ipynb"


@pytest.mark.model
def test_quickstart_runs_and_shows_what_it_promises(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    (split,) = [cell for cell in notebook.cells if "train=60, dev=24, test=24" in cell.source]
    split.source = split.source.replace("train=60, dev=24, test=24", "train=24, dev=8, test=8")  # a fifth of the time
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = "".join(data.get("text/html", "") for data in shown)
    assert "order_id" in pages, "plan and program show their fields"
    assert "winner" in pages, "the report is a table"
    assert any("image/png" in data for data in shown), "the plot is drawn"
    assert (tmp_path / "helpdesk.still" / "SHA256SUMS").is_file()
    assert (tmp_path / "quickstart.duckdb").is_file()
