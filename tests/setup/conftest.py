"""What the tests of the setup share: a machine with two T4s, and a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_tools import write_manifest
from nvml_tools import StandInDriver, t4


@pytest.fixture
def two_t4s(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    """A machine with Kaggle's two cards, and no engine on PATH."""
    driver.describe(t4(0), t4(1))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return driver


@pytest.fixture
def manifest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes these entries the manifest."""

    def write(*entries: dict[str, Any], **more: Any) -> Path:
        path = write_manifest(tmp_path / "engines.json", *entries, **more)
        monkeypatch.setenv("LLAMATELEMETRY_ENGINES", str(path))
        return path

    return write
