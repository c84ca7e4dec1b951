"""Tests of a panel in a real kernel, in each of the four ways of showing one.

The front end is a client of the protocol. `make test` runs them on the kernels of Colab
and Kaggle, and on the newest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kernel_client import KernelClient

VIEW = "application/vnd.jupyter.widget-view+json"

PANEL = """
import threading, time
from llamatelemetry.widgets import _toolkit
from llamatelemetry.widgets._panel import Panel

class Counter(Panel):
    clicks = ticks = 0

    def __init__(self, mode=None):
        super().__init__(mode=mode)
        self._every(0.05, self.count, "counter")

    def count(self):
        self.ticks += 1
        self._outbox.set(self.label, value=str(self.ticks))

    def clicked(self):
        self.clicks += 1
        self._outbox.set(self.text, value=f"clicked {self.clicks}")

    def typed(self, value):
        self._outbox.set(self.text, value=f"typed {value}")

    def _build(self):
        self.label = self._w.Label(value="no tick")
        self.button = self._w.Button(description="Count")
        self.field = self._w.Text(description="Say")
        self.text = self._w.HTML(value="no click")
        self._on_click(self.button, self.clicked)
        self._on_change(self.field, self.typed)
        return self._w.VBox([self.label, self.button, self.field, self.text])

    def _text(self):
        return f"{self.clicks} clicks"

    def _html(self):
        return f"<b>{self.clicks}</b> clicks"

# Which thread sends what: no one outside can see that.
senders = []
session = get_ipython().kernel.session
send = session.send

def noted(stream, kind, *arguments, **options):
    if str(kind).startswith("comm_"):
        senders.append(threading.current_thread().name)
    return send(stream, kind, *arguments, **options)

session.send = noted

def from_threads():
    return [name for name in senders if name != "MainThread"]
"""


@pytest.fixture(scope="module")
def started() -> Iterator[KernelClient]:
    """One kernel for all panels here."""
    with KernelClient() as kernel:
        kernel.run(PANEL)
        yield kernel


@pytest.fixture
def kernel(started: KernelClient) -> Iterator[KernelClient]:
    """That kernel, which knows a small panel: a thread counts, and a button does."""
    yield started
    started.run("""
import ipywidgets
panel.close()
ipywidgets.Widget.close_all()
senders.clear()
""")


def values(kernel: KernelClient, model: str) -> list[Any]:
    """Return what the one widget of a class has shown, its beginning left out."""
    updates = kernel.updates(kernel.widget(model))
    return [update.state["value"] for update in updates]


def clicked(kernel: KernelClient) -> list[str]:
    """Return what the panel has said of its button and its field."""
    (text,) = [
        comm_id
        for comm_id, state in kernel.opened().items()
        if state["_model_name"] == "HTMLModel"
        and state["value"]
        and "Press ▶" not in state["value"]  # what helps ipywidgets 7 to tick
    ]
    return [update.state["value"] for update in kernel.updates(text)]


def button(kernel: KernelClient) -> str:
    """Return the id of the panel's button."""
    return kernel.widget("ButtonModel", description="Count")


def test_a_panel_is_displayed_with_all_its_forms(kernel: KernelClient) -> None:
    """A cell's last line shows the widget, and carries text and HTML for elsewhere."""
    published = kernel.run("panel = Counter('threads'); panel")

    (shown,) = [one for one in published if one.kind == "execute_result"]
    data = shown.content["data"]
    assert data["text/plain"] == "0 clicks"
    assert data["text/html"] == "<b>0</b> clicks"
    assert data[VIEW]["model_id"] in kernel.opened()
    opening = [one for one in published if one.kind == "comm_open"]
    assert all(one.content["target_name"] == "jupyter.widget" for one in opening)
    assert 1_000 < sum(one.size for one in opening) < 20_000


def test_a_click_is_handled_when_the_kernel_is_idle(kernel: KernelClient) -> None:
    """A click, and a change of a field, reach their handlers and change the page."""
    kernel.run("panel = Counter('threads'); display(panel)")

    kernel.click(button(kernel))
    kernel.wait_for(lambda: clicked(kernel) == ["clicked 1"])
    kernel.change(kernel.widget("TextModel"), value="hello")
    kernel.wait_for(lambda: clicked(kernel) == ["clicked 1", "typed hello"])


def test_threads_show_while_a_cell_sleeps(kernel: KernelClient) -> None:
    """In mode "threads" a thread's changes leave while the main thread is busy."""
    kernel.run("panel = Counter('threads'); display(panel)")

    with kernel.running("print('begun', flush=True); time.sleep(60)") as request:
        before = len(values(kernel, "LabelModel"))
        kernel.wait_for(lambda: len(values(kernel, "LabelModel")) >= before + 10)
        assert not kernel.is_over(request)
        kernel.interrupt()
    kernel.run("assert set(from_threads()) == {'llamatelemetry-panel-counter'}")


