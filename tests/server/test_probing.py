"""What engines say of themselves, and why some cannot run here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llamatelemetry.exceptions import EngineNotFoundError
from llamatelemetry.server import Engine, probing
from llamatelemetry.server.probing import (
    EngineFacts,
    probe_engine,
    read_build,
    read_devices,
)
from tests.conftest import missing_part

# As a build for CUDA prints it on Kaggle: the driver's lines come first, on stderr.
DEVICES = """ggml_cuda_init: GGML_CUDA_FORCE_MMQ:    no
ggml_cuda_init: GGML_CUDA_FORCE_CUBLAS: no
ggml_cuda_init: found 2 CUDA devices:
  Device 0: Tesla T4, compute capability 7.5, VMM: yes
  Device 1: Tesla T4, compute capability 7.5, VMM: yes
Available devices:
  CUDA0: Tesla T4 (15095 MiB, 14995 MiB free)
  CUDA1: Tesla T4 (15095 MiB, 14995 MiB free)
"""


def program(path: Path, script: str) -> Engine:
    """Write a shell script; return it as an engine."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Engine((str(path),), "argument")


def compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        missing_part("a C compiler", "install gcc")
    return str(found)


def reason(engine: Engine) -> str:
    """Return what the error says for an engine that cannot run here."""
    with pytest.raises(EngineNotFoundError) as raised:
        probe_engine(engine)
    assert engine.command[0] in str(raised.value)
    return str(raised.value).replace(f"\n{engine}", "", 1)


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("version: 9940 (17daa13)\nbuilt with GNU 13.3.0 for Linux x86_64", 9940),
        ("version: 11549 (xllamacpp 2026.10.11549)\nbuilt with GNU 10.2.1", 11549),
        ("version: 0.6.0-dev (build 11434, commit 17daa13)\nbuilt with Clang", 11434),
        (
            "ggml_cuda_init: found 2 CUDA devices:\n  Device 0: Tesla T4\n"
            "version: 5962 (b1d2f1b)\n",
            5962,
        ),
        ("version: 0 (unknown)\n", None),
        ("version: 0.6.0 (build 0, commit unknown)\n", None),
        ("version: 1.2.3\n", None),
        ("not a version: 9940 (17daa13)\n", None),
        ("llama-server, the one with version: 9940 (x)\n", None),
        ("", None),
    ],
)
def test_the_build_is_read_from_what_engines_print(
    text: str, build: int | None
) -> None:
    """Old and new forms of ``--version``; a build that does not know itself is None."""
    assert read_build(text) == build


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        (
            DEVICES,
            (
                "CUDA0: Tesla T4 (15095 MiB, 14995 MiB free)",
                "CUDA1: Tesla T4 (15095 MiB, 14995 MiB free)",
            ),
        ),
        ("Available devices:\n  (none)\n", ()),
        ("Available devices:\n", ()),
        (DEVICES.partition("Available")[0], ()),
        ("", ()),
    ],
)
def test_the_cards_are_read_from_what_engines_print(
    text: str, devices: tuple[str, ...]
) -> None:
    """Only what stands under the list's title is a card; none is none."""
    assert read_devices(text) == devices


def test_a_real_engine_says_what_it_is(engine: Engine) -> None:
    """Both real engines run here and see the cards there are; one knows its build."""
    facts = probe_engine(engine)

    if engine.embedded:
        assert facts.build is not None
        assert facts.build > 9000
    else:  # built from a package of sources, without the history that tells it
        assert facts.build is None
    assert all(": " in device for device in facts.devices)


def test_an_engine_is_asked_for_build_and_cards(tmp_path: Path) -> None:
    """Its answers count whether they stand on stdout or on stderr."""
    (tmp_path / "devices").write_text(DEVICES)
    engine = program(
        tmp_path / "llama server",
        f"""case "$*" in
          "serve --version") echo 'version: 9940 (17daa13)' >&2;;
          "serve --list-devices") cat '{tmp_path}/devices';;
          *) exit 9;;
        esac""",
    )

    facts = probe_engine(Engine((*engine.command, "serve"), "argument"))

    assert facts == EngineFacts(9940, read_devices(DEVICES))
    assert len(facts.devices) == 2


def test_an_engine_is_asked_once(tmp_path: Path) -> None:
    """What is known of a program is kept until its file changes; a failure is not."""
    count = tmp_path / "count"
    script = f"echo asked >> '{count}'; echo 'version: 7 (x)'; exit"

    engine = program(tmp_path / "engine", f"{script} 1")
    assert "exit code 1" in reason(engine)
    assert "exit code 1" in reason(engine)
    assert len(count.read_text().split()) == 2

    engine = program(tmp_path / "engine", f"{script} 0 # mended")
    assert [probe_engine(engine).build for _ in range(3)] == [7, 7, 7]
    assert len(count.read_text().split()) == 4

    program(tmp_path / "engine", f"{script} 0 # mended once more")
    assert probe_engine(engine).build == 7
    assert len(count.read_text().split()) == 6


