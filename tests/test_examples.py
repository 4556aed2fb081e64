"""The example notebooks come without outputs and run from top to bottom, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = ("fill_a_gap", "quick_start")
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
kinds = [kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
print("PICTURES", kinds.count("image/png"))
"""


def test_every_notebook_is_tested_and_comes_without_outputs(repository: Path) -> None:
    found = sorted((repository / "examples").glob("*.ipynb"))
    assert tuple(path.stem for path in found) == NOTEBOOKS
    for path in found:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize(("name", "pictures"), [("fill_a_gap", 1), ("quick_start", 2)])
def test_a_notebook_runs(repository: Path, tmp_path: Path, name: str, pictures: int) -> None:
    """In a process of its own: the kernel talks over sockets, which tests may not open."""
    command = [sys.executable, "-c", RUN, str(repository / "examples" / f"{name}.ipynb")]
    env = os.environ | {"PYTHONPATH": str(repository), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"PICTURES {pictures}" in done.stdout
