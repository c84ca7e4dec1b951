"""What a committed notebook has to be; each rule says what is wrong, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nbformat import NotebookNode
from notebook_tools import NOTEBOOKS, code_cells, folder_pattern, is_compared

MOST_OUTPUT_BYTES = 300_000
MOST_IGNORED = 0.15
DEMO_SENTENCE = "The outputs below are of a run with `LLAMATELEMETRY_DEMO=1`"
INSTALL = NOTEBOOKS.parent / "kaggle" / "install.py"

_FOLDER = re.compile(
    folder_pattern() + r"|(?<![\w./~…])/(?:tmp|root|home|work|usr)\b"  # or without a /
)
_SECRET = re.compile(
    r"hf_[A-Za-z0-9_]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|sk-[A-Za-z0-9-]{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|KGAT_\w{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\."
    r"|Bearer [A-Za-z0-9._-]{16,}"
)
_ENDS = re.compile(r"\.(?:close|stop|unlink|cleanup|close_all)\(|rmtree\(")
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=\n]+")

Rule = Callable[[NotebookNode], Iterator[str]]


def complaints(notebook: NotebookNode) -> list[str]:
    """Return all that is wrong with a notebook."""
    return [told for rule in RULES for told in rule(notebook)]


def _texts(cell: NotebookNode) -> Iterator[str]:
    """Give what can be read in a cell's outputs, pictures left out."""
    for output in cell.get("outputs", ()):
        yield from (
            str(output[key]) for key in ("text", "ename", "evalue") if key in output
        )
        yield "\n".join(output.get("traceback", ()))
        for kind, value in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield _PICTURE.sub("", str(value))


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", ()))


def all_ran(notebook: NotebookNode) -> Iterator[str]:
    """The code cells were run from the first to the last, in one go."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"its cells were not run in one go: their counts are {counts}"


def no_errors(notebook: NotebookNode) -> Iterator[str]:
    """No cell ended in an error, but where that is its point."""
    for number, cell in enumerate(code_cells(notebook), 1):
        raised = any(output.output_type == "error" for output in cell.outputs)
        if raised and "raises-exception" not in _tags(cell):
            yield f"cell {number} ended in an error"


def no_widget_state(notebook: NotebookNode) -> Iterator[str]:
    """Nothing of widgets is stored, which no page without a kernel could show."""
    if "widgets" in notebook.metadata:
        yield "it stores the state of widgets"
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.outputs:
            if any("widget" in kind for kind in output.get("data", {})):
                yield f"cell {number} stores a view of a widget"


def no_secrets(notebook: NotebookNode) -> Iterator[str]:
    """Nothing that looks like a token, in sources or outputs."""
    for number, cell in enumerate(notebook.cells):
        if any(_SECRET.search(text) for text in (cell.source, *_texts(cell))):
            yield f"cell {number} of all holds what looks like a token"


def no_folders(notebook: NotebookNode) -> Iterator[str]:
    """No folder of the machine it was run on, in sources or outputs."""
    for number, cell in enumerate(notebook.cells):
        for text in (cell.source, *_texts(cell)):
            found = _FOLDER.search(text)
            if found:
                near = text[max(found.start() - 20, 0) : found.end() + 30]
                yield f"cell {number} of all names a folder of the machine: {near!r}"


def small(notebook: NotebookNode) -> Iterator[str]:
    """The outputs are quick to load."""
    size = sum(len(str(cell.outputs).encode()) for cell in code_cells(notebook))
    if size > MOST_OUTPUT_BYTES:
        yield f"its outputs take {size:,} bytes, more than {MOST_OUTPUT_BYTES:,}"


def mostly_compared(notebook: NotebookNode) -> Iterator[str]:
    """Few cells are not compared, and each of them says why."""
    cells = code_cells(notebook)
    ignored = [cell for cell in cells if not is_compared(cell)]
    most = max(int(MOST_IGNORED * len(cells)), 1)
    if len(ignored) > most:
        yield f"{len(ignored)} of {len(cells)} code cells are not compared, not {most}"
    for cell in ignored:
        if len(str(cell.metadata.get("why_not_compared", "")).split()) < 4:
            yield f"it does not say why this is not compared: {cell.source[:60]!r}"


def well_begun(notebook: NotebookNode) -> Iterator[str]:
    """The head says what it is about, what it needs, and whose outputs these are."""
    head = notebook.cells[0]
    if head.cell_type != "markdown" or not re.match(r"# \d\d · \S", head.source):
        yield "its first cell has no title like '# 01 · Quick start'"
    for wanted in (
        "<!-- badges -->",
        "<!-- /badges -->",
        "**Goal**",
        "**Needs**",
        "**Takes**",
        DEMO_SENTENCE,
    ):
        if wanted not in head.source:
            yield f"its first cell lacks {wanted!r}"


def installs(notebook: NotebookNode) -> Iterator[str]:
    """The second cell is the one that installs, word for word."""
    second = notebook.cells[1]
    if (
        second.cell_type != "code"
        or second.source.strip() != INSTALL.read_text().strip()
    ):
        yield f"its second cell is not {INSTALL.parent.name}/{INSTALL.name}"


def of_the_demo(notebook: NotebookNode) -> Iterator[str]:
    """A real model's outputs would not be those that are compared."""
    asks = any(
        re.search(r"\b(launch|prepare|ensure_model)\((?!\"demo\")", cell.source)
        for cell in code_cells(notebook)
    )
    told = any(
        "LLAMATELEMETRY_DEMO is set" in text
        for cell in code_cells(notebook)
        for text in _texts(cell)
    )
    if asks and not told:
        yield "it starts a model, and no output says that this was the demo's"


def cleans_up(notebook: NotebookNode) -> Iterator[str]:
    """The last code cell ends what was begun, and a text follows it."""
    last = code_cells(notebook)[-1]
    if not _ENDS.search(last.source):
        yield "its last code cell cleans nothing up"
    if notebook.cells[-1].cell_type != "markdown":
        yield "it does not end with what to read next"


def no_timings(notebook: NotebookNode) -> Iterator[str]:
    """Nothing of when it was run is stored, nor of the interpreter."""
    if any("execution" in cell.metadata for cell in notebook.cells):
        yield "it stores when its cells were run"
    if "version" in notebook.metadata.get("language_info", {}):
        yield "it stores a version of Python"


RULES: tuple[Rule, ...] = (
    all_ran,
    no_errors,
    no_widget_state,
    no_secrets,
    no_folders,
    small,
    mostly_compared,
    well_begun,
    installs,
    of_the_demo,
    cleans_up,
    no_timings,
)


def path_id(path: Path) -> str:
    """Return what a test of a notebook is called."""
    return path.stem
