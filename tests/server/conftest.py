"""Managers over the stand-in engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from manager_tools import STAND_IN, Make

from llamatelemetry.server import ServerConfig, ServerManager


@pytest.fixture
def make() -> Iterator[Make]:
    """Make managers over the stand-in engine, stopped whatever the test does."""
    managers: list[ServerManager] = []

    def make_one(
        mode: str, config: ServerConfig | None = None, **more: object
    ) -> ServerManager:
        command = [sys.executable, str(STAND_IN), mode]
        managers.append(ServerManager(config, engine=command, **more))  # type: ignore[arg-type]
        return managers[-1]

    yield make_one
    for manager in managers:
        manager.stop()


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """What keeps a "held" engine loading, named by its alias, until it is removed."""
    file = tmp_path / "held"
    file.touch()
    return file


@pytest.fixture
def config(tiny_model: Path) -> ServerConfig:
    """A configuration that takes any free port."""
    return ServerConfig(tiny_model, port=0)
