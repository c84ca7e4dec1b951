"""VRAMPanel: the memory of the cards over time, before what the plan expects."""

from __future__ import annotations

import threading
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, Literal

from llamatelemetry._chart import WIDTH, Layout, duration
from llamatelemetry._environment import detect_platform
from llamatelemetry._units import printable
from llamatelemetry.exceptions import ConfigurationError, SetupError
from llamatelemetry.gguf import _html
from llamatelemetry.gpu.inventory import as_number
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.plots import MemoryChart, figure_png, memory_figure
from llamatelemetry.widgets._bands import PlanSource, expected
from llamatelemetry.widgets._memory_sources import (
    CardSource,
    HostSource,
    Source,
    aligned,
)
from llamatelemetry.widgets._panel import Panel
from llamatelemetry.widgets._toolkit import Mode, with_tooltip

__all__ = ["VRAMPanel"]

_MINUTES = (1, 2, 5, 10, 60)
_LEAST_WINDOW, _LONGEST_WINDOW = 10, 86_400
_LEAST_INTERVAL, _LONGEST_INTERVAL = 0.2, 60
_MOST_NAMES = 1000
_PAGE_DPI, _FILE_DPI = 130, 200  # 832 and 1280 pixels wide
_TITLE = "GPU memory"
_NO_PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6360600000000300012b094d840000000049454e44ae426082"
)
"""One transparent pixel: where there is no picture at all, pages show a broken one."""
_QUIET = "font-size:85%;opacity:.8"
_NOT_RUNNING = "The monitor does not run, so nothing new is seen."


