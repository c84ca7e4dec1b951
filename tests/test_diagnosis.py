"""doctor(): what is here, what is missing, what to do; and its command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_tools import engine_script
from nvml_tools import StandInDriver, t4
from stand_in_hub import StandInHub

from llamatelemetry import _environment, doctor
from llamatelemetry.cli import main
from llamatelemetry.diagnosis import Check, Diagnosis
from llamatelemetry.setup import ensure_model

Rows = dict[str, Check]


def rows(found: Diagnosis) -> Rows:
    """Return the rows by name; of several disks the first."""
    result: Rows = {}
    for check in found.checks:
        result.setdefault(check.name, check)
    return result


def test_a_machine_with_all_is_told_so(
    hub: StandInHub, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards, driver, engine, model, internet and token: each has its row."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_a_user")
    driver.describe(t4(0), t4(1))
    hub.add("owner/M-GGUF", "m-Q8_0.gguf", b"GGUF")
    ensure_model("owner/M-GGUF:Q8_0", progress=False)

    found = doctor()
    table = rows(found)

    assert found.ok
    assert table["GPUs"].found.count("Tesla T4") == 2
    assert table["driver"].found == "570.172.08, supports CUDA 12.8"
    assert "embedded" in table["engines"].found
    assert "b11" in table["engines"].found
    assert table["models"].found == "owner/M-GGUF:m-Q8_0.gguf, 4 B"
    assert table["internet"].found.startswith("yes")
    assert table["HF token"].found == "yes, from HF_TOKEN"
    assert table["strays"].found == "none"
    assert "hf_secret_of_a_user" not in repr(found) + str(found)


def test_a_machine_with_nothing_is_told_what_to_do(
    hub: StandInHub, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No card, no engine, no internet, no model: two rows fail, each with a remedy."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    driver.unplug()

    found = doctor()
    table = rows(found)

    assert not found.ok
    assert table["engines"].verdict == "fail"
    assert "pip install" in table["engines"].advice
    assert table["models"].verdict == "fail"
    assert "capsule" in table["models"].advice
    assert table["GPUs"].verdict == "note"
    assert "install NVIDIA's driver" in table["GPUs"].advice
    assert table["internet"].found.startswith("no: ")
    assert table["HF token"].found.startswith("not asked for")
    text = str(found)
    assert text.count("\n!") >= 2
    assert "the main job cannot run here" in text


def test_demo_mode_needs_no_model(
    hub: StandInHub, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the demo model stands in for all, none has to be had."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    driver.unplug()
    assert not doctor().ok
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    found = doctor()
    assert found.ok
    assert "LLAMATELEMETRY_DEMO is set" in rows(found)["models"].found


def test_with_cards_and_without_engine_setup_is_named(
    hub: StandInHub, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still to be fetched is no failure; an engine that cannot run is told."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    driver.describe(t4(0))
    folder = Path(os.environ["LLAMATELEMETRY_CACHE"]).parent / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (folder / "llama-server").write_bytes(engine_script(first="exit 4"))
    (folder / "llama-server").chmod(0o755)

    found = doctor()
    row = rows(found)["engines"]

    assert found.ok
    assert (row.verdict, row.advice) == ("note", "llamatelemetry setup fetches one")
    assert "exit code 4" in row.found


def test_kaggles_folders_and_quota_are_shown(
    hub: StandInHub,
    driver: StandInDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Kaggle the output folder has a row, with what is left of its 20 GB."""
    root = tmp_path / "root"
    (root / "kaggle" / "working").mkdir(parents=True)
    monkeypatch.setattr(_environment, "_ROOT", root)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    found = doctor()
    text = str(found)

    assert "Kaggle (batch)" in text
    assert f"output: 20.0 GB free in {root}/kaggle/working" in text
    assert "Settings → Internet on" in text
    assert "GPU T4 x2" in rows(found)["GPUs"].advice


def test_many_models_are_counted(
    hub: StandInHub, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long list of models is cut, with the total told."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    for number in range(7):
        hub.add(f"owner/M{number}-GGUF", "m-Q8_0.gguf", b"GGUF" * 1000)
        ensure_model(f"owner/M{number}-GGUF:Q8_0", progress=False)

    assert "... 7 in all, 28.0 kB" in rows(doctor())["models"].found


def test_a_server_left_behind_is_named(
    hub: StandInHub,
    driver: StandInDriver,
    stray: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server whose notebook is gone has its process id in the table."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    pid = stray()

    row = rows(doctor())["strays"]

    assert str(pid) in row.found
    assert "kill" in row.advice


@pytest.fixture
def stray() -> Callable[[], int]:
    """Leaves a process behind that carries the mark of a dead owner."""
    started: list[subprocess.Popen[bytes]] = []

    def leave() -> int:
        process = subprocess.Popen(
            ["sleep", "60"], env={"LLAMATELEMETRY_OWNER": "999999999:1"}
        )
        started.append(process)
        return process.pid

    yield leave
    for process in started:
        process.kill()
        process.wait()


def test_the_command_exits_with_1_if_nothing_can_run(
    hub: StandInHub,
    driver: StandInDriver,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`llamatelemetry doctor` prints the table; its exit code is for scripts."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert main(["doctor"]) == 0
    assert "platform" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    driver.unplug()
    assert main(["doctor"]) == 1
    assert "! engines" in capsys.readouterr().out
