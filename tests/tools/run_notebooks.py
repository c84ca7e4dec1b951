"""Runs notebooks on the demo model and two described T4s.

    python tests/tools/run_notebooks.py [--refresh] [--keep-going] [NOTEBOOK ...]

Without --refresh nbval runs each of them and compares all that its cells say with what
is stored; with it what they say is stored. Without a name: every notebook of
``notebooks``. Each has a process, a home and a working folder of its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from notebook_cards import two_t4s
from notebook_tools import (
    MOST_SECONDS,
    NOTEBOOKS,
    build_library,
    code_cells,
    compare,
    environment,
    execute,
    is_compared,
    write,
)


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a notebook.

    Attributes:
        notebook: Its file.
        complaint: Why it failed; empty if it did not.
        seconds: How long it took, pytest and kernel included.
    """

    notebook: Path
    complaint: str
    seconds: float

    def __str__(self) -> str:
        cells = code_cells(nbformat.read(self.notebook, as_version=4))
        compared = sum(is_compared(cell) for cell in cells)
        return (
            f"{self.notebook.name:36} {'FAILED' if self.complaint else 'ok':6} "
            f"{self.seconds:6.1f} s  {len(cells):3} code cells  {compared:3} compared"
        )


def run_one(notebook: Path, library: Path, folder: Path, *, refresh: bool) -> Ran:
    """Run one notebook in a folder of its own.

    Args:
        notebook: Its file.
        library: What stands in for the driver's library.
        folder: Where everything happens; it need not exist.
        refresh: Whether to store what its cells say, instead of comparing it.
    """
    work = folder / "work"
    work.mkdir(parents=True)
    began = time.monotonic()
    with two_t4s(notebook.stem, folder / "cards", library) as description:
        variables = environment(folder / "home", library, description)
        if refresh:
            complaint = ""
            try:
                write(execute(notebook, variables, work), notebook)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                complaint = str(error)
        else:
            done = compare(
                Path(shutil.copy(notebook, work)), variables, folder, "--tb=short"
            )
            complaint = done.stdout if done.returncode else ""
    seconds = time.monotonic() - began
    if not complaint and seconds > MOST_SECONDS:
        complaint = f"it took more than {MOST_SECONDS} seconds"
    return Ran(notebook, complaint, seconds)


def run_all(
    notebooks: list[Path], *, refresh: bool, keep_going: bool, jobs: int
) -> bool:
    """Run notebooks, print a line for each, and return whether all of them did well."""
    failed = False
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="notebooks-") as scratch,
        ThreadPoolExecutor(jobs) as pool,
    ):
        library = build_library(Path(scratch))

        def run(notebook: Path) -> Ran | None:
            if failed and not keep_going:
                return None
            folder = Path(scratch) / notebook.stem
            return run_one(notebook, library, folder, refresh=refresh)

        for ran in pool.map(run, notebooks):
            if ran is None:
                continue
            _say(str(ran))
            if ran.complaint:
                failed = True
                _say(ran.complaint)
    _say(f"{len(notebooks)} notebooks, {time.monotonic() - began:.0f} s")
    return not failed


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the notebooks that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument(
        "--refresh", action="store_true", help="store what the cells say"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="run the others after a failure"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="how many run at a time (default: 1)"
    )
    given = parser.parse_args()
    notebooks = given.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    missing = [str(path) for path in notebooks if not path.is_file()]
    if missing or not notebooks:
        parser.error(f"no such notebook: {', '.join(missing) or NOTEBOOKS}")
    done = run_all(
        [path.resolve() for path in notebooks],
        refresh=given.refresh,
        keep_going=given.keep_going,
        jobs=given.jobs,
    )
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
