"""One constant decides what the tree says about installing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL = "https://example.org/llamatelemetry-0.1.0-py3-none-any.whl#sha256=" + "0" * 64
REPOSITORY = "https://github.com/somebody/llamatelemetry"
PUBLISHED = {
    'release = ""': f'release = "{WHEEL}"',
    'repository = ""': f'repository = "{REPOSITORY}"',
}


def tool(root: Path, option: str) -> subprocess.CompletedProcess[str]:
    """Run the tool on a tree."""
    return subprocess.run(
        [sys.executable, str(ROOT / "kaggle/release.py"), option, "--root", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the tool reads and writes, not published."""
    for name in ("kaggle", "notebooks", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    text = (ROOT / "pyproject.toml").read_text()
    for name in ("release", "repository"):
        text = re.sub(rf'^{name} = ".*?"', f'{name} = ""', text, flags=re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text(text)
    assert tool(tmp_path, "--write").returncode == 0
    return tmp_path


def publish(tree: Path) -> None:
    """Fill the constant in."""
    text = (tree / "pyproject.toml").read_text()
    for empty, filled in PUBLISHED.items():
        assert empty in text
        text = text.replace(empty, filled)
    (tree / "pyproject.toml").write_text(text)


def contents(tree: Path) -> dict[Path, str]:
    """Return the text of each file of a tree."""
    return {
        path.relative_to(tree): path.read_text(errors="replace")
        for path in tree.rglob("*")
        if path.is_file()
    }


def test_everything_is_as_the_constant_says() -> None:
    """No install cell, badge or region in this tree is stale or written by hand."""
    done = tool(ROOT, "--check")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_filled_constant_changes_all_places_and_only_those(tree: Path) -> None:
    """After a release, cells, helper, badges and README follow; nothing else does."""
    before = contents(tree)
    publish(tree)
    assert tool(tree, "--check").returncode == 1
    assert contents(tree) == before | {
        Path("pyproject.toml"): (tree / "pyproject.toml").read_text()
    }
    assert tool(tree, "--write").returncode == 0
    after = contents(tree)

    changed = {path for path in before if before[path] != after[path]}
    notebooks = {path for path in before if path.suffix == ".ipynb"}
    regions = {
        path
        for path, text in before.items()
        if path.suffix == ".md"
        and re.search(r"^<!-- (install|badges|cell) -->$", text, re.MULTILINE)
    }
    assert before.keys() == after.keys()
    assert changed == notebooks | regions | {
        Path("pyproject.toml"),
        Path("kaggle/install.py"),
        Path("kaggle/one_cell.py"),
    }
    assert Path("README.md") in regions
    assert tool(tree, "--check").returncode == 0


def test_a_release_reaches_cells_badges_and_readme(tree: Path) -> None:
    """The address is in the cell and in README, the repository in each notebook."""
    publish(tree)
    tool(tree, "--write")

    install = (tree / "kaggle/install.py").read_text()
    assert f'\nRELEASE = "{WHEEL}"\n' in install
    assert (tree / "kaggle/one_cell.py").read_text().startswith(install)
    assert f'"llamatelemetry[cpu] @ {WHEEL}"' in (tree / "README.md").read_text()
    paths = sorted((tree / "notebooks").glob("*.ipynb"))
    assert paths
    for path in paths:
        first, second = json.loads(path.read_text())["cells"][:2]
        assert "".join(second["source"]) == install.rstrip("\n")
        title = "".join(first["source"])
        place = f"blob/main/notebooks/{path.name})"
        assert f"(https://kaggle.com/kernels/welcome?src={REPOSITORY}/{place}" in title
        colab = "https://colab.research.google.com/github/somebody/llamatelemetry"
        assert f"({colab}/{place}" in title


def test_a_cell_changed_by_hand_is_stale(tree: Path) -> None:
    """One letter in one notebook's install cell, or in one badge line, is seen."""
    path = next((tree / "notebooks").glob("*.ipynb"))
    text = path.read_text()
    for word in ("is here already", "once this is published"):
        path.write_text(text.replace(word, word.upper()))
        done = tool(tree, "--check")

        assert done.returncode == 1
        assert done.stdout == f"stale notebooks/{path.name}\n"
    path.write_text(text)
    assert tool(tree, "--check").returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        'release = "https://example.org/llamatelemetry-0.1.0-py3-none-any.whl"',
        'release = "llamatelemetry"',
        'release = "git+https://github.com/somebody/llamatelemetry"',
        'repository = "https://github.com/somebody"',
    ],
)
def test_a_release_that_is_not_pinned_is_refused(tree: Path, line: str) -> None:
    """Without a digest or a tag, or with half an address, nothing is rendered."""
    name = line.partition(" ")[0]
    pyproject = tree / "pyproject.toml"
    text = re.sub(rf'^{name} = ""', line, pyproject.read_text(), flags=re.MULTILINE)
    pyproject.write_text(text)
    before = contents(tree)
    done = tool(tree, "--write")

    assert done.returncode == 1
    assert f"pyproject.toml: {name} is" in done.stderr
    assert contents(tree) == before


def test_a_missing_region_is_told(tree: Path) -> None:
    """README without its marked region is an error, not silence."""
    (tree / "README.md").write_text("nothing\n")
    done = tool(tree, "--check")

    assert done.returncode == 1
    assert "README.md has no <!-- install -->" in done.stderr


# The name on its own as something to install: with a bracket, a version or neither.
BARE = re.compile(
    r"""\b(?:pip|uv|pipx|conda)\b[^\n]*\b(?:install|add)\b[^\n]*?
    (?<![\w./-])llamatelemetry(?:\[[\w,]*\])?+(?![\w/-]|\.\w|\s*@)""",
    re.VERBOSE,
)
OFFLINE = ("--no-index", "--find-links")


def bare_installs(text: str) -> list[str]:
    """Return the lines that would take the name from the package index."""
    return [
        line
        for line in text.replace("\\\n", " ").splitlines()
        if BARE.search(line) and not any(option in line for option in OFFLINE)
    ]


@pytest.mark.parametrize(
    ("line", "bare"),
    [
        ("pip install llamatelemetry", True),
        ("!pip install -q 'llamatelemetry[cpu]'", True),
        ("%pip install -U llamatelemetry", True),
        ("python -m pip install llamatelemetry==0.1.0", True),
        ("`uv add llamatelemetry`", True),
        ("pip install --quiet \\\n  llamatelemetry", True),
        ('pip install "llamatelemetry[cpu] @ https://x.org/a.whl"', False),
        ("pip install --no-index --find-links wheels llamatelemetry", False),
        ('pip install ".[cpu]"', False),
        ("pip install ./llamatelemetry-0.1.0-py3-none-any.whl", False),
        ("pip install git+https://github.com/somebody/llamatelemetry@v0.1.0", False),
        ("pip install opentelemetry-sdk", False),
    ],
)
def test_what_counts_as_a_bare_install(line: str, *, bare: bool) -> None:
    """The search finds each way of writing it, and nothing that is allowed."""
    assert bool(bare_installs(line)) is bare


def test_nobody_is_told_to_install_the_bare_name() -> None:
    """The name is not on the package index: whoever took it could take over."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    kinds = {".md", ".py", ".ipynb", ".toml", ".yml", ".yaml", ".json", ""}
    read = [
        path
        for path in paths
        if path.is_file() and path.suffix in kinds and path != Path(__file__).resolve()
    ]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:120]}"
        for path in read
        for line in bare_installs(path.read_text(errors="replace"))
    ]

    assert len(read) > 300
    assert found == []
