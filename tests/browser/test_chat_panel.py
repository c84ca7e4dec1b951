"""The chat panel: answers that are stopped, hostile ones, and no mouse at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from browser_tools import (
    JupyterServer,
    Lab,
    Watched,
    loopback,
    open_voila,
    write_notebook,
)
from client_tools import StandIn
from hostile_answers import ANSWERS, LEAK
from tiny_model import write_tiny_model

pytestmark = pytest.mark.browser

RANDOM = """
import ipywidgets
from llamatelemetry import launch
from llamatelemetry.widgets import ChatPanel
session = launch({model!r}, context_size=8192, progress=False)
panel = ChatPanel(session, extra_body={{"ignore_eos": True}})
ipywidgets.VBox([ipywidgets.Label(session.url), panel.widget])
"""

CHAT = """
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.widgets import ChatPanel
panel = ChatPanel(LlamaCppClient({url!r}))
panel
"""

HARM = """
import json, pathlib, threading, ipywidgets
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.widgets import ChatPanel
texts = json.loads(pathlib.Path({texts!r}).read_text())
panel = ChatPanel(LlamaCppClient({url!r}))
go, said = ipywidgets.Button(description="Go"), ipywidgets.Label("waiting")
def ask():
    for text in ["script", texts["script"], texts["image_error"], *texts]:
        panel.send(text)
        panel.wait()
    said.value = f"all {{len(panel.transcript)}} are told"
go.on_click(lambda _: threading.Thread(target=ask, daemon=True).start())
ipywidgets.VBox([go, said, panel.widget])
"""


def test_an_answer_is_stopped_in_the_middle(
    jupyter: JupyterServer, open_page: Callable[[], Watched], tmp_path: Path
) -> None:
    """Stop ends a real engine's answer: its slot is idle, and the panel says so."""
    model = tmp_path / "random.gguf"
    write_tiny_model(model, context_length=8192, layers=8, width=512)
    cell = RANDOM.format(model=str(model))
    name = write_notebook(jupyter.notebooks, "stop.ipynb", cell)
    watched = open_page()
    page = watched.page
    open_voila(watched, jupyter, name)
    url = page.get_by_text("http://127.0.0.1").inner_text()
    page.get_by_label("Message").fill("Count to a million.")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("tokens/s").wait_for()
    # A second click within 0.3 s would be taken for that of a double click; the kernel
    # may have heard of the first one only just before it answered.
    seen = page.evaluate("Date.now()")
    page.wait_for_function("seen => Date.now() > seen + 500", arg=seen)
    assert [slot["is_processing"] for slot in loopback(f"{url}/slots")] == [True]
    watched.shoot("chat-answering")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("slot idle after").first.wait_for()
    assert [slot["is_processing"] for slot in loopback(f"{url}/slots")] == [False]
    page.get_by_role("button", name="Send").wait_for()
    watched.shoot("chat-stopped")
    assert watched.overflow() == 0


