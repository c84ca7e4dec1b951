"""Takes the pictures of ``docs/images``: JupyterLab, and two T4s that a library plays.

    python tests/tools/take_screenshots.py [FOLDER]

The engine is the embedded one behind a script that lists two cards. What the cards say
follows the plan's figures, by the clock. Models but for the demo's are headers only.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_tools import (
    JupyterServer,
    Lab,
    Watched,
    chromium,
    new_context,
    write_notebook,
)
from engine_tools import engine_script
from nvml_tools import MIB, StandInDriver, build_stand_in, t4
from PIL import Image
from shapes import read_shapes, write_shape

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SEEN = Path("/tmp/llamatelemetry")
"""The pictures show its path, so there is nobody's name in it."""
MOST_BYTES = 150_000
FREE = 15_096  # MiB of an idle T4

LAUNCH = 'from llamatelemetry import launch\nsession = launch("demo")'
CHAT = "from llamatelemetry.widgets import ChatPanel\nChatPanel(session)"
SERVER = "from llamatelemetry.widgets import ServerPanel\nServerPanel()"
WATCH = f"""
from llamatelemetry.gguf.memory import plan_memory
from llamatelemetry.gpu import GPUMonitor, detect_gpus
from llamatelemetry.server import ServerConfig
from llamatelemetry.widgets import VRAMPanel
model = "{SEEN}/Qwen3-14B.gguf"
config = ServerConfig(model, context_size=32768, n_gpu_layers=99)
plan = plan_memory(model, config, detect_gpus())
monitor = GPUMonitor(0.5)
monitor.start()
VRAMPanel(monitor, plan, interval=0.5, window=60)
"""
MARK = "monitor.mark({!r})"


class Studio:
    """Where the pictures are taken.

    Args:
        jupyter: The Jupyter server.
        context: The browser.
        cards: What the cards say.
    """

    def __init__(
        self, jupyter: JupyterServer, context: BrowserContext, cards: StandInDriver
    ) -> None:
        self._jupyter, self._context, self._cards = jupyter, context, cards

    @contextmanager
    def notebook(self, height: int, *cells: str) -> Iterator[tuple[Lab, Page]]:
        """Open a notebook of these cells on a page of this height."""
        self.use(0, 0)
        name = write_notebook(self._jupyter.notebooks, "notebook.ipynb", *cells)
        watched = Watched(self._context.new_page(), SEEN)
        watched.page.set_viewport_size({"width": 1000, "height": height})
        yield Lab(watched, self._jupyter, name), watched.page
        watched.page.close()
        self._jupyter.end_kernels()

    def use(self, first: float, second: float, load: tuple[int, int] = (0, 0)) -> None:
        """Have so many MiB of the two cards be used, and their units so busy."""
        cards = [
            t4(
                number,
                free=round((FREE - used) * MIB),
                utilization=f"{busy} {busy // 2}",
                power=9_500 + 550 * busy,
                temperature=38 + busy // 5,
            )
            for number, (used, busy) in enumerate(
                zip((first, second), load, strict=True)
            )
        ]
        self._cards.describe(*cards)


def dashboard(studio: Studio, shoot: Callable[..., None]) -> None:
    """Launch and dashboard, with a chat."""
    with studio.notebook(1380, LAUNCH, "session.dashboard()") as (lab, page):
        lab.run(0)
        lab.run(1)
        page.wait_for_timeout(8_000)
        studio.use(307, 0)
        page.wait_for_timeout(25_000)
        studio.use(307, 0, (61, 0))
        ask(page, "What is GGUF?")
        page.wait_for_timeout(8_000)
        rest(page)
        shoot("dashboard")


def chat(studio: Studio, shoot: Callable[..., None]) -> None:
    """The chat alone, with its settings open."""
    with studio.notebook(1300, LAUNCH, CHAT) as (lab, page):
        lab.run(0)
        lab.run(1)
        ask(page, "What is the KV cache?")
        page.get_by_role("button", name="System prompt and sampling").click()
        page.get_by_label("Temperature").wait_for()
        rest(page)
        shoot("chat", lab.output(1))


