"""The notebook that walks a researcher from radiographs to a bundle."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.model.bundle import load_bundle
from shared.settings import ROOT
from tests.pace import limit_s
from tests.radiographs import fracatlas_tree

NOTEBOOK = ROOT / "training/walkthrough.ipynb"


def opened() -> Any:
    import nbformat  # takes seconds to load, in each process of the tests

    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def is_parameters(cell: Any) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def test_notebook_is_valid_and_stripped() -> None:
    """It is JSON of format 4, its cells compile, one cell alone is there to be changed, and no output is kept."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [is_parameters(cell) for cell in code] == [True] + [False] * (len(code) - 1)
    for cell in code:
        ast.parse("".join(cell["source"]))
        assert not cell["outputs"]
        assert cell["execution_count"] is None


@pytest.mark.slow
def test_notebook_runs_from_radiographs_to_a_finding(tmp_path: Path) -> None:
    """It is valid, and on a tiny data set every cell runs, and leaves a report and a bundle that loads."""
    import nbformat
    from nbclient import NotebookClient

    notebook, run = opened(), tmp_path / "run"
    nbformat.validate(notebook)
    values = {
        "DATA": str(fracatlas_tree(tmp_path / "data")),
        "OUT": str(run),
        "MINUTES": 0.05,
        "SIZE": 64,
        "BATCH": 4,
        "TEACHER": None,
    }
    (parameters,) = [cell for cell in notebook.cells if is_parameters(cell)]
    named = {target.id for line in ast.parse(parameters.source).body for target in line.targets}
    assert named == set(values)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    NotebookClient(
        notebook, timeout=int(limit_s(280)), kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute(env=os.environ | threads)

    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "40 radiographs: 32 to learn from, 8 to measure on" in text
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(pictures) >= 5, "radiographs, three curves and the pointing gallery"
    assert "walkthrough" in (run / "report/report.html").read_text(encoding="utf-8")
    _, manifest = load_bundle((run / "walkthrough.safetensors").read_bytes())
    assert (manifest.name, manifest.input_size) == ("walkthrough", 64)
