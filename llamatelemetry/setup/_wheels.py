"""xllamacpp's CUDA wheel, in a folder of its own: an embedded engine with cards.

On request only. It is downloaded by pip from the package's own index, compared with a
digest that the user gives, and unpacked where no other program imports it from.
"""

from __future__ import annotations

from pathlib import Path

from llamatelemetry._units import format_file_size
from llamatelemetry.exceptions import (
    ConfigurationError,
    EngineNotFoundError,
)
from llamatelemetry.server._installed import (
    RECORD_NAME,
    InstalledEngine,
    engines_folder,
    read_record,
)
from llamatelemetry.server.engine import Engine, engine_of_record
from llamatelemetry.server.probing import probe_engine
from llamatelemetry.setup._checksums import mismatch, sha256_of
from llamatelemetry.setup._disk import locked, remove_tree, write_json
from llamatelemetry.setup._install import files_of
from llamatelemetry.setup._machine import Machine, measure_machine
from llamatelemetry.setup._manifest import WheelIndex, manifest
from llamatelemetry.setup._pip import run_pip

__all__ = ["install_wheel"]

_DOWNLOAD_SECONDS = 1800.0
_UNPACK_SECONDS = 600.0


def install_wheel(sha256: str | None) -> Engine:
    """Return the embedded engine with cards, installed if it is not yet.

    Args:
        sha256: The digest the wheel must have. None: what the index gives is
            downloaded and its digest told, so that it can be accepted.

    Raises:
        ConfigurationError: No digest was given; the message has the one of what came.
        ChecksumError: Another wheel came.
        DownloadError: pip cannot get it.
        EngineNotFoundError: It does not run here, or does not see the cards.
    """
    machine = measure_machine()
    index = _index_for(machine)
    root = engines_folder()
    name = f"{manifest().package}-cuda-{index.cuda[0]}.{index.cuda[1]}"
    if sha256 is not None:
        final = root / f"{name}-{sha256[:12]}"
        record = read_record(final)
        if record is not None and record.sha256 == sha256:
            return engine_of_record(record, index.note)
    with locked(root / ".locks" / f"{name}.lock"):
        wheel = _downloaded(root / ".staging" / name, index)
        actual = sha256_of(wheel)
        if sha256 is None:
            raise ConfigurationError(
                f"{wheel.name} ({format_file_size(wheel.stat().st_size)}) came from "
                f"{index.url}; no digest of it is pinned, so it is not used yet. Its "
                f"sha256 is {actual}; to accept it: ensure_engine("
                f"{manifest().package!r}, sha256={actual!r})"
            )
        if actual != sha256:
            wheel.unlink()
            raise mismatch(
                wheel.name,
                expected=sha256,
                actual=actual,
                advice="The index has another wheel now. To take it knowingly: "
                f"ensure_engine({manifest().package!r}, sha256={actual!r})",
            )
        return _unpacked(wheel, actual, root / f"{name}-{sha256[:12]}", index)


def _index_for(machine: Machine) -> WheelIndex:
    if not machine.gpus:
        raise EngineNotFoundError(f"{manifest().package}'s wheel: {machine.problem}")
    for index in manifest().wheels:
        if machine.cuda is not None and machine.cuda >= index.cuda:
            return index
    supported = ".".join(map(str, machine.cuda or ("no CUDA",)))
    least = ".".join(map(str, manifest().wheels[-1].cuda))
    raise EngineNotFoundError(
        f"{manifest().package}'s wheel needs a driver for CUDA {least} or newer; "
        f"driver {machine.driver} supports {supported}"
    )


def _downloaded(folder: Path, index: WheelIndex) -> Path:
    """Return the wheel, as pip chooses it; one of an earlier try if it is there."""
    found = list(folder.glob("*.whl"))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    run_pip(
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--index-url",
        index.url,
        "--dest",
        str(folder),
        manifest().package,
        seconds=_DOWNLOAD_SECONDS,
    )
    return next(iter(folder.glob("*.whl")))


def _unpacked(wheel: Path, sha256: str, final: Path, index: WheelIndex) -> Engine:
    staging = wheel.parent / "unpacked"
    for left in (staging, final):
        remove_tree(left)
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(staging)]
    run_pip("install", *options, str(wheel), seconds=_UNPACK_SECONDS)
    files = files_of(staging)
    record = InstalledEngine(staging, final.name, sha256, None, "", (), (), ".", files)
    facts = probe_engine(engine_of_record(record))
    if not facts.devices:
        remove_tree(staging)
        raise EngineNotFoundError(f"{wheel.name} runs, but sees none of the cards")
    record = InstalledEngine(
        final, final.name, sha256, facts.build, "", (), (), ".", files, facts.devices
    )
    write_json(staging / RECORD_NAME, record.to_json())
    staging.rename(final)
    wheel.unlink()
    return engine_of_record(record, index.note)
