"""The messages in the guides are what the program says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import agrees
from doc_messages import SITUATIONS
from nvml_tools import StandInDriver, t4

from llamatelemetry._demo import DEMO_MODEL

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "tools" / "doc_messages.py"
SHOWN = re.compile(r"<!-- message: (?P<name>[\w-]+) -->\n```text\n(?P<text>.+?)\n```")
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
VARIABLES = {
    "t4x2": {"LLAMATELEMETRY_DEMO": "1"},
    "offline": {"HF_HUB_OFFLINE": "1"},
    "kaggle": NOWHERE | {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"},
    "colab": NOWHERE | {"COLAB_RELEASE_TAG": "release-colab"},
}
CARDS = ("t4x2", "offline")


def shown_messages() -> list[tuple[str, str, str]]:
    """Return page, name and text of each message in the guides."""
    return [
        (page.name, match["name"], match["text"])
        for page in sorted((ROOT / "docs").glob("*.md"))
        for match in SHOWN.finditer(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_message_is_what_is_said(
    situation: str,
    nvml_library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each message in a guide is what the program says in that situation."""
    driver = StandInDriver(nvml_library, tmp_path, monkeypatch)
    driver.describe(t4(0), t4(1))
    shutil.copy(DEMO_MODEL, tmp_path / "model.gguf")
    folders = {name: str(tmp_path / name) for name in ("HOME", "HF_HOME")}
    if situation in CARDS:
        folders["LD_LIBRARY_PATH"] = str(nvml_library.parent)
    answer = tmp_path / "answer.json"
    subprocess.run(
        [sys.executable, PROGRAM, situation, answer],
        cwd=tmp_path,
        env=os.environ | folders | VARIABLES[situation] | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    said = json.loads(answer.read_text(encoding="utf-8"))
    for page, name, text in shown_messages():
        if name in said:
            assert agrees(text, said[name]), f"{page}, {name}: {said[name]}"


def test_every_message_is_looked_at() -> None:
    """What the guides show is produced, and what is produced is shown."""
    produced = {name for works in SITUATIONS.values() for name in works}

    assert {name for _, name, _ in shown_messages()} == produced
