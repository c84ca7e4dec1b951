"""What the tests in a real browser are written with.

A Jupyter server that serves JupyterLab and Voila to a headless Chromium, pages that
remember what they asked for and complained about, and notebooks written for a test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTH, HEIGHT = 1000, 900
"""The window's size in CSS pixels; a notebook's own width is some 100 less."""

CHROMIUM_OPTIONS = (
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Any other host is unknown, so that nothing leaves this machine by accident.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# Voila's template asks for Font Awesome and MathJax there; the panels do without.
HARMLESS = ("cdn.jsdelivr.net", "cdnjs.cloudflare.com")
# Announcements cover the page's lower right, where the panels' buttons may be.
NO_NEWS = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
# It ends with the tests, even if they are killed (prctl's PR_SET_PDEATHSIG is 1).
LAB = """
import ctypes, signal
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
from jupyterlab.labapp import main
main()
"""
LAB_IS_READY = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  const kernel = panel?.sessionContext?.session?.kernel;
  return kernel?.connectionStatus === 'connected' && kernel.status === 'idle'
    && panel.context.isReady && panel.context.path === %s;
}"""


def write_notebook(folder: Path, name: str, *cells: str) -> str:
    """Write a notebook of code cells, and return its name."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, folder / name)
    return name


def loopback(url: str, seconds: float = 30) -> Any:
    """Return the JSON that a URL of this machine answers."""
    # urlopen would remember the proxies of the first test that calls it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=seconds) as reply:
        return json.load(reply)


def wait_until(
    state: Callable[[], Any], seconds: float = 30, what: Callable[[], str] = str
) -> Any:
    """Wait until something holds or is there, and return it; say what else there is.

    For what no page knows; a page's own changes are waited for with Playwright.
    """
    deadline = time.monotonic() + seconds
    while not (found := state()):
        assert time.monotonic() < deadline, what() or "it did not happen in time"
        time.sleep(0.02)
    return found


def is_running(process: int) -> bool:
    """Tell whether a process is there and has not ended."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


class JupyterServer:
    """A Jupyter server with JupyterLab and Voila, alone in a folder of its own.

    Attributes:
        notebooks: The folder that it serves; kernels start there.
        url: Where it answers, without a token.
        log: What it has written so far.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir(parents=True)
        self.log = folder / "server.log"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = folder / "config" / "labconfig"
        settings.mkdir(parents=True)
        (settings / "page_config.json").write_text(json.dumps(NO_NEWS))
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": self.notebooks,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "ServerApp.disable_check_xsrf": True,  # the tests end kernels themselves
            "IdentityProvider.token": "",
            "ServerApp.use_redirect_file": False,
            "LabApp.expose_app_in_browser": True,
            "VoilaConfiguration.show_tracebacks": True,
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", LAB),
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                env=clean_variables(folder) | variables,
                cwd=self.notebooks,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, 60, self.log.read_text)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return bool(loopback(f"{self.url}/api/status"))
        return False

    def kernels(self) -> list[dict[str, Any]]:
        """Return the kernels that run."""
        found: list[dict[str, Any]] = loopback(f"{self.url}/api/kernels")
        return found

    def end_kernels(self) -> None:
        """End all kernels, as a user does who closes everything."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for kernel in self.kernels():
            url = f"{self.url}/api/kernels/{kernel['id']}"
            request = urllib.request.Request(url, method="DELETE")
            # A page that goes away may have ended it in between.
            with contextlib.suppress(OSError):
                opener.open(request, timeout=10).close()

    def stop(self) -> None:
        """End the server and all it has started."""
        with contextlib.suppress(OSError):
            self.end_kernels()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


def clean_variables(folder: Path) -> dict[str, str]:
    """Return an environment with nothing of the developer's in it."""
    unwanted = ("JUPYTER", "IPYTHON", "LLAMA", "HF_", "KAGGLE_", "COLAB_", "CUDA_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and not name.upper().endswith("_PROXY")
    }
    folders = {
        name: str(folder / place)
        for name, place in {
            "HOME": "home",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "lab-settings",
            "JUPYTERLAB_WORKSPACES_DIR": "lab-workspaces",
            "IPYTHONDIR": "ipython",
            "MPLCONFIGDIR": "matplotlib",
            "LLAMATELEMETRY_CACHE": "cache",
            "HF_HOME": "hub",
        }.items()
    }
    return kept | folders | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


