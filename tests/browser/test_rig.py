"""The browser tests' own ground: widgets work in both front ends; leaks are seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_tools import (
    JupyterServer,
    Lab,
    Watched,
    open_voila,
    wait_until,
    write_notebook,
)

pytestmark = pytest.mark.browser

PROBE = """
import io, threading, ipywidgets as w
from PIL import Image
button, label, said = w.Button(description="Go"), w.Label("nothing yet"), w.Text()
image = w.Image(layout=w.Layout(width="64px", height="32px"))
stop = threading.Event()
def draw():
    number = 0
    while not stop.wait(0.2):
        number += 1
        data = io.BytesIO()
        Image.new("L", (64, 32), number % 256).save(data, "PNG")
        image.value = data.getvalue()
threading.Thread(target=draw, daemon=True).start()
button.on_click(lambda _: setattr(label, "value", "clicked " + said.value))
w.VBox([button, said, label, image])
"""


@pytest.mark.parametrize("front_end", ["lab", "voila"])
def test_a_button_answers_and_a_thread_draws(
    front_end: str, jupyter: JupyterServer, open_page: Callable[[], Watched]
) -> None:
    """A click reaches the kernel, its answer the page, and a thread's image moves."""
    name = write_notebook(jupyter.notebooks, f"probe-{front_end}.ipynb", PROBE)
    watched = open_page()
    page = watched.page
    if front_end == "lab":
        lab = Lab(watched, jupyter, name)
        lab.run(0)
    else:
        open_voila(watched, jupyter, name)
    page.get_by_role("textbox").last.fill("here")
    page.get_by_role("textbox").last.press("Tab")
    page.get_by_role("button", name="Go", exact=True).click()
    page.get_by_text("clicked here").wait_for()
    first = page.locator("img.widget-image").get_attribute("src")
    page.wait_for_function(
        "before => document.querySelector('img.widget-image').src !== before", arg=first
    )
    watched.shoot(f"rig-{front_end}")
    assert watched.overflow() == 0
    assert any("/api/kernels/" in url for url in watched.asked)


def test_a_page_that_reaches_out_is_seen(
    jupyter: JupyterServer, open_page: Callable[[], Watched]
) -> None:
    """An image of another machine, and an error, are in what a page is charged with."""
    cell = (
        "import ipywidgets as w\n"
        'w.HTML(\'<img src="http://192.0.2.1/leak.png" onerror="missing()">\')'
    )
    name = write_notebook(jupyter.notebooks, "leak.ipynb", cell)
    watched = open_page()
    open_voila(watched, jupyter, name)
    watched.page.wait_for_function("() => document.querySelector('img')?.complete")
    assert watched.foreign() == ["http://192.0.2.1/leak.png"]

    def has_complained() -> bool:
        watched.page.title()  # what the page tells is taken in when it is asked
        return any("missing" in text for text in watched.complaints)

    wait_until(has_complained)  # the image is complete before its error is told
    watched.asked.clear()
    watched.complaints.clear()
