"""What this machine has that an engine must fit: cards, driver, C library."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from llamatelemetry._environment import detect_platform
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus, measure_driver
from llamatelemetry.setup._manifest import EngineEntry

__all__ = ["Machine", "measure_machine", "why_not"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine must fit.

    Attributes:
        architecture: "x86_64" of anything an engine was built for.
        glibc: The C library's version ("2.35"), or None if it is another one.
        driver: NVIDIA's driver ("570.172.08"), or None.
        cuda: The newest CUDA that the driver supports, (12, 8); or None.
        gpus: The cards that a server would see.
        problem: Why there are no cards, in words; "" where there are.
    """

    architecture: str
    glibc: str | None
    driver: str | None
    cuda: tuple[int, int] | None
    gpus: tuple[GPUInfo, ...]
    problem: str

    @property
    def cards(self) -> str:
        """The cards in words: ``2 x Tesla T4``."""
        names = [gpu.name for gpu in self.gpus]
        counts = {name: names.count(name) for name in names}
        return ", ".join(
            name if count == 1 else f"{count} x {name}"
            for name, count in counts.items()
        )


def measure_machine() -> Machine:
    """Return what this machine has. Takes milliseconds; nothing is run."""
    driver = measure_driver()
    gpus = tuple(detect_gpus()) if driver.version is not None else ()
    library, version = platform.libc_ver()
    problem = ""
    if not gpus:
        reason = driver.problem or "CUDA_VISIBLE_DEVICES hides them"
        problem = (
            f"there is no NVIDIA card ({reason.rstrip('.')}): "
            f"{detect_platform().accelerator_advice}"
        )
    return Machine(
        platform.machine(),
        version if library == "glibc" else None,
        driver.version,
        driver.cuda_version,
        gpus,
        problem,
    )


def why_not(entry: EngineEntry, machine: Machine, min_build: int | None) -> str | None:
    """Return why an engine does not fit a machine, or None if it does.

    Args:
        entry: The engine.
        machine: The machine.
        min_build: The oldest build of llama.cpp that will do.
    """
    if machine.architecture != "x86_64":
        return f"it is for x86_64, this machine is {machine.architecture}"
    if _is_older(machine.glibc, entry.least_glibc):
        found = machine.glibc or "another C library"
        return f"it needs glibc {entry.least_glibc}, here is {found}"
    if _is_older(machine.driver, entry.least_driver):
        return f"it needs driver {entry.least_driver}, here is {machine.driver}"
    others = [
        f"{gpu.name} ({gpu.compute_capability})"
        for gpu in machine.gpus
        if gpu.compute_capability not in entry.compute_capabilities
    ]
    if others and entry.compute_capabilities:
        built = ", ".join(entry.compute_capabilities)
        return f"it has code for compute capability {built} only, not for {others[0]}"
    if min_build is not None and (entry.build or 0) < min_build:
        return f"it is llama.cpp b{entry.build}, the model needs b{min_build} or newer"
    return None


def _is_older(found: str | None, least: str | None) -> bool:
    if least is None:
        return False
    return found is None or version_key(found) < version_key(least)


def version_key(version: str) -> tuple[int, ...]:
    """Return a version's numbers, to compare by."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
