"""What the tests of cards are written with: a driver that says what it is told to."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from llamatelemetry.gpu import _nvml

SOURCE = Path(__file__).with_name("stand_in_nvml.c")
LIBRARY_NAME = "libnvidia-ml.so.1"
MIB = 2**20

# nvmlReturn_t
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED = 3, 4, 9
LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, GPU_IS_LOST = 12, 13, 15
LIB_RM_VERSION_MISMATCH, UNKNOWN = 18, 999

Description = Mapping[str, object]

DRIVER: Description = {"driver": "570.172.08", "cuda": 12080}
"""What nvidia-smi said on Kaggle in January 2026."""


def t4(number: int = 0, **changes: object) -> dict[str, object]:
    """Return an idle T4 of Kaggle: 15,360 MiB, of which 15,096 are free.

    Args:
        number: Which one; it decides the UUID and the place on the bus.
        changes: Other values by their keys, ``{"error.nvmlDeviceGetName": 3}``; None
            for what the card cannot tell.
    """
    return {
        "name": "Tesla T4",
        "uuid": f"GPU-{number}eadbeef-5555-6666-7777-88889999aaa{number}",
        "pci": f"0 0 {4 + number}",
        "total": 15_360 * MIB,
        "free": 15_096 * MIB,
        "reserved": 261 * MIB,
        "capability": "7 5",
        "utilization": "0 0",
        "power": 9_500,
        "power_limit": 70_000,
        "temperature": 38,
        "clocks": "300 300 405 540",
        "reasons": 1,
        "processes": "",
        "graphics_processes": "",
    } | changes


def build_stand_in(folder: Path) -> Path | None:
    """Compile the stand-in; None if there is no compiler.

    It gets no soname: once loaded by its path it would be taken for the real library
    by everything else in the process.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / LIBRARY_NAME
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-pthread", "-o", library, SOURCE], check=True
    )
    return library


class StandInDriver:
    """A driver under the real binding, with the cards a test describes.

    Attributes:
        library: The library that stands in for the driver's.
        log: Where it notes each call, as ``PID function``.
    """

    def __init__(
        self, library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.library = library
        self.log = folder / "nvml-calls"
        self._file = folder / "nvml-description"
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("STAND_IN_NVML", str(self._file))
        # Nothing that was initialized before is taken for initialized here.
        monkeypatch.setattr(_nvml, "_session", _nvml._Session())

    def describe(self, *cards: Description, **system: object) -> None:
        """Say what there is from now on; without a log of the calls if it is None."""
        self.write(DRIVER | system, cards)

    def write(self, system: Description, cards: Iterable[Description]) -> None:
        """Say what there is from now on, the driver included; None leaves a value out.

        The file is replaced as a whole, since the stand-in may be reading it.
        """
        parts = [{"log": self.log} | system, *cards]
        text = "card\n".join(
            "".join(
                f"{key} {value}\n" for key, value in part.items() if value is not None
            )
            for part in parts
        )
        new = self._file.with_suffix(".new")
        new.write_text(text)
        new.replace(self._file)

    def unplug(self) -> None:
        """Take the driver out of the kernel."""
        self._file.unlink(missing_ok=True)

    def attach(self, binding: ModuleType) -> None:
        """Have the real binding take this library for the one it would load."""
        library = ctypes.CDLL(str(self.library))
        library.stand_in_reset()  # what an earlier test has left initialized
        self._monkeypatch.setattr(binding, "nvmlLib", library)
        self._monkeypatch.setattr(binding, "_nvmlGetFunctionPointer_cache", {})

    def calls(self, function: str) -> list[int]:
        """Return the ids of the processes that called a function, one for each call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [
            int(process)
            for process, name in (line.split() for line in lines)
            if name == function
        ]

    def run(self, program: str, **variables: str) -> str:
        """Run a Python program for which this is the library the loader finds."""
        done = subprocess.run(
            # Python warns of forks beside threads, which is what some programs are for.
            [sys.executable, "-W", "ignore:This process", "-c", program],
            env=os.environ | {"LD_LIBRARY_PATH": str(self.library.parent)} | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout


def older_binding(folder: Path, *, without: Iterable[str] = ()) -> Path:
    """Write the real binding as its older versions were; return its folder.

    Texts were bytes before 11.515, and the second form of a card's memory is younger
    than the first.

    Args:
        folder: Where to write pynvml.py.
        without: What it did not have yet.
    """
    import pynvml

    text = Path(pynvml.__file__).read_text().replace("@convertStrBytes\n", "")
    text += "".join(f"\ndel {name}" for name in without) + "\n"
    (folder / "pynvml.py").write_text(text)
    return folder
