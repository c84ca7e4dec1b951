"""A Jupyter server, a browser and two cards for the tests that look at real pages."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_tools import CHROMIUM, JupyterServer, Watched, chromium, new_context
from engine_tools import engine_script
from nvml_tools import StandInDriver, t4

from tests.conftest import missing_part

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these tests last: Playwright leaves an event loop running in this thread.

    They stay in random order among themselves.
    """
    items.sort(key=lambda item: HERE in item.path.parents)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures and the report of what was measured go."""
    named = os.environ.get("LLAMATELEMETRY_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def report(screenshots: Path) -> Iterator[dict[str, Any]]:
    """What was measured, by its name; written beside the pictures at the end."""
    measured: dict[str, Any] = {}
    yield measured
    if measured:
        text = json.dumps(measured, indent=2, sort_keys=True)
        (screenshots / "report.json").write_text(text + "\n")


@pytest.fixture(scope="session")
def cards(
    nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> StandInDriver:
    """The driver that the kernels' processes find: two T4s, until a test says else."""
    with pytest.MonkeyPatch.context() as patches:  # this process keeps its own
        return StandInDriver(nvml_library, tmp_path_factory.mktemp("cards"), patches)


@pytest.fixture(scope="session")
def jupyter(
    tmp_path_factory: pytest.TempPathFactory, cards: StandInDriver, nvml_library: Path
) -> Iterator[JupyterServer]:
    """A server of JupyterLab and Voila whose kernels see the two cards."""
    for name in ("jupyterlab", "voila"):
        if importlib.util.find_spec(name) is None:
            missing_part(name, "run `make test`, which installs it")
    engine = tmp_path_factory.mktemp("engine") / "llama-server"
    engine.write_bytes(engine_script())  # sees two T4s, and computes on the CPU
    engine.chmod(0o755)
    variables = {
        "LD_LIBRARY_PATH": str(nvml_library.parent),
        "STAND_IN_NVML": str(cards._file),
        "LLAMATELEMETRY_SERVER": str(engine),
    }
    server = JupyterServer(tmp_path_factory.mktemp("jupyter"), variables)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def browser_context() -> Iterator[BrowserContext]:
    """A headless Chromium; its pages share one cache."""
    if importlib.util.find_spec("playwright") is None:
        missing_part("Playwright", "run `make test`, which installs it")
    if CHROMIUM is None:
        missing_part("Chromium", "install Debian's package chromium")
    with chromium() as browser:
        yield new_context(browser)


@pytest.fixture
def open_page(
    request: pytest.FixtureRequest,
    browser_context: BrowserContext,
    jupyter: JupyterServer,
    cards: StandInDriver,
    screenshots: Path,
) -> Iterator[Callable[[], Watched]]:
    """Open pages that are looked after: nothing foreign is fetched, nothing fails."""
    cards.describe(t4(0), t4(1))
    failures = request.session.testsfailed
    opened: list[Watched] = []

    def open_one() -> Watched:
        opened.append(Watched(browser_context.new_page(), screenshots))
        return opened[-1]

    yield open_one
    for number, watched in enumerate(opened):
        if request.session.testsfailed > failures:
            watched.shoot(f"failed-{request.node.name}-{number}")
        watched.page.close()
    jupyter.end_kernels()
    assert [url for watched in opened for url in watched.foreign()] == []
    assert [text for watched in opened for text in watched.complaints] == []