def test_an_engine_finds_its_own_libraries(tmp_path: Path) -> None:
    """It is run with the folders of its libraries, and without tokens."""
    engine = program(tmp_path / "engine", 'echo "version: 7 ($LD_LIBRARY_PATH)"')
    with_libraries = Engine(engine.command, "setup", library_path=("/own/lib",))

    assert probe_engine(with_libraries).build == 7
    engine = program(
        tmp_path / "engine",
        '[ "${LD_LIBRARY_PATH%%:*}" = /own/lib ] && [ -z "$HF_TOKEN" ]',
    )
    assert probe_engine(with_libraries) == EngineFacts(None, ())
    assert "exit code 1" in reason(engine)


def test_a_missing_driver_is_told(tmp_path: Path) -> None:
    """A program that was linked to libcuda, where no driver is, asks for a card."""
    path = linked_program(tmp_path, "libcuda.so.1")
    (tmp_path / "libcuda.so.1").unlink()

    said = reason(Engine((str(path),), "argument"))

    assert (
        "the library libcuda.so.1 is missing (it comes with NVIDIA's driver: is there "
        "a card?)" in said
    )
    assert "cannot open shared object file" in said


def test_another_missing_library_is_told(tmp_path: Path) -> None:
    """Its name stands in the error, and nothing of a driver."""
    path = linked_program(tmp_path, "libcublas.so.12")
    (tmp_path / "libcublas.so.12").unlink()

    said = reason(Engine((str(path),), "argument"))

    assert "the library libcublas.so.12 is missing\n" in said
    assert "driver" not in said


def test_libraries_that_are_too_old_are_told(tmp_path: Path) -> None:
    """A program that needs newer symbols than a library has names their version."""
    path = linked_program(tmp_path, "libnew.so.6", version="GLIBC_9.99")
    link_library(tmp_path, "libnew.so.6", version="GLIBC_2.31")

    said = reason(Engine((str(path),), "argument"))

    assert "this system's libraries are too old: GLIBC_9.99 is needed" in said


def linked_program(folder: Path, library: str, *, version: str = "") -> Path:
    """Compile a program that needs a library, which is compiled beside it."""
    link_library(folder, library, version=version)
    (folder / "main.c").write_text("int own(void); int main(void) { return own(); }\n")
    command = [compiler(), "-o", "engine", "main.c", library, f"-Wl,-rpath,{folder}"]
    subprocess.run(command, cwd=folder, check=True)
    assert subprocess.run([folder / "engine"], check=False).returncode == 0
    return folder / "engine"


def link_library(folder: Path, library: str, *, version: str = "") -> None:
    """Compile a library of one function, with a version of its symbol if named."""
    (folder / "own.c").write_text("int own(void) { return 0; }\n")
    command = [compiler(), "-shared", "-fPIC", "-o", library, "own.c"]
    command.append(f"-Wl,-soname,{library}")
    if version:
        (folder / "own.map").write_text(f"{version} {{ global: own; }};\n")
        command.append("-Wl,--version-script=own.map")
    subprocess.run(command, cwd=folder, check=True)


def test_an_instruction_that_the_cpu_lacks_is_told(tmp_path: Path) -> None:
    """A program that dies of an illegal instruction was built for a newer CPU."""
    (tmp_path / "main.c").write_text(
        "#include <signal.h>\n"
        "int main(void) { return raise(SIGILL); }\n"  # as on a CPU without AVX-512
    )
    command = [compiler(), "-o", "engine", "main.c"]
    subprocess.run(command, cwd=tmp_path, check=True)

    for engine in (
        Engine((str(tmp_path / "engine"),), "argument"),
        program(tmp_path / "script", "kill -ILL $$"),
    ):
        said = reason(engine)
        assert said.endswith("it was built for a newer CPU (illegal instruction)")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'I am no engine'; exit 3", "it ended with exit code 3\nI am no engine"),
        ("kill -SEGV $$", "it ended with exit code -11"),
        ("exit 1", "it ended with exit code 1"),
    ],
)
def test_another_end_is_told_with_its_code(
    tmp_path: Path, script: str, words: str
) -> None:
    """What it said last stands in the error, where it said anything."""
    assert reason(program(tmp_path / "engine", script)).endswith(words)


def test_only_the_end_of_what_it_said_is_told(tmp_path: Path) -> None:
    """A program that says much does not fill a notebook."""
    script = "i=0; while [ $i -lt 999 ]; do echo 0123456789; i=$((i+1)); done; exit 4"

    assert len(reason(program(tmp_path / "engine", script))) < 1300


def test_an_engine_that_fails_at_its_cards_is_told(tmp_path: Path) -> None:
    """Its version alone is not enough to call it one that runs."""
    engine = program(tmp_path / "engine", '[ "$1" = --version ] || exit 5')

    assert "exit code 5" in reason(engine)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Neither a missing program nor one that may not be executed runs."""
    assert "does not run: no program" in reason(
        Engine((str(tmp_path / "nothing"),), "argument")
    )
    (tmp_path / "file").write_text("")
    assert "does not run: no program" in reason(
        Engine((str(tmp_path / "file"),), "argument")
    )


def test_an_engine_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time it is killed, and the error says so."""
    monkeypatch.setattr(probing, "_TIMEOUT_SECONDS", 0.5)
    engine = program(
        tmp_path / "engine", f"echo $$ > '{tmp_path}/pid'\nwhile true; do :; done"
    )

    assert "does not run: " in (said := reason(engine))
    assert "did not end in 0.5 s" in said
    if (tmp_path / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
