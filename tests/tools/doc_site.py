"""Builds the site, and reads from it what it shows."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs" / "api"


def build_site(folder: Path, configuration: Path = ROOT / "mkdocs.yml") -> str:
    """Build the site into a folder, with warnings as errors; return what was said.

    Raises:
        AssertionError: It has a fault; the message is what MkDocs said.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict"),
            *("--site-dir", folder, "--config-file", configuration),
        ],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def shown_names(site: Path) -> set[str]:
    """Return every dotted name that has a place of its own on the site."""
    from mkdocs_autorefs import plugin  # noqa: F401 - says early that it is missing
    from mkdocstrings import Inventory

    with (site / "objects.inv").open("rb") as file:
        return set(Inventory.parse_sphinx(file))


def modules_of_pages() -> dict[str, Path]:
    """Return the modules that have a page of docs/api, with the page."""
    found = {}
    for page in sorted(API.glob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("::: "):
                found[line.removeprefix("::: ").strip()] = page
    return found


def public_names(module: str) -> list[str]:
    """Return the dotted names of what a module offers."""
    offered = importlib.import_module(module).__all__
    return [f"{module}.{name}" for name in offered if name != "__version__"]