def server(studio: Studio, shoot: Callable[..., None]) -> None:
    """A plan before Start, and one that does not fit."""
    with studio.notebook(1100, SERVER) as (lab, page):
        lab.run(0)
        for name, model, context, verdict in (
            ("server-panel", "Qwen3-14B", "32768", "Plan: ✔ fits"),
            ("does-not-fit", "Ministral-3-14B", "262144", "Plan: ✖ does not fit"),
        ):
            page.get_by_label("or another").fill(f"{SEEN}/{model}.gguf")
            page.get_by_label("or another").press("Enter")
            page.get_by_text(model).last.wait_for()
            page.get_by_label("Context").fill(context)
            page.get_by_label("Context").press("Tab")
            page.get_by_text(f"{int(context):,} tokens of context").first.wait_for()
            page.get_by_text(verdict).wait_for()
            rest(page)
            shoot(name, lab.output(0))


def memory(studio: Studio, shoot: Callable[..., None]) -> None:
    """Two cards that fill up as the plan expects."""
    cells = [WATCH.strip(), *map(MARK.format, ("model loaded", "request"))]
    with studio.notebook(1000, *cells) as (lab, page):
        lab.run(0)
        page.wait_for_timeout(8_000)
        for part in range(25):
            studio.use(250 + 170 * part, 250 + 178 * part, (3, 2))
            page.wait_for_timeout(400)
        for part in range(4):
            studio.use(4330 + 1750 * part, 4522 + 1690 * part, (20, 18))
            page.wait_for_timeout(500)
        lab.run(1)
        page.wait_for_timeout(14_000)
        lab.run(2)
        studio.use(9650, 9660, (94, 87))
        page.wait_for_timeout(8_000)
        rest(page)
        shoot("vram", lab.output(0))


def ask(page: Page, question: str) -> None:
    """Ask something, and wait for the answer."""
    done = page.get_by_text("first token after")
    before = done.count()
    page.get_by_label("Message").fill(question)
    page.get_by_role("button", name="Send", exact=True).click()
    done.nth(before).wait_for()


def rest(page: Page) -> None:
    """Take focus and mouse from everything, and let it be drawn."""
    page.evaluate("() => document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1_500)


def main(folder: Path) -> None:
    """Take all pictures."""
    SEEN.mkdir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        engine = SEEN / "llama-server"
        engine.write_bytes(engine_script())
        engine.chmod(0o755)
        for name in ("Qwen3-14B", "Ministral-3-14B"):
            write_shape(read_shapes()[name.lower()], SEEN / f"{name}.gguf")
        with tempfile.TemporaryDirectory() as place:
            take_all(Path(place), engine, folder)
    finally:
        shutil.rmtree(SEEN)


def take_all(place: Path, engine: Path, folder: Path) -> None:
    """Take all pictures, with what is made for that in a place of its own."""
    library = build_stand_in(place)
    assert library is not None, "a C compiler is needed"

    def shoot(name: str, part: Locator | None = None) -> None:
        path = folder / f"{name}.png"
        (part or page_of(context)).screenshot(path=path, animations="disabled")
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(256, dither=0).save(path, optimize=True)
        assert path.stat().st_size < MOST_BYTES, name

    with pytest.MonkeyPatch.context() as patches, chromium() as browser:
        cards = StandInDriver(library, place, patches)
        variables = {
            "LD_LIBRARY_PATH": str(place),
            "STAND_IN_NVML": str(place / "nvml-description"),
            "LLAMATELEMETRY_SERVER": str(engine),
        }
        jupyter = JupyterServer(place / "jupyter", variables)
        context = new_context(browser)
        try:
            jupyter.wait()
            for take in (server, dashboard, chat, memory):
                take(Studio(jupyter, context, cards), shoot)
        finally:
            jupyter.stop()


def page_of(context: BrowserContext) -> Page:
    """Return the one page that is open."""
    (page,) = context.pages
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
