"""Two T4s for a notebook: idle, or as full as a plan while one of its servers runs.

Nothing is measured: the notebooks whose charts are to show something have their cards
follow the figures that are written here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nvml_tools import MIB, StandInDriver, t4

FOLLOWING = {
    "07_dashboard": (9_248, 0),
    "13_benchmarks_and_telemetry": (5_018, 0),
}
"""By the notebook's name: MiB of each card while a server of its runs.

With 4,096 tokens of context the plan of qwen3-14b expects 9.0 GiB on GPU 0, that of
qwen3-4b with four slots 4.9 GiB.
"""
_FREE = 15_096  # MiB of an idle T4
_LOOK_SECONDS = 0.05
_RISE_SECONDS = 1.5


@contextmanager
def two_t4s(name: str, folder: Path, library: Path) -> Iterator[Path]:
    """Describe two T4s in a file, and give its path.

    Args:
        name: The notebook's, without its ending.
        folder: Where the file is put.
        library: What reads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patches:  # this process keeps its own driver
        driver = StandInDriver(library, folder, patches)
        driver.describe(t4(0), t4(1), log=None)
        if name not in FOLLOWING:
            yield driver._file
            return
        ending = threading.Event()
        thread = threading.Thread(
            target=_follow, args=(driver, FOLLOWING[name], ending), daemon=True
        )
        thread.start()
        try:
            yield driver._file
        finally:
            ending.set()
            thread.join()


def _follow(
    driver: StandInDriver, used: tuple[int, ...], ending: threading.Event
) -> None:
    began: float | None = None
    told = 0.0
    while not ending.wait(_LOOK_SECONDS):
        if not _a_server_runs(driver._file):
            began = None
        elif began is None:
            began = time.monotonic()
        rising = 0.0 if began is None else time.monotonic() - began
        share = min(rising / _RISE_SECONDS, 1.0)
        if share != told:
            told = share
            cards = (
                t4(number, free=round((_FREE - most * share) * MIB))
                for number, most in enumerate(used)
            )
            driver.describe(*cards, log=None)


def _a_server_runs(description: Path) -> bool:
    """Whether there is a server among the processes that see these cards."""
    wanted = f"STAND_IN_NVML={description}".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if b"--port" in (process / "cmdline").read_bytes().split(
                    b"\0"
                ) and wanted in (process / "environ").read_bytes().split(b"\0"):
                    return True
            except OSError:  # it has ended, or is another's
                continue
    return False
