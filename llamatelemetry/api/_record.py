"""What is known about one request when it is over, and who wants to know it."""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llamatelemetry.api.responses import EmbeddingUsage, Timings, Usage
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["Listener", "Listeners", "RequestRecord"]

_PARAMETERS = (
    "model", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed",
    "repeat_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
"""Numbers of a request's body, and the model's name: nothing of what was asked."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What is known about one request when it is over.

    It holds no text, unless who gets it has subscribed with ``text=True``.

    Attributes:
        kind: What was asked for: "chat", "completion", "embeddings", "tokenize", ...
        path: The path it was sent to.
        start: When it was about to be sent, in seconds of ``time.monotonic()``: opening
            a connection for it comes after that.
        end: When its answer was whole, or it failed or was cancelled, likewise.
        time_to_first_token: Seconds from start to the first text, thinking or tool
            call; None where none came.
        finish_reason: Why the first answer ended, or None.
        model: The model's alias as answered, or None.
        usage: How many tokens it took, or None.
        timings: What the server measured, or None.
        error: What it failed with, or None.
        chunk_times: When each chunk with text, thinking or a tool call was taken in,
            in seconds of ``time.monotonic()``; about one token each. None unless
            somebody has subscribed with ``chunk_times=True``.
        slot: The server's slot, where the request or the answer names it; else None.
        server: The base URL of the server that answered, or was asked last; None if
            none was.
        parameters: The numbers it was sampled with, and the model that was asked for,
            by their names in the API. None unless somebody has subscribed.
        sent: The body of the request. None unless you have subscribed with
            ``text=True``.
        answer: The first answer's text, as far as it came; likewise.

    Example:
        >>> from llamatelemetry import LlamaCppClient
        >>> records = []
        >>> with LlamaCppClient(url, on_request=records.append) as watched:
        ...     tokens = watched.tokenize("What is GGUF?").tokens
        >>> records[0].kind, records[0].error, records[0].duration < 30
        ('tokenize', None, True)
    """

    kind: str
    path: str
    start: float = field(default_factory=time.monotonic)
    end: float = 0.0
    time_to_first_token: float | None = None
    finish_reason: str | None = None
    model: str | None = None
    usage: Usage | EmbeddingUsage | None = None
    timings: Timings | None = None
    error: BaseException | None = None
    chunk_times: Sequence[float] | None = field(default=None, repr=False)
    slot: int | None = None
    server: str | None = None
    parameters: Mapping[str, Any] | None = None
    sent: Mapping[str, Any] | None = field(default=None, repr=False)
    answer: str | None = field(default=None, repr=False)

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start


Listener = Callable[[RequestRecord], object]


@dataclass(frozen=True, slots=True)
class _Subscription:
    """Who wants to know, and what."""

    callback: Listener
    chunk_times: bool
    text: bool


class Listeners:
    """Those who are told of every request; shared by a client and its copies.

    Any thread may call anything.

    Attributes:
        chunk_times: Whether somebody wants to know when each chunk came.
        text: Whether somebody wants the text.
    """

    def __init__(self) -> None:
        self.chunk_times = False
        self.text = False
        self._lock = threading.Lock()
        self._all: tuple[_Subscription, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._all)

    def subscribe(
        self, callback: Listener, *, chunk_times: bool, text: bool
    ) -> Callable[[], None]:
        """Have a function called with each record; return what ends that.

        Raises:
            ConfigurationError: It is no function.
        """
        if not callable(callback):
            raise ConfigurationError(
                f"callback is {callback!r}, and must be a function of a RequestRecord"
            )
        one = _Subscription(callback, chunk_times, text)
        with self._lock:
            self._use((*self._all, one))

        def unsubscribe() -> None:
            with self._lock:
                self._use(tuple(other for other in self._all if other is not one))

        return unsubscribe

    def _use(self, everyone: tuple[_Subscription, ...]) -> None:
        self._all = everyone
        self.chunk_times = any(one.chunk_times for one in everyone)
        self.text = any(one.text for one in everyone)

    def begin(self, record: RequestRecord, body: Any) -> None:
        """Note what is known of a request before it is sent, as far as it is wanted."""
        if not self._all:
            return
        if self.chunk_times:
            record.chunk_times = array("d")
        if not isinstance(body, Mapping):
            return
        record.parameters = {
            name: body[name] for name in _PARAMETERS if body.get(name) is not None
        }
        if self.text:
            record.sent = body

    def tell(self, record: RequestRecord, on_request: Listener | None) -> None:
        """Hand a record to everybody, without the text to those who did not ask."""
        if on_request is None and not self._all:
            return
        silent = record
        if record.sent is not None or record.answer is not None:
            silent = replace(record, sent=None, answer=None)
        for one in self._all:
            _call(one.callback, record if one.text else silent, "a subscriber")
        if on_request is not None:  # last: a timeline knows the request by then
            _call(on_request, silent, "on_request")


def _call(callback: Listener, record: RequestRecord, what: str) -> None:
    try:
        callback(record)
    except Exception:
        # It is the user's code, which may raise anything; the answer that it watches
        # is whole and must not be lost to that. Logged with its traceback.
        _logger.exception("%s failed", what)
