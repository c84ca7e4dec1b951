"""Whether the platform keeps a file, and where it would."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from llamatelemetry import _environment
from llamatelemetry.batch._kept import lost_advice, warn_if_lost
from llamatelemetry.exceptions import SetupWarning


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that is none of the known ones, with a root of its own."""
    monkeypatch.setattr(_environment, "_ROOT", tmp_path)
    return tmp_path


def test_elsewhere_every_file_is_kept(tmp_path: Path) -> None:
    """Neither Kaggle nor Colab: nothing is said."""
    assert lost_advice("results.jsonl") is None
    warn_if_lost(tmp_path / "results.jsonl")


def test_kaggle_keeps_its_working_folder_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies elsewhere, or only seems to lie there, is told where to go."""
    for name in ("working", "temp"):
        (root / "kaggle" / name).mkdir(parents=True)
    working = root / "kaggle" / "working"
    (working / "link").symlink_to(root / "kaggle" / "temp")

    assert lost_advice(working / "deep" / "results.jsonl") is None
    monkeypatch.chdir(working)
    assert lost_advice("results.jsonl") is None
    for place in (
        root / "kaggle" / "temp" / "results.jsonl",
        working / "link" / "results.jsonl",
        working / ".." / "results.jsonl",
        Path("~/results.jsonl"),
    ):
        advice = lost_advice(place)
        assert advice == f"Kaggle keeps only {working}; take '{working}/results.jsonl'"


def test_colab_keeps_what_lies_on_a_mounted_drive(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is mounted; where it is not, its folder is only a name."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    own = root / "content" / "drive" / "MyDrive"

    advice = lost_advice(own / "results.jsonl")
    assert advice is not None
    assert "drive.mount('/content/drive')" in advice
    assert "'/content/drive/MyDrive/results.jsonl'" in advice
    assert lost_advice("results.jsonl") is not None
    own.mkdir(parents=True)
    assert lost_advice(own / "new" / "results.jsonl") is None
    assert lost_advice(root / "content" / "results.jsonl") is not None


def test_the_warning_comes_once_and_names_the_callers_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a SetupWarning with the argument, the file and the place to take."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")

    def call() -> None:
        warn_if_lost("results.jsonl")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        warn_if_lost("vectors.npy", "vectors", stacklevel=1)

    first, second = caught
    assert first.category is SetupWarning
    assert str(first.message).startswith(
        "out='results.jsonl' is lost with this session: Colab keeps only"
    )
    assert first.filename == second.filename == __file__
    assert first.lineno == second.lineno - 1
    assert str(second.message).startswith("vectors='vectors.npy' is lost")
