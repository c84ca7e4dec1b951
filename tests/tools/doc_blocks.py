"""The code of a document, run as a reader would run it: in order, in one namespace.

What stands in comments before a block:

- ``<!-- not run: a reason -->``: it is not run; the tests count these.
- ``<!-- raises: ConfigurationError -->``: it has to raise just that.
- ``<!-- prints -->`` before a text block: what the Python block above it prints, or the
  error it raises; ``…`` stands for anything.

Run as a program, it executes the blocks of a file of JSON, and says what each printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"<!-- (?P<kind>not run|raises|prints)(?:: (?P<text>.+?))? -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A block of code, or of text, in a document.

    Attributes:
        line: Where its first line of text is.
        language: What stands behind the fence; empty if nothing does.
        text: What it holds.
        kind: "not run", "raises" or "prints", as the comment before it says.
        note: What else the comment says.
    """

    line: int
    language: str
    text: str
    kind: str = ""
    note: str = ""


def blocks_of(document: str) -> list[Block]:
    """Return the blocks of a document in Markdown."""
    found = []
    for match in FENCE.finditer(document):
        note = NOTE.search(document, 0, match.start())
        found.append(
            Block(
                line=document.count("\n", 0, match.start()) + 2,
                language=match["language"],
                text=match["text"],
                kind=note["kind"] if note else "",
                note=(note["text"] or "") if note else "",
            )
        )
    return found


def python_blocks(document: str) -> list[Block]:
    """Return the blocks that are run."""
    return [
        block
        for block in blocks_of(document)
        if block.language == "python" and block.kind != "not run"
    ]


def commands_of(document: str) -> list[tuple[int, str]]:
    """Return the shell's lines, with their numbers, that are not marked as not run."""
    found = []
    for block in blocks_of(document):
        if block.language not in ("", "bash", "console") or block.kind == "not run":
            continue
        for number, line in enumerate(block.text.splitlines(), block.line):
            words = re.sub(r"\s{2,}#.*$", "", line).strip().removeprefix("$ ")
            if words:
                found.append((number, words.removeprefix("!")))
    return found


def promised(document: str) -> dict[int, Block]:
    """Return the text blocks that say what a Python block prints, by its line."""
    found: dict[int, Block] = {}
    last = None
    for block in blocks_of(document):
        if block.language == "python":
            last = block.line
        elif block.kind == "prints" and last is not None:
            found[last] = block
    return found


def agrees(shown: str, printed: str) -> bool:
    """Whether a document shows what was printed; ``…`` stands for anything."""

    def words(text: str) -> str:
        return " ".join(text.split())

    pattern = ".*".join(re.escape(part) for part in words(shown).split("…"))
    return re.fullmatch(pattern, words(printed), re.DOTALL) is not None


def run(name: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Execute blocks in one namespace; end with the first that fails."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    results: list[dict[str, Any]] = []
    for block in blocks:
        source = "\n" * (block["line"] - 1) + block["text"]
        output, error, trace = io.StringIO(), "", ""
        with contextlib.redirect_stdout(output):
            try:
                exec(compile(source, name, "exec"), namespace)
            except Exception as caught:  # noqa: BLE001 - it is what is looked at
                error, trace = type(caught).__name__, traceback.format_exc()
                output.write(f"{error}: {caught}")
        wanted = block["note"] if block["kind"] == "raises" else ""
        results.append(
            {"line": block["line"], "printed": output.getvalue(), "error": error}
        )
        if error != wanted:
            results[-1]["fault"] = trace or f"it raised nothing, not {wanted}"
            break
    return results


def as_json(blocks: list[Block]) -> str:
    """Return blocks as this program takes them."""
    return json.dumps([asdict(block) for block in blocks])


if __name__ == "__main__":
    page, given, answer = sys.argv[1:]
    done = run(page, json.loads(Path(given).read_text(encoding="utf-8")))
    Path(answer).write_text(json.dumps(done), encoding="utf-8")
