"""The committed notebooks: each keeps the rules, and each rule refuses something."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)
from notebook_rules import DEMO_SENTENCE, INSTALL, RULES, complaints, path_id
from notebook_tools import NOTEBOOKS, clean

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
NAMES = [
    "01_quick_start",
    "02_server",
    "03_two_t4s",
    "04_gguf_and_quantization",
    "05_chat",
    "06_embeddings_and_retrieval",
    "07_dashboard",
    "08_large_models",
    "09_without_internet",
    "10_inside_a_model",
    "11_after_fine_tuning",
    "12_batch",
    "13_benchmarks_and_telemetry",
]
HEAD = f"""# 99 · A test

<!-- badges -->
<!-- /badges -->

**Goal**: g. **Needs**: n. **Takes**: t.

{DEMO_SENTENCE}: the demo model."""


def good() -> NotebookNode:
    """Return a small notebook that keeps all rules."""
    sources = [
        INSTALL.read_text(),
        'session = launch("qwen3-4b")',
        "ask()",
        "session.close()",
    ]
    cells = [
        new_code_cell(source, execution_count=number)
        for number, source in enumerate(sources, 1)
    ]
    said = "LLAMATELEMETRY_DEMO is set: the demo model stands in for it"
    cells[1].outputs = [new_output("stream", name="stderr", text=said)]
    cells[2].outputs = [
        new_output("execute_result", {"text/plain": "42 layers"}, execution_count=3)
    ]
    return new_notebook(
        cells=[new_markdown_cell(HEAD), *cells, new_markdown_cell("Read next.")]
    )


def prints(text: str) -> NotebookNode:
    """Return what a cell has printed."""
    return new_output("stream", name="stdout", text=text)


def ignore(*numbers: int, why: str) -> Callable[[NotebookNode], None]:
    """Return what makes cells be not compared."""

    def change(notebook: NotebookNode) -> None:
        for number in numbers:
            notebook.cells[number].metadata["tags"] = ["nbval-ignore-output"]
            notebook.cells[number].metadata["why_not_compared"] = why

    return change


def say(number: int, output: NotebookNode) -> Callable[[NotebookNode], None]:
    """Return what gives a cell one more output."""
    return lambda notebook: notebook.cells[number].outputs.append(output)


def set_source(number: int, source: str) -> Callable[[NotebookNode], None]:
    """Return what gives a cell another source."""

    def change(notebook: NotebookNode) -> None:
        notebook.cells[number].source = source

    return change


def without_head(part: str) -> Callable[[NotebookNode], None]:
    """Return what takes a part out of the first cell."""
    return set_source(0, HEAD.replace(part, ""))


def set_count(number: int, count: int | None) -> Callable[[NotebookNode], None]:
    """Return what gives a cell another count."""

    def change(notebook: NotebookNode) -> None:
        notebook.cells[number].execution_count = count

    return change


def set_metadata(key: str, value: object) -> Callable[[NotebookNode], None]:
    """Return what writes something into the notebook's metadata."""

    def change(notebook: NotebookNode) -> None:
        notebook.metadata[key] = value

    return change


