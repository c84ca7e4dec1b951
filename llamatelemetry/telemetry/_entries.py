"""What a timeline is made of: requests and events of servers, as plain values."""

from __future__ import annotations

import json
import math
import numbers
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llamatelemetry._units import format_memory, printable
from llamatelemetry.api._record import RequestRecord
from llamatelemetry.api.responses import Timings
from llamatelemetry.exceptions import (
    ClientError,
    ConnectionFailedError,
    RequestTimeoutError,
)
from llamatelemetry.server.events import (
    BufferSize,
    Event,
    Exited,
    Listening,
    Loading,
    Ready,
)
from llamatelemetry.telemetry._span_messages import encodable

__all__ = ["COMPUTING", "RequestEntry", "ServerEvent", "entry_of", "event_of"]

COMPUTING = frozenset({"chat", "completion", "embeddings", "rerank"})
"""Kinds of requests that keep a slot, and a card, busy."""

_LONGEST_MESSAGE = 500
# These say in our own words what happened; others may repeat what was asked.
_IN_OUR_WORDS = (ConnectionFailedError, RequestTimeoutError)
_SERVERS_NAME = re.compile(r"[a-z_]{1,60}")
# What they quote may be a piece of an answer.
_QUOTED = re.compile(r"(?<!\w)b?(['\"])(?:\\.|(?!\1)[^\\]){16,}(?:\1|$)", re.DOTALL)
_DATA_URL = re.compile(r"^data:[^,]{0,100},")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEntry:
    """One request of a timeline. None is what is not known, never 0.

    Times are seconds of ``time.monotonic()``, as everywhere in a timeline.

    Attributes:
        id: Its number in the timeline, from 0, in the order in which requests ended.
        kind: What was asked for: "chat", "completion", "embeddings", ...
        start: When it was sent.
        end: When its answer was whole, or it failed or was cancelled.
        time_to_first_token: Seconds from start to the first token, as the client saw.
        prompt_tokens: Tokens of the prompt, cached ones included.
        cached_tokens: How many of them were still in the slot's cache.
        completion_tokens: Tokens generated, reasoning included.
        prompt_seconds: Seconds the server took to read the prompt.
        predicted_seconds: Seconds the server took to generate.
        server_tokens_per_second: Tokens generated per second, as the server measured.
        slot: The slot that answered; found in the server's log, so only of servers
            whose log can be read here.
        server: The server's base URL.
        finish_reason: "stop", "length", "cancelled", ...
        error: The error's type, or None.
        error_message: What it said. Without the text: the HTTP status and the server's
            name for it; or that there was no connection, or how long it took.
        model: The model's alias.
        parameters: What it was sampled with.
        prompt: What was asked: a text, or messages as JSON. Only with ``text=True``.
        answer: What was answered, as far as it came. Only with ``text=True``.
        chunk_times: When each chunk with something of the answer came, about one token
            each; None where nobody has noted that.

    Examples:
        >>> from llamatelemetry.telemetry import record
        >>> with record(client) as timeline:
        ...     answer = client.completion("The KV cache", 8, temperature=0)
        >>> request = timeline.requests[0]
        >>> request.kind, request.completion_tokens, request.finish_reason
        ('completion', 8, 'length')
        >>> request.prompt is None and request.answer is None
        True
    """

    id: int
    kind: str
    start: float
    end: float
    time_to_first_token: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_seconds: float | None = None
    predicted_seconds: float | None = None
    server_tokens_per_second: float | None = None
    slot: int | None = None
    server: str | None = None
    finish_reason: str | None = None
    error: str | None = None
    error_message: str | None = None
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = field(default=None, repr=False)
    answer: str | None = field(default=None, repr=False)
    chunk_times: Sequence[float] | None = field(default=None, repr=False)

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start

    @property
    def first_token(self) -> float | None:
        """When the first token came."""
        if self.time_to_first_token is None:
            return None
        return self.start + self.time_to_first_token

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second from the first to the last, as the client saw them come."""
        times = self.chunk_times
        if times is None or self.first_token is None:
            return None
        tokens = self.completion_tokens or len(times)
        seconds = times[-1] - self.first_token if times else 0.0
        return (tokens - 1) / seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """Something that happened to a server, or a mark.

    Attributes:
        time: When, in seconds of ``time.monotonic()``.
        kind: What: "Ready", "Exited", "BufferSize", ... as the classes of
            ``llamatelemetry.server.events``; "mark" for what :meth:`Timeline.mark` was
            told.
        text: What it says, in words.
        server: The server's base URL; None where it is not known, or of a mark.

    Examples:
        >>> from llamatelemetry.telemetry import record
        >>> with record(client) as timeline:
        ...     event = timeline.mark("the second prompt")
        >>> timeline.events[0].kind, timeline.events[0].text
        ('mark', 'the second prompt')
    """

    time: float
    kind: str
    text: str
    server: str | None = None


def event_of(event: Event, now: float, server: str | None) -> ServerEvent:
    """Return an event of a server with its time."""
    return ServerEvent(
        time=now, kind=type(event).__name__, text=_said(event), server=server
    )


def _said(event: Event) -> str:
    if isinstance(event, Ready):
        return f"ready after {event.seconds:.1f} s"
    if isinstance(event, Exited):
        return f"ended with exit code {event.exit_code}"
    if isinstance(event, Loading):
        return f"loads {Path(event.path).name}"
    if isinstance(event, Listening):
        return f"listens on {event.url}"
    if isinstance(event, BufferSize):
        size = format_memory(event.size_bytes)
        return f"{event.device}: {size} for the {event.kind} buffer"
    values = [str(getattr(event, item.name)) for item in fields(event)]
    told = str(event) if type(event).__str__ is not object.__str__ else ""
    return printable(told or ", ".join(values), _LONGEST_MESSAGE)


def entry_of(number: int, record: RequestRecord, *, text: bool) -> RequestEntry:
    """Return what a client tells of a request, as an entry; its text only if asked."""
    usage, timings = record.usage, record.timings or Timings()
    cached = getattr(usage, "cached_tokens", None)
    error, message = _told(record.error, text=text)
    return RequestEntry(
        id=number,
        kind=record.kind,
        start=record.start,
        end=record.end,
        time_to_first_token=record.time_to_first_token,
        prompt_tokens=_plain(getattr(usage, "prompt_tokens", None)),
        cached_tokens=_plain(timings.cache_n if cached is None else cached),
        completion_tokens=_plain(getattr(usage, "completion_tokens", None)),
        prompt_seconds=_plain(_seconds(timings.prompt_ms)),
        predicted_seconds=_plain(_seconds(timings.predicted_ms)),
        server_tokens_per_second=_plain(timings.predicted_per_second),
        slot=record.slot,
        server=record.server,
        finish_reason=encodable(record.finish_reason),
        error=error,
        error_message=message,
        model=encodable(record.model),
        parameters=_plain(record.parameters or {}),
        prompt=encodable(_prompt(record.sent)) if text else None,
        answer=encodable(record.answer) if text else None,
        chunk_times=_copied(record.chunk_times),
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, so that it can be written and read back alike.

    A number that JSON has no word for, such as infinity, is None.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {encodable(str(name)): _plain(inner) for name, inner in value.items()}
    return encodable(str(value))


def _copied(times: Sequence[float] | None) -> Sequence[float] | None:
    """Return times that take no more room than they need; others may hold theirs."""
    return None if times is None else array("d", times)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _told(error: BaseException | None, *, text: bool) -> tuple[str | None, str | None]:
    """Return an error's type, and what it says; without the text, what it may say."""
    if error is None:
        return None, None
    message = str(error) if text else _silent(error)
    said = printable(" ".join(message.split()), _LONGEST_MESSAGE)
    return type(error).__name__, said or None


def _silent(error: BaseException) -> str:
    """Return what an error says without any word of the user or of the server."""
    if isinstance(error, _IN_OUR_WORDS):
        return _QUOTED.sub(r"\1…\1", str(error))
    if not isinstance(error, ClientError):
        return ""
    parts = [f"HTTP {error.status}"] if isinstance(error.status, int) else []
    if isinstance(error.type, str) and _SERVERS_NAME.fullmatch(error.type):
        parts.append(error.type)
    return ", ".join(parts)


def _prompt(body: Mapping[str, Any] | None) -> str | None:
    """Return what a body asks, as text; of pictures in it only how large they are."""
    for name in ("messages", "prompt", "input", "content", "query"):
        asked = (body or {}).get(name)
        if isinstance(asked, str):
            return asked
        if asked is not None:
            return json.dumps(_without_data(asked), ensure_ascii=False, default=str)
    return None


def _without_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_data(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_data(inner) for inner in value]
    if isinstance(value, str) and (head := _DATA_URL.match(value)):
        return f"{head[0]}… ({len(value) - len(head[0])} characters)"
    return value
