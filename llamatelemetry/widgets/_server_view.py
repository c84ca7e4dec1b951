"""The widgets of the server panel, and how each part of its state is shown in them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from llamatelemetry._launch_steps import Steps
from llamatelemetry._units import printable
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.widgets._log_tail import BLOCKS, LEVELS, LogFilter, LogTail
from llamatelemetry.widgets._model_choices import ModelChoice
from llamatelemetry.widgets._outbox import Outbox
from llamatelemetry.widgets._plan_preview import Preview
from llamatelemetry.widgets._server_options import OptionsForm
from llamatelemetry.widgets._server_state import Activity, Seen, told

__all__ = ["ServerView", "command_text"]

_LONGEST = 1000  # characters of a sentence
_HIDDEN = "none"
_TEXT = "overflow-wrap:anywhere;line-height:1.4"
_NARROW = f"{_TEXT};max-width:700px"
_PLAIN = (
    "margin:0;padding:0;border:0;background:none;color:inherit;font:12px monospace;"
    "white-space:pre;overflow-x:auto"
)


class ServerView:
    """The panel's widgets. Everything that others wrote is escaped here.

    Args:
        w: The module ipywidgets.
        outbox: What changes them.
        cards: The cards of this machine.
    """

    def __init__(self, w: Any, outbox: Outbox, cards: Sequence[GPUInfo]) -> None:
        self._w = w
        self._set = outbox.set
        self._do = outbox.do
        self._make_choosing()
        self.form = OptionsForm(w, outbox, cards)
        self._make_plan()
        self._make_running()
        self._make_log()
        self.box = w.VBox(
            [
                self.badge,
                w.HBox([self.models, self.refresh], layout=w.Layout(width="100%")),
                self.other,
                self.form.box,
                w.HBox([self.verdict], layout=_row(w)),
                self.nearest,
                w.HBox([self.start, self.stop, self.restart], layout=_row(w)),
                self.hint,
                self.loading,
                self.steps,
                self.trouble,
                self.activity,
                self.servers,
                self.drawing,
                w.HBox([self.show_log, self.show_command], layout=_row(w)),
                self.log_box,
                self.command,
            ]
        )

    # ── made once ────────────────────────────────────────────────────────────────

    def _make_choosing(self) -> None:
        w = self._w
        style = {"description_width": "105px"}
        self.badge = w.HTML()
        self.models = w.Dropdown(
            description="Model",
            style=style,
            layout=w.Layout(width="auto", flex="0 1 555px", min_width="0"),
        )
        self.refresh = _button(w, "Refresh", "Look for models and free memory again")
        self.other = w.Text(
            description="or another",
            placeholder="a path, or owner/repository:Q4_K_M on the Hub; then Enter",
            continuous_update=False,
            style=style,
            layout=w.Layout(width="664px", max_width="98%"),
        )

    def _make_plan(self) -> None:
        w = self._w
        self.verdict = w.HTML()
        self.nearest = _button(w, "Use the nearest", "Take the context that fits")
        self.nearest.layout.width = "220px"
        self.nearest.layout.display = _HIDDEN
        self.drawing = w.HTML()

    def _make_running(self) -> None:
        w = self._w
        self.start = _button(w, "Start", "Start a server with these options")
        self.stop = _button(w, "Stop", "Stop the server, or its start")
        self.restart = _button(w, "Restart", "Stop the server and start it again")
        self.hint = w.HTML()
        self.bar = w.FloatProgress(
            min=0.0, max=1.0, description="Loading", layout=w.Layout(width="330px")
        )
        self.how_far = w.Label()
        self.loading = w.HBox([self.bar, self.how_far], layout=_row(w))
        self.loading.layout.display = _HIDDEN
        self.steps, self.trouble = w.HTML(), w.HTML()
        self.activity, self.servers = w.HTML(), w.HTML()

    def _make_log(self) -> None:
        w = self._w
        self.show_log = w.ToggleButton(
            description="Show log", tooltip="The last lines of the server's log"
        )
        self.show_command = w.ToggleButton(
            description="Show command", tooltip="The exact command, to copy"
        )
        self.command = w.Textarea(
            description="Command",
            layout=w.Layout(width="98%", height="110px", display=_HIDDEN),
        )
        self.filter = w.Text(
            description="Filter", placeholder="lines with this", continuous_update=True
        )
        self.level = w.Dropdown(description="Lines", options=LEVELS, value="all")
        # One more than are shown, so that the next one is filled before it is.
        narrow = w.Layout(margin="0", width="100%")
        self.blocks = [w.HTML(layout=narrow) for _ in range(BLOCKS + 1)]
        self._lines = w.VBox([], layout=w.Layout(flex="0 0 auto", width="100%"))
        # Reversed, so that a page keeps the end in view.
        window = w.Layout(
            max_height="320px",
            flex_flow="column-reverse",
            overflow="auto",
            border="1px solid #8888",
            padding="4px",
        )
        self._log_state = w.HTML()
        self.log_box = w.VBox(
            [
                w.HBox([self.filter, self.level], layout=_row(w)),
                self._log_state,
                w.Box([self._lines], layout=window),
            ]
        )
        self.log_box.layout.display = _HIDDEN

    # ── shown ────────────────────────────────────────────────────────────────────

    def show_models(self, choices: Sequence[ModelChoice], chosen: str) -> None:
        """Show the list of models, one of them chosen."""
        options = [(choice.label, choice.name) for choice in choices]

        def change() -> None:
            with self.models.hold_sync():
                if list(self.models.options) != options:
                    self.models.options = options
                self.models.value = chosen

        self._do(change)

    def show_state(self, seen: Seen | None, doing: str) -> None:
        """Show what the servers are doing, and what is being done with them."""
        mark = "○ no server yet" if seen is None else seen.mark
        where = "" if seen is None else f" {seen.where}"
        more = f" · {doing}…" if doing else ""
        self._set(
            self.badge,
            value=f'<div role="status" style="{_TEXT}"><b>Server: '
            f"{escape(mark + more)}</b>{escape(where)}</div>",
        )
        lines = "\n".join(() if seen is None else seen.lines)
        page = f'<pre style="{_PLAIN}">{escape(lines)}</pre>' if lines else ""
        self._fill(self.servers, page)
        self._set(self.command, value="" if seen is None else command_text(seen))

    def show_buttons(self, can: Mapping[str, bool], hint: str) -> None:
        """Enable the buttons that make sense, and say why others do not."""
        for name in ("start", "stop", "restart"):
            self._set(getattr(self, name), disabled=not can[name])
        self._fill(self.hint, _sentence(hint))

    def show_plan(self, preview: Preview) -> None:
        """Show what a start would come to."""
        sentence = printable(preview.sentence, _LONGEST)
        if sentence[-1:].isalnum() or sentence.endswith(")"):
            sentence += "."
        if preview.state in ("fits", "too large"):  # no name stands first
            sentence = sentence[:1].upper() + sentence[1:]
        role = "alert" if not preview.can_start else "status"
        self._set(
            self.verdict,
            value=f'<div role="{role}" style="{_NARROW}">'
            f"<b>Plan: {escape(preview.mark)}</b>. {escape(sentence)}</div>",
        )
        self._fill(self.drawing, preview.html)
        near = preview.nearest
        if near is not None:
            self._set(self.nearest, description=f"Use {near:,} tokens of context")
        shown = near is not None and not preview.can_start
        self._set(self.nearest.layout, display=None if shown else _HIDDEN)

    def show_progress(self, seen: Seen | None, steps: Steps | None, total: int) -> None:
        """Show how far a start is; nothing while none is under way.

        Args:
            seen: What the servers are doing.
            steps: The steps of a launch; None where there are none to show.
            total: Bytes of the models that are loaded; 0 if not known.
        """
        progress = None if seen is None else seen.progress
        fraction = None if steps is None else steps.fraction
        words = ""
        if progress is not None:
            fraction, words = progress.fraction, told(progress, total or None)
        shown = None if fraction is not None else _HIDDEN
        self._set(self.loading.layout, display=shown)
        self._set(self.bar, value=fraction or 0.0)
        self._set(self.how_far, value=words)
        page = "" if steps is None else steps._repr_html_()
        self._fill(self.steps, page)

    def show_trouble(self, sentence: str) -> None:
        """Say what went wrong and what to do; "" for nothing."""
        told = escape(printable(sentence, _LONGEST))
        page = (
            f'<div role="alert" style="{_NARROW}"><b>✖ Error:</b> {told} '
            f"<i>Show log has the whole of it.</i></div>"
        )
        self._fill(self.trouble, page if sentence else "")

    def show_activity(self, activity: Activity | None) -> None:
        """Show how busy the servers are."""
        said = "" if activity is None else str(activity)
        self._fill(self.activity, _sentence(said))

    def show_log_lines(self, tail: LogTail, chosen: LogFilter) -> None:
        """Show the end of the log; only blocks that have changed are sent."""
        blocks = list(tail.blocks())
        shown = []
        for number, page in blocks:
            widget = self.blocks[number % len(self.blocks)]
            self._set(widget, value=page)
            shown.append(widget)
        self._set(self._lines, children=tuple(shown))
        some = "" if chosen == LogFilter() else ", of those that pass the filter"
        count = len(tail.lines)
        lines = "1 line" if count == 1 else f"{count} lines"
        state = f"The last {lines}{some}; the newest at the bottom."
        self._set(self._log_state, value=_sentence(state))

    def _fill(self, widget: Any, page: str) -> None:
        """Show a page, and no gap where there is none."""
        self.reveal(widget, shown=bool(page))
        self._set(widget, value=page)

    def reveal(self, widget: Any, *, shown: bool) -> None:
        """Show or hide a widget."""
        self._set(widget.layout, display=None if shown else _HIDDEN)

    def connect(
        self,
        on_click: Callable[[Any, Callable[[], object]], None],
        on_change: Callable[[Any, Callable[[Any], object]], None],
        handlers: Mapping[str, Callable[..., object]],
    ) -> None:
        """Have the panel's functions called, by the names of the widgets."""
        for name in ("start", "stop", "restart", "refresh", "nearest"):
            on_click(getattr(self, name), handlers[name])
        for name in ("models", "other", "filter", "level", "show_log", "show_command"):
            on_change(getattr(self, name), handlers[name])
        on_change(self.command, handlers["command"])


def command_text(seen: Seen) -> str:
    """Return the commands of the servers, each in a line, as a shell takes them."""
    return "\n".join(map(shlex.join, seen.command))


def _button(w: Any, name: str, tooltip: str) -> Any:
    return w.Button(description=name, tooltip=tooltip, layout=w.Layout(width="105px"))


def _row(w: Any) -> Any:
    return w.Layout(flex_flow="row wrap", align_items="center")


def _sentence(text: str) -> str:
    shown = escape(printable(text, _LONGEST))
    return f'<div style="{_TEXT}">{shown}</div>' if text else ""