WIDGET = {"text/plain": "x", "application/vnd.jupyter.widget-view+json": {}}
TOKEN = "hf_" + "a1" * 17  # in two parts, so that this file holds none
BROKEN: dict[str, Callable[[NotebookNode], None]] = {
    "were not run in one go": set_count(3, None),
    "their counts are [1, 2, 7, 4]": set_count(3, 7),
    "ended in an error": say(3, new_output("error", ename="E", evalue="e")),
    "stores the state of widgets": set_metadata("widgets", {}),
    "stores a view of a widget": say(3, new_output("display_data", WIDGET)),
    "cell 3 of all holds what looks like a token": say(3, prints(TOKEN)),
    "cell 2 of all holds what looks like a token": set_source(2, f"x = '{TOKEN}'"),
    "folder of the machine: 'in /tmp/x": say(3, prints("in /tmp/x")),
    "folder of the machine: 'a /home/me": say(
        3, new_output("display_data", {"text/html": "a /home/me"})
    ),
    "folder of the machine: 'File /usr/lib/x": say(3, prints("File /usr/lib/x")),
    "folder of the machine: \"open('/root/x": set_source(3, "open('/root/x')"),
    "folder of the machine: 'at /work": set_source(5, "at /work"),
    "more than 300,000": say(3, prints("x" * 300_001)),
    "2 of 4 code cells are not compared": ignore(2, 3, why="it differs each time"),
    "does not say why": ignore(3, why="random"),
    "no title": set_source(0, HEAD.replace("# 99", "99")),
    "lacks '<!-- badges -->'": without_head("<!-- badges -->"),
    "lacks '<!-- /badges -->'": without_head("<!-- /badges -->"),
    "lacks '**Goal**'": without_head("**Goal**"),
    "lacks '**Needs**'": without_head("**Needs**"),
    "lacks '**Takes**'": without_head("**Takes**"),
    "lacks 'The outputs below": without_head(DEMO_SENTENCE),
    "second cell is not kaggle/install.py": set_source(1, "!pip install x"),
    "this was the demo's": lambda notebook: notebook.cells[2].outputs.clear(),
    "cleans nothing up": set_source(4, "print('bye')"),
    "what to read next": lambda notebook: notebook.cells.pop(),
    "stores when": lambda notebook: notebook.cells[3].metadata.update(execution={}),
    "version of Python": set_metadata("language_info", {"version": "3.11.2"}),
}


def test_all_of_them_are_there() -> None:
    """The thirteen notebooks are there, and no other."""
    assert [path.stem for path in FILES] == NAMES


@pytest.mark.parametrize("path", FILES, ids=path_id)
def test_a_notebook_keeps_the_rules(path: Path) -> None:
    """What is committed was run in one go, says whose run it was, and holds no more."""
    assert complaints(nbformat.read(path, as_version=4)) == []


def test_a_good_notebook_is_not_refused() -> None:
    """The notebook that the next test breaks keeps all rules before."""
    assert complaints(good()) == []


@pytest.mark.parametrize("told", BROKEN)
def test_a_broken_notebook_is_refused(told: str) -> None:
    """Each fault is told, in words that name it, and is the only one told."""
    notebook = good()
    BROKEN[told](notebook)
    said = complaints(notebook)
    assert len(said) == 1
    assert told in said[0]


def test_each_rule_refuses_something() -> None:
    """No rule is there in vain: each of them has a notebook that only it refuses."""
    refusing = set()
    for break_it in BROKEN.values():
        notebook = good()
        break_it(notebook)
        refusing |= {rule.__name__ for rule in RULES if list(rule(notebook))}
    assert refusing == {rule.__name__ for rule in RULES}


def test_an_error_on_purpose_is_allowed() -> None:
    """A cell whose tag says that it raises may end in an error."""
    notebook = good()
    BROKEN["ended in an error"](notebook)
    notebook.cells[3].metadata["tags"] = ["raises-exception"]
    assert complaints(notebook) == []


def test_what_a_refresh_stores_is_clean() -> None:
    """Of a run only what a reader sees is kept: no widgets, times or folders."""
    notebook = good()
    notebook.metadata["widgets"] = {"state": {}}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.2"}
    cell = notebook.cells[3]
    cell.metadata["execution"] = {"iopub.execute_input": "2026"}
    cell.outputs = [
        prints("a piece, "),
        prints("another: /tmp/notebooks-x7/work/model.gguf"),
        new_output("display_data", copy.deepcopy(WIDGET)),
    ]
    assert complaints(clean(notebook)) == []
    assert [output.get("text") for output in cell.outputs] == [
        "a piece, another: …/model.gguf",
        None,
    ]
