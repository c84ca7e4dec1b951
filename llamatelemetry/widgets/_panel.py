"""Panel: what all panels have in common, whichever way they are shown."""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any, Literal, Self

from llamatelemetry._deadline import Deadline
from llamatelemetry._units import printable
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.widgets import _toolkit
from llamatelemetry.widgets._messages import can_handle, handle_messages
from llamatelemetry.widgets._outbox import Outbox
from llamatelemetry.widgets._ticking import make_ticking
from llamatelemetry.widgets._toolkit import Mode, choose_mode

__all__ = ["Panel", "close_all"]

_logger = logging.getLogger(__name__)

_LOOP_SECONDS = 0.05
_FAREWELL_SECONDS = 5.0
_NO_TIME = 10.0**9  # seconds; more than any session has


class Panel(ABC):
    """One view of something, in a notebook, a terminal or a saved page.

    Shown by being a cell's last line, or by ``display(panel)``. Everything that takes
    time happens in threads (``llamatelemetry-panel-...``), which :meth:`close` ends.

    Args:
        mode: How it is shown: "threads", "ticks", "loop" or "text"; see
            `llamatelemetry.widgets._toolkit`. None: what works here.

    Raises:
        ConfigurationError: There is no such mode.
    """

    def __init__(self, *, mode: Mode | None = None) -> None:
        self._mode = choose_mode(mode)
        self._outbox = Outbox(direct=self._mode == "threads")
        self._lock = threading.RLock()  # for what handlers and threads change
        self._closing = threading.Event()
        self._parts: tuple[Panel, ...] = ()
        self._is_part = False
        self._begun = False
        self._box: Any = None
        self._foot: Any = None
        self._threads: list[threading.Thread] = []
        self._tickers: list[tuple[float, Callable[[], object], str]] = []
        self._w: Any = None

    # ── for those who make a panel ───────────────────────────────────────────────

    @abstractmethod
    def _build(self) -> Any:
        """Make the widgets and return the outermost box; never in mode "text"."""

    @abstractmethod
    def _text(self) -> str:
        """Return the whole state as text."""

    @abstractmethod
    def _html(self) -> str:
        """Return the whole state as a static page, everything in it escaped."""

    def _picture(self) -> bytes | None:
        """Return a PNG for where there are no widgets; None for none."""
        return None

    def _on_click(self, button: Any, handler: Callable[[], object]) -> None:
        """Call a handler when a button is clicked, under the lock."""
        button.on_click(lambda _: self._handle(handler))

    def _on_change(
        self, widget: Any, handler: Callable[[Any], object], trait: str = "value"
    ) -> None:
        """Call a handler with a widget's new value, if the user has changed it."""

        def changed(change: Any) -> None:
            if not self._outbox.applying:
                self._handle(lambda: handler(change["new"]))

        widget.observe(changed, names=trait)

    def _in_background(self, work: Callable[[], object], name: str) -> None:
        """Do something in a thread; what it raises is shown in the panel."""

        def run() -> None:
            with self._failures_shown():
                work()

        thread = threading.Thread(
            target=run, name=f"llamatelemetry-panel-{name}", daemon=True
        )
        with self._lock:
            if self._closing.is_set():
                return
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _every(self, seconds: float, work: Callable[[], object], name: str) -> None:
        """Do something again and again in a thread, from when the panel is shown.

        Args:
            seconds: The time between the end of one and the start of the next.
            work: What to do; what it raises is shown once. False ends it.
            name: What the thread is called.
        """
        with self._lock:
            self._tickers.append((seconds, work, name))
            if self._begun:
                self._start_ticker(seconds, work, name)

    def _say(self, text: str, *, kind: Literal["note", "error"] = "note") -> None:
        """Say something at the panel's foot; "" for nothing."""
        if self._foot is None:
            return
        told = escape(printable(text))
        if kind == "error" and told:
            told = f"<b>Error:</b> {told}"
        role = "alert" if kind == "error" else "status"
        style = "overflow-wrap:anywhere;line-height:1.4"
        line = f'<div role="{role}" style="{style}">{told}</div>'
        self._outbox.set(self._foot, value=line if told else "")

    def _adopt(self, parts: Iterable[Panel]) -> None:
        """Make panels parts of this one, before any of them is shown.

        They are closed with it.
        """
        self._parts = tuple(parts)
        for part in self._parts:
            part._become_part(self._mode, self._outbox)  # noqa: SLF001 -- a panel's

    def _become_part(self, mode: Mode, outbox: Outbox) -> None:
        self._is_part, self._mode, self._outbox = True, mode, outbox

    # ── for those who use one ────────────────────────────────────────────────────

    @property
    def widget(self) -> Any:
        """The panel as one widget, to put into a layout of your own.

        Raises:
            ConfigurationError: The panel was closed, or is shown as text.
            SetupError: ipywidgets is missing.
        """
        with self._lock:
            if self._closing.is_set():
                raise ConfigurationError("this panel was closed; make another one")
            if self._mode == "text":
                raise ConfigurationError(
                    'a panel in mode "text" has no widget; choose another mode, as in '
                    f'{type(self).__name__}(..., mode="threads")'
                )
            if self._box is None:
                self._w = _toolkit.widgets()
                self._foot = self._w.HTML()
                parts = [self._build(), self._foot]
                if self._mode == "ticks" and not self._is_part:
                    parts += make_ticking(self._w, self._outbox.flush)
                self._box = self._w.VBox(parts)
                self._begin()
                self._outbox.flush()
            return self._box

    def run(self, seconds: float | None = None) -> None:
        """Show the panel and keep it alive in this cell, with its buttons.

        For where a panel does not move by itself while no cell runs. Ends when the
        time is over, when the panel is closed, and with Ctrl-C (the notebook's stop
        button), which it takes as the wish to go on with the next cell.

        Args:
            seconds: Seconds to run; None for as long as nothing ends it. A panel in
                mode "text" is shown when they are over; for None at once, since nobody
                may be there who could end it.
        """
        kernel = _toolkit.kernel()
        live = self._mode != "text"
        endless = _NO_TIME if live else 0.0
        deadline = Deadline.after(endless if seconds is None else seconds)
        if kernel is not None and live:
            _toolkit.display(self._repr_mimebundle_())
            if not can_handle(kernel):
                self._say("In this kernel the buttons work once the cell has ended.")
        with contextlib.suppress(KeyboardInterrupt):
            while not (self._closing.is_set() or deadline.expired):
                self._outbox.flush()
                if kernel is not None and live:
                    handle_messages(kernel)
                self._closing.wait(min(_LOOP_SECONDS, deadline.remaining))
        self._outbox.flush()
        if kernel is not None and not live:
            _toolkit.display(self._repr_mimebundle_())

    @property
    def closed(self) -> bool:
        """Whether the panel was closed."""
        return self._closing.is_set()

    def close(self) -> None:
        """Take the panel off the page and end its threads; quiet the second time.

        What it shows goes on: a server, a monitor.
        """
        self._closing.set()
        for part in self._parts:
            part.close()
        self._outbox.flush()
        if not self._is_part:
            self._outbox.close()
        with self._lock:
            threads, self._threads = self._threads, []
            box, self._box = self._box, None
        deadline = Deadline.after(_FAREWELL_SECONDS)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(deadline.remaining)
        if box is not None:
            close_all(box)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return self._text()

    def _repr_html_(self) -> str:
        picture = self._picture() if self._mode == "text" else None
        if picture is None:
            return self._html()
        data = base64.b64encode(picture).decode("ascii")
        told = escape(self._text(), quote=True)
        image = (
            f'<img alt="{told}" style="max-width:100%" '
            f'src="data:image/png;base64,{data}">'
        )
        return f"{self._html()}{image}"

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> dict[str, object]:
        """Return all ways to show it; a notebook takes the best that it knows."""
        del include, exclude  # IPython takes what it wants
        data: dict[str, object] = {"text/plain": repr(self)}
        data["text/html"] = self._repr_html_()
        if self._mode != "text" and not self.closed:
            data |= _toolkit.view_of(self.widget)
        return data

    # ── inside ───────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            for ticker in self._tickers:
                self._start_ticker(*ticker)

    def _start_ticker(
        self, seconds: float, work: Callable[[], object], name: str
    ) -> None:
        def tick() -> None:
            has_failed = False
            while not self._closing.is_set():
                try:
                    if work() is False:
                        return
                except Exception as error:  # noqa: BLE001 -- shown in the panel
                    if not has_failed:
                        has_failed = True
                        self._explain(error)
                self._closing.wait(seconds)

        self._in_background(tick, name)

    def _handle(self, handler: Callable[[], object]) -> None:
        """Call a handler; its errors are shown, and what it changed is sent."""
        if self._closing.is_set():
            return
        with self._failures_shown(), self._lock:
            handler()
        if self._mode != "threads":  # a handler runs where changes are shown
            self._outbox.flush()

    @contextlib.contextmanager
    def _failures_shown(self) -> Iterator[None]:
        try:
            yield
        # A handler's error would go nowhere a user looks, a thread's neither.
        except Exception as error:  # noqa: BLE001 -- said above
            self._explain(error)

    def _explain(self, error: Exception) -> None:
        """Show an error in the panel; one that should not be is logged too."""
        text = str(error) or type(error).__name__
        if not isinstance(error, LLCudaError):
            _logger.error("a panel has failed", exc_info=error)
            text = f"{type(error).__name__}: {text}"
        self._say(text, kind="error")


def close_all(widget: Any) -> None:
    """Close a widget and all in it, so that the kernel forgets them."""
    for child in getattr(widget, "children", ()):
        close_all(child)
    widget.close()
    for name in ("layout", "style"):  # each widget has made its own
        if widget.has_trait(name):
            getattr(widget, name).close()