class VRAMPanel(Panel):
    """How full each card is, over time and now, in front of what the plan expects.

    A chart for each card, with the plan's parts as bands, the limit, and the monitor's
    marks; below it what the cards say now. The bands begin at what was used when the
    plan was made, if it was told what was free, else at 0. A line shows the highest of
    what was seen within a pixel. Without a card the host's memory is shown.

    The panel only looks: it neither starts nor stops the monitor by itself. Where that
    does not run, there is a button that starts it.

    Args:
        monitor: Watches the cards.
        plan: What is expected: a ``MemoryPlan``, a ``Placement``, or a function that
            returns one; None for no bands.
        interval: Seconds between two pictures, 0.2 to 60.
        window: Seconds that are shown, 10 to a day.
        mode: How the panel is shown; see `Panel`.

    Raises:
        ConfigurationError: A value cannot work.

    Examples:
        >>> from llamatelemetry import GPUMonitor, plan_memory
        >>> from llamatelemetry.widgets import VRAMPanel
        >>> with GPUMonitor() as monitor:
        ...     panel = VRAMPanel(monitor, plan_memory("qwen3-14b", gpus="2x15"))
        ...     "4.6 GiB" in str(panel)
        ...     panel.close()
        True
    """

    def __init__(
        self,
        monitor: GPUMonitor,
        plan: PlanSource = None,
        *,
        interval: float = 1.0,
        window: float = 120.0,
        mode: Mode | None = None,
    ) -> None:
        super().__init__(mode=mode)
        if not isinstance(monitor, GPUMonitor):
            raise ConfigurationError(
                f"monitor is a {type(monitor).__name__}; it must be a GPUMonitor"
            )
        self._monitor = monitor
        self._plan = plan
        self._interval = _checked(
            "interval", interval, _LEAST_INTERVAL, _LONGEST_INTERVAL
        )
        self._window = _checked("window", window, _LEAST_WINDOW, _LONGEST_WINDOW)
        self._paused = False
        self._is_asked = False  # to look before the next tick
        self._anyway = False  # and that though paused
        # Held by whoever looks and draws; a handler holds the panel's lock, not this.
        self._looking = threading.Lock()
        self._cards = CardSource(monitor)
        self._host = HostSource(monitor, self._interval)
        self._source: Source | None = None
        self._chart = MemoryChart()
        self._every(self._interval, self._refresh, "vram")

    # ── the page ─────────────────────────────────────────────────────────────────

    def _build(self) -> Any:
        toolkit = self._w
        row = toolkit.Layout(flex_flow="row wrap", align_items="center")
        height = Layout(max(len(self._monitor.gpus), 1)).height
        self._image = toolkit.Image(
            value=_NO_PICTURE,
            format="png",
            layout=toolkit.Layout(
                width=f"{WIDTH}px",
                height=f"{height}px",
                flex="0 0 auto",
                max_width="99%",
                object_fit="contain",  # smaller on a narrow page, not squeezed
            ),
            # No tooltip: pages of ipywidgets 8 fail where one has no description.
        )
        self._caption = toolkit.HTML()
        self._state = toolkit.HTML()
        self._table = toolkit.HTML()
        self._pause = self._button("Pause", "Stop the chart; the monitor goes on")
        self._start = self._button("Start watching", "Start the monitor")
        self._start.layout.display = "none"
        save_png = self._button("Save PNG", "Write the chart as a picture")
        save_csv = self._button("Save CSV", "Write all samples as a table")
        self._windows = self._make_windows()
        self._on_click(self._pause, self._toggle)
        self._on_click(self._start, self._start_monitor)
        self._on_click(save_png, lambda: self._save("png"))
        self._on_click(save_csv, lambda: self._save("csv"))
        self._on_change(self._windows, self._choose_window)
        controls = [self._pause, self._windows, save_png, save_csv, self._start]
        return toolkit.VBox(
            [
                self._state,
                self._image,
                self._table,
                self._caption,
                toolkit.HBox(controls, layout=row),
            ]
        )

    def _button(self, text: str, tooltip: str) -> Any:
        layout = self._w.Layout(width="auto")
        return self._w.Button(description=text, tooltip=tooltip, layout=layout)

    def _make_windows(self) -> Any:
        seconds = sorted({*(60.0 * minutes for minutes in _MINUTES), self._window})
        windows = self._w.Dropdown(
            options=[(duration(each), each) for each in seconds],
            value=self._window,
            description="Window:",
            layout=self._w.Layout(width="210px"),
        )
        return with_tooltip(windows, "How much time the chart shows")

    # ── what the buttons do ──────────────────────────────────────────────────────

    def _toggle(self) -> None:
        self._paused = not self._paused
        text = "Resume" if self._paused else "Pause"
        tooltip = (
            "Go on, with what was seen meanwhile"
            if self._paused
            else "Stop the chart; the monitor goes on"
        )
        self._outbox.set(self._pause, description=text, tooltip=tooltip)
        self._say("Paused; the monitor goes on." if self._paused else "")
        self._refresh_soon()

    def _choose_window(self, seconds: float) -> None:
        self._window = seconds
        self._anyway = True
        self._refresh_soon()

    def _start_monitor(self) -> None:
        def start() -> None:
            self._monitor.start()
            self._refresh()

        self._in_background(start, "vram-start")

    def _save(self, kind: Literal["png", "csv"]) -> None:
        self._say("Saving …")
        self._in_background(lambda: self._write(kind), "vram-save")

    def _write(self, kind: Literal["png", "csv"]) -> None:
        with self._looking:
            source = self._source
            if source is None or not source.devices:
                self._say("There is nothing to save yet.")
                return
            if kind == "csv":
                data = source.csv().encode()
            else:
                data = figure_png(_figure(source))
        folder: Path | str = "the working directory"
        try:
            folder = detect_platform().output or Path.cwd()
            path = _write_new(folder, kind, data)
        except OSError as error:
            self._say(
                f"Nothing was saved: {folder} cannot be written to "
                f"({error.strerror or error}). os.chdir() chooses another folder.",
                kind="error",
            )
            return
        self._say(f"Saved as {path}")

    # ── what moves ───────────────────────────────────────────────────────────────

    def _refresh_soon(self) -> None:
        """Look in a thread: once, however often that is asked for before it begins."""
        with self._lock:
            if self._is_asked:
                return
            self._is_asked = True
        self._in_background(self._refresh, "vram-now")

    def _refresh(self) -> None:
        """Look, and show what is new; nothing is drawn or sent where nothing is."""
        with self._looking:
            with self._lock:
                paused = self._paused and not self._anyway
                self._is_asked = self._anyway = False
            if paused:
                return
            changed = self._look()
            source = self._source
            self._show_state()
            if source is None or not changed:
                return
            table = _html.table(source.rows, header=source.header)
            more = "".join(map(_line, source.sentences))
            page = f'<div style="line-height:1.4;overflow-x:auto">{table}{more}</div>'
            self._outbox.set(self._table, value=page)
            self._outbox.set(self._caption, value=_line(source.caption(), _QUIET))
            picture = self._chart.png(
                source.devices,
                source.traces,
                source.marks,
                now=source.now,
                window=source.window,
            )
            height = f"{self._chart.size[1]}px"
            if self._image.layout.height != height:
                self._outbox.set(self._image.layout, height=height)
            self._outbox.set(self._image, value=picture)

    def _look(self) -> bool:
        """Take in what is new; whoever calls this holds the lock for looking."""
        before, self._source = self._source, self._source_now()
        if self._source is None:
            return False
        with self._lock:
            window = self._window
        plan = self._plan() if callable(self._plan) else self._plan
        return self._source.look(window, expected(plan)) or self._source is not before

    def _source_now(self) -> Source | None:
        """Return whose memory is shown; None where the cards were not looked for."""
        if self._monitor.gpus:
            return self._cards
        return self._host if self._monitor.running else None

    def _show_state(self) -> None:
        told = self._state_sentence()
        running = self._monitor.running
        self._outbox.set(self._state, value=_line(told) if told else "")
        self._outbox.set(self._start.layout, display="none" if running else None)
        shown = None if self._source is not None else "none"
        for widget in (self._image, self._table, self._caption):
            self._outbox.set(widget.layout, display=shown)

    def _state_sentence(self) -> str:
        """Return what is to be known beside the figures; "" if nothing is."""
        monitor = self._monitor
        if not monitor.running:
            last = max((sample.time for sample in monitor.latest()), default=None)
            when = "" if last is None else f" The last sample is of {_clock(last)}."
            starter = "Its start()" if self._mode == "text" else "“Start watching”"
            return f"{_NOT_RUNNING}{when} {starter} starts it."
        if monitor.gpus:
            return printable(monitor.problem or "")
        why = printable(monitor.problem or "There is no card.")
        return f"{why} The host's memory is shown instead."

    # ── without widgets ──────────────────────────────────────────────────────────

    def _static(self) -> tuple[str, Source | None]:
        """Return what is to be said, and what there is to show."""
        with self._looking:
            with self._lock:
                paused = self._paused
            if not paused:
                self._look()
            return self._state_sentence(), self._source

    def _text(self) -> str:
        told, source = self._static()
        if source is None:
            return f"{_TITLE}: {told}"
        lines = [source.caption(), aligned(source.header, source.rows)]
        return "\n".join([*lines, *source.sentences, *([told] if told else [])])

    def _html(self) -> str:
        told, source = self._static()
        if source is None:
            return _html.panel(_TITLE, told)
        table = _html.table(source.rows, header=source.header)
        lines = map(_line, [*source.sentences, *([told] if told else [])])
        return _html.panel(_TITLE, source.caption(), table, *lines)

    def _picture(self) -> bytes | None:
        _, source = self._static()
        if source is None:
            return None
        try:
            with self._looking:
                return figure_png(_figure(source, dpi=_PAGE_DPI))
        except SetupError:  # without matplotlib the table says it all
            return None


def _figure(source: Source, dpi: int = _FILE_DPI) -> Any:
    return memory_figure(
        source.devices,
        source.traces,
        source.marks,
        now=source.now,
        window=source.window,
        dpi=dpi,
    )


def _write_new(folder: Path, kind: str, data: bytes) -> Path:
    """Write a file that was not there before, named after the time; return its path.

    Raises:
        OSError: It cannot be written.
    """
    stem = f"vram-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    for number in range(1, _MOST_NAMES):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.{kind}"
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(data)
        except BaseException:  # half a file is none
            path.unlink(missing_ok=True)
            raise
        return path
    raise FileExistsError(f"{folder} has {_MOST_NAMES} files of this second")


def _line(text: str, look: str = "") -> str:
    style = f"overflow-wrap:anywhere;line-height:1.4;{look}"
    return f'<div style="{style}">{escape(text)}</div>'


def _clock(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment).astimezone():%H:%M:%S}"


def _checked(name: str, value: float, least: float, most: float) -> float:
    seconds = as_number(value)
    if not least <= seconds <= most:
        raise ConfigurationError(
            f"{name} is {value!r}; it must be seconds, from {least:g} to {most:g}"
        )
    return seconds
