"""Notebooks: one cell to a model, panels that outlive cells and pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_tools import (
    JupyterServer,
    Lab,
    Watched,
    is_running,
    open_voila,
    percentile,
    press,
    wait_until,
    write_notebook,
)
from client_tools import StandIn
from nvml_tools import MIB, StandInDriver, t4
from page_timing import NOTE_SEEN, NOTE_SENT, delays
from shapes import read_shapes, write_shape

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LAUNCH = 'from llamatelemetry import launch\nsession = launch("demo")'
DASHBOARD = "session.dashboard()"

WATCHED = """
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.gguf.memory import plan_memory
from llamatelemetry.gpu.inventory import detect_gpus
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.server import ServerConfig
from llamatelemetry.widgets import ChatPanel, VRAMPanel
config = ServerConfig({model!r}, context_size=16384, n_gpu_layers=99)
plan = plan_memory({model!r}, config, detect_gpus())
monitor = GPUMonitor(0.5)
monitor.start()
chart = VRAMPanel(monitor, plan, interval=0.5, window=60)
chat = ChatPanel(LlamaCppClient({url!r}))
ipywidgets.VBox([chart.widget, chat.widget])
"""
SLEEP = "import time\nmonitor.mark('busy')\ntime.sleep(20)"
COMPUTE = """
end = time.time() + 6
while time.time() < end or not pathlib.Path({seen!r}).exists():
    sum(range(1000))
"""
ENOUGH = """since => ['picture', 'answer'].every(kind =>
  window.seen.filter(one => one[0] === kind && one[1] >= since).length >= 5)"""

TWO = """
import ipywidgets
from llamatelemetry import launch
from llamatelemetry.widgets import ChatPanel, ServerPanel
session = launch("demo", progress=False)
panels = [kind(session) for kind in (ServerPanel, ServerPanel, ChatPanel, ChatPanel)]
ipywidgets.HBox([ipywidgets.VBox([one.widget]) for one in panels])
"""


def ask(part: Any, question: str) -> None:
    """Ask a chat panel something, as a user does."""
    part.get_by_label("Message").fill(question)
    part.get_by_role("button", name="Send", exact=True).click()


def wait_for_picture(page: Page) -> None:
    """Wait until the chart is there."""
    page.wait_for_function(
        "() => document.querySelector('img.widget-image')?.naturalWidth > 100"
    )


def test_two_lines_end_in_a_model_with_panels(
    jupyter: JupyterServer, open_page: Callable[[], Watched]
) -> None:
    """launch() shows its steps, the dashboard answers, and a reload has it again."""
    name = write_notebook(jupyter.notebooks, "launch.ipynb", LAUNCH, DASHBOARD)
    watched = open_page()
    page = watched.page
    page.set_viewport_size({"width": 1000, "height": 1250})
    lab = Lab(watched, jupyter, name)
    lab.run(0)
    steps = lab.output(0)
    steps.get_by_text("ready at http://127.0.0.1").wait_for()
    found = re.search(r"process (\d+)", steps.inner_text())
    assert found is not None
    lab.run(1)
    panels = lab.output(1)
    panels.get_by_text("Memory used on 2 GPUs").wait_for()
    ask(panels, "What is GGUF?")
    panels.get_by_text("first token after").wait_for()
    wait_for_picture(page)
    page.get_by_label("Message").scroll_into_view_if_needed()
    watched.shoot("lab-dashboard")
    # The tabs without a mouse.
    panels.get_by_role("button", name="Save CSV").focus()
    for key in ("Tab", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    panels.get_by_text(re.compile("Server: ● ready")).wait_for()
    watched.shoot("lab-dashboard-server")
    panels.get_by_role("tab", name="Chat").click()
    lab.save()
    lab.reload()
    # The kernel goes on: the same panels, with what was asked, and they still work.
    panels.get_by_text("What is GGUF?").wait_for()
    ask(panels, "Who are you?")
    panels.get_by_text("Who are you?").first.wait_for()
    panels.get_by_text("first token after").nth(1).wait_for()
    watched.shoot("lab-reloaded")
    process = int(found[1])
    assert is_running(process)
    jupyter.end_kernels()
    wait_until(lambda: not is_running(process))


def test_chart_and_answer_go_on_while_a_cell_runs(  # noqa: PLR0917 - fixtures
    jupyter: JupyterServer,
    open_page: Callable[[], Watched],
    stand_in: StandIn,
    cards: StandInDriver,
    report: dict[str, Any],
    tmp_path: Path,
) -> None:
    """A busy main thread holds up neither the chart nor the answer; delays are kept."""
    shape = read_shapes()["qwen3-14b"]
    model = str(write_shape(shape, tmp_path / "qwen3-14b.gguf", tokens=False))
    url = stand_in.url(tokens=4000, pace=0.025)
    sent_file, seen_file = tmp_path / "sent.json", tmp_path / "seen"
    compute = COMPUTE.format(seen=str(seen_file))
    cells = [WATCHED.format(model=model, url=url), SLEEP, compute]
    last = f"write_sent({str(sent_file)!r})"
    name = write_notebook(jupyter.notebooks, "busy.ipynb", NOTE_SENT, *cells, last)
    watched = open_page()
    page = watched.page
    page.set_viewport_size({"width": 1000, "height": 1250})
    lab = Lab(watched, jupyter, name)
    lab.run(0)
    lab.run(1)
    page.evaluate(NOTE_SEEN)
    ask(page, "Count.")
    page.get_by_text("w10 ").first.wait_for()
    began = now_of(watched)
    lab.begin(2)
    for used in range(0, 7200, 300):  # the model is loaded, as the plan expects
        memory = {"free": (15_096 - used) * MIB}
        cards.describe(
            t4(0, **memory, utilization="97 40"), t4(1, **memory, utilization="88 37")
        )
        page.wait_for_timeout(100)
    lab.wait_for(2)
    between = now_of(watched)
    page.locator("img.widget-image").scroll_into_view_if_needed()
    watched.shoot("lab-busy")
    watched.shoot("vram-panel", page.locator(".widget-image").locator("xpath=.."))
    lab.begin(3)
    page.wait_for_function(ENOUGH, arg=between, polling=500)
    seen_file.touch()
    lab.wait_for(3)
    ended = now_of(watched)
    page.get_by_role("button", name="Stop").click()
    lab.run(4)
    sent = json.loads(sent_file.read_text())
    seen = page.evaluate("() => window.seen")
    for busy, start, end in (("sleep", began, between), ("loop", between, ended)):
        within = [event for event in seen if start <= event[1] <= end]
        for kind, values in delays(sent, within).items():
            assert len(values) >= 5, (busy, kind, values)
            report[f"{kind}_ms_while_{busy}"] = {
                "p50": round(percentile(values, 0.50)),
                "p95": round(percentile(values, 0.95)),
                "most": round(max(values)),
                "count": len(values),
            }


def now_of(watched: Watched) -> float:
    """Return the page's time in milliseconds."""
    now: float = watched.page.evaluate("() => Date.now()")
    return now