def test_a_closed_panel_is_gone(kernel: KernelClient) -> None:
    """close() closes every widget, ends the threads, and nothing comes after it."""
    kernel.run("panel = Counter('threads'); display(panel)")
    kernel.wait_for(lambda: len(values(kernel, "LabelModel")) >= 2)
    kernel.run("panel.close()")

    assert kernel.opened() == {}
    before = len(kernel.published)
    kernel.run("time.sleep(0.2)")
    kinds = {message.kind for message in kernel.published[before:]}
    assert not {kind for kind in kinds if kind.startswith("comm")}
    kernel.run("""
names = [thread.name for thread in threading.enumerate()]
assert not [name for name in names if name.startswith("llamatelemetry")], names
""")


def test_run_keeps_buttons_alive(kernel: KernelClient) -> None:
    """In mode "loop" panel.run() shows the panel, moves it, and its buttons work."""
    kernel.run("panel = Counter('loop')")

    request = kernel.send("panel.run(20); print(panel.clicks)")
    kernel.wait_for(lambda: kernel.of(request, "display_data"))
    kernel.wait_for(lambda: len(values(kernel, "LabelModel")) >= 3)
    kernel.click(button(kernel))
    kernel.wait_for(lambda: clicked(kernel) == ["clicked 1"])
    kernel.change(kernel.widget("TextModel"), value="hello")
    kernel.wait_for(lambda: clicked(kernel)[-1] == "typed hello")
    cell = kernel.send("print('next')")
    kernel.click(button(kernel))
    kernel.wait_for(lambda: clicked(kernel)[-1] == "clicked 2")
    assert not kernel.is_over(request)

    kernel.interrupt()  # is what ends it early, and no error
    assert kernel.reply_to(request).content["status"] == "ok"
    assert kernel.reply_to(cell).content["status"] == "ok"
    assert kernel.text_of(request).split() == ["2"]
    (shown,) = kernel.of(request, "display_data")
    assert shown.content["data"][VIEW]["model_id"] in kernel.opened()
    kernel.run("assert not from_threads(), set(from_threads())")


def test_run_ends_when_its_time_is_over(kernel: KernelClient) -> None:
    """After its seconds the next cell's turn comes, and the panel stands still."""
    kernel.run("panel = Counter('loop')")
    kernel.run("panel.run(0.5)")
    still = values(kernel, "LabelModel")
    assert still

    kernel.run("time.sleep(0.3)")
    assert values(kernel, "LabelModel") == still
    kernel.click(button(kernel))  # a handler may send, and sends what has gathered
    kernel.wait_for(lambda: clicked(kernel) == ["clicked 1"])
    assert len(values(kernel, "LabelModel")) == len(still) + 1


def test_ticks_carry_what_threads_say(kernel: KernelClient) -> None:
    """In mode "ticks" nothing leaves but as the answer to a message of the page.

    Colab shows no change that a thread sends.
    """
    kernel.run("panel = Counter('ticks'); display(panel)")
    play = kernel.widget("PlayModel")
    begun = values(kernel, "LabelModel")  # what the displaying cell may send
    kernel.run("time.sleep(0.3)")
    assert values(kernel, "LabelModel") == begun

    ticks = []
    for number in range(1, 6):
        ticks.append(kernel.change(play, value=number))
        kernel.wait_for(lambda: kernel.is_over(ticks[-1]))
        kernel.run("""
seen = panel.ticks
while panel.ticks < seen + 2:
    time.sleep(0.01)
""")
    updates = kernel.updates(kernel.widget("LabelModel"))[len(begun) :]
    assert len(updates) >= 4
    assert {update.parent for update in updates} <= set(ticks)
    counted = [int(update.state["value"]) for update in updates]
    assert counted == sorted(set(counted))

    click = kernel.click(button(kernel))
    kernel.wait_for(lambda: clicked(kernel) == ["clicked 1"])
    assert kernel.of(click, "comm_msg")
    kernel.run("assert not from_threads(), set(from_threads())")


def test_text_needs_no_widgets() -> None:
    """In mode "text" no comm is opened and no view shown, whatever is displayed."""
    with KernelClient() as kernel:
        kernel.run(PANEL)
        published = kernel.run("panel = Counter('text'); display(panel)")
        published += kernel.run("panel.run(0.2)")
        kernel.run("import sys; assert 'ipywidgets' not in sys.modules")

        shown = [one for one in published if one.kind == "display_data"]
        forms = [sorted(one.content["data"]) for one in shown]
        assert forms == [["text/html", "text/plain"]] * 2
        assert not [one for one in kernel.published if one.kind.startswith("comm")]


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "threads"),
        ({"COLAB_RELEASE_TAG": "release-colab-1"}, "ticks"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, "text"),
    ],
)
def test_a_kernel_chooses_its_way(variables: dict[str, str], mode: str) -> None:
    """In a kernel the environment chooses, as nobody has named a mode."""
    with KernelClient(**variables) as kernel:
        kernel.run("from llamatelemetry.widgets._toolkit import choose_mode")
        published = kernel.run("print(choose_mode())")
        assert kernel.text_of(published[0].parent).strip() == mode
