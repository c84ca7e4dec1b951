"""The list of the notebooks, from their own first cells."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
TITLE = re.compile(r"^# (?P<number>\d\d) · (?P<title>.+)$", re.MULTILINE)


def notebooks() -> list[Path]:
    """Return the notebooks in their order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def first_cell(path: Path) -> str:
    """Return the text of a notebook's first cell."""
    cell = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    return "".join(cell["source"])


def said(text: str, word: str) -> str:
    """Return what a cell says after ``**Goal**`` and the like, in one line."""
    found = re.search(
        rf"\*\*{word}:?\*\*:?\s*(.+?)(?=\n\n|\n\*\*|\n- |\Z)", text, re.DOTALL
    )
    words = " ".join(found[1].split()) if found else ""
    words = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", words)
    return words.replace("|", "\\|").lstrip(":. ").strip()


def table() -> str:
    """Return the table of all notebooks."""
    lines = ["| notebook | goal | needs |", "| --- | --- | --- |"]
    for path in notebooks():
        cell = first_cell(path)
        found = TITLE.search(cell)
        title = f"{found['number']} · {found['title']}" if found else path.stem
        link = f"[{title}](../notebooks/{path.name})"
        lines.append(f"| {link} | {said(cell, 'Goal')} | {said(cell, 'Needs')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