class Watched:
    """A browser page, and what it asked for and complained about.

    Attributes:
        page: Playwright's page.
        asked: The URLs of all requests so far.
        complaints: Errors of its console and of its programs.
    """

    def __init__(self, page: Page, screenshots: Path) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self._screenshots = screenshots
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda opened: self.asked.append(opened.url))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", self._note)
        page.on("dialog", self._answer)

    def _answer(self, dialog: Any) -> None:
        if dialog.type != "beforeunload":  # Lab asks that before it is left
            self.complaints.append(f"{dialog.type}: {dialog.message}")
        dialog.accept()

    def _note(self, message: Any) -> None:
        place = message.location.get("url", "")
        if message.type == "error" and urlsplit(place).hostname not in HARMLESS:
            self.complaints.append(f"{message.text} ({place})")

    def foreign(self) -> list[str]:
        """Return what was asked of other machines."""
        parts = [(urlsplit(url), url) for url in self.asked]
        return [
            url
            for part, url in parts
            if part.scheme not in ("data", "blob", "about")
            and part.hostname not in ("127.0.0.1", *HARMLESS)
        ]

    def shoot(self, name: str, part: Locator | None = None) -> Path:
        """Take a screenshot of the page or a part of it, to be looked at."""
        path = self._screenshots / f"{name}.png"
        (part or self.page).screenshot(path=path, animations="disabled")
        return path

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        wider: int = self.page.evaluate(
            "() => document.documentElement.scrollWidth - window.innerWidth"
        )
        return max(wider, 0)

    def cut_off(self) -> list[str]:
        """Return the widgets that are wider than what they are in, by their text."""
        found: list[str] = self.page.evaluate(
            """() => [...document.querySelectorAll('.widget-box')]
              .filter(box => box.clientWidth && box.scrollWidth > box.clientWidth + 1)
              .map(box => `${box.scrollWidth} in ${box.clientWidth}: `
                + box.innerText.trim().slice(0, 80))"""
        )
        return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a headless Chromium with a new profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=CHROMIUM_OPTIONS
        )
        yield browser
        browser.close()


def new_context(browser: Browser) -> BrowserContext:
    """Return a context with the tests' window; its pages share one cache."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT}, locale="en-GB"
    )
    context.set_default_timeout(30_000)
    return context


def open_voila(watched: Watched, server: JupyterServer, name: str) -> None:
    """Open a notebook in Voila and wait until its widgets are there."""
    watched.page.goto(f"{server.url}/voila/render/{name}", wait_until="commit")
    watched.page.locator(".jupyter-widgets").first.wait_for()


def press(part: Page | Locator, name: str) -> None:
    """Press the button with exactly this text by key, as soon as it is enabled.

    For where things above it change by themselves: a button that moves between press
    and release is not clicked.
    """
    button = part.get_by_role("button", name=name, exact=True)
    button.and_(part.locator(":enabled")).press("Enter")


class Lab:
    """A notebook in JupyterLab."""

    def __init__(self, watched: Watched, server: JupyterServer, name: str) -> None:
        self.watched = watched
        self.page = watched.page
        self._name = name
        # A workspace of its own: Lab would open what another page has open.
        place = f"{server.url}/lab/workspaces/{name.removesuffix('.ipynb')}/tree/{name}"
        self.page.goto(f"{place}?reset", wait_until="commit")
        self.wait()

    def wait(self) -> None:
        """Wait until the kernel is connected and idle, with the sidebar closed."""
        ready = LAB_IS_READY % json.dumps(self._name)
        self.page.wait_for_function(ready, timeout=60_000)
        self.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")

    def begin(self, number: int) -> None:
        """Begin to run a cell."""
        # Keys are taken before a kernel can run anything; commands are not.
        self.page.evaluate(
            """number => {
              const app = window.jupyterapp;
              app.shell.currentWidget.content.activeCellIndex = number;
              app.commands.execute('notebook:run-cell');
            }""",
            number,
        )

    def run(self, number: int, *, seconds: float = 60) -> None:
        """Run a cell to its end."""
        self.begin(number)
        self.wait_for(number, seconds=seconds)

    def wait_for(self, number: int, *, seconds: float = 60) -> None:
        """Wait for the end of a cell that was begun."""
        self.page.wait_for_function(
            """number => {
              const cells = window.jupyterapp.shell.currentWidget.content.widgets;
              return typeof cells[number].model.executionCount === 'number';
            }""",
            arg=number,
            timeout=seconds * 1000,
        )

    def executed(self, number: int) -> int | None:
        """Return the count that a cell was run with; None if it was not run."""
        count: int | None = self.page.evaluate(
            """number => window.jupyterapp.shell.currentWidget.content
              .widgets[number].model.executionCount""",
            number,
        )
        return count

    def output(self, number: int) -> Locator:
        """Return the output area of a cell."""
        return self.page.locator(".jp-Cell").nth(number).locator(".jp-Cell-outputArea")

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate(
            "async () => window.jupyterapp.commands.execute('docmanager:save')"
        )

    def reload(self) -> None:
        """Load the page anew, as a user does; the kernel goes on."""
        self.page.reload(wait_until="commit")
        self.wait()


def percentile(values: Iterable[float], part: float) -> float:
    """Return the value below which a part of them lie, the nearest one there is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
