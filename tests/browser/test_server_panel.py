"""The server panel on a page of its own, from no server at all to a killed one."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_tools import (
    JupyterServer,
    Watched,
    is_running,
    open_voila,
    press,
    wait_until,
    write_notebook,
)
from shapes import read_shapes, write_shape

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser

PANEL = "from llamatelemetry.widgets import ServerPanel\nServerPanel()"


def button(page: Page | Locator, name: str) -> Locator:
    """Return the button with exactly this text."""
    return page.get_by_role("button", name=name, exact=True)


def choose(page: Page, model: Path | str) -> None:
    """Name a model that is not in the list."""
    field = page.get_by_label("or another")
    field.fill(str(model))
    field.press("Enter")


def process_of(page: Page, before: int = 0) -> int:
    """Return the id of the server that the badge names, when it is another one."""
    ready = re.compile(rf"Server: ● ready[^…]*process (?!{before}\b)\d+")
    badge = page.get_by_role("status").filter(has_text=ready)
    found = re.search(r"process (\d+)", badge.inner_text())
    assert found is not None
    return int(found[1])


def test_a_server_from_plan_to_start_to_its_death(
    jupyter: JupyterServer, open_page: Callable[[], Watched], demo_model: Path
) -> None:
    """The plan stands before Start; a killed server is told of and starts again."""
    name = write_notebook(jupyter.notebooks, "server.ipynb", PANEL)
    watched = open_page()
    page = watched.page
    page.set_viewport_size({"width": 1000, "height": 1300})
    open_voila(watched, jupyter, name)
    page.get_by_text("no server yet").wait_for()
    choose(page, demo_model)
    # The plan draws the memory of the card that holds it, though nothing runs.
    page.get_by_text("llamatelemetry demo").first.wait_for()
    page.get_by_text(re.compile(r"CUDA0: .* of 14\.7 GiB")).wait_for()
    assert button(page, "Stop").is_disabled()
    watched.shoot("server-plan")
    press(page, "Start")
    process = process_of(page)
    assert button(page, "Start").is_disabled()
    page.get_by_text("0 of 1 slots busy").wait_for()
    press(page, "Show command")
    page.get_by_label("Command").wait_for()
    assert "demo-q8_0.gguf" in page.get_by_label("Command").input_value()
    press(page, "Show log")
    page.get_by_text("listening on http").first.wait_for()
    page.get_by_label("Filter").fill("model loaded")
    page.get_by_text("of those that pass the filter").wait_for()
    watched.shoot("server-ready")
    os.kill(process, signal.SIGKILL)
    page.get_by_text(re.compile("Server: ✖ failed")).wait_for()
    page.get_by_role("alert").filter(has_text="Error").first.wait_for()
    watched.shoot("server-killed")
    press(page, "Start")
    again = process_of(page, process)
    press(page, "Restart")
    wait_until(lambda: not is_running(again))
    last = process_of(page, again)
    press(page, "Stop")
    page.get_by_text(re.compile("Server: ■ stopped")).wait_for()
    assert not is_running(last)
    assert watched.overflow() == 0


def test_a_model_that_does_not_fit_cannot_be_started(
    jupyter: JupyterServer, open_page: Callable[[], Watched], tmp_path: Path
) -> None:
    """Start is off, with the reason and the nearest context; one click takes that."""
    shape = read_shapes()["ministral-3-14b"]
    model = write_shape(shape, tmp_path / "too-big.gguf", tokens=False)
    name = write_notebook(jupyter.notebooks, "fits.ipynb", PANEL)
    watched = open_page()
    page = watched.page
    page.set_viewport_size({"width": 1000, "height": 1300})
    open_voila(watched, jupyter, name)
    choose(page, model)
    page.get_by_text(re.compile("Plan: ✔ fits")).wait_for()
    page.get_by_label("Context").fill("262144")
    page.get_by_label("Context").press("Tab")
    page.get_by_role("alert").filter(has_text="Plan:").wait_for()
    button(page, "Start").and_(page.locator(":disabled")).wait_for()
    watched.shoot("server-does-not-fit")
    nearest = page.get_by_role("button", name=re.compile("Use .* tokens of context"))
    nearest.click()
    page.get_by_text(re.compile("Plan: ✔ fits")).wait_for()
    button(page, "Start").and_(page.locator(":enabled")).wait_for()
    watched.shoot("server-nearest")
    assert watched.overflow() == 0
