"""The runner of the notebooks: it stores, it compares, and it spoils nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

RUNNER = Path(__file__).parents[1] / "tools" / "run_notebooks.py"


@pytest.mark.slow
def test_the_runner_stores_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it stores passes, with another number it does not; no token goes along."""
    monkeypatch.setenv("HF_TOKEN", "a person's")
    path = tmp_path / "one.ipynb"
    source = (
        "import os\n"
        "print(6 * 7, os.environ['LLAMATELEMETRY_DEMO'], 'HF_TOKEN' in os.environ)"
    )
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, RUNNER, *options, path]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("--refresh").returncode == 0
    stored = path.read_text()
    assert "42 1 False" in stored
    assert run().returncode == 0
    path.write_text(stored.replace("42 1", "43 1"))
    done = run()
    assert done.returncode == 1
    assert "Cell outputs differ" in done.stdout


@pytest.mark.slow
def test_a_failing_cell_leaves_the_file_alone(tmp_path: Path) -> None:
    """A refresh that ends in an error writes nothing, and says which cell it was."""
    path = tmp_path / "one.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0  # here")]), path)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, RUNNER, "--refresh", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "# here" in done.stdout
    assert path.read_bytes() == before
