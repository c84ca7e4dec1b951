"""Runs cells in a real notebook kernel, and prints the notebook as JSON.

``run_cells.py CELL ...``; the kernel has this program's environment.
"""

from __future__ import annotations

import sys

import nbformat
from nbclient import NotebookClient

notebook = nbformat.v4.new_notebook(
    cells=[nbformat.v4.new_code_cell(source) for source in sys.argv[1:]]
)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
sys.stdout.write(nbformat.writes(notebook))
