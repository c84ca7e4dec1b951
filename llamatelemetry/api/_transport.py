"""The client's way to the server: timeouts, errors, and a record of each request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, TypeVar

from llamatelemetry._exchange import Reply, ReplyStream, Requests
from llamatelemetry.api._errors import error_from_reply
from llamatelemetry.api._parsing import parse_with
from llamatelemetry.api.responses import EmbeddingUsage, Timings, Usage
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["RequestRecord", "Transport", "require_success"]

ResponseT = TypeVar("ResponseT")

_LONGEST = 366 * 24 * 3600.0  # longer ones overflow in the operating system

_logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What is known about one request when it is over. Holds no text of it.

    Attributes:
        kind: What was asked for: "chat", "completion", "embeddings", "tokenize", ...
        path: The path it was sent to.
        start: When it was sent, in seconds of ``time.monotonic()``.
        end: When its answer was whole, or it failed or was cancelled, likewise.
        time_to_first_token: Seconds from start to the first text, thinking or tool
            call; None where none came.
        finish_reason: Why the first answer ended, or None.
        model: The model's alias as answered, or None.
        usage: How many tokens it took, or None.
        timings: What the server measured, or None.
        error: What it failed with, or None.

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

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Transport:
    """Sends requests with one client's timeouts and tells its listener about them.

    Attributes:
        http: The connections; may be shared.
        timeout: Seconds of silence before giving up.
        connect_timeout: Seconds to open a connection.
        total_timeout: Seconds a request may take in all; None for any time.
        on_request: Called with the record of each request when it is over.
    """

    http: Requests
    timeout: float
    connect_timeout: float
    total_timeout: float | None
    on_request: Callable[[RequestRecord], object] | None

    def __post_init__(self) -> None:
        for name in ("timeout", "connect_timeout", "total_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= _LONGEST:
                raise ConfigurationError(
                    f"{name}={value!r} must be above 0 seconds and at most a year"
                )

    def with_limits(
        self, timeout: float | None, total_timeout: float | None
    ) -> Transport:
        """Return the same with other limits; None keeps one."""
        return replace(
            self,
            timeout=self.timeout if timeout is None else timeout,
            total_timeout=self.total_timeout
            if total_timeout is None
            else total_timeout,
        )

    def call(
        self,
        kind: str,
        method: str,
        path: str,
        parser: Callable[[Any], ResponseT],
        *,
        json: Any = None,
        parameters: Mapping[str, str | int] | None = None,
    ) -> ResponseT:
        """Send a request and return what the parser makes of the JSON it answers.

        Raises:
            ClientError: The server refuses, or answers something else; and what
                :meth:`exchange` raises.
        """

        def read(reply: Reply) -> ResponseT:
            require_success(reply, f"{method} {path}")
            return parse_with(parser, reply.json())

        return self.exchange(kind, method, path, read, json=json, parameters=parameters)

    def exchange(
        self,
        kind: str,
        method: str,
        path: str,
        read: Callable[[Reply], ResponseT],
        *,
        json: Any = None,
        parameters: Mapping[str, str | int] | None = None,
    ) -> ResponseT:
        """Send a request and return what is read out of its reply, of any status.

        Raises:
            ConnectionFailedError: No connection, or it broke.
            RequestTimeoutError: Silence, or the whole took too long.
        """
        record = RequestRecord(kind=kind, path=path)
        try:
            reply = self.http.request(
                method, path, json=json, parameters=parameters, **self._timeouts()
            )
            response = read(reply)
            record.usage = getattr(response, "usage", None)
            record.model = getattr(response, "model", None)
        except BaseException as error:
            record.error = error
            raise
        finally:
            self.tell(record)
        return response

    def stream(self, path: str, body: Any) -> ReplyStream:
        """Prepare a generation; nothing is sent before its ``open()``."""
        headers = {"Accept": "text/event-stream"}
        return self.http.stream(
            "POST", path, json=body, headers=headers, **self._timeouts()
        )

    def tell(self, record: RequestRecord) -> None:
        """Hand the record of a request that is over to the listener."""
        record.end = time.monotonic()
        if self.on_request is None:
            return
        try:
            self.on_request(record)
        except Exception:
            # It is the user's code, which may raise anything; the answer that it
            # watches is whole and must not be lost to that. Logged with its traceback.
            _logger.exception("on_request failed")

    def _timeouts(self) -> dict[str, Any]:
        return {
            "connect_timeout": self.connect_timeout,
            "silence_timeout": self.timeout,
            "total_timeout": self.total_timeout,
        }


def require_success(reply: Reply, what: str) -> None:
    """Raise what a reply stands for, unless it is a success."""
    if reply.status != HTTPStatus.OK:
        raise error_from_reply(reply.status, reply.headers, reply.body, what)
