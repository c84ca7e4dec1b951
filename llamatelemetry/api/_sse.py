"""Server-sent events: bytes as they arrive in, whole events out. Pure.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html: lines
end in LF, CR or CR LF; an empty line ends an event; a line that starts with a colon is
a comment, which llama-server sends as a ping.
"""

from __future__ import annotations

import re
from typing import TypeAlias

__all__ = ["Event", "EventDecoder"]

Event: TypeAlias = tuple[str, bytes]
"""An event's name, "message" if it has none, and its data, lines joined by LF."""

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventDecoder:
    """Puts events together from blocks that may be cut anywhere."""

    def __init__(self) -> None:
        self._between_events = True
        self._rest = b""
        self._data: list[bytes] = []
        self._name = ""
        self._after_return = False

    def feed(self, block: bytes) -> list[Event]:
        """Take the next block and return the events that are whole now."""
        if (
            # What llama-server sends, one event in one block, is taken at one look.
            self._between_events
            and block.startswith(b"data: ")
            and block.endswith(b"\n\n")
            and block.count(b"\n") == 2  # noqa: PLR2004 -- those at its end
            and b"\r" not in block
        ):
            return [("message", block[6:-2])]
        events = self._feed_lines(block)
        self._between_events = not (
            self._rest or self._data or self._name or self._after_return
        )
        return events

    def _feed_lines(self, block: bytes) -> list[Event]:
        if self._after_return:  # the line feed of a CR LF that was cut in two
            block = block.removeprefix(b"\n")
        text = self._rest + block
        self._after_return = text.endswith(b"\r")
        events: list[Event] = []
        start = 0
        for end in _LINE_END.finditer(text):
            event = self._take_line(text[start : end.start()])
            start = end.end()
            if event is not None:
                events.append(event)
        self._rest = text[start:]
        return events

    def _take_line(self, line: bytes) -> Event | None:
        """Take one whole line; return the event if this line ends one."""
        if not line:
            return self._end_event()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field == b"error":
            # Not in the standard: how llama-server builds of 2024 and 2025 tell an
            # error inside a stream. Later ones send it as data.
            self._name = "error"
            self._data.append(value)
        return None

    def _end_event(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name = [], ""
        return (name or "message", b"\n".join(data)) if data else None
