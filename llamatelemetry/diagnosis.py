"""doctor(): what is here, what is missing, and what to do about it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from llamatelemetry._demo import DEMO_VARIABLE, is_demo_mode
from llamatelemetry._environment import cache_folder, detect_platform
from llamatelemetry._internet import Internet, start_probe
from llamatelemetry._units import format_file_size, format_memory, printable
from llamatelemetry.exceptions import EngineNotFoundError
from llamatelemetry.server._installed import installed_engines
from llamatelemetry.server._linux import available_memory
from llamatelemetry.server.engine import (
    Engine,
    embedded_engine,
    engine_of_record,
    engine_on_path,
)
from llamatelemetry.server.probing import probe_engine
from llamatelemetry.server.strays import find_strays
from llamatelemetry.setup._capsule_files import attached_capsules
from llamatelemetry.setup._disk import free_bytes
from llamatelemetry.setup._hub import default_cache, hub_token
from llamatelemetry.setup._hub_cache import cached_models
from llamatelemetry.setup._machine import Machine, measure_machine
from llamatelemetry.setup._search import attached_models

__all__ = ["Check", "Diagnosis", "doctor"]

_LEAST_FREE_BYTES = 6 * 10**9  # an engine of 0.4 GB and a model of 5 GB
_MOST_MODELS = 5
_LIBRARIES = ("huggingface_hub", "xllamacpp", "ipywidgets")
_MARKS = {"ok": " ", "note": "-", "fail": "!"}


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    Attributes:
        name: What was looked at.
        found: What was found.
        verdict: "ok"; "note": something is missing that one can do without; "fail":
            the main job cannot run.
        advice: What to do; "" where nothing has to be done.

    Example:
        >>> from llamatelemetry import doctor
        >>> (check,) = [one for one in doctor().checks if one.name == "strays"]
        >>> check.found, check.verdict
        ('none', 'ok')
    """

    name: str
    found: str
    verdict: Literal["ok", "note", "fail"] = "ok"
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What :func:`doctor` found.

    Attributes:
        checks: The rows.

    Example:
        >>> from llamatelemetry import doctor
        >>> diagnosis = doctor()
        >>> [check.name for check in diagnosis.checks][:3]
        ['platform', 'GPUs', 'driver']
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the main job can run here: an engine with a model."""
        return all(check.verdict != "fail" for check in self.checks)

    def __str__(self) -> str:
        lines = []
        for check in self.checks:
            first, *more = check.found.splitlines() or [""]
            lines.append(f"{_MARKS[check.verdict]} {check.name:10} {first}")
            lines += [f"{'':13}{line}" for line in more]
            if check.advice:
                lines.append(f"{'':13}-> {check.advice}")
        lines.append("" if self.ok else "! the main job cannot run here; see above")
        return "\n".join(lines).rstrip()

    def __repr__(self) -> str:
        return str(self)


def doctor() -> Diagnosis:
    """Look at everything that running a model here depends on. Changes nothing.

    Returns:
        A table: platform, cards, driver, C library, internet, token (whether there is
        one), disks, engines with their builds, cached models, servers left behind.

    Example:
        >>> from llamatelemetry import doctor
        >>> print(doctor())
          platform ...
          GPUs ...Tesla T4...
    """
    probe = start_probe()  # beside the rest
    machine = measure_machine()
    engines = _engines(machine)
    place = detect_platform()
    here = f"{place.title}, Python {platform.python_version()}, {_libraries()}"
    checks = [
        Check("platform", here),
        _gpus(machine),
        _driver(machine),
        Check("C library", f"glibc {machine.glibc}" if machine.glibc else "not glibc"),
        Check("memory", f"{format_memory(available_memory() or 0)} can be used"),
        engines,
    ]
    internet = probe.result()
    models = _models(internet)
    return Diagnosis(
        (
            *checks,
            models,
            _internet(internet),
            _token(internet),
            *_disks(),
            _strays(),
        )
    )


def _libraries() -> str:
    found = []
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def _gpus(machine: Machine) -> Check:
    if machine.gpus:
        return Check("GPUs", "\n".join(map(str, machine.gpus)))
    reason, _, advice = machine.problem.rpartition(": ")
    return Check("GPUs", f"none: {reason}", "note", advice)


def _driver(machine: Machine) -> Check:
    if machine.driver is None:
        return Check("driver", "none")
    cuda = ".".join(map(str, machine.cuda)) if machine.cuda else "an unknown version"
    return Check("driver", f"{machine.driver}, supports CUDA {cuda}")


def _engines(machine: Machine) -> Check:
    """Run every engine that can be found, and say what it is."""
    lines, running = [], 0
    for where, engine in _found_engines():
        try:
            facts = probe_engine(engine)
        except EngineNotFoundError as error:
            lines.append(f"{where}: {printable(str(error).splitlines()[0], 500)}")
            continue
        running += 1
        build = f"b{facts.build}" if facts.build else "build not told"
        cards = f", sees {len(facts.devices)} cards" if facts.devices else ", CPU only"
        lines.append(f"{where}: {engine} ({build}{cards})")
    found = "\n".join(lines) or "none"
    if running:
        return Check("engines", found)
    if machine.gpus:
        advice = "llamatelemetry setup fetches one"
        return Check("engines", found, "note", advice)
    advice = "pip install xllamacpp brings one that runs on the CPU"
    return Check("engines", found, "fail", advice)


def _found_engines() -> list[tuple[str, Engine]]:
    candidates: Sequence[tuple[str, Callable[[], Engine | None]]] = (
        ("on PATH", engine_on_path),
        ("embedded", embedded_engine),
    )
    found = []
    for where, look in candidates:
        engine = look()
        if engine is not None:
            found.append((where, engine))
    records = installed_engines()
    return found + [("installed", engine_of_record(record)) for record in records]


def _models(internet: Internet) -> Check:
    models = cached_models(default_cache())
    models += [(str(path), path.stat().st_size) for path in attached_models()]
    lines = [
        f"{name}, {format_file_size(size)}" for name, size in models[:_MOST_MODELS]
    ]
    if len(models) > _MOST_MODELS:
        total = format_file_size(sum(size for _, size in models))
        lines.append(f"... {len(models)} in all, {total}")
    lines += [
        f"the capsule {folder}: {lock['model']['name']}"
        for folder, lock in attached_capsules()
    ]
    if lines:
        return Check("models", "\n".join(lines))
    if is_demo_mode():
        found = f"the demo model stands in for every other ({DEMO_VARIABLE} is set)"
        return Check("models", found)
    if internet.available is False:
        advice = "without internet a model must be attached, in a capsule, say"
        return Check("models", "none here, but the demo model", "fail", advice)
    return Check("models", "none yet, but the demo model")


def _internet(found: Internet) -> Check:
    if found.available:
        return Check("internet", f"yes ({found.seconds * 1000:.0f} ms)")
    advice = "" if found.available is None else detect_platform().internet_advice
    words = "not known" if found.available is None else "no"
    return Check("internet", f"{words}: {found.reason}", "note", advice)


def _token(internet: Internet) -> Check:
    if internet.available is False:
        return Check("HF token", "not asked for: no internet")
    token = hub_token()
    if token is not None:
        return Check("HF token", f"yes, from {token.origin}")
    return Check("HF token", "no; only gated and private models need one")


def _disks() -> list[Check]:
    output = detect_platform().output
    folders = {"models": default_cache(), "engines": cache_folder()}
    if output is not None:
        folders["output"] = output
    checks = []
    for name, folder in folders.items():
        free = _free(folder)
        found = f"{name}: {format_file_size(free)} free in {folder}"
        little = free < _LEAST_FREE_BYTES and name != "output"
        advice = "models have 1 to 20 GB; delete what is no longer needed"
        verdict: Literal["note", "ok"] = "note" if little else "ok"
        checks.append(Check("disk", found, verdict, advice if little else ""))
    return checks


def _free(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return free_bytes(folder)
    return 0


def _strays() -> Check:
    strays = find_strays()
    if not strays:
        return Check("strays", "none")
    found = "\n".join(map(str, strays))
    advice = "servers that a dead notebook left behind; end them with kill PID"
    return Check("strays", found, "note", advice)
