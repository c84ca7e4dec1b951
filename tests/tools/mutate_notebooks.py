"""Changes what notebooks store, one thing at a time, and shows that nbval notices.

    python tests/tools/mutate_notebooks.py [--all] [NOTEBOOK ...]

Each notebook is run once, strictly under nbval as ``run_notebooks.py`` does, so that
this is both checks in one. What its cells said is then compared, by nbval's
own comparison and with the sanitizer's rules, with many copies of what is stored, each
with one change: a word, a number, a number in an HTML table, an output removed or
added. A change that is not noticed is a hole. Pictures are not compared by nbval, and
are not changed here; nor is what the sanitizer replaces, which is no fact. The last
column says how many of the stored numbers those are: if it grows, the sanitizer has
become too wide.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from notebook_cards import two_t4s
from notebook_tools import (
    MOST_SECONDS,
    NOTEBOOKS,
    build_library,
    compare,
    environment,
    is_compared,
    sanitize_rules,
)

RESULT = "NOTEBOOK_MUTANTS"
"""The variable that names the file the plugin writes to."""
EVERYTHING = "NOTEBOOK_MUTANTS_ALL"
SAMPLE = 12
"""So many words or numbers are changed in one output, unless all are asked for."""
_SANITIZED = "sanitized"
KINDS = ("word", "number", "table", "removed", "added")
_WORD = re.compile(r"[A-Za-z]{4,}")
_NUMBER = re.compile(r"\d+")
_MARKUP = re.compile(r"<[^>]*>|&\w+;")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A cell's stored outputs with one change.

    Attributes:
        kind: What was changed; one of `KINDS`.
        change: What it was and what it is.
        outputs: The outputs.
    """

    kind: str
    change: str
    outputs: list[NotebookNode]


def mutants(outputs: list[NotebookNode], *, everything: bool) -> Iterator[Mutant]:
    """Give copies of a cell's outputs with one change each.

    Args:
        outputs: What is stored.
        everything: Whether each word and number is changed, instead of a sample.
    """
    for number, output in enumerate(outputs):
        for place, text in _texts(output):
            is_page = place[-1] == "text/html"
            for kind, pattern in (("word", _WORD), ("number", _NUMBER)):
                found = list(_facts(text, pattern, is_page=is_page))
                if not everything and len(found) > SAMPLE:
                    found = random.Random(text).sample(found, SAMPLE)
                for start, end, new in found:
                    changed = copy.deepcopy(outputs)
                    _put(changed[number], place, text[:start] + new + text[end:])
                    shown = "table" if is_page and kind == "number" else kind
                    yield Mutant(shown, f"{text[start:end]} -> {new}", changed)
    for number, output in enumerate(outputs):
        changed = copy.deepcopy(outputs)
        del changed[number]
        yield Mutant("removed", f"output {number}, {output.output_type}", changed)
    more = nbformat.v4.new_output("stream", name="stdout", text="one more line\n")
    yield Mutant("added", "a line that was printed", [*copy.deepcopy(outputs), more])
    data = {"text/plain": "one more"}
    shown = nbformat.v4.new_output("display_data", data)
    yield Mutant("added", "a thing shown", [*copy.deepcopy(outputs), shown])


def _texts(output: NotebookNode) -> Iterator[tuple[tuple[str, ...], str]]:
    for key in ("text", "evalue"):
        if key in output:
            yield (key,), output[key]
    for kind, text in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield ("data", kind), text


def _put(output: NotebookNode, place: tuple[str, ...], text: str) -> None:
    target: Any = output
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = text


def _facts(
    text: str, pattern: re.Pattern[str], *, is_page: bool
) -> Iterator[tuple[int, int, str]]:
    """Give where a word or a number stands that the sanitizer leaves, and a new one.

    A page's markup has neither.
    """
    taken = _sanitized_spans(text) + (_spans(_MARKUP, text) if is_page else [])
    for found in pattern.finditer(text):
        start, end = found.span()
        if _overlaps(start, end, taken):
            continue
        old = found.group()
        new = str(int(old[-1]) + 1)[-1] if old.isdigit() else ("x", "y")[old[0] == "x"]
        yield start, end, (old[:-1] + new if old.isdigit() else new + old[1:])


def count_numbers(outputs: list[NotebookNode]) -> tuple[int, int]:
    """Return how many numbers the sanitizer replaces, and how many there are."""
    replaced = total = 0
    for output in outputs:
        for place, text in _texts(output):
            sanitized = _sanitized_spans(text)
            markup = _spans(_MARKUP, text) if place[-1] == "text/html" else []
            numbers = [
                span for span in _spans(_NUMBER, text) if not _overlaps(*span, markup)
            ]
            total += len(numbers)
            replaced += sum(_overlaps(*span, sanitized) for span in numbers)
    return replaced, total


