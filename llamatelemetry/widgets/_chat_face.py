"""All widgets of a chat panel, laid out: conversation, message, buttons, controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamatelemetry.widgets._chat_controls import Controls
from llamatelemetry.widgets._chat_history import History
from llamatelemetry.widgets._chat_pictures import Pictures
from llamatelemetry.widgets._chat_view import ChatView
from llamatelemetry.widgets._outbox import Outbox

__all__ = ["Face", "Situation"]

_HIDDEN = "none"


@dataclass(frozen=True, slots=True)
class Situation:
    """What the buttons depend on.

    Attributes:
        is_answering: Whether an answer is being given.
        is_editing: Whether the last message is being edited.
        is_empty: Whether nothing was asked yet.
        can_undo: Whether a cleared conversation can be had again.
        drop: How many of the oldest questions to offer to drop; 0 for none.
    """

    is_answering: bool = False
    is_editing: bool = False
    is_empty: bool = True
    can_undo: bool = False
    drop: int = 0


class Face:
    """The widgets, and which of them can be used in which situation.

    Args:
        toolkit: The module ipywidgets.
        outbox: Where changes go.
        history: What the controls set.
        on_change: Calls a function with a widget's new value.
        on_click: Calls a function when a button is clicked.
    """

    def __init__(
        self,
        toolkit: Any,
        outbox: Outbox,
        history: History,
        on_change: Callable[[Any, Callable[[Any], object]], None],
        on_click: Callable[[Any, Callable[[], object]], None],
    ) -> None:
        self._w, self._outbox = toolkit, outbox
        self.view = ChatView(toolkit, outbox)
        self.view.watch(on_change)
        self.controls = Controls(toolkit, history, outbox)
        self.controls.watch(on_change)
        self.pictures = Pictures(toolkit, outbox, on_change, on_click)
        wide = toolkit.Layout(width="auto")
        self.message = toolkit.Textarea(
            description="Message",
            placeholder="Ask something; Tab leads to Send",
            continuous_update=False,  # or a click overtakes the last letters
            rows=3,
            layout=wide,
        )
        self.send = self._button("Send", "Send the message", "primary")
        self.regenerate = self._button("Regenerate", "Ask the last question again")
        self.edit = self._button("Edit last", "Put the last message back to change it")
        self.clear = self._button("Clear", "Forget the conversation")
        self.drop = self._button("Drop oldest", "Make room in the context; ask again")
        self.save_json = self._button("Save JSON", "Write all of it to a file here")
        self.save_markdown = self._button("Save Markdown", "Write it as text to read")
        self.cell = self._button("To a cell", "Show the source of a cell that asks it")
        self.source = toolkit.Textarea(
            description="Copy this",
            rows=8,
            layout=toolkit.Layout(width="auto", display=_HIDDEN),
        )
        self._situation: Situation | None = None
        self.box = self._laid_out()

    def show(self, situation: Situation) -> None:
        """Let the buttons say what can be done now."""
        if situation == self._situation:
            return
        self._situation = now = situation
        busy, nothing = now.is_answering, now.is_empty
        self._set(
            self.send,
            description="Stop" if busy else "Send",
            tooltip="End the answer now" if busy else "Send the message",
            button_style="danger" if busy else "primary",
        )
        self._set(self.regenerate, disabled=busy or nothing)
        self._set(
            self.edit,
            description="Cancel edit" if now.is_editing else "Edit last",
            disabled=busy or nothing,
        )
        undo = nothing and now.can_undo
        self._set(
            self.clear,
            description="Undo clear" if undo else "Clear",
            disabled=nothing and not undo,
        )
        self._set(
            self.drop,
            description=f"Drop {now.drop} oldest" if now.drop else "Drop oldest",
        )
        self._set(self.drop.layout, display=None if now.drop else _HIDDEN)
        for button in (self.save_json, self.save_markdown, self.cell):
            self._set(button, disabled=nothing)

    def show_source(self, text: str) -> None:
        """Show a cell's source to copy; "" hides it."""
        self._set(self.source, value=text)
        self._set(self.source.layout, display=None if text else _HIDDEN)

    def _laid_out(self) -> Any:
        flow = self._w.Layout(flex_flow="row wrap", width="100%")
        row = [self.send, self.regenerate, self.edit, self.clear, self.drop]
        rarer = [self.save_json, self.save_markdown, self.cell, self.controls.shown]
        return self._w.VBox(
            [
                self.view.box,
                self.message,
                self._w.Box(row, layout=flow),
                self.pictures.box,
                self._w.Box(rarer, layout=flow),
                self.controls.box,
                self.source,
            ],
            layout=self._w.Layout(width="100%"),
        )

    def _button(self, description: str, tooltip: str, kind: str = "") -> Any:
        return self._w.Button(
            description=description,
            tooltip=tooltip,
            button_style=kind,
            layout=self._w.Layout(width="auto"),
        )

    def _set(self, widget: Any, **traits: Any) -> None:
        self._outbox.set(widget, **traits)
