"""The commands ``llamatelemetry setup``, ``models``, ``doctor`` and ``pack``."""

from __future__ import annotations

import argparse
import re
import warnings
from typing import Any

from llamatelemetry._units import format_file_size
from llamatelemetry.diagnosis import doctor
from llamatelemetry.setup._prepare import prepare
from llamatelemetry.setup.capsule import pack
from llamatelemetry.setup.catalog import catalog
from llamatelemetry.setup.engines import EMBEDDED_NOTE
from llamatelemetry.setup.recommend import TASKS

__all__ = ["describe_setup_commands"]

_FAILURE = 1


def describe_setup_commands(commands: Any) -> None:
    """Add the commands to the others.

    Args:
        commands: What ``add_subparsers`` returned; its type has no public name.
    """
    _describe_setup(
        commands.add_parser(
            "setup",
            help="fetch an engine and a model, verified",
            description="Fetch an engine that fits this machine and a model, verify "
            "both, and print where they are. What is here already is not fetched. The "
            "Hub's token is read from HF_TOKEN, or as hf auth login saved it.",
            epilog="Example: llamatelemetry setup qwen3-4b --dry-run",
        )
    )
    parser = commands.add_parser(
        "models",
        help="the models of the catalog",
        description="List the models that can be named where a model is wanted.",
    )
    parser.add_argument("--task", choices=TASKS, help="only those that are good for it")
    parser.set_defaults(run=_models)
    parser = commands.add_parser(
        "doctor",
        help="what is here, what is missing, what to do",
        description="Print what running a model here depends on, and what to do where "
        "something is missing. The exit code is 1 if nothing can run.",
    )
    parser.set_defaults(run=_doctor)
    _describe_pack(
        commands.add_parser(
            "pack",
            help="a folder with all that a notebook without internet needs",
            description="Build a capsule: engine, model and wheels in one folder, "
            "ready to be a Kaggle dataset.",
            epilog="Example: llamatelemetry pack capsule qwen3-4b",
        )
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _describe_setup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a name of the catalog, owner/repo:file.gguf, owner/repo:Q4_K_M, or a "
        "file; unless said, what fits the cards",
    )  # fmt: skip
    parser.add_argument(
        "--engine", metavar="ENGINE",
        help="a name of the manifest, a program, owner/repo:path, or 'embedded'",
    )  # fmt: skip
    parser.add_argument("--capsule", metavar="FOLDER", help="a folder that pack made")
    parser.add_argument("--cache-dir", metavar="FOLDER", help="the Hub's cache")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only tell what would be fetched",
    )
    _add_common(parser)
    parser.set_defaults(run=_setup)


def _setup(options: argparse.Namespace) -> int:
    arguments = {
        "capsule": options.capsule,
        "cache_dir": options.cache_dir,
        "progress": not options.quiet,
    }
    if options.dry_run:
        plan = prepare(options.model, options.engine, dry_run=True, **arguments)
        print(plan)
        return 0 if plan.ok else _FAILURE
    with warnings.catch_warnings():
        # It stands in what is printed.
        warnings.filterwarnings("ignore", message=re.escape(EMBEDDED_NOTE))
        prepared = prepare(options.model, options.engine, **arguments)
    print(prepared)
    name = options.model or prepared.model.name
    engine = f" --engine {options.engine}" if options.engine else ""
    print(f"next    llamatelemetry chat {name}{engine}")
    return 0


def _models(options: argparse.Namespace) -> int:
    print(f"{'name':30}{'quantization':14}{'size':>9}  {'fits':8}tasks")
    for entry in catalog():
        fits = "T4" if "t4" in entry.fits else "2 x T4" if entry.fits else ""
        if options.task in (None, *entry.tasks):
            size = format_file_size(entry.total_bytes)
            kind = entry.quantization or ""
            tasks = ", ".join(entry.tasks)
            print(f"{entry.id:30}{kind:14}{size:>9}  {fits:8}{tasks}")
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    found = doctor()
    print(found)
    return 0 if found.ok else _FAILURE


def _describe_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="where to; new or empty")
    parser.add_argument("model", metavar="MODEL", help="as for setup")
    parser.add_argument(
        "--engine", metavar="ENGINE",
        help="a name of the manifest, a folder that holds one, or 'embedded'; unless "
        "said, the one for a T4",
    )  # fmt: skip
    parser.add_argument(
        "--wheel", dest="wheels", action="append", metavar="WHEEL",
        help="a wheel, or a requirement for pip; may be repeated; unless said, this "
        "package and what Kaggle's image lacks",
    )  # fmt: skip
    parser.add_argument(
        "--python-version", default="3.12", metavar="VERSION",
        help="the notebook's Python (default 3.12: Kaggle)",
    )  # fmt: skip
    parser.add_argument("--title", metavar="TEXT", help="the dataset's title")
    _add_common(parser)
    parser.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> int:
    made = pack(
        options.folder,
        options.model,
        engine=options.engine,
        wheels=options.wheels,
        python_version=options.python_version,
        title=options.title,
        progress=not options.quiet,
    )
    print(made)
    print(
        "next: put your user name into dataset-metadata.json, then\n"
        f"      kaggle datasets create -p {made.folder} --dir-mode zip"
    )
    return 0
