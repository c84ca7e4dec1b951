"""What the tests of cards share: a driver that stands in for NVIDIA's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from nvml_tools import StandInDriver, build_stand_in

from llamatelemetry.gpu import _nvml
from tests.conftest import missing_part


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for libnvidia-ml.so.1, compiled once."""
    library = build_stand_in(tmp_path_factory.mktemp("nvml"))
    if library is None:
        missing_part("A C compiler", "install gcc")
        raise AssertionError
    return library


@pytest.fixture
def driver(
    nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandInDriver]:
    """A driver without cards, which the real pynvml of this process asks."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = StandInDriver(nvml_library, tmp_path, monkeypatch)
    driver.attach(pynvml)
    driver.describe()
    yield driver
    _nvml._session.close()
