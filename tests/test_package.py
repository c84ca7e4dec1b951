"""The wheel holds what is needed at run time, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from gguf import GGUFReader

import llamatelemetry
from llamatelemetry._demo import DEMO_MODEL

ROOT = Path(__file__).parents[1]


def test_the_wheel_is_complete_and_clean(wheel: Path) -> None:
    """Model, tables and types are in it; tests and tools are not."""
    names = zipfile.ZipFile(wheel).namelist()

    for needed in ("data/demo-q8_0.gguf", "py.typed", "server/flags.json", "cli.py"):
        assert f"llamatelemetry/{needed}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"llamatelemetry"}
    assert wheel.name.split("-")[1] == llamatelemetry.__version__
    assert wheel.stat().st_size < 4_000_000


def test_the_package_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, with the sources out of sight, the demo still works."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import sys, llamatelemetry.cli as cli;"
        "assert cli.__file__.startswith(sys.argv[1]), cli.__file__;"
        "sys.exit(cli.main(['demo', '--engine', 'embedded']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "GGUF is a file format" in done.stdout


def test_the_demo_model_is_as_small_as_promised() -> None:
    """At most 2.5 MB."""
    assert DEMO_MODEL.stat().st_size <= 2_500_000


def test_the_demo_model_says_what_it_is() -> None:
    """Its own header says that it is memorised and no assistant."""
    fields = GGUFReader(DEMO_MODEL).fields
    description = str(fields["general.description"].contents())

    assert "memorised" in description
    assert "not an assistant" in description
