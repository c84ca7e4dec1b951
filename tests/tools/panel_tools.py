"""What tests of panels share that have no kernel: a front end that records and clicks.

``record_comms(monkeypatch)`` stands where a kernel's comms would be, in ipywidgets 7
and 8 alike: it keeps every message that a widget sends, with its thread and its bytes.
``click``, ``change``, ``upload`` and ``tick`` hand a widget what a browser would send.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest


def ipywidgets() -> Any:
    """Return the ipywidgets module, whichever version is here."""
    return importlib.import_module("ipywidgets")


def is_version_7() -> bool:
    """Tell whether this is ipywidgets 7, as on Colab."""
    return str(ipywidgets().__version__).startswith("7.")


@dataclass(frozen=True)
class Message:
    """One message that a widget sent towards the front end."""

    kind: str
    """``comm_open``, ``comm_msg`` or ``comm_close``."""
    comm_id: str
    """The widget's ``model_id``."""
    data: dict[str, Any]
    buffers: tuple[bytes, ...]
    thread: str
    """The name of the thread that sent it."""

    @property
    def size(self) -> int:
        """Bytes of the content as JSON and of the buffers."""
        content = {"comm_id": self.comm_id, "data": self.data}
        return len(json.dumps(content).encode()) + sum(map(len, self.buffers))

    @property
    def state(self) -> dict[str, Any]:
        """The traits it sets, without those that lie in buffers."""
        state: dict[str, Any] = self.data.get("state", {})
        return state


class Recorder:
    """Every message of every widget, oldest first."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def record(
        self,
        kind: str,
        comm_id: str,
        data: dict[str, Any] | None,
        buffers: Sequence[Any] | None,
    ) -> None:
        """Keep one message; called in the thread that sends it."""
        copied = json.loads(json.dumps(data or {}))
        held = tuple(bytes(buffer) for buffer in buffers or ())
        name = threading.current_thread().name
        self.messages.append(Message(kind, comm_id, copied, held, name))

    def of(self, widget: Any, kind: str = "comm_msg") -> list[Message]:
        """Return one widget's messages."""
        return [
            message
            for message in self.messages
            if message.comm_id == widget.model_id and message.kind == kind
        ]

    def values(self, widget: Any, trait: str = "value") -> list[Any]:
        """Return what was sent for one trait, in order, without what lay in buffers."""
        return [
            message.state[trait]
            for message in self.of(widget)
            if trait in message.state
        ]

    @property
    def size(self) -> int:
        """Bytes of all messages."""
        return sum(message.size for message in self.messages)

    def clear(self) -> None:
        """Forget what was recorded."""
        self.messages.clear()


def record_comms(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Give widgets that are made from now on a front end that records."""
    recorder = Recorder()
    module = importlib.import_module("ipywidgets.widgets.widget")
    if is_version_7():
        monkeypatch.setattr(module, "Comm", _comm_of_version_7(recorder))
    else:
        # The package comm, or what ipywidgets puts before it for old ipykernels.
        monkeypatch.setattr(module.comm, "create_comm", _comm_of_version_8(recorder))
    return recorder


def _comm_of_version_8(recorder: Recorder) -> Any:
    base: Any = importlib.import_module("comm.base_comm").BaseComm

    class RecordingComm(base):  # type: ignore[misc] # its class is found at run time
        def publish_msg(
            self,
            msg_type: str,
            data: dict[str, Any] | None = None,
            metadata: dict[str, Any] | None = None,
            buffers: Sequence[Any] | None = None,
            **_: Any,
        ) -> None:
            recorder.record(msg_type, self.comm_id, data, buffers)

    return RecordingComm


def _comm_of_version_7(recorder: Recorder) -> Any:
    base: Any = importlib.import_module("ipykernel.comm").Comm
    traitlets = importlib.import_module("traitlets")

    class RecordingComm(base):  # type: ignore[misc] # its class is found at run time
        # Version 7 sends nothing where there is no kernel, so this stands for one.
        kernel = traitlets.Any(object())

        def open(
            self, data: Any = None, metadata: Any = None, buffers: Any = None
        ) -> None:
            self._closed = False
            recorder.record("comm_open", self.comm_id, data, buffers)

        def close(
            self,
            data: Any = None,
            metadata: Any = None,
            buffers: Any = None,
            deleting: bool = False,
        ) -> None:
            if not self._closed:
                self._closed = True
                recorder.record("comm_close", self.comm_id, data, buffers)

        def send(
            self, data: Any = None, metadata: Any = None, buffers: Any = None
        ) -> None:
            recorder.record("comm_msg", self.comm_id, data, buffers)

    return RecordingComm


def deliver(widget: Any, data: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
    """Hand a widget a message as the kernel does when the front end sent one."""
    message = {
        "header": {"msg_type": "comm_msg"},
        "content": {"comm_id": widget.model_id, "data": data},
        "buffers": [memoryview(buffer) for buffer in buffers],
    }
    widget._handle_msg(message)


def set_traits(widget: Any, **state: Any) -> None:
    """Change traits from the front end; the state is the JSON that it would send."""
    deliver(widget, {"method": "update", "state": state, "buffer_paths": []})


def click(button: Any) -> None:
    """Click a button from the front end; a disabled one cannot be clicked there."""
    assert not button.disabled, f"the button {button.description!r} is disabled"
    deliver(button, {"method": "custom", "content": {"event": "click"}})


def submit(text: Any) -> None:
    """Press Enter in a text field."""
    deliver(text, {"method": "custom", "content": {"event": "submit"}})


def change(widget: Any, value: Any, trait: str = "value") -> None:
    """Change a control from the front end, selections by the value of their option."""
    assert not getattr(widget, "disabled", False), f"{widget!r} is disabled"
    if trait == "value" and hasattr(widget, "_options_values"):
        values = list(widget._options_values)
        several = isinstance(widget.index, tuple)
        index: Any = [values.index(one) for one in value] if several else None
        if not several and value is not None:
            index = values.index(value)
        set_traits(widget, index=index)
    else:
        set_traits(widget, **{trait: value})


def upload(widget: Any, name: str, content: bytes, kind: str = "image/png") -> None:
    """Choose one file in a FileUpload, in the form that the version's front end has."""
    described: dict[str, Any] = {"name": name, "type": kind, "size": len(content)}
    described["lastModified" if is_version_7() else "last_modified"] = 1_760_000_000_000
    if is_version_7():
        state: dict[str, Any] = {
            "metadata": [described],
            "data": [None],
            "error": "",
            "_counter": widget._counter + 1,
        }
        path = ["data", 0]
    else:
        state = {"value": [described], "error": ""}
        path = ["value", 0, "content"]
    data = {"method": "update", "state": state, "buffer_paths": [path]}
    deliver(widget, data, [content])


def tick(play: Any) -> None:
    """Let a Play widget tick once, as the front end does at its interval."""
    at_the_end = play.value + play.step > play.max
    set_traits(play, value=play.min if at_the_end else play.value + play.step)


def every_widget(outermost: Any) -> list[Any]:
    """Return a widget and all below it, in the order in which a reader meets them."""
    found = [outermost]
    for child in getattr(outermost, "children", ()):
        found += every_widget(child)
    return found


def find(outermost: Any, kind: str, text: str = "") -> Any:
    """Return the one widget of a class whose description contains a text."""
    matching = [
        widget
        for widget in every_widget(outermost)
        if type(widget).__name__ == kind and text in getattr(widget, "description", "")
    ]
    assert len(matching) == 1, f"{len(matching)} of {kind} {text!r} were found"
    return matching[0]
