"""Prepares notebooks and datasets for Kaggle; pushes them with Kaggle's program.

    python kaggle/push.py YOUR_USER_NAME 01_quick_start 05_chat
    python kaggle/push.py YOUR_USER_NAME all
    python kaggle/push.py YOUR_USER_NAME wheel
    python kaggle/push.py YOUR_USER_NAME capsule=FOLDER    # made by llamatelemetry pack

Each gets a folder below build/kaggle, with the metadata that Kaggle's program reads.
``--dry-run`` ends there. ``--version TEXT`` makes a new version of a dataset that is on
Kaggle already. Signing in is the business of Kaggle's program; nothing here reads or
asks for a key.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_FOLDER = Path(__file__).resolve().parent
_USER = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_PLACEHOLDER = "INSERT_YOUR_USER_NAME"
_FAILED = re.compile(r"^(?:Kernel push|Dataset creation) error\b.*", re.MULTILINE)
_NOT_ADDED = re.compile(r"^The following are not valid .*", re.MULTILINE)


def notebook_names() -> list[str]:
    """Return the notebooks that have metadata."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/kernel-metadata.json"))


def _metadata(path: Path, user: str) -> dict[str, Any]:
    """Return a metadata file with the user's name in it."""
    text = path.read_text(encoding="utf-8").replace(_PLACEHOLDER, user)
    found: dict[str, Any] = json.loads(text)
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def prepare_notebook(name: str, user: str, folder: Path) -> list[str]:
    """Fill a folder with a notebook without outputs and its metadata.

    While nothing is published, the notebook gets the dataset of the wheel.

    Args:
        name: The notebook's.
        user: The name on Kaggle.
        folder: Where to; it is there and empty.

    Returns:
        The command that pushes it.

    Raises:
        SystemExit: Its install cell is not kaggle/install.py.
    """
    source = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = json.loads(source.read_text(encoding="utf-8"))
    install = (_FOLDER / "install.py").read_text(encoding="utf-8")
    if "".join(notebook["cells"][1]["source"]) != install.rstrip("\n"):
        raise SystemExit(
            f"{source}: its second cell is not kaggle/install.py; run "
            "python kaggle/release.py --write"
        )
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    _write(folder / source.name, notebook)
    metadata = _metadata(_FOLDER / name / "kernel-metadata.json", user)
    if '\nRELEASE = ""\n' in install:
        metadata["dataset_sources"].append(f"{user}/llamatelemetry-wheel")
    _write(folder / "kernel-metadata.json", metadata)
    return ["kaggle", "kernels", "push", "-p", str(folder)]


def prepare_wheel(user: str, folder: Path) -> None:
    """Fill a folder with this package's wheel and its metadata."""
    options = ["--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options], check=True)
    metadata = _metadata(_FOLDER / "wheel" / "dataset-metadata.json", user)
    _write(folder / "dataset-metadata.json", metadata)


def prepare_capsule(capsule: Path, user: str, folder: Path) -> None:
    """Fill a folder with links to a capsule's parts, and its metadata.

    The capsule itself stays as it was packed. One of another model than that of
    kaggle/capsule keeps the title and the licence that it was packed with.

    Args:
        capsule: The folder that llamatelemetry pack made.
        user: The name on Kaggle.
        folder: Where to; it is there and empty.

    Raises:
        SystemExit: It is no capsule.
    """
    if not (capsule / "capsule.json").is_file():
        raise SystemExit(f"{capsule} is no capsule: it has no capsule.json")
    own = _metadata(capsule / "dataset-metadata.json", user)
    ours = _metadata(_FOLDER / "capsule" / "dataset-metadata.json", user)
    for part in capsule.iterdir():
        if part.name != "dataset-metadata.json":
            (folder / part.name).symlink_to(part.resolve())
    chosen = ours if own["title"] == ours["title"] else own
    _write(folder / "dataset-metadata.json", chosen)


def _dataset_command(folder: Path, version: str | None) -> list[str]:
    """Return the command that makes a dataset, or a new version of one.

    Without ``--dir-mode`` Kaggle's program leaves folders out.
    """
    how = ["create"] if version is None else ["version", "-m", version]
    return ["kaggle", "datasets", *how, "-p", str(folder), "--dir-mode", "zip"]


def prepare(
    wanted: list[str], user: str, into: Path, version: str | None
) -> Iterator[list[str]]:
    """Prepare what is wanted, one after the other; yield the command for each."""
    names = notebook_names()
    for what in [name for one in wanted for name in (names if one == "all" else [one])]:
        kind, _, capsule = what.partition("=")
        if what not in [*names, "wheel"] and not (kind == "capsule" and capsule):
            raise SystemExit(
                f"{what!r} is none of: {', '.join(names)}, all, wheel, capsule=FOLDER"
            )
        folder = into / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if what in names:
            yield prepare_notebook(what, user, folder)
            continue
        if what == "wheel":
            prepare_wheel(user, folder)
        else:
            prepare_capsule(Path(capsule), user, folder)
        yield _dataset_command(folder, version)


def push(command: list[str]) -> bool:
    """Run Kaggle's program and show what it says; return whether it went well.

    It ends with 0 even if Kaggle refuses, so its words are read. A source that was
    not attached counts as a failure too: the notebook would not run.
    """
    program = shutil.which(command[0])
    if program is None:
        raise SystemExit("Kaggle's program is missing: pip install kaggle six")
    done = subprocess.run(
        [program, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="")
    refused = _FAILED.search(done.stdout) or _NOT_ADDED.search(done.stdout)
    return done.returncode == 0 and refused is None


def main(arguments: list[str] | None = None) -> int:
    """Prepare and push; return 1 if a push failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("user", help="your name on Kaggle, as in its addresses")
    parser.add_argument(
        "what", nargs="+", help="notebooks, all, wheel, capsule=FOLDER", metavar="WHAT"
    )
    parser.add_argument("--dry-run", action="store_true", help="prepare only")
    parser.add_argument("--version", metavar="TEXT", help="a dataset's new version")
    usual = ROOT / "build" / "kaggle"
    parser.add_argument("--into", type=Path, default=usual, help="for the folders")
    chosen = parser.parse_args(arguments)
    if not _USER.fullmatch(chosen.user):
        parser.error(f"{chosen.user!r} is no name that Kaggle gives")
    failed = 0
    for command in prepare(chosen.what, chosen.user, chosen.into, chosen.version):
        shown = os.path.relpath(command[command.index("-p") + 1])
        print("prepared" if chosen.dry_run else "pushing", shown, flush=True)
        failed += not chosen.dry_run and not push(command)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
