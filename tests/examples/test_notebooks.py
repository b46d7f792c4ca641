"""Every notebook of examples/ runs to its end on a tiny random backbone, and is kept without outputs."""

from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
TELL = {
    "quickstart": "assert answers.version == published.version == 1",
    "one_pass_many_tasks": (
        "assert (first['inputs'], first['cached_inputs']) == (1, 0)\n"
        "assert second['cached_inputs'] == third['cached_inputs'] == 1\n"
        "assert (swapped.version, back.version) == (2, 1)"
    ),
}
"""By notebook: what holds after its last cell."""


def read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert cells
    assert [cell.source for cell in cells if cell.outputs or cell.execution_count] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("SIDECAST_BACKBONE", str(tiny_t5))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(path)
    notebook.cells.append(nbformat.v4.new_code_cell(TELL[path.stem]))
    NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(path.parent)}}).execute()
