"""HTTP to one server, from any number of threads.

Each request in flight has a connection to itself; connections that are done are kept
for the next request. A reply that is being read can be closed from another thread,
which ends the reader at once. What goes wrong is a :class:`ConnectionFailedError` or a
:class:`RequestTimeoutError`.
"""

from __future__ import annotations

import contextlib
import json as json_module
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

from llamatelemetry._connection import (
    Connection,
    RawReply,
    checked_url,
    is_loopback,
    surroundings_of,
)
from llamatelemetry._deadline import Deadline
from llamatelemetry._exchange import Reply, ReplyStream
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    RequestTimeoutError,
)

__all__ = [
    "CONNECT_TIMEOUT",
    "SILENCE_TIMEOUT",
    "HTTPClient",
    "StreamedReply",
    "encode_json",
    "is_loopback",
]

CONNECT_TIMEOUT = 5.0
"""Seconds to open a connection: generous for a network, instant on loopback."""

SILENCE_TIMEOUT = 30.0
"""Seconds without a byte after which a server is taken for dead."""

_MAXIMUM_IDLE = 32
"""Connections kept; more than this many requests at a time is not our use."""

_ASSUMED_KEEP_ALIVE = 60.0
"""Seconds an idle connection is used again where the server states no limit."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent, and how long it may take, in seconds."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    connect_timeout: float
    silence_timeout: float
    total_timeout: float | None

    def __str__(self) -> str:
        return f"{self.method} {self.url}"


class StreamedReply:
    """One request and its reply, read block by block.

    Nothing is sent before :meth:`open`. :meth:`close` may be called from any thread
    at any time, also while another one waits in :meth:`open` or for the next block;
    that one then ends: ``open`` raises, the iteration just stops.

    Attributes:
        status: The HTTP status; 0 before ``open`` has returned.
        headers: The reply's headers.
    """

    def __init__(self, client: HTTPClient, request: _Request) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._client = client
        self._request = request
        self._deadline = Deadline.after(None)
        self._limited = request.total_timeout is not None
        self._connection: Connection | None = None
        self._opened_before = 0
        self._raw: RawReply | None = None
        self._blocks: Iterator[bytes] = iter(())
        self._closed = False
        self._released = False
        self._reading = threading.Lock()

    @property
    def server(self) -> str:
        """The base URL of the server that is asked."""
        return self._client.base_url

    @property
    def opened(self) -> bool:
        """Whether :meth:`open` was called, so that something may have been sent."""
        return self._connection is not None

    @property
    def reached(self) -> bool:
        """Whether a connection was opened for it, and not only asked for or reused."""
        connection = self._connection
        return connection is not None and connection.opened > self._opened_before

    def open(self) -> int:
        """Send the request, wait for the reply's headers, and return the status.

        Raises:
            ConnectionFailedError: No connection, or it broke, or ``close`` was called.
            RequestTimeoutError: The server was silent for too long.
        """
        self._deadline = Deadline.after(self._request.total_timeout)
        with self._reading:
            try:
                self._raw = raw = self._send()
            except BaseException as error:  # noqa: BLE001 -- raises it again
                self._fail(error)
            self._blocks = raw.blocks
            self.headers = raw.headers
            self.status = raw.status
        if self._closed:
            self.close()
            raise ConnectionFailedError(f"{self._request} was closed while it started")
        return self.status

    def _send(self) -> RawReply:
        self._connection = connection = self._client.take_connection()
        self._opened_before = opened_before = connection.opened
        try:
            return self._send_on(connection)
        except ConnectionError:
            # A kept connection that the server closed in this very moment. Only a GET
            # is sent again: nothing can have been generated for it.
            stale = connection.opened == opened_before > 0
            if not stale or self._request.method != "GET" or self._closed:
                raise
        connection.close()
        self._opened_before = 0
        self._connection = connection = Connection()
        return self._send_on(connection)

    def _send_on(self, connection: Connection) -> RawReply:
        if self._closed:
            raise ConnectionError("closed before it started")
        request, remaining = self._request, self._deadline.remaining
        return connection.send(
            request.method,
            request.url,
            request.headers,
            request.body,
            connect_timeout=min(request.connect_timeout, remaining),
            silence_timeout=min(request.silence_timeout, remaining),
            surroundings=self._client.surroundings,
        )

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next block as it came, as soon as it is there.

        Raises:
            ConnectionFailedError: The connection broke before the reply's end.
            RequestTimeoutError: The server was silent, or the whole took, too long.
        """
        with self._reading:
            if self._closed or self._released:
                raise StopIteration
            try:
                if self._limited:
                    self._shorten_wait()
                block = next(self._blocks)
            except StopIteration:
                self._release(reusable=True)
                raise
            except BaseException as error:  # noqa: BLE001 -- raises it again
                self._fail(error)
        if self._closed:
            self.close()
            raise StopIteration
        return block

    def _shorten_wait(self) -> None:
        """Let the next wait end with the total time, if that is sooner."""
        remaining = self._deadline.remaining
        if remaining <= 0:
            raise TimeoutError
        if self._connection is not None:
            limit = min(self._request.silence_timeout, remaining)
            self._connection.limit_silence(limit)

    def read(self) -> bytes:
        """Return all that is left of the body."""
        return b"".join(self)

    def finish(self, within: float = 0.25) -> None:
        """Read what follows the part that matters, so that the connection lives on.

        Args:
            within: Seconds after which to hang up instead; nobody wants these bytes.
        """
        self._limited = True
        self._deadline = Deadline.after(within)
        with contextlib.suppress(ClientError):
            self.read()

    def close(self) -> None:
        """End the request; if the reply was not read to its end, hang up.

        The server notices the hang-up and stops generating.
        """
        self._closed = True
        if self._released:
            return
        connection = self._connection
        if connection is not None:
            connection.end()
        # A reader that holds the lock is awake now and releases by itself.
        if self._reading.acquire(blocking=False):
            try:
                self._release(reusable=False)
            finally:
                self._reading.release()

    def again(self) -> ReplyStream | None:
        """Return None: what one server was asked is not asked a second time.

        It may have generated for it already, and only the caller knows what that is
        worth. A pool of servers does otherwise.
        """
        return None

    def __del__(self) -> None:
        # As with a generator: a reply that nobody reads any more must not keep the
        # server busy, nor leave a socket to the garbage collector.
        if self._connection is not None and not self._released:
            self.close()

    def _release(self, *, reusable: bool) -> None:
        """Give the connection back, or drop it. The caller holds the reading lock."""
        if self._released or self._connection is None:
            return
        self._released = True
        connection = self._connection
        connection.uses += 1
        limit = _keep_alive_seconds(self.headers, connection.uses)
        if reusable and limit > 0 and not connection.ended:
            connection.fresh_until = time.monotonic() + limit
            self._client.give_back(connection)
            return
        if self._raw is not None:
            self._raw.hang_up()
        connection.close()

    def _fail(self, error: BaseException) -> NoReturn:
        """Drop the connection, whose state is unknown now, and raise what it means."""
        self._release(reusable=False)
        if isinstance(error, ClientError):
            raise error
        if self._closed and self.status:
            raise StopIteration from None
        if isinstance(error, TimeoutError):
            raise self._timeout() from error
        if not isinstance(error, ConnectionError):
            raise error
        if self.status:
            raise ConnectionFailedError(
                f"{self._request}: the reply broke off ({error})"
            ) from error
        raise ConnectionFailedError(
            f"{self._request} failed ({error}); is the server running at "
            f"{self._client.base_url}?"
        ) from error

    def _timeout(self) -> RequestTimeoutError:
        request = self._request
        if self._deadline.expired:
            return RequestTimeoutError(
                f"{request} took longer than total_timeout={request.total_timeout} s"
            )
        waited_for = (
            "more of the reply"
            if self.status
            else "the reply to begin (is every slot busy with other requests?)"
        )
        return RequestTimeoutError(
            f"{request}: {request.silence_timeout:g} s of silence, waiting for "
            f"{waited_for}; a larger timeout waits longer"
        )


