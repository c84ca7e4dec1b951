"""The client's way to the server: timeouts, errors, and a record of each request."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, TypeVar

from llamatelemetry._exchange import Reply, ReplyStream, Requests
from llamatelemetry.api._errors import error_from_reply
from llamatelemetry.api._parsing import parse_with
from llamatelemetry.api._record import Listener, Listeners, RequestRecord
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["RequestRecord", "Transport", "require_success"]

ResponseT = TypeVar("ResponseT")

_LONGEST = 366 * 24 * 3600.0  # longer ones overflow in the operating system


@dataclass(frozen=True, slots=True)
class Transport:
    """Sends requests with one client's timeouts and tells its listener about them.

    Attributes:
        http: The connections; may be shared.
        timeout: Seconds of silence before giving up.
        connect_timeout: Seconds to open a connection.
        total_timeout: Seconds a request may take in all; None for any time.
        on_request: Called with the record of each request when it is over.
        listeners: Who else is told; shared with copies that have other limits.
    """

    http: Requests
    timeout: float
    connect_timeout: float
    total_timeout: float | None
    on_request: Listener | None
    listeners: Listeners = field(default_factory=Listeners)

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
        self.listeners.begin(record, json)
        record.chunk_times = None  # the answer comes in one piece
        record.server = getattr(self.http, "base_url", None)  # a pool has none
        try:
            reply = self.http.request(
                method, path, json=json, parameters=parameters, **self._timeouts()
            )
            record.server = reply.server
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
        """Hand the record of a request that is over to the listeners."""
        record.end = time.monotonic()
        self.listeners.tell(record, self.on_request)

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
