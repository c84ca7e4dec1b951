"""How the notebooks are run here: the demo model, two described T4s, an empty home.

The environment is written from nothing, so that neither a token of the person who runs
it nor a setting of the machine reaches a notebook.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nvml_tools import build_stand_in

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SANITIZER = Path(__file__).parents[1] / "notebooks" / "sanitize.cfg"
CELL_SECONDS = 90
MOST_SECONDS = 90
"""A notebook that takes longer is too long for a test."""
SHORT_FOLDER = "…/"
"""What stands for a folder of the machine in a stored output."""

_WIDGET = "application/vnd.jupyter.widget-view+json"
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def environment(home: Path, library: Path, description: Path) -> dict[str, str]:
    """Return the variables of a notebook's kernel.

    Args:
        home: An empty folder; everything that is kept by anybody is kept below it.
        library: What stands in for the driver's library.
        description: What it says.
    """
    below = {
        "HOME": "",
        "HF_HOME": "hub",
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "jupyter-config",
        "JUPYTER_DATA_DIR": "jupyter-data",
        "JUPYTER_RUNTIME_DIR": "jupyter-runtime",
        "LLAMATELEMETRY_CACHE": "llamatelemetry",
        "MPLCONFIGDIR": "matplotlib",
        "TMPDIR": "temporary",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "XDG_DATA_HOME": "data",
        "XDG_RUNTIME_DIR": "runtime",
    }
    for name in below.values():
        (home / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    return {variable: str(home / name) for variable, name in below.items()} | {
        "LLAMATELEMETRY_DEMO": "1",
        "LD_LIBRARY_PATH": str(library.parent),
        "STAND_IN_NVML": str(description),
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),
        "HF_HUB_OFFLINE": "1",  # the same answer with and without a connection
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
        "LANG": "C.UTF-8",
        "COLUMNS": "80",
        "LINES": "24",
        # A warning names the file of its cell, which would be a temporary one.
        "IPYKERNEL_CELL_NAME": "cell",
    }


def build_library(folder: Path) -> Path:
    """Compile what stands in for the driver's library."""
    library = build_stand_in(folder)
    if library is None:
        raise SystemExit("no C compiler: the notebooks' two T4s cannot be described")
    return library


def sanitize_rules() -> list[tuple[str, str]]:
    """Return the pairs of a pattern and its replacement, as nbval reads them."""
    return re.findall(
        r"^regex: (.*)$\n^replace: (.*)$", SANITIZER.read_text(), flags=re.MULTILINE
    )


def folder_pattern() -> str:
    """Return what the sanitizer takes for folders of the machine."""
    return next(
        pattern
        for pattern, replacement in sanitize_rules()
        if replacement == SHORT_FOLDER
    )


def without_folders(text: str) -> str:
    """Shorten what the sanitizer takes for folders of the machine."""
    return re.sub(folder_pattern(), SHORT_FOLDER, text)


def execute(path: Path, variables: dict[str, str], folder: Path) -> NotebookNode:
    """Run a notebook's cells and return it with what they said, cleaned.

    Args:
        path: The notebook; it is only read.
        variables: The kernel's environment.
        folder: The kernel's working folder.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=True,  # without it an Output widget is a KeyError
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=variables, stderr=subprocess.DEVNULL)
    return clean(notebook)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Keep of a run what a reader sees, and nothing of the machine."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = dict(_KERNEL)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = _merged(cell.outputs)
            for output in cell.outputs:
                _clean_output(output)
    return notebook


def _merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Put what was printed piece by piece into one output."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.output_type == output.output_type == "stream"
            and last.name == output.name
        ):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _clean_output(output: NotebookNode) -> None:
    if "text" in output:
        output["text"] = without_folders(output["text"])
    data: dict[str, Any] = output.get("data", {})
    data.pop(_WIDGET, None)
    for kind, value in data.items():
        if kind.startswith("text/"):
            data[kind] = without_folders(value)


def write(notebook: NotebookNode, path: Path) -> None:
    """Replace a notebook's file as a whole."""
    new = path.with_suffix(".new")
    new.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    new.replace(path)


def compare(
    path: Path, variables: dict[str, str], folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a notebook's cells under nbval, which compares what they say with the stored.

    Args:
        path: The notebook, in a folder of its own: the kernel works there.
        variables: The environment of pytest, and so of the kernel.
        folder: Where an empty configuration of pytest is put.
        options: More options of pytest.
    """
    settings = folder / "empty.ini"
    settings.write_text("[pytest]\n")  # the project's own settings are for its tests
    command = [sys.executable, "-m", "pytest", "-c", settings, "--rootdir", folder]
    command += ["-p", "no:randomly", "-p", "no:cacheprovider", "--color=no", "-q"]
    command += ["--nbval", "--nbval-sanitize-with", SANITIZER]
    command += ["--nbval-cell-timeout", str(CELL_SECONDS), *options, path]
    return subprocess.run(
        command,
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=10 * CELL_SECONDS,
    )


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_compared(cell: NotebookNode) -> bool:
    """Whether nbval compares what a cell says."""
    tags = cell.metadata.get("tags", [])
    marks = ("NBVAL_IGNORE_OUTPUT", "NBVAL_SKIP", "PYTEST_VALIDATE_IGNORE_OUTPUT")
    return not any(mark in cell.source for mark in marks) and not any(
        mark.lower().replace("_", "-") in tags for mark in marks
    )
