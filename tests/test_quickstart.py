"""A test of the notebook docs/quickstart.ipynb."""

import pytest
from conftest import QUICKLY, REPOSITORY

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    # One device, as a user has, and as fast a compilation as in other tests.
    monkeypatch.setenv("XLA_FLAGS", QUICKLY)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    ]
    parameters.source = "steps = 20\ngenerations = 2"
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises the error of a cell
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"quickstart", "quickstart_own"}


def test_the_notebook_is_stored_as_it_was_executed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert NOTEBOOK.stat().length < 300_000
