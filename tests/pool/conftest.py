"""Pools over the stand-in engine, which ends by SIGKILL when a request says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from manager_tools import STAND_IN

from llamatelemetry.pool import ServerPool
from llamatelemetry.server import ServerConfig

MakePool = Callable[..., ServerPool]


@pytest.fixture
def config(tiny_model: Path) -> ServerConfig:
    """A configuration that takes any free ports."""
    return ServerConfig(tiny_model, port=0, parallel=2, threads=1)


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """What keeps "held" engines loading, named by their alias, until it is removed."""
    file = tmp_path / "held"
    file.touch()
    return file


@pytest.fixture
def make_pool(config: ServerConfig) -> Iterator[MakePool]:
    """Make pools of two servers without cards, stopped whatever the test does."""
    pools: list[ServerPool] = []

    def make_one(mode: str = "talking", given: object = None, **more: object) -> object:
        options: dict[str, object] = {"timeout": 20, **more}
        if given is None:
            given = config
            options.setdefault("gpus", [[], []])
        command = [sys.executable, str(STAND_IN), mode]
        pools.append(ServerPool(given, engine=command, **options))  # type: ignore[arg-type]
        return pools[-1]

    yield make_one  # type: ignore[misc]
    for pool in pools:
        pool.stop()
