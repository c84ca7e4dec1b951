"""What the site does beyond MkDocs: one copy of each text, and links that leave docs/.

- ``<!-- include: ../CONTRIBUTING.md -->`` becomes that file's text.
- The notebooks are files of the site, which a link to ``../notebooks/`` reaches.
- Any other link that leaves ``docs/`` goes to the repository, where pyproject.toml
  names one; until then it is the words without a link.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r"^<!-- include: (?P<path>\S+) -->$", re.MULTILINE)
LINK = re.compile(
    r"(?<!!)\[(?P<words>[^\]]+)\]\((?P<target>[^)\s#:]+)(?P<anchor>#\S+)?\)"
)


def repository() -> str:
    """Return the repository's address from pyproject.toml; empty until there is one."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(text).get("tool", {}).get("llamatelemetry", {})
    return str(settings.get("repository", "")).rstrip("/")


def on_files(files: Files, config: Any) -> Files:
    """Make each notebook a file of the site."""
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        name = f"notebooks/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_more: Any) -> str:
    """Put included files in their places, and lead links to where their targets are."""
    folder = posixpath.dirname(page.file.src_uri)

    def included(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, match["path"]))
        text = (ROOT / path).read_text(encoding="utf-8")
        return from_docs(text.partition("\n")[2], posixpath.dirname(path))

    def led(match: re.Match[str]) -> str:
        return lead(match, folder)

    return LINK.sub(led, INCLUDE.sub(included, markdown))


def from_docs(text: str, folder: str) -> str:
    """Return a text whose links are written as a page of docs/ would write them."""

    def moved(match: re.Match[str]) -> str:
        target = posixpath.join(folder, match["target"])
        target = posixpath.relpath(posixpath.normpath(target), "docs")
        return f"[{match['words']}]({target}{match['anchor'] or ''})"

    return LINK.sub(moved, text)


def lead(match: re.Match[str], folder: str) -> str:
    """Return one link of a page as the site needs it."""
    path = posixpath.normpath(posixpath.join("docs", folder, match["target"]))
    if path.startswith("docs/"):
        return match[0]
    if not (ROOT / path).exists():
        return match[0]  # MkDocs says that it is broken
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        return f"[{match['words']}]({posixpath.relpath(path, folder or '.')})"
    base = repository()
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    anchor = match["anchor"] or ""
    words = match["words"]
    return f"[{words}]({base}/{kind}/main/{path}{anchor})" if base else words
