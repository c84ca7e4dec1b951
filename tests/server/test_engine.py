"""Engines: where one is looked for, what it can, and what it is started with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamatelemetry.exceptions import EngineNotFoundError
from llamatelemetry.server import Engine, find_engine
from llamatelemetry.server.engine import build_environment
from llamatelemetry.server.flags import TODAY

HELP = Path(__file__).parents[1] / "data" / "help" / "b11434.txt"
EMBEDDED_MODULE = "llamatelemetry.server.embedded"


def write_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def write_engine(path: Path) -> Path:
    """Write a program that answers --help as llama-server does."""
    return write_program(path, f"exec /bin/cat '{HELP}'")


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one empty folder, and no xllamacpp."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    return folder


def test_the_argument_comes_first(
    empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program named by the argument is used, whatever else there is."""
    write_engine(empty_path / "llama-server")
    monkeypatch.setenv("LLAMATELEMETRY_SERVER", str(write_engine(tmp_path / "other")))
    program = write_engine(tmp_path / "my folder" / "my server")
    engine = find_engine(program)

    assert engine == Engine((str(program),), "argument")
    assert engine == find_engine(str(program))
    assert engine == find_engine([str(program)])


def test_the_variable_comes_second(
    empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLAMATELEMETRY_SERVER is used before what is on PATH."""
    write_engine(empty_path / "llama-server")
    program = write_engine(tmp_path / "other")
    monkeypatch.setenv("LLAMATELEMETRY_SERVER", str(program))

    assert find_engine() == Engine((str(program),), "LLAMATELEMETRY_SERVER")


def test_the_path_comes_third(empty_path: Path) -> None:
    """``llama-server`` on PATH is used before ``llama``, which gets ``serve``."""
    llama = write_engine(empty_path / "llama")

    assert find_engine() == Engine((str(llama), "serve"), "PATH")

    server = write_engine(empty_path / "llama-server")

    assert find_engine() == Engine((str(server),), "PATH")


def test_the_embedded_engine_comes_last(
    empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a program the embedded engine is used, where xllamacpp is installed."""
    monkeypatch.delitem(sys.modules, "xllamacpp")
    engine = find_engine()
    server = write_engine(empty_path / "llama-server")

    assert find_engine() == Engine((str(server),), "PATH")
    assert engine.source == "embedded"
    assert engine.command[-1] == EMBEDDED_MODULE
    assert str(engine) == "the embedded engine (xllamacpp)"


def test_another_program_named_llama_is_passed_over(empty_path: Path) -> None:
    """A ``llama`` on PATH that is no llama.cpp is not taken for one."""
    write_program(empty_path / "llama", "echo I am an animal")
    with pytest.raises(EngineNotFoundError, match="no llama-server found"):
        find_engine()


def test_nothing_found_says_what_was_looked_for(empty_path: Path) -> None:
    """Without any engine the error names each place and the command that helps."""
    with pytest.raises(EngineNotFoundError) as caught:
        find_engine()

    for words in ("LLAMATELEMETRY_SERVER", "PATH", "pip install xllamacpp"):
        assert words in str(caught.value)


def test_the_embedded_engine_without_its_library(empty_path: Path) -> None:
    """Asked for by name without xllamacpp, the error names the command that helps."""
    with pytest.raises(EngineNotFoundError, match="pip install xllamacpp"):
        find_engine("embedded")


def test_names_commands_and_folders(empty_path: Path, tmp_path: Path) -> None:
    """An engine can be named by a name on PATH, a command line or a folder."""
    named = write_engine(empty_path / "my-server")
    llama = write_engine(empty_path / "llama")
    in_folder = write_engine(tmp_path / "build" / "llama-server")

    assert find_engine("my-server").command == (str(named),)
    assert find_engine("llama").command == (str(llama), "serve")
    assert find_engine("llama serve").command == (str(llama), "serve")
    assert find_engine(tmp_path / "build").command == (str(in_folder),)


@pytest.mark.parametrize("value", ["no-such-program", "/no/such/program", "", []])
def test_a_program_that_is_not_there(value: str | list[str]) -> None:
    """A named program that does not exist is not replaced by another."""
    with pytest.raises(EngineNotFoundError):
        find_engine(value)


def test_the_variable_is_named_where_it_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says where the wrong name came from."""
    monkeypatch.setenv("LLAMATELEMETRY_SERVER", "/no/such/program")
    with pytest.raises(EngineNotFoundError, match="LLAMATELEMETRY_SERVER is '/no/such"):
        find_engine()


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    """A file without the right to be executed gets the line that gives it."""
    path = tmp_path / "llama-server"
    path.write_text("")
    with pytest.raises(EngineNotFoundError, match="chmod"):
        find_engine(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'libllama.so.0: cannot open' >&2; exit 127", "127\nlibllama.so.0"),
        ("echo hello", "is no engine: this is not the --help"),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_a_program_that_is_no_engine(tmp_path: Path, script: str, message: str) -> None:
    """A program that does not answer --help is refused with what it said."""
    program = write_program(tmp_path / "llama-server", script)
    with pytest.raises(EngineNotFoundError, match=message):
        find_engine(program)


def test_a_program_the_kernel_refuses(tmp_path: Path) -> None:
    """A file for another machine is refused with the system's own words."""
    path = tmp_path / "llama-server"
    path.write_bytes(b"\x7fELF another machine")
    path.chmod(0o755)
    with pytest.raises(
        EngineNotFoundError, match=r"does not run: [\s\S]*[Ee]xec format"
    ):
        find_engine(path)


def test_capabilities_are_read_once(tmp_path: Path) -> None:
    """--help runs once for a file, and again when the file has changed."""
    runs = tmp_path / "runs"
    script = f"echo run >> '{runs}'; exec /bin/cat '{HELP}'"
    program = write_program(tmp_path / "llama-server", script)

    for _ in range(3):
        assert find_engine(program).capabilities() == TODAY
    assert len(runs.read_text().split()) == 1

    write_program(program, script + " # changed")

    assert find_engine(program).capabilities() == TODAY
    assert len(runs.read_text().split()) == 2


def test_real_engines_tell_what_they_can(engine: Engine) -> None:
    """Both real engines' own --help is read; the embedded one does a part."""
    capabilities = engine.capabilities()

    assert capabilities.flags <= TODAY.flags
    assert capabilities.cache_types == TODAY.cache_types
    assert capabilities.memory_verbosity == 4
    assert capabilities.flags == TODAY.flags or engine.embedded


def test_libraries_beside_the_program_are_found(tmp_path: Path) -> None:
    """A program's own library folders are prepended to LD_LIBRARY_PATH."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libllama.so.0").touch()
    engine = find_engine(write_engine(tmp_path / "bin" / "llama-server"))
    variables = build_environment(engine, inherited={"LD_LIBRARY_PATH": "/cuda"})

    assert variables["LD_LIBRARY_PATH"] == f"{tmp_path / 'lib'}:/cuda"


def test_the_cards_a_server_may_see_are_said_to_it_alone() -> None:
    """CUDA_VISIBLE_DEVICES is the configuration's, else inherited; a user's wins."""
    engine = Engine(("llama-server",), "argument")
    inherited = {"CUDA_VISIBLE_DEVICES": "0,1"}

    def seen(**options: object) -> str:
        return build_environment(
            engine,
            inherited=inherited,
            **options,  # type: ignore[arg-type]
        )["CUDA_VISIBLE_DEVICES"]

    assert seen() == "0,1"
    assert seen(visible_devices="GPU-1") == "GPU-1"
    assert seen(visible_devices="") == ""
    own = {"CUDA_VISIBLE_DEVICES": "1"}
    assert seen(visible_devices="GPU-1", environment=own) == "1"


def test_the_environment_is_a_cleaned_copy() -> None:
    """Inherited settings and secrets are left out, everything else stays."""
    inherited = {
        "LLAMA_ARG_CTX_SIZE": "64",
        "LLAMA_API_KEY": "inherited",
        "LLAMA_CACHE": "/cache",
        "HF_TOKEN": "secret",
        "HUGGING_FACE_HUB_TOKEN": "secret",
        "CUDA_VISIBLE_DEVICES": "1",
        "LLAMATELEMETRY_SERVER": "embedded",
        "PATH": "/bin",
    }
    engine = Engine(("llama-server",), "argument")
    variables = build_environment(engine, api_key="sesame", inherited=inherited)

    assert variables == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
        "LLAMATELEMETRY_SERVER": "embedded",
        "LLAMA_API_KEY": "sesame",
        "PATH": "/bin",
    }


def test_the_users_environment_counts_last() -> None:
    """What the user sets stands above what is inherited and what is decided."""
    variables = build_environment(
        Engine(("llama-server",), "argument"),
        environment={"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "LLAMA_ARG_POLL": "0"},
        inherited={},
    )

    assert variables == {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "LLAMA_ARG_POLL": "0"}


def test_this_process_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building an environment reads os.environ and writes nothing there."""
    monkeypatch.setenv("LLAMA_ARG_PORT", "1")
    before = dict(os.environ)
    variables = build_environment(Engine(("llama-server",), "argument"), api_key="k")

    assert dict(os.environ) == before
    assert "LLAMA_ARG_PORT" not in variables


def test_the_embedded_engine_runs_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A json.py beside the notebook does not stand in for the real one."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    engine = find_engine("embedded")
    done = subprocess.run(
        [*engine.command, "--version"],
        env=build_environment(engine),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0
    assert "xllamacpp" in done.stderr
