"""Engines that setup has installed: their records, and when one is used."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from llamatelemetry.server import find_engine
from llamatelemetry.server._installed import (
    RECORD_NAME,
    InstalledEngine,
    engines_folder,
    installed_engines,
    read_record,
    state_of,
)
from llamatelemetry.server.engine import engine_of_record

HELP = Path(__file__).parents[1] / "data" / "help" / "b11434.txt"


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one empty folder, and a cache that is not there yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("LLAMATELEMETRY_CACHE", str(tmp_path / "cache"))
    return folder


def write_program(path: Path) -> Path:
    """Write a program that answers --help as llama-server does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexec /bin/cat '{HELP}'\n")
    path.chmod(0o755)
    return path


def install(name: str, *, age: float = 0.0, **values: Any) -> InstalledEngine:
    """Leave an engine as setup does; ``age`` in seconds."""
    folder = engines_folder() / name
    program = write_program(folder / "bin" / "llama-server")
    (folder / "lib").mkdir()
    record = InstalledEngine(
        **{
            "folder": folder,
            "id": name,
            "sha256": "0" * 64,
            "build": 9940,
            "program": "bin/llama-server",
            "arguments": (),
            "libraries": ("lib",),
            "modules": None,
            "files": {"bin/llama-server": (*state_of(program), "0" * 64)},
            "devices": ("CUDA0: Tesla T4 (15095 MiB, 14995 MiB free)",),
            **values,
        }
    )
    path = folder / RECORD_NAME
    path.write_text(json.dumps(record.to_json()))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return record


def change_record(record: InstalledEngine, **values: Any) -> None:
    path = record.folder / RECORD_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_record_is_read_as_it_was_written() -> None:
    """All that is known of an engine comes back, with the folder where it lies."""
    record = install("one", build=None, arguments=("serve",))

    assert read_record(record.folder) == record
    assert installed_engines() == [record]
    assert record.executable == record.folder / "bin" / "llama-server"
    assert record.library_path == (str(record.folder / "lib"),)
    assert record.module_path is None


def test_an_engine_may_be_moved() -> None:
    """The record holds no folder: what was moved is found where it is now."""
    record = install("one")

    moved = record.folder.rename(record.folder.with_name("two"))

    (found,) = installed_engines()
    assert found.folder == moved
    assert found.executable.is_file()
    assert str(engines_folder()) not in (moved / RECORD_NAME).read_text()


def test_the_engine_installed_last_comes_first() -> None:
    """In the order of installing, not of names; in another folder too if named."""
    records = [
        install("b", age=50), install("c", age=10), install("a", age=99)
    ]  # fmt: skip

    assert installed_engines() == [records[1], records[0], records[2]]
    assert installed_engines(engines_folder()) == installed_engines()
    assert installed_engines(engines_folder() / "nothing") == []


def test_what_is_being_installed_is_no_engine_yet() -> None:
    """Folders with a dot before, other files and empty folders are passed over."""
    record = install("one")
    install(".staging-two")
    (engines_folder() / "lock").write_text("")
    (engines_folder() / "empty").mkdir()

    assert installed_engines() == [record]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        "\udcff\udcfe",
        '{"id": "one"}',
    ],
)
def test_a_broken_record_is_no_engine(text: str) -> None:
    """What was cut off, or is no record at all, is passed over without an error."""
    whole = install("whole")
    broken = install("broken")
    (broken.folder / RECORD_NAME).write_bytes(text.encode(errors="surrogateescape"))

    assert installed_engines() == [whole]
    assert read_record(broken.folder) is None


@pytest.mark.parametrize(
    "values",
    [
        {"of_another_version": 1},
        {"program": 7},
        {"modules": 7},
        {"files": None},
        {"files": {"bin/llama-server": [1]}},
    ],
)
def test_a_record_of_another_version_is_no_engine(values: dict[str, Any]) -> None:
    """Fields that are not known, or of another kind, are passed over."""
    change_record(install("one"), **values)

    assert installed_engines() == []


def test_a_changed_executable_is_not_whole() -> None:
    """A program that is another one, or gone, is none that was verified."""
    record = install("one")
    assert record.whole

    status = record.executable.stat()
    os.utime(record.executable, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert installed_engines() == []
    os.utime(record.executable, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert installed_engines() == [record]
    with record.executable.open("a") as file:
        file.write("# more\n")
    os.utime(record.executable, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert installed_engines() == []
    record.executable.unlink()
    assert state_of(record.executable) == (0, 0)
    assert not record.whole
    assert installed_engines() == []


def test_an_engine_is_whole_with_all_its_files() -> None:
    """A library that is replaced, or gone, is seen as a program is."""
    library = engines_folder() / "one" / "lib" / "libggml.so"
    record = install("one")
    library.write_bytes(b"library")
    known = {**record.files, "lib/libggml.so": (*state_of(library), "1" * 64)}
    change_record(record, files=known)
    assert [found.digests for found in installed_engines()] == [
        {"bin/llama-server": "0" * 64, "lib/libggml.so": "1" * 64}
    ]

    library.write_bytes(b"another")
    os.utime(library, (1, 1))

    assert installed_engines() == []


def test_what_setup_installed_comes_after_the_path(
    empty_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Argument, variable, PATH, then setup's, then the embedded one."""
    assert find_engine().source == "embedded"

    record = install("one", arguments=("--own",))
    found = find_engine()
    assert found.source == "setup"
    assert found.command == (str(record.executable), "--own")
    assert found.library_path == record.library_path
    assert found.capabilities().flags

    on_path = write_program(empty_machine / "llama-server")
    assert find_engine().source == "PATH"
    assert find_engine().command == (str(on_path),)

    named = write_program(tmp_path / "named")
    monkeypatch.setenv("LLAMATELEMETRY_SERVER", str(named))
    assert find_engine().source == "LLAMATELEMETRY_SERVER"
    assert find_engine(on_path).source == "argument"


def test_the_engine_installed_last_is_used() -> None:
    """Of two the newer one; without it the older one; without both the embedded one."""
    old, new = install("old", age=100), install("new")
    assert find_engine().command == (str(new.executable),)

    new.executable.unlink()
    assert find_engine().command == (str(old.executable),)

    (old.folder / RECORD_NAME).unlink()
    assert find_engine().source == "embedded"


def test_modules_that_setup_installed_are_an_embedded_engine() -> None:
    """Another xllamacpp is run by this Python, with its modules before all others."""
    record = install("one", program="", modules="modules", files={})
    (record.folder / "modules").mkdir()

    engine = engine_of_record(record, "it was the only one")

    assert engine.source == "setup"
    assert engine.note == "it was the only one"
    assert engine.embedded
    assert engine.command[0] == sys.executable
    assert engine.python_path[0] == str(record.folder / "modules")
