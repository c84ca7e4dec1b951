"""The wheels of a capsule: this package, and what the notebook's image lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from llamatelemetry._progress import FileBar
from llamatelemetry.exceptions import ConfigurationError, SetupError
from llamatelemetry.setup._capsule_files import described
from llamatelemetry.setup._pip import run_pip

__all__ = ["check_wheels", "pack_wheels"]

USUAL_WHEELS = ("xllamacpp", "zstandard", "nh3", "markdown-it-py", "mdurl")
"""What this package needs and Kaggle's image of 2026 is not known to have. xllamacpp is
the embedded engine, for sessions without a card."""

_PLATFORMS = ("manylinux_2_35_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64")
_DOWNLOAD_SECONDS = 900.0
_BUILD_SECONDS = 300.0
_OWN_NAME = "llamatelemetry"


def check_wheels(wheels: Sequence[str | os.PathLike[str]] | None) -> None:
    """Refuse a wheel that is not there, before anything is fetched.

    Raises:
        ConfigurationError: There is no such file.
    """
    for wheel in wheels or ():
        text = os.fspath(wheel)
        if text.endswith(".whl") and not Path(text).is_file():
            raise ConfigurationError(f"there is no wheel {text!r}")


def pack_wheels(
    wheels: Sequence[str | os.PathLike[str]] | None, building: Path, python_version: str
) -> list[dict[str, Any]]:
    """Put wheels into a capsule, and return what the lock says of them.

    Args:
        wheels: Wheel files, or requirements for pip. None: the usual ones.
        building: The capsule.
        python_version: The notebook's Python: "3.12".

    Raises:
        SetupError: pip cannot get one.
    """
    folder = building / "wheels"
    folder.mkdir()
    requirements: list[str] = []
    if wheels is None:
        _own_wheel(folder)
        requirements += USUAL_WHEELS
    for wheel in wheels or ():
        text = os.fspath(wheel)
        if text.endswith(".whl"):
            shutil.copyfile(text, folder / Path(text).name)
        else:
            requirements.append(text)
    if requirements:
        platforms = [f"--platform={name}" for name in _PLATFORMS]
        run_pip(
            "download",
            "--no-deps",
            "--only-binary=:all:",
            f"--python-version={python_version}",
            *platforms,
            "--dest",
            str(folder),
            *requirements,
            seconds=_DOWNLOAD_SECONDS,
        )
    bar = FileBar("wheels", None, shown=False)
    return [described(path, building, bar) for path in sorted(folder.glob("*.whl"))]


def _own_wheel(folder: Path) -> None:
    """Make this package's wheel: from its source tree, or from what is installed."""
    source = Path(__file__).parents[2]
    if (source / "pyproject.toml").is_file():
        options = ["--no-deps", "--wheel-dir", str(folder), str(source)]
        run_pip("wheel", *options, seconds=_BUILD_SECONDS)
        return
    try:
        installed = distribution(_OWN_NAME)
    except PackageNotFoundError as error:
        raise SetupError(
            "this package's own wheel cannot be made: it is neither installed by pip "
            "nor a source tree. Name the wheels: pack(..., wheels=[...])"
        ) from error
    target = folder / f"{_OWN_NAME}-{installed.version}-py3-none-any.whl"
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        for file in installed.files or ():
            # pip's own notes, scripts beside the package and caches are no part of it.
            own = file.parts[0].startswith(_OWN_NAME)
            notes = {"INSTALLER", "REQUESTED", "direct_url.json"}
            if own and "__pycache__" not in file.parts and file.name not in notes:
                archive.write(str(installed.locate_file(file)), str(file))
