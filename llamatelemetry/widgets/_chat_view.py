"""The widgets of a conversation: one for each finished answer, a few for the live one.

A finished question with its answer is one HTML widget, which is not sent again while
others come. The answer that is coming has widgets of its own, used again for the next:
few, so that a long session does not fill the kernel's memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from llamatelemetry.widgets._answer import StreamChanges
from llamatelemetry.widgets._chat_history import Exchange
from llamatelemetry.widgets._markdown import STYLE, UNTYPESET
from llamatelemetry.widgets._outbox import Outbox

__all__ = ["ChatView"]

# Always the same, so that Stop stands still while an answer grows: a button that moves
# between press and release is not clicked.
_HEIGHT = "320px"
_TAIL = -1


class ChatView:
    """Shows a conversation; methods are called under the panel's lock.

    Args:
        toolkit: The module ipywidgets.
        outbox: Where changes go.
    """

    def __init__(self, toolkit: Any, outbox: Outbox) -> None:
        self._w, self._outbox = toolkit, outbox
        # One layout and one style for all of them: each costs as much as a widget.
        self._question = toolkit.HTML(layout=toolkit.Layout(width="100%", margin="0"))
        self._same = {"layout": self._question.layout, "style": self._question.style}
        self._blocks: dict[Exchange, Any] = {}
        self._status = self._html()
        self._reasoning = _Stream(self)
        self._answer = _Stream(self)
        # No Accordion: its title cannot be reached with the keyboard.
        self._unfold = toolkit.ToggleButton(
            description="Reasoning, as it comes",
            tooltip="Show or hide what the model thinks before it answers",
            layout=toolkit.Layout(width="220px", margin="2px 11px"),
        )
        self._reasoning.box.layout.display = "none"
        self._reasoning.box.layout.border = "1px solid #8888"
        self._reasoning.box.layout.margin = "2px 11px 8px"
        self._folded = toolkit.VBox([self._unfold, self._reasoning.box])
        self._folded.layout.display = "none"
        parts = [self._question, self._folded, self._answer.box, self._status]
        self._live = toolkit.VBox(parts, layout=toolkit.Layout(display="none"))
        # It must not shrink: then it would scroll in itself, and stay at its start.
        whole = toolkit.Layout(width="100%", flex="0 0 auto", margin="0 0 auto")
        self._page = toolkit.VBox([self._live], layout=whole)
        # Upside down, a box that scrolls stays at its end while its content grows.
        layout = toolkit.Layout(
            flex_flow="column-reverse",
            overflow="auto",
            height=_HEIGHT,
            border="1px solid #8888",
            padding="4px",
            display="none",  # there is nothing to see yet
        )
        self._window = toolkit.Box([self._page], layout=layout)
        style = toolkit.HTML(STYLE, layout=toolkit.Layout(display="none"))
        self.box = toolkit.VBox([style, self._window])
        for name in UNTYPESET:
            self.box.add_class(name)

    def watch(self, on_change: Callable[[Any, Callable[[Any], object]], None]) -> None:
        """Fold and unfold the reasoning from now on.

        Args:
            on_change: Calls a function with a widget's new value.
        """
        on_change(self._unfold, self._show_reasoning)

    def _show_reasoning(self, shown: bool) -> None:
        layout = self._reasoning.box.layout
        self._outbox.set(layout, display=None if shown else "none")

    @property
    def is_reasoning_open(self) -> bool:
        """Whether the reader has unfolded the reasoning."""
        return bool(self._unfold.value)

    def begin(self, question: str) -> None:
        """Show a question, whose answer will come."""
        for stream in (self._answer, self._reasoning):
            stream.empty()
        self._outbox.set(self._question, value=question)
        self._outbox.set(self._status, value="")
        self._outbox.set(self._folded.layout, display="none")
        self._outbox.set(self._unfold, value=False)
        self._show_reasoning(False)
        self._outbox.set(self._live.layout, display=None)
        self._outbox.set(self._window.layout, display=None)

    def say(self, status: str) -> None:
        """Show the line below the answer that is coming."""
        self._outbox.set(self._status, value=status)

    def add(self, changes: StreamChanges) -> None:
        """Show what has come of the answer."""
        self._answer.apply(changes)

    def add_reasoning(self, changes: StreamChanges) -> None:
        """Show what has come of the reasoning."""
        if changes.sections or changes.tail:
            self._outbox.set(self._folded.layout, display=None)
        self._reasoning.apply(changes)

    def arrange(self, finished: Mapping[Exchange, str], *, is_live: bool) -> None:
        """Show these finished answers in this order, and no others.

        Args:
            finished: Each with its HTML.
            is_live: Whether one is coming below them.
        """
        wanted = dict(finished)
        self._outbox.do(lambda: self._arrange(wanted, is_live=is_live))

    def _arrange(self, wanted: Mapping[Exchange, str], *, is_live: bool) -> None:
        for exchange, html in wanted.items():
            if exchange not in self._blocks:
                self._blocks[exchange] = self._html(html)
            elif self._blocks[exchange].value != html:
                self._blocks[exchange].value = html
        gone = [one for one in self._blocks if one not in wanted]
        children = (*(self._blocks[one] for one in wanted), self._live)
        if children != self._page.children:
            self._page.children = children
        self._window.layout.display = None if wanted or is_live else "none"
        if not is_live:
            self._live.layout.display = "none"
            self._question.value = self._status.value = ""
            for stream in (self._answer, self._reasoning):
                stream.empty_now()
        for exchange in gone:
            self._blocks.pop(exchange).close()  # not what it shares with others

    def _html(self, value: str = "") -> Any:
        return self._w.HTML(value, **self._same)


class _Stream:
    """The widgets of a text that grows: its sections, and its live end."""

    def __init__(self, view: ChatView) -> None:
        self._view = view
        self._make = view._html  # noqa: SLF001 -- a part of it
        self._sections: list[Any] = []
        self._tail = self._make()
        # What to show, oldest first; taken by whoever may send.
        self._pending: deque[tuple[int, str]] = deque()
        layout = view._w.Layout(padding="0 11px")  # noqa: SLF001 -- a part of it
        self.box = view._w.VBox([self._tail], layout=layout)  # noqa: SLF001 -- the same

    def apply(self, changes: StreamChanges) -> None:
        """Have changes shown."""
        self._pending.extend(changes.sections.items())
        if changes.tail is not None:
            self._pending.append((_TAIL, changes.tail))
        if self._pending:
            self._view._outbox.do(self._show)  # noqa: SLF001 -- a part of it

    def empty(self) -> None:
        """Have nothing shown; the widgets stay for the next text."""
        self._view._outbox.do(self.empty_now)  # noqa: SLF001 -- a part of it

    def empty_now(self) -> None:
        """Show nothing; by who may send."""
        self._pending.clear()
        for widget in (*self._sections, self._tail):
            widget.value = ""

    def _show(self) -> None:
        newest: dict[int, str] = {}
        while self._pending:
            number, html = self._pending.popleft()
            newest[number] = html
        tail = newest.pop(_TAIL, None)
        made = [
            self._make(newest[number])
            for number in sorted(newest)
            if number >= len(self._sections)
        ]
        for number, html in newest.items():
            if number < len(self._sections):
                self._sections[number].value = html
        if made:
            self._sections += made
            self.box.children = (*self._sections, self._tail)
        if tail is not None:
            self._tail.value = tail
