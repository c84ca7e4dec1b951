"""The commands setup and pack, and names of models where a file was needed before."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_tools import bundle, entry
from nvml_tools import StandInDriver
from stand_in_hub import StandInHub

from llamatelemetry.cli import main
from llamatelemetry.exceptions import SetupWarning

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
    with pytest.warns(SetupWarning, match="on the CPU"):
        assert main(["setup", NAME, "--quiet"]) == 0
    said = capsys.readouterr()
    assert "demo-Q8_0.gguf" in said.out
    assert "embedded engine" in said.out
    assert "%" not in said.err
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