def _spans(pattern: str | re.Pattern[str], text: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(pattern, text)]


def _sanitized_spans(text: str) -> list[tuple[int, int]]:
    return [span for regex, _ in sanitize_rules() for span in _spans(regex, text)]


def _overlaps(start: int, end: int, spans: list[tuple[int, int]]) -> bool:
    return any(begin < end and start < finish for begin, finish in spans)


# ── what nbval's process loads as a plugin ───────────────────────────────────────


def pytest_runtest_teardown(item: Any) -> None:
    """Compare what a cell has said with the changed copies of what is stored."""
    if not hasattr(item, "test_outputs") or RESULT not in os.environ:
        return
    from nbval.plugin import coalesce_streams

    cell = item.cell
    line: dict[str, Any] = {"cell": item.cell_num + 1, "compared": is_compared(cell)}
    if line["compared"] and item.test_outputs is not None:
        said = item.test_outputs
        line["numbers"] = count_numbers(cell.outputs)
        line["mutants"] = [
            [
                mutant.kind,
                mutant.change,
                not item.compare_outputs(
                    copy.deepcopy(said), coalesce_streams(mutant.outputs)
                ),
            ]
            for mutant in mutants(
                cell.outputs, everything=os.environ.get(EVERYTHING) == "1"
            )
        ]
    with Path(os.environ[RESULT]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


# ── the program ──────────────────────────────────────────────────────────────────


def check(
    notebook: Path, library: Path, folder: Path, *, everything: bool
) -> tuple[str, Counter[tuple[str, bool]], list[str]]:
    """Run a notebook and its mutants.

    Args:
        notebook: Its file.
        library: What stands in for the driver's library.
        folder: Where everything happens; it need not exist.
        everything: Whether each word and number is changed.

    Returns:
        What pytest said if the notebook itself failed; how many mutants of each kind
        were caught or missed, and how many numbers are sanitized or not; and the
        missed mutants in words.
    """
    work, result = folder / "work", folder / "mutants.jsonl"
    work.mkdir(parents=True)
    with two_t4s(notebook.stem, folder / "cards", library) as description:
        variables = environment(folder / "home", library, description) | {
            RESULT: str(result),
            EVERYTHING: str(int(everything)),
            "PYTHONPATH": str(Path(__file__).parent),
        }
        copied = Path(shutil.copy(notebook, work))
        done = compare(copied, variables, folder, "-p", Path(__file__).stem)
    counts: Counter[tuple[str, bool]] = Counter()
    missed = []
    for line in map(json.loads, result.read_text().splitlines()):
        replaced, total = line.get("numbers", (0, 0))
        counts[_SANITIZED, True] += replaced
        counts[_SANITIZED, False] += total - replaced
        for kind, change, caught in line.get("mutants", ()):
            counts[kind, caught] += 1
            if not caught:
                missed.append(f"  missed, cell {line['cell']}: {kind}: {change}")
    return done.stdout if done.returncode else "", counts, missed


def row(name: str, counts: Counter[tuple[str, bool]], seconds: float) -> str:
    """Return a notebook's line of the table."""
    cells = [
        f"{counts[kind, True]}/{counts[kind, True] + counts[kind, False]}"
        for kind in (*KINDS, _SANITIZED)
    ]
    return f"{name:30}{''.join(f'{cell:>11}' for cell in cells)}{seconds:9.1f} s"


def main() -> int:
    """Print a table: of each notebook, how many changes were caught and missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument(
        "--all", action="store_true", help="change each word and number, not a sample"
    )
    given = parser.parse_args()
    notebooks = given.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    bad = not notebooks
    heads = "".join(f"{kind:>11}" for kind in (*KINDS, _SANITIZED))
    sys.stdout.write(f"{'caught/changed':30}{heads}\n")
    with tempfile.TemporaryDirectory(prefix="notebooks-") as scratch:
        library = build_library(Path(scratch))
        for notebook in map(Path.resolve, notebooks):
            began = time.monotonic()
            failure, counts, missed = check(
                notebook, library, Path(scratch) / notebook.stem, everything=given.all
            )
            seconds = time.monotonic() - began
            if seconds > MOST_SECONDS:
                missed.append(f"  it took more than {MOST_SECONDS} seconds")
            lines = [row(notebook.stem, counts, seconds), *missed, failure]
            sys.stdout.write("\n".join(line for line in lines if line) + "\n")
            sys.stdout.flush()
            bad = bad or bool(failure or missed) or not counts
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
