"""The parts of documents that are written by a program, between two comments."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import doc_configuration
import doc_floors
import doc_notebooks

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# The region's name, where it is, and what writes it.
REGIONS: dict[str, tuple[Path, Callable[[], str]]] = {
    "fields": (DOCS / "CONFIGURATION.md", doc_configuration.table),
    "notebooks": (DOCS / "notebooks.md", doc_notebooks.table),
}
FILES: dict[Path, Callable[[], str]] = {
    DOCS / "images" / "floors.svg": doc_floors.picture,
}


def with_region(document: str, name: str, text: str) -> str:
    """Return a document whose region of this name is a new text.

    Raises:
        ValueError: The document has no such region, or several.
    """
    pattern = re.compile(
        rf"(<!-- {name}: begin[^>]*-->\n).*?(\n<!-- {name}: end -->)", re.DOTALL
    )
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"there must be one region called {name}")
    return pattern.sub(
        lambda match: f"{match[1]}\n{text.strip()}\n{match[2]}", document
    )


def stale() -> dict[Path, str]:
    """Return the files that are not as they would be written now, with their text."""
    wanted = {path: write() for path, write in FILES.items()}
    for name, (path, write) in REGIONS.items():
        before = wanted.get(path) or path.read_text(encoding="utf-8")
        wanted[path] = with_region(before, name, write())
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    """Write what is stale, or only name it with ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    found = stale()
    for path, text in found.items():
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return 1 if found and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
