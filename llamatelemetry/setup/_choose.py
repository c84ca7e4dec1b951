"""Decides which engine to use; nothing is fetched here."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace

from llamatelemetry.exceptions import ConfigurationError, EngineNotFoundError
from llamatelemetry.server._installed import (
    RECORD_NAME,
    InstalledEngine,
    engines_folder,
    read_any_record,
    state_of,
)
from llamatelemetry.server.engine import (
    Engine,
    engine_of_record,
    engine_on_path,
    find_engine,
)
from llamatelemetry.setup._checksums import sha256_of
from llamatelemetry.setup._disk import write_json
from llamatelemetry.setup._machine import Machine, why_not
from llamatelemetry.setup._manifest import EngineEntry, install_name, manifest

__all__ = ["EngineChoice", "check_build", "choose", "find_installed", "with_digest"]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What was chosen.

    Attributes:
        engine: An engine that is here already and will do, or None.
        candidates: What may be fetched, in order. Empty with no engine: the embedded
            one is meant.
        rejected: What was passed over, and why: (name, reason).
    """

    engine: Engine | None
    candidates: tuple[EngineEntry, ...]
    rejected: tuple[tuple[str, str], ...]

    @property
    def reasons(self) -> str:
        """Why the others were passed over, in words."""
        return "; ".join(
            f"{name}: {reason}" if name else reason for name, reason in self.rejected
        )


def choose(machine: Machine, min_build: int | None, sha256: str | None) -> EngineChoice:
    """Return the engine for a machine.

    Args:
        machine: What it has.
        min_build: The oldest build of llama.cpp that will do, or None.
        sha256: A digest that the user accepts in place of those of the manifest.

    Raises:
        EngineNotFoundError: LLAMATELEMETRY_SERVER names one that does not run, or is
            too old.
        ConfigurationError: It names one, and a digest is given.
    """
    if os.environ.get("LLAMATELEMETRY_SERVER"):
        if sha256 is not None:
            raise ConfigurationError(
                "sha256 is of an engine that is fetched, but LLAMATELEMETRY_SERVER "
                "names a program; give one of the two"
            )
        named = find_engine()
        check_build(named, min_build)
        return EngineChoice(_noted(named, "LLAMATELEMETRY_SERVER names it"), (), ())
    rejected: list[tuple[str, str]] = []
    found = engine_on_path() if sha256 is None else None
    if found is not None:
        problem = _why_not_here(found, machine, min_build)
        if problem is None:
            return EngineChoice(_noted(found, "it is on PATH"), (), ())
        rejected.append((str(found), problem))
    if not machine.gpus:
        rejected.append(("", machine.problem))
        return EngineChoice(None, (), tuple(rejected))
    candidates = []
    for entry in manifest().engines:
        problem = why_not(entry, machine, min_build)
        if problem is None:
            candidates.append(entry if sha256 is None else with_digest(entry, sha256))
        else:
            rejected.append((entry.id, problem))
    for entry in candidates:
        record = find_installed(entry)
        if record is not None:
            engine = engine_of_record(record, _fits(machine))
            return EngineChoice(engine, (), tuple(rejected))
    return EngineChoice(None, tuple(candidates), tuple(rejected))


def find_installed(entry: EngineEntry) -> InstalledEngine | None:
    """Return the engine of an entry if it is installed and whole.

    One whose files have other times than before, as after a copy, is read once more.
    """
    record = read_any_record(engines_folder() / install_name(entry))
    if record is None or record.sha256 != entry.sha256:
        return None
    return record if record.whole else _verified_anew(record)


def _verified_anew(record: InstalledEngine) -> InstalledEngine | None:
    files = {}
    for name, known in record.files.items():
        path = record.folder / name
        if not path.is_file() or sha256_of(path) != known[2]:
            return None
        files[name] = (*state_of(path), known[2])
    renewed = replace(record, files=files)
    with contextlib.suppress(OSError):
        write_json(record.folder / RECORD_NAME, renewed.to_json())
    return renewed


def with_digest(entry: EngineEntry, sha256: str) -> EngineEntry:
    """Return an entry with the digest that the user gives, of a file of any size."""
    return (
        entry
        if sha256 == entry.sha256
        else replace(entry, sha256=sha256, bytes=None, confirmed_live=True)
    )


def _fits(machine: Machine) -> str:
    return f"it fits {machine.cards} and driver {machine.driver}"


def _noted(engine: Engine, note: str) -> Engine:
    return replace(engine, note=note)


def check_build(
    engine: Engine, min_build: int | None, build: int | None = None
) -> None:
    """Refuse an engine that is known to be too old.

    Args:
        engine: The engine.
        min_build: The oldest build that will do, or None for any.
        build: Its build, where that is known without running it.

    Raises:
        EngineNotFoundError: It is, or it does not run here.
    """
    if min_build is None:
        return
    if build is None:
        from llamatelemetry.server.probing import probe_engine  # noqa: PLC0415 -- rare

        build = probe_engine(engine).build
    if build is not None and build < min_build:
        raise EngineNotFoundError(
            f"{engine} is llama.cpp b{build}; the model needs b{min_build} or newer"
        )


def _why_not_here(
    engine: Engine, machine: Machine, min_build: int | None
) -> str | None:
    """Return why an engine on PATH will not do, or None."""
    from llamatelemetry.server.probing import probe_engine  # noqa: PLC0415 -- rare

    try:
        facts = probe_engine(engine)
    except EngineNotFoundError as error:
        return str(error).splitlines()[0]
    if machine.gpus and not facts.devices:
        return "it sees none of the cards"
    if min_build is not None and facts.build is not None and facts.build < min_build:
        return f"it is llama.cpp b{facts.build}, b{min_build} or newer is needed"
    return None
