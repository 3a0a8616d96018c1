"""The notebook of the demo: its cells run one after the other, at a fraction of their sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs.site import cells, notebook

SIZES = "EPISODES, STEPS, ROLLOUTS = 200, 5300, 50"


def test_notebook_has_the_cells_and_no_outputs() -> None:
    document = json.loads(notebook())
    assert [(cell["cell_type"], cell["source"]) for cell in document["cells"]] == cells()
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])


@pytest.mark.slow
def test_cells_run_in_order(tmp_path: Path) -> None:
    cells = json.loads(notebook())["cells"]
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    assert code.count(SIZES) == 1
    small = code.replace(SIZES, "EPISODES, STEPS, ROLLOUTS = 4, 4, 2")
    # As in Jupyter, the main module has no file that worker processes could import.
    done = subprocess.run(
        [sys.executable, "-c", small],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4 steps" in done.stdout
    assert "of 2" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"demo-notebook"}