def test_two_panels_of_one_server_agree(
    jupyter: JupyterServer, open_page: Callable[[], Watched]
) -> None:
    """What one panel does to the server the other shows; each has its conversation."""
    name = write_notebook(jupyter.notebooks, "two.ipynb", TWO)
    watched = open_page()
    page = watched.page
    page.set_viewport_size({"width": 2000, "height": 1000})
    open_voila(watched, jupyter, name)
    columns = page.locator(".widget-hbox").first.locator("> .widget-vbox")
    first, second, one, other = (columns.nth(number) for number in range(4))
    second.get_by_text(re.compile("● ready")).wait_for()
    ask(one, "What is GGUF?")
    one.get_by_text("first token after").wait_for()
    assert other.get_by_text("What is GGUF?").count() == 0
    press(first, "Stop")
    second.get_by_text(re.compile("■ stopped")).wait_for()
    ask(other, "Are you there?")
    other.get_by_text("Error").first.wait_for()
    watched.shoot("two-panels-stopped")
    press(second, "Start")
    first.get_by_text(re.compile("● ready")).wait_for()
    ask(other, "What is GGUF?")
    other.get_by_text("first token after").first.wait_for()


def test_a_reload_of_a_voila_page_has_a_kernel_and_a_server_of_its_own(
    jupyter: JupyterServer, open_page: Callable[[], Watched]
) -> None:
    """The page before is forgotten, and its server does not outlive it."""
    name = write_notebook(jupyter.notebooks, "again.ipynb", LAUNCH, DASHBOARD)
    watched = open_page()
    page = watched.page
    open_voila(watched, jupyter, name)
    ask(page, "What is GGUF?")
    page.get_by_text("first token after").wait_for()
    found = re.search(r"process (\d+)", page.inner_text("body"))
    assert found is not None
    wait_for_picture(page)
    watched.shoot("voila-dashboard")
    for tab in ("Server", "Chat"):  # as narrow as a notebook gets beside a file list
        page.set_viewport_size({"width": 700, "height": 1000})
        page.get_by_role("tab", name=tab).click()
        assert watched.cut_off() == []
        watched.shoot(f"voila-narrow-{tab.lower()}")
    page.set_viewport_size({"width": 1000, "height": 900})
    before = [kernel["id"] for kernel in jupyter.kernels()]
    open_voila(watched, jupyter, name)
    page.get_by_label("Message").wait_for()
    assert page.get_by_text("What is GGUF?").count() == 0
    wait_until(lambda: before[0] not in [one["id"] for one in jupyter.kernels()])
    wait_until(lambda: not is_running(int(found[1])))
    assert watched.overflow() == 0
