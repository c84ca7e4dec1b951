"""The code in README and docs/ runs, and its commands exist."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from doc_blocks import agrees, as_json, blocks_of, commands_of, promised, python_blocks
from nvml_tools import StandInDriver, t4

from llamatelemetry._demo import DEMO_MODEL
from llamatelemetry.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUNNER = ROOT / "tests" / "tools" / "doc_blocks.py"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_PYTHON = [page for page in PAGES if python_blocks(page.read_text())]

# Blocks that cannot run here; each has its reason beside it. Only ever lowered.
MOST_NOT_RUN = 3


def name_of(page: Path) -> str:
    """What a page is called in the tests' names."""
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Place:
    """A folder and an environment like those of a notebook with two T4s."""

    folder: Path
    environment: dict[str, str] = field(repr=False)


@pytest.fixture
def place(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A scratch folder with model.gguf, the demo switch, and a driver of two T4s."""
    driver = StandInDriver(nvml_library, tmp_path, monkeypatch)
    driver.describe(t4(0), t4(1))
    folder = tmp_path / "notebook"
    folder.mkdir()
    shutil.copy(DEMO_MODEL, folder / "model.gguf")
    environment = os.environ | {
        "LLAMATELEMETRY_DEMO": "1",
        "LD_LIBRARY_PATH": str(nvml_library.parent),
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
    }
    return Place(folder, environment)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, place: Place, tmp_path: Path) -> None:
    """Each Python block runs after those before it, and prints what the page says."""
    document = page.read_text(encoding="utf-8")
    given, answer = tmp_path / "blocks.json", tmp_path / "answer.json"
    given.write_text(as_json(python_blocks(document)))
    done = subprocess.run(
        [sys.executable, RUNNER, name_of(page), given, answer],
        cwd=place.folder,
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert answer.exists(), done.stderr
    results = json.loads(answer.read_text())
    for result in results:
        assert "fault" not in result, f"line {result['line']}:\n{result['fault']}"
    printed = {result["line"]: result["printed"] for result in results}
    for line, block in promised(document).items():
        assert agrees(block.text, printed[line]), (
            f"line {block.line} of {name_of(page)} is not what was printed:\n"
            f"{printed[line]}"
        )


COMMANDS = [
    pytest.param(words, id=f"{name_of(page)}:{line}")
    for page in PAGES
    for line, words in commands_of(page.read_text())
    if words.startswith("llamatelemetry ")
]


def parse(arguments: list[str]) -> int | str | None:
    """Parse a command as the program does; return its exit code if it ends there."""
    try:
        _, unknown = _parser().parse_known_args(arguments)
    except SystemExit as end:
        return end.code
    return f"unknown: {unknown}" if unknown else 0


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_exists(words: str) -> None:
    """Each `llamatelemetry ...` in a page is one that its parser takes."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = parse(shlex.split(words)[1:])
    assert code == 0, said.getvalue() or code


def test_programs_and_targets_exist() -> None:
    """What a page tells to run with make or python is in the repository."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    seen = 0
    for page in PAGES:
        for line, words in commands_of(page.read_text()):
            first, *rest = words.split()
            if first == "make":
                assert rest[0] in targets, f"{name_of(page)}:{line}: {words}"
            elif first.startswith("python") and rest and rest[0].endswith(".py"):
                assert (ROOT / rest[0]).exists(), f"{name_of(page)}:{line}: {words}"
            else:
                continue
            seen += 1
    assert seen


def test_what_is_not_run_is_counted() -> None:
    """Few blocks are left out, and each says why in a sentence."""
    found = [
        (name_of(page), block)
        for page in PAGES
        for block in blocks_of(page.read_text())
        if block.kind == "not run"
    ]
    for page, block in found:
        assert len(block.note) > 20, f"{page}:{block.line}"
    assert len(found) <= MOST_NOT_RUN


def test_every_block_says_what_it_is() -> None:
    """A block is Python, a shell's, a program's output, or has no language at all."""
    known = {"", "python", "bash", "console", "text", "json"}
    for page in PAGES:
        for block in blocks_of(page.read_text()):
            assert block.language in known, f"{name_of(page)}:{block.line}"


def test_the_index_is_never_asked_for_the_name() -> None:
    """No page has pip ask the package index for the name, which is not ours there."""
    bare = re.compile(
        r"pip install [^\n`]*?\bllamatelemetry(\[[\w,]+\])?(?=[\s`\"']|$)(?! *@)"
    )
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if bare.search(line):
                assert "--no-index" in line, f"{name_of(page)}: {line}"


def test_the_runner_sees_faults(tmp_path: Path) -> None:
    """A block that fails, or does not fail as said, is found; so is a wrong output."""
    document = "\n".join(
        [
            *("```python", "a = 1", "```"),
            *("<!-- raises: ValueError -->", "```python", "a + 1", "```"),
        ]
    )
    given, answer = tmp_path / "given", tmp_path / "answer"
    given.write_text(as_json(python_blocks(document)))
    subprocess.run([sys.executable, RUNNER, "a page", given, answer], check=True)

    results = json.loads(answer.read_text())

    assert [("fault" in result) for result in results] == [False, True]
    assert agrees("one … three", "one\ntwo three\n")
    assert not agrees("one … three", "one two four")
