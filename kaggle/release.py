"""Renders what depends on the first release: one constant, many places.

``release`` and ``repository`` stand in pyproject.toml below ``[tool.llamatelemetry]``,
empty until a person publishes. From them come the install cell, the one-cell helper,
the second cell and the badges of each notebook, and the marked regions of README.md and
of the pages in docs.

    python kaggle/release.py --check    # is everything as it is rendered?
    python kaggle/release.py --write    # render it
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RELEASE = re.compile(r"https://\S+\.whl#sha256=[0-9a-f]{64}|git\+https://\S+@\S+|")
_REPOSITORY = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+|")
_CONSTANT = re.compile(r'^RELEASE = ".*"$', re.MULTILINE)
_REGION = r"(<!-- {0} -->\n).*?(<!-- /{0} -->)"
_UNPUBLISHED_BADGES = "Open in Kaggle · Open in Colab: once this is published"
_LAST_LINES = """

from llamatelemetry import launch

session = launch("qwen3-4b")
session.dashboard()
"""


@dataclass(frozen=True, slots=True)
class Release:
    """What a person fills in.

    Attributes:
        source: What pip installs: a wheel's address with its SHA-256, or a tag of a
            repository. Empty until there is one.
        repository: The repository's address on GitHub. Empty until there is one.
    """

    source: str
    repository: str

    def badges(self, notebook: str) -> str:
        """Return the line that opens a notebook on Kaggle and on Colab."""
        if not self.repository:
            return _UNPUBLISHED_BADGES
        path = f"blob/main/notebooks/{notebook}.ipynb"
        owner_and_name = self.repository.removeprefix("https://github.com/")
        kaggle = f"https://kaggle.com/kernels/welcome?src={self.repository}/{path}"
        colab = f"https://colab.research.google.com/github/{owner_and_name}/{path}"
        return (
            "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
            f"({kaggle})\n"
            "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({colab})"
        )

    def install(self) -> str:
        """Return README's words on installing."""
        if not self.source:
            return (
                "It is not published yet: clone this repository, and in the clone\n\n"
                '```\npip install ".[cpu]"\n```'
            )
        return f'```\npip install "llamatelemetry[cpu] @ {self.source}"\n```'


def read_release(root: Path) -> Release:
    """Return what pyproject.toml says.

    Raises:
        SystemExit: It says something that cannot be installed or linked to.
    """
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    found = table["tool"]["llamatelemetry"]
    release = Release(found["release"], found["repository"])
    if not _RELEASE.fullmatch(release.source):
        raise SystemExit(
            f"pyproject.toml: release is {release.source!r}; it has to be the address "
            "of a wheel with #sha256=..., or git+https://...@tag"
        )
    if not _REPOSITORY.fullmatch(release.repository):
        raise SystemExit(
            f"pyproject.toml: repository is {release.repository!r}; it has to be "
            "https://github.com/owner/name"
        )
    return release


def render(root: Path) -> dict[Path, str]:
    """Return the text that each file should have.

    Raises:
        SystemExit: A place to render into is missing.
    """
    release = read_release(root)
    install = root / "kaggle" / "install.py"
    cell = _CONSTANT.sub(
        lambda _: f'RELEASE = "{release.source}"', install.read_text(encoding="utf-8")
    )
    rendered = {install: cell, root / "kaggle" / "one_cell.py": cell + _LAST_LINES}
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        rendered[path] = _notebook(path, cell.rstrip("\n"), release.badges(path.stem))
    regions = {
        "install": release.install(),
        "badges": release.badges("01_quick_start"),
        "cell": f"```python\n{rendered[root / 'kaggle' / 'one_cell.py'].rstrip()}\n```",
    }
    readme = root / "README.md"
    for page in [readme, *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for name, content in regions.items():
            must = page == readme and name == "install"
            if must or f"<!-- {name} -->" in text:
                text = _fill(text, name, content, page)
        rendered[page] = text
    return rendered


def _notebook(path: Path, cell: str, badges: str) -> str:
    """Return a notebook with its badges and its install cell."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    first, second = notebook["cells"][:2]
    if first["cell_type"] != "markdown" or second["cell_type"] != "code":
        raise SystemExit(f"{path}: its first two cells are not a title and a cell")
    title = _fill("".join(first["source"]), "badges", badges, path)
    first["source"] = title.splitlines(keepends=True)
    second["source"] = cell.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _fill(text: str, name: str, content: str, path: Path) -> str:
    """Return a text with the region of a name filled."""
    pattern = re.compile(_REGION.format(name), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{path} has no <!-- {name} --> ... <!-- /{name} -->")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def main(arguments: list[str] | None = None) -> int:
    """Check or write; return 1 if something is not as it is rendered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="change nothing")
    what.add_argument("--write", action="store_true", help="render everything")
    usual = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=usual, help="another working tree")
    chosen = parser.parse_args(arguments)
    stale = 0
    for path, text in render(chosen.root).items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if chosen.write:
            path.write_text(text, encoding="utf-8")
        print("written" if chosen.write else "stale", path.relative_to(chosen.root))
    return 1 if stale and chosen.check else 0


if __name__ == "__main__":
    sys.exit(main())
