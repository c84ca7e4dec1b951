"""What the install cell does, with pip replaced by something that writes down."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import packaging
import pytest

import llamatelemetry

ROOT = Path(__file__).parents[2]
CELL = (ROOT / "kaggle" / "install.py").read_text()
NAME = "llamatelemetry-{}-py3-none-any.whl"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-color"]


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip was asked for, where this package cannot be imported."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return asked


def run_cell(attached: Path, release: str = "", kaggle: str = "/kaggle") -> None:
    """Run the cell with other attached datasets, another release, another Kaggle."""
    cell = CELL.replace('"/kaggle/input"', repr(str(attached)))
    cell = cell.replace('Path("/kaggle")', f"Path({kaggle!r})")
    assert cell != CELL
    cell = cell.replace('RELEASE = ""', f'RELEASE = "{release}"')
    exec(compile(cell, "cell", "exec"), {"__name__": "__main__"})


def attach(folder: Path, *names: str) -> None:
    """Attach a dataset with files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_nothing_happens_where_it_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the package can be imported, the cell says so, whatever is attached."""
    attach(tmp_path / "wheel", NAME.format("9.0.0"))
    run_cell(tmp_path)

    said = f"llamatelemetry {llamatelemetry.__version__} is here already\n"
    assert capsys.readouterr().out == said


def test_a_folder_of_that_name_is_not_the_package(tmp_path: Path) -> None:
    """A clone beside the notebook is imported as an empty package; it is not it."""
    (tmp_path / "llamatelemetry").mkdir()
    installed = Path(packaging.__file__).parents[1]  # without what .pth files add
    done = subprocess.run(
        [sys.executable, "-S", "-c", CELL.replace("/kaggle/input", "/nothing")],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{installed}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "RuntimeError: llamatelemetry is not published yet" in done.stderr


def test_the_newest_attached_wheel_is_taken(
    tmp_path: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """By version, not by name: 0.10.0 is newer than 0.9.0 and than its candidate."""
    attach(tmp_path / "one", NAME.format("0.9.0"), NAME.format("0.10.0rc1"))
    attach(tmp_path / "datasets/somebody/two", NAME.format("0.10.0"), "other.csv")
    run_cell(tmp_path, release="https://example.org/never.whl")

    newest = tmp_path / "datasets/somebody/two" / NAME.format("0.10.0")
    assert pip == [[*PIP, f"{newest}[cpu]"]]
    told = f"installing llamatelemetry from {newest} ...\ninstalled\n"
    assert capsys.readouterr().out == told


def test_a_wheel_with_its_dependencies_needs_no_index(
    tmp_path: Path, pip: list[list[str]]
) -> None:
    """Beside other wheels, as in a capsule, nothing is looked for elsewhere."""
    folder = tmp_path / "capsule" / "wheels"
    attach(folder, NAME.format("0.1.0"), "nh3-0.3.8-cp39-abi3-linux_x86_64.whl")
    run_cell(tmp_path)

    assert pip[0][-3:] == ["--no-index", "--find-links", str(folder)]


def test_two_versions_of_it_are_no_dependencies(
    tmp_path: Path, pip: list[list[str]]
) -> None:
    """A folder with nothing but this package's wheels leaves the index on."""
    attach(tmp_path / "wheel", NAME.format("0.1.0"), NAME.format("0.2.0"))
    run_cell(tmp_path)

    assert "--no-index" not in pip[0]


def test_the_release_is_taken_where_nothing_is_attached(
    tmp_path: Path, pip: list[list[str]]
) -> None:
    """By its address, never by a name that the package index would answer to."""
    run_cell(tmp_path, release="https://example.org/a.whl#sha256=00")

    wanted = "llamatelemetry[cpu] @ https://example.org/a.whl#sha256=00"
    assert pip[0][-1] == wanted


@pytest.mark.parametrize(
    ("kaggle", "advice"),
    [("there", "add a dataset with one"), ("not there", 'run pip install "\\.\\[cpu')],
)
def test_without_either_it_says_what_to_do(
    tmp_path: Path, pip: list[list[str]], kaggle: str, advice: str
) -> None:
    """Nothing is asked of pip; on Kaggle and elsewhere the error says what helps."""
    (tmp_path / "there").mkdir()

    with pytest.raises(RuntimeError, match=f"not published yet.*{advice}"):
        run_cell(tmp_path, kaggle=str(tmp_path / kaggle))

    assert pip == []


def test_what_pip_says_is_shown(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed install is an error with the end of pip's words, not a printed line."""
    attach(tmp_path / "wheel", NAME.format("0.1.0"))
    failed = subprocess.CompletedProcess([], 1, "", "no matching distribution: nh3")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)

    with pytest.raises(RuntimeError, match="no matching distribution: nh3"):
        run_cell(tmp_path)
