"""The commands setup and pack, and names of models where a file was needed before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from engine_tools import bundle, entry
from nvml_tools import StandInDriver
from stand_in_hub import StandInHub

from llamatelemetry.cli import main

NAME = "owner/Demo-GGUF:demo-Q8_0.gguf"


@pytest.fixture
def shop(hub: StandInHub, driver: StandInDriver, demo_model: Path) -> StandInHub:
    """A Hub with a model, for a machine without a card."""
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", demo_model.read_bytes())
    driver.unplug()
    return hub


def test_setup_fetches_and_says_where(
    shop: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Engine and model are printed; the second time nothing is asked."""
    assert main(["setup", NAME, "--quiet"]) == 0
    said = capsys.readouterr()
    assert "demo-Q8_0.gguf" in said.out
    assert "on the CPU, with the embedded engine: there is no NVIDIA card" in said.out
    assert f"next    llamatelemetry chat {NAME}" in said.out
    assert said.err == ""
    shop.requests.clear()

    assert main(["setup", NAME, "--engine", "embedded", "--quiet"]) == 0
    assert shop.requests == []


def test_a_dry_run_prints_the_plan(
    shop: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 if it fits the disk, 1 if it does not; nothing is fetched."""
    assert main(["setup", NAME, "--dry-run"]) == 0
    assert "1.9 MB" in capsys.readouterr().out
    shop.add("owner/Huge-GGUF", "huge-Q8_0.gguf", b"GGUF", zeros=10**15)
    assert main(["setup", "owner/Huge-GGUF:Q8_0", "--dry-run"]) == 1
    assert "does NOT fit" in capsys.readouterr().out
    assert all("range" in request.headers for request in shop.seen("cdn"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["setup", "qwen3-4bb"], 2, "nearest are: qwen3-4b"),
        (["setup", "owner/none:x.gguf"], 2, "no such repository"),
        (["setup", "demo", "--engine", "/nowhere"], 2, "no such program"),
        (["setup", "--capsule", "/nowhere"], 2, "is no capsule"),
        (["setup", "a", "b"], 2, "unknown argument 'b'"),
        (["pack", "/proc/self", "demo"], 2, "is not empty"),
        (["serve", "qwen3-4bb"], 2, "nearest are: qwen3-4b"),
        (["chat", "owner/none:x.gguf"], 2, "no such repository"),
    ],
)
def test_bad_input_is_one_line(
    shop: StandInHub,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """What cannot work is said on stderr, with an exit code for scripts."""
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("llamatelemetry: ")
    assert "Traceback" not in said


def test_pack_says_what_comes_next(
    shop: StandInHub,
    manifest_for_t4: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The capsule is packed for a T4, and the upload's command is printed."""
    folder = tmp_path / "capsule"
    wheel = tmp_path / "a-1-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")

    assert main(["pack", str(folder), NAME, "--quiet", "--wheel", str(wheel)]) == 0

    said = capsys.readouterr().out
    assert "test-engine" in said
    assert f"kaggle datasets create -p {folder}" in said
    assert (folder / "wheels" / wheel.name).is_file()
    assert main(["setup", "--capsule", str(folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("here") >= 2


@pytest.fixture
def manifest_for_t4(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A manifest of one engine, which the Hub has."""
    from engine_tools import write_manifest

    data = bundle()
    hub.add("owner/engines", "engine.tar.gz", data)
    path = write_manifest(
        tmp_path / "engines.json",
        entry(data, repo="owner/engines", path="engine.tar.gz"),
    )
    monkeypatch.setenv("LLAMATELEMETRY_ENGINES", str(path))
    return path


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each model of the catalog has a line with size and task; a task narrows them."""
    assert main(["models"]) == 0
    all_of_them = capsys.readouterr().out
    assert main(["models", "--task", "coder"]) == 0
    some = capsys.readouterr().out

    assert "qwen3-4b" in all_of_them
    assert "2.5 GB" in all_of_them
    assert "qwen3-4b" not in some
    assert 2 <= some.count("coder") < all_of_them.count("\n")


@pytest.mark.filterwarnings("default::llamatelemetry.exceptions.SetupWarning")
def test_a_note_is_a_line_for_people(
    hub: StandInHub,
    driver: StandInDriver,
    demo_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What Python would show as a warning with a line of code is a plain note."""
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", demo_model.read_bytes())
    driver.unplug()
    monkeypatch.setattr("builtins.input", _end_of_input)

    assert main(["chat", NAME, "-c", "512"]) == 0

    said = capsys.readouterr().err
    assert "llamatelemetry: note: on the CPU, with the embedded engine" in said
    assert "SetupWarning" not in said


def _end_of_input(_prompt: str = "") -> str:
    raise EOFError


def test_ctrl_c_in_the_middle_is_no_success(shop: StandInHub, tmp_path: Path) -> None:
    """`setup X && next` does not go on after Ctrl-C: the exit code is 130."""
    shop.fail_next("cdn", "stall", after=1 << 20)
    with subprocess.Popen(
        [sys.executable, "-m", "llamatelemetry", "setup", NAME, "--engine", "embedded"],
        env={**os.environ, "HF_ENDPOINT": shop.url, "HF_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (shop.seen("cdn") and shop.seen("cdn")[0].sent >= 1 << 20):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "llamatelemetry: interrupted; what is complete is kept" in said
    assert "Traceback" not in said


def test_chat_takes_a_name_of_the_hub(
    shop: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`chat owner/repo:file` fetches the model first, and then talks."""
    lines = iter(["What is GGUF?"])

    def answer(prompt: str = "") -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)

    assert main(["chat", NAME, "--engine", "embedded", "--context-size", "512"]) == 0
    assert "GGUF is a file format" in capsys.readouterr().out
