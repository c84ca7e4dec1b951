"""pip as a program of its own: what it is told, and what its failure says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamatelemetry.exceptions import DownloadError
from llamatelemetry.setup._pip import run_pip

# Stands in the place of pip, and does what pip's arguments say in their own words.
STAND_IN = """
import os, sys, time
path = sys.argv[0]
if "write" in sys.argv:
    with open(sys.argv[-1], "w") as file:
        file.write(" ".join(sys.argv[1:]) + chr(10))
        for name, value in os.environ.items():
            file.write(f"{name}={value}{chr(10)}")
elif "talk" in sys.argv:
    print("x" * 5000 + "the end of stdout")
    sys.exit(2)
elif "hang" in sys.argv:
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that is found before the real one."""
    (tmp_path / "modules" / "pip").mkdir(parents=True)
    (tmp_path / "modules" / "pip" / "__init__.py").write_text("")
    (tmp_path / "modules" / "pip" / "__main__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))


def test_pip_is_run_with_this_python(tmp_path: Path) -> None:
    """The real pip of this environment answers; nothing is raised or returned."""
    assert run_pip("list", "--path", str(tmp_path), seconds=120) is None


def test_what_pip_says_last_is_told() -> None:
    """The real pip's complaint stands in the error."""
    with pytest.raises(
        DownloadError, match=r"pip download failed:\n[\s\S]*no such option"
    ):
        run_pip("download", "--no-such-option", seconds=120)


def test_pip_sees_no_token(
    stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip builds may read its variables: the tokens are not among them."""
    monkeypatch.setenv("HF_TOKEN", "hf_one")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_two")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example")

    run_pip("write", str(tmp_path / "said"), seconds=120)

    arguments, *variables = (tmp_path / "said").read_text().splitlines()
    assert arguments == f"--disable-pip-version-check write {tmp_path / 'said'}"
    assert "hf_" not in " ".join(variables)
    assert "PIP_INDEX_URL=https://index.example" in variables
    assert os.environ["HF_TOKEN"] == "hf_one"


def test_only_the_end_of_what_pip_said_is_told(stand_in: None) -> None:
    """Where nothing is on stderr, the end of stdout is told, 1000 letters of it."""
    with pytest.raises(DownloadError, match="the end of stdout$") as raised:
        run_pip("talk", seconds=120)

    assert len(str(raised.value)) < 1100


def test_a_pip_that_hangs_is_ended(stand_in: None) -> None:
    """After its time pip is killed, and the error says so."""
    with pytest.raises(DownloadError, match="pip hang failed: .*did not end in 0.5 s"):
        run_pip("hang", seconds=0.5)