def test_everything_can_be_done_with_the_keyboard(
    jupyter: JupyterServer, open_page: Callable[[], Watched], stand_in: StandIn
) -> None:
    """Tab leads from the message to Send, which is Stop while an answer comes."""
    url = stand_in.url(thoughts=20, tokens=20_000, pace=0.02)
    name = write_notebook(
        jupyter.notebooks, "keys.ipynb", CHAT.format(url=url), "1 + 1"
    )
    watched = open_page()
    page, keys = watched.page, watched.page.keyboard
    lab = Lab(watched, jupyter, name)
    lab.run(0)
    page.get_by_label("Message").focus()
    keys.type("one")
    keys.press("Enter")
    keys.press("Shift+Enter")  # neither sends, nor runs a cell
    keys.type("two")
    assert page.get_by_label("Message").input_value() == "one\n\ntwo"
    keys.press("Tab")
    assert focused(watched) == "Send"
    keys.press("Space")
    page.get_by_text("w20 ").first.wait_for()
    assert focused(watched) == "Stop"
    page.get_by_role("button", name="Reasoning, as it comes").wait_for()
    press_until(watched, "Shift+Tab", "Reasoning, as it comes")
    keys.press("Space")
    page.get_by_text("t19").wait_for()
    watched.shoot("chat-keyboard")
    press_until(watched, "Tab", "Stop")
    keys.press("Enter")
    page.get_by_role("button", name="Send").wait_for()
    assert focused(watched) == "Send"
    for name in ("Regenerate", "Edit last"):  # each is enabled by a message of its own
        page.get_by_role("button", name=name).and_(page.locator(":enabled")).wait_for()
    reached = press_until(watched, "Tab", "System prompt and sampling")
    assert reached[:3] == ["Regenerate", "Edit last", "Clear"]
    assert reached[3:] == ["Save JSON", "Save Markdown", "To a cell"]
    keys.press("Space")  # and into what was folded away
    page.get_by_label("Temperature").wait_for()
    keys.press("Tab")
    keys.type("Be brief.")
    keys.press("Tab")
    assert page.get_by_label("System prompt").input_value() == "Be brief."
    watched.shoot("chat-controls")
    assert lab.executed(1) is None
    asked = [one for one in stand_in.seen(url) if "chat" in one["path"]]
    assert len(asked) == 1
    assert asked[0]["body"]["messages"] == [{"role": "user", "content": "one\n\ntwo"}]


def focused(watched: Watched) -> str:
    """Return the text of what has the focus."""
    text: str = watched.page.evaluate("() => document.activeElement.innerText")
    return text.strip()


def press_until(watched: Watched, key: str, wanted: str) -> list[str]:
    """Press a key until something has the focus; return what had it on the way."""
    passed: list[str] = []
    while True:
        watched.page.keyboard.press(key)
        if focused(watched) == wanted:
            return passed
        passed.append(focused(watched))
        assert len(passed) < 9, passed


@pytest.mark.parametrize("front_end", ["lab", "voila"])
def test_hostile_answers_do_nothing(
    front_end: str,
    jupyter: JupyterServer,
    open_page: Callable[[], Watched],
    stand_in: StandIn,
    tmp_path: Path,
) -> None:
    """Whatever a model says: nothing runs, nothing is fetched, the layout holds."""
    # The long ones are told on one front end, for time's sake.
    most = 10**7 if front_end == "lab" else 10**4
    told = {name: text for name, text in ANSWERS.items() if len(text) < most}
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(told))
    url = stand_in.url(texts=quote(str(texts), safe=""), pace=0.002)
    cell = HARM.format(texts=str(texts), url=url)
    name = write_notebook(jupyter.notebooks, f"harm-{front_end}.ipynb", cell)
    watched = open_page()
    page = watched.page
    if front_end == "lab":
        Lab(watched, jupyter, name).run(0)
    else:
        open_voila(watched, jupyter, name)
    panel = page.locator(".jupyter-widgets.widget-vbox").first
    before = panel.bounding_box()
    page.get_by_role("button", name="Go").click()
    count = len(told) + 3
    page.get_by_text(f"all {2 * count} are told").wait_for(timeout=240_000)
    assert page.evaluate("() => [typeof window.owned, document.title.length > 0]") == [
        "undefined",
        True,
    ]
    assert [url for url in watched.asked if LEAK in url] == []
    links = panel.locator("a[href]").evaluate_all("all => all.map(a => a.href)")
    assert [link for link in links if not re.match("https?://", link)] == []
    for tag in ("img", "script", "iframe", "object", "svg", "form", "base", "link"):
        assert panel.locator(tag).count() == 0, tag
    after = panel.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] == before["width"]
    assert watched.overflow() == 0
    done = page.get_by_text("first token after")
    for number, name in enumerate(("emoji", "arabic", "wide_table")):
        done.nth(count + number - 1).wait_for()
        page.get_by_label("Message").fill(name)
        # Not clicked: the page is still being laid out, and a button that moves
        # between press and release is not clicked.
        page.get_by_role("button", name="Send", exact=True).press("Enter")
    done.nth(count + 2).wait_for()
    watched.shoot(f"chat-hostile-{front_end}")