class HTTPClient:
    """Requests to one base URL, from any thread, with connections kept alive.

    Args:
        base_url: Where the paths of the requests are appended to.
        headers: Sent with every request. Never shown in ``repr`` or errors.

    Raises:
        ConfigurationError: The base URL is not one of HTTP.
    """

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        if "@" in urlsplit(base_url).netloc:  # not shown: it may be a password
            raise ConfigurationError(
                "base_url holds a user name or password; give a key as api_key"
            )
        try:
            self.base_url = checked_url(base_url).rstrip("/")
        except ValueError as error:
            raise ConfigurationError(
                f"base_url={base_url!r} cannot be used ({error}); write it like "
                "http://127.0.0.1:8080"
            ) from error
        self.surroundings = surroundings_of(self.base_url)
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._idle: deque[Connection] = deque()
        self._closed = False

    def __repr__(self) -> str:
        return f"HTTPClient({self.base_url!r})"

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        parameters: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        silence_timeout: float = SILENCE_TIMEOUT,
        total_timeout: float | None = None,
    ) -> Reply:
        """Send one request and return the whole reply, whatever its status.

        Args:
            method: ``GET``, ``POST``, ...
            path: Appended to the base URL; starts with a slash.
            json: Sent as the JSON body, unless it is None.
            parameters: The query of the URL.
            headers: More headers, for this request only.
            connect_timeout: Seconds to open a connection.
            silence_timeout: Seconds without a byte before giving up.
            total_timeout: Seconds the whole may take; None for any time.

        Raises:
            ConfigurationError: ``json`` cannot be written as JSON.
            ConnectionFailedError: No connection, or it broke.
            RequestTimeoutError: Silence, or the whole took too long.
        """
        reply = self.stream(
            method,
            path,
            json=json,
            parameters=parameters,
            headers=headers,
            connect_timeout=connect_timeout,
            silence_timeout=silence_timeout,
            total_timeout=total_timeout,
        )
        with contextlib.closing(reply):
            status = reply.open()
            return Reply(status, reply.headers, reply.read(), self.base_url)

    def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        parameters: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        silence_timeout: float = SILENCE_TIMEOUT,
        total_timeout: float | None = None,
    ) -> StreamedReply:
        """Prepare a request whose reply is read block by block; see :meth:`request`.

        Nothing is sent before the result's ``open()``. A ``body`` is JSON that was
        written already.

        Raises:
            ConfigurationError: ``json`` cannot be written as JSON.
        """
        query = "?" + urlencode(parameters) if parameters else ""
        sent_headers = {**self._headers, **(headers or {})}
        if json is not None:
            body = encode_json(json)
        if body is not None:
            sent_headers["Content-Type"] = "application/json"
        if method != "GET":
            sent_headers["Content-Length"] = str(len(body or b""))
        request = _Request(
            method,
            self.base_url + path + query,
            sent_headers,
            body,
            connect_timeout,
            silence_timeout,
            total_timeout,
        )
        return StreamedReply(self, request)

    def close(self) -> None:
        """Close the kept connections; requests in flight end by themselves."""
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def take_connection(self) -> Connection:
        """Return a connection for one request; called by :class:`StreamedReply`."""
        if self._closed:
            raise ConnectionFailedError(f"the client of {self.base_url} is closed")
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if time.monotonic() < connection.fresh_until:
                    return connection
                connection.close()
        return Connection()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) >= _MAXIMUM_IDLE:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:  # closed in between
            self.close()


def _keep_alive_seconds(headers: Mapping[str, str], uses: int) -> float:
    """Return how long the connection of a finished reply may be used again.

    As long as the server states, less a margin of 1 s, and for as many requests as it
    states (100, for llama-server). Not at all after a chunked
    reply of llama-server, which closes the connection then, does not say so, and may
    do it in the moment in which the next request is sent (seen on b11434: 33 of 600
    chats of eight threads were lost).
    """
    chunked = "chunked" in headers.get("Transfer-Encoding", "")
    if chunked and headers.get("Server") == "llama.cpp":
        return 0
    keep_alive = headers.get("Keep-Alive", "")
    most = re.search(r"max=(\d+)", keep_alive)
    if most and uses >= int(most[1]):
        return 0
    stated = re.search(r"timeout=(\d+)", keep_alive)
    return float(stated[1]) - 1 if stated else _ASSUMED_KEEP_ALIVE


def encode_json(json: Any) -> bytes:
    """Return the body of a request.

    Raises:
        ConfigurationError: It cannot be written as JSON.
    """
    try:
        return json_module.dumps(json, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the request cannot be written as JSON: {error}"
        ) from error
