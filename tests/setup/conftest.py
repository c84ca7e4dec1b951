"""What the tests of the setup share: a machine with two T4s, and a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_tools import bundle, entry, write_manifest
from nvml_tools import StandInDriver, t4
from stand_in_hub import StandInHub


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


@pytest.fixture
def shop(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Callable[..., Path],
    demo_model: Path,
) -> StandInHub:
    """A Hub that has a model and the one engine of the manifest."""
    data = bundle()
    hub.add("owner/engines", "engine.tar.gz", data)
    manifest_of(entry(data, repo="owner/engines", path="engine.tar.gz"))
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", demo_model.read_bytes())
    return hub
