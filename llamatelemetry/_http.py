"""The one door to HTTP: the only import of requests in the package.

An :class:`HTTPClient` speaks to one base URL from any number of threads. Each request
in flight has a connection to itself; connections that are done are kept for the next
request. A reply that is being read can be closed from another thread, which ends the
reader at once. Every error of requests, urllib3 and the socket leaves this module as
:class:`ConnectionFailedError` or :class:`RequestTimeoutError`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json as json_module
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from llamatelemetry._deadline import Deadline
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    RequestTimeoutError,
)

__all__ = ["HTTPClient", "Reply", "StreamedReply", "is_loopback"]

CONNECT_TIMEOUT = 5.0
"""Seconds to open a connection: generous for a network, instant on loopback."""

SILENCE_TIMEOUT = 30.0
"""Seconds without a byte after which a server is taken for dead."""

_BLOCK_BYTES = 65536
_MAXIMUM_IDLE = 32
"""Connections kept; more than this many requests at a time is not our use."""

_ASSUMED_KEEP_ALIVE = 60.0
"""Seconds an idle connection is used again where the server states no limit."""

_LIBRARY_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    HTTPException,
    OSError,
)
_TIMEOUT_ERRORS = (
    requests.ReadTimeout,
    urllib3.exceptions.ReadTimeoutError,
    TimeoutError,
)


def is_loopback(url: str) -> bool:
    """Return whether a URL names this machine itself."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # 0.0.0.0 and :: reach loopback when connected to.
    return address.is_loopback or address.is_unspecified


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply.

    Attributes:
        status: The HTTP status.
        headers: The reply's headers; names in any case.
        body: The bytes of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body read as JSON.

        Raises:
            ClientError: The body is not JSON.
        """
        try:
            return json_module.loads(self.body)
        except ValueError as error:
            start = self.body[:80].decode(errors="replace")
            raise ClientError(
                f"the reply is not JSON, so this is no llama-server or something "
                f"between cut it: {start!r}",
                status=self.status,
            ) from error


class _TellsSocket:
    """Makes a connection tell its socket, so that another thread can end it."""

    def __init__(
        self, *args: Any, on_connect: Callable[[Any], None], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._on_connect = on_connect

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._on_connect(self.sock)  # type: ignore[attr-defined]


class _PlainConnection(_TellsSocket, HTTPConnection):
    pass


class _SecureConnection(_TellsSocket, HTTPSConnection):
    pass


class _Channel(HTTPAdapter):
    """One connection, used by one request at a time, and its socket.

    Attributes:
        socket: The connected socket, or None before the first connection.
        connections: How many connections were opened here.
        ended: Whether another thread has ended it.
        fresh_until: Monotonic time up to which the server keeps it open when idle.
    """

    def __init__(self) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self.socket: socket.socket | None = None
        self.connections = 0
        self.ended = False
        self.fresh_until = 0.0

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: Any,
        proxies: Any = None,
        cert: Any = None,
    ) -> Any:
        pool: Any = super().get_connection_with_tls_context(
            request, verify, proxies, cert
        )
        if "on_connect" not in pool.conn_kw:
            secure = pool.scheme == "https"
            pool.ConnectionCls = _SecureConnection if secure else _PlainConnection
            pool.conn_kw["on_connect"] = self._connected
        return pool

    def _connected(self, connected: socket.socket) -> None:
        self.socket = connected
        self.connections += 1
        if self.ended:  # ended while it was connecting
            self.end()

    def end(self) -> None:
        """Break the connection under a reader of another thread; never blocks."""
        self.ended = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                # Past ssl.SSLSocket.shutdown, which takes the TLS state away from
                # under the thread that reads.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class StreamedReply:
    """One request and its reply, read block by block.

    Nothing is sent before :meth:`open`. :meth:`close` may be called from any thread
    at any time, also while another one waits in :meth:`open` or for the next block;
    that one then ends: ``open`` raises, the iteration just stops.

    Attributes:
        status: The HTTP status; 0 before ``open`` has returned.
        headers: The reply's headers.
    """

    def __init__(
        self,
        client: HTTPClient,
        request: requests.PreparedRequest,
        *,
        connect_timeout: float,
        silence_timeout: float,
        total_timeout: float | None,
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._client = client
        self._request = request
        self._connect_timeout = connect_timeout
        self._silence_timeout = silence_timeout
        self._total_timeout = total_timeout
        self._deadline = Deadline.after(None)
        self._channel: _Channel | None = None
        self._response: requests.Response | None = None
        self._blocks: Iterator[bytes] = iter(())
        self._closed = False
        self._released = False
        self._reading = threading.Lock()

    @property
    def opened(self) -> bool:
        """Whether :meth:`open` was called, so that something may have been sent."""
        return self._channel is not None

    def open(self) -> int:
        """Send the request, wait for the reply's headers, and return the status.

        Raises:
            ConnectionFailedError: No connection, or it broke, or ``close`` was called.
            RequestTimeoutError: The server was silent for too long.
        """
        self._deadline = Deadline.after(self._total_timeout)
        with self._reading:
            try:
                response = self._send()
            except BaseException as error:  # noqa: BLE001 -- raises it again
                self._fail(error)
            self._response = response
            self.status = response.status_code
            self.headers = response.headers
            self._blocks = _blocks_of(response.raw)
        if self._closed:
            self.close()
            raise ConnectionFailedError(f"{self._what()} was closed while it started")
        return self.status

    def _send(self) -> requests.Response:
        self._channel = channel = self._client.take_channel()
        connections_before = channel.connections
        try:
            return self._send_on(channel)
        except requests.ConnectionError:
            # A kept connection that the server closed in this very moment. Only a GET
            # is sent again: nothing can have been generated for it.
            stale = channel.connections == connections_before > 0
            if not stale or self._request.method != "GET" or self._closed:
                raise
        channel.close()
        self._channel = channel = _Channel()
        return self._send_on(channel)

    def _send_on(self, channel: _Channel) -> requests.Response:
        if self._closed:
            raise ConnectionFailedError(f"{self._what()} was closed before it started")
        remaining = self._deadline.remaining
        return channel.send(
            self._request,
            stream=True,
            timeout=(
                min(self._connect_timeout, remaining),
                # urllib3 refuses 0, and a total that is used up must still time out.
                max(min(self._silence_timeout, remaining), 1e-3),
            ),
            **self._client.surroundings,
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
                if self._total_timeout is not None:
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

    def read(self) -> bytes:
        """Return all that is left of the body."""
        return b"".join(self)

    def finish(self, within: float = 0.25) -> None:
        """Read what follows the part that matters, so that the connection lives on.

        Args:
            within: Seconds after which to hang up instead; nobody wants these bytes.
        """
        self._total_timeout = within
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
        channel = self._channel
        if channel is not None:
            channel.end()
        # A reader that holds the lock is awake now and releases by itself.
        if self._reading.acquire(blocking=False):
            try:
                self._release(reusable=False)
            finally:
                self._reading.release()

    def __del__(self) -> None:
        # As with a generator: a reply that nobody reads any more must not keep the
        # server busy, nor leave a socket to the garbage collector.
        if self._channel is not None and not self._released:
            self.close()

    def _fail(self, error: BaseException) -> NoReturn:
        """Drop the connection, whose state is unknown now, and raise what it means."""
        self._release(reusable=False)
        if not isinstance(error, _LIBRARY_ERRORS) or isinstance(error, ClientError):
            raise error
        if self._closed and self.status:
            raise StopIteration from None
        raise self._translated(error) from error

    def _release(self, *, reusable: bool) -> None:
        """Give the connection back, or drop it. The caller holds the reading lock."""
        if self._released or self._channel is None:
            return
        self._released = True
        channel, response = self._channel, self._response
        if response is not None and not reusable:
            response.raw.close()
        if reusable and not channel.ended:
            limit = _keep_alive_seconds(self.headers)
            channel.fresh_until = time.monotonic() + limit
            self._client.give_back(channel)
        else:
            channel.close()

    def _shorten_wait(self) -> None:
        """Let the next wait end with the total time, if that is sooner."""
        remaining = self._deadline.remaining
        if remaining <= 0:
            raise TimeoutError
        connected = self._channel.socket if self._channel else None
        if connected is not None:
            connected.settimeout(min(self._silence_timeout, remaining))

    def _what(self) -> str:
        return f"{self._request.method} {self._request.url}"

    def _translated(self, error: Exception) -> ClientError:
        """Return the error of this package for one of the libraries below."""
        what = self._what()
        if isinstance(error, requests.ConnectTimeout):
            return ConnectionFailedError(
                f"no connection for {what} within {self._connect_timeout:g} s"
            )
        if isinstance(error, _TIMEOUT_ERRORS):
            return self._timeout()
        reason = _reason(error)
        if self.status:
            return ConnectionFailedError(f"{what}: the reply broke off ({reason})")
        return ConnectionFailedError(
            f"{what} failed ({reason}); is the server running at "
            f"{self._client.base_url}?"
        )

    def _timeout(self) -> RequestTimeoutError:
        if self._deadline.expired:
            return RequestTimeoutError(
                f"{self._what()} took longer than total_timeout="
                f"{self._total_timeout:g} s"
            )
        waited_for = (
            "more of the reply"
            if self.status
            else "the reply to begin (is every slot busy with other requests?)"
        )
        return RequestTimeoutError(
            f"{self._what()}: {self._silence_timeout:g} s of silence, waiting for "
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
        self.base_url = _checked(base_url)
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._idle: deque[_Channel] = deque(maxlen=_MAXIMUM_IDLE)
        self._closed = False
        self.surroundings = _surroundings(self.base_url)

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
            return Reply(status, reply.headers, reply.read())

    def stream(
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
    ) -> StreamedReply:
        """Prepare a request whose reply is read block by block; see :meth:`request`.

        Nothing is sent before the result's ``open()``.

        Raises:
            ConfigurationError: ``json`` cannot be written as JSON.
        """
        prepared = requests.PreparedRequest()
        prepared.method = method
        prepared.url = self.base_url + path
        if parameters:
            prepared.url += "?" + urlencode(parameters)
        prepared.headers = requests.structures.CaseInsensitiveDict(self._headers)
        prepared.headers.update(headers or {})
        prepared.body = None
        if json is not None:
            prepared.body = _encoded(json)
            prepared.headers["Content-Type"] = "application/json"
        if prepared.body is not None or method != "GET":
            prepared.headers["Content-Length"] = str(len(prepared.body or b""))
        return StreamedReply(
            self,
            prepared,
            connect_timeout=connect_timeout,
            silence_timeout=silence_timeout,
            total_timeout=total_timeout,
        )

    def close(self) -> None:
        """Close the kept connections; requests in flight end by themselves."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def take_channel(self) -> _Channel:
        """Return a connection for one request; called by :class:`StreamedReply`."""
        if self._closed:
            raise ConnectionFailedError(f"the client of {self.base_url} is closed")
        while True:
            try:
                channel = self._idle.pop()
            except IndexError:
                return _Channel()
            if time.monotonic() < channel.fresh_until:
                return channel
            channel.close()

    def give_back(self, channel: _Channel) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) >= _MAXIMUM_IDLE:
            channel.close()
            return
        self._idle.append(channel)
        if self._closed:  # closed in between
            self.close()


def _checked(base_url: str) -> str:
    """Return the URL as it is sent, without a slash at its end."""
    parts = urlsplit(base_url)
    if parts.username is not None:
        raise ConfigurationError(
            "base_url holds a user name or password; give a key as api_key"
        )
    prepared = requests.PreparedRequest()
    try:
        prepared.prepare_url(base_url, None)
    except (requests.RequestException, ValueError) as error:
        raise _bad_base_url(base_url) from error
    if parts.scheme not in ("http", "https") or prepared.url is None:
        raise _bad_base_url(base_url)
    return prepared.url.rstrip("/")


def _bad_base_url(base_url: str) -> ConfigurationError:
    return ConfigurationError(
        f"base_url={base_url!r} is no HTTP address; write it like http://127.0.0.1:8080"
    )


def _surroundings(url: str) -> dict[str, Any]:
    """Return proxies and certificates for a URL; none at all for loopback.

    A proxy from the environment would take requests to this machine elsewhere. A
    .netrc is never read: it would replace the API key.
    """
    with requests.Session() as session:
        session.trust_env = not is_loopback(url)
        settings = session.merge_environment_settings(url, {}, None, None, None)
    return {name: settings[name] for name in ("proxies", "verify", "cert")}


def _blocks_of(raw: Any) -> Iterator[bytes]:
    """Return the body's blocks, each one as soon as its bytes are there.

    Whole HTTP chunks where the reply is chunked, else what one read of the socket
    gives. Every other way waits for a full buffer when the reply is not chunked:
    ``iter_lines`` for 512 bytes, which delays tokens by about 150 ms at 20 a second.
    """
    if raw.chunked and raw.supports_chunked_reads():
        blocks: Iterator[bytes] = raw.read_chunked(decode_content=True)
        return blocks
    return iter(lambda: raw.read1(_BLOCK_BYTES), b"")


def _keep_alive_seconds(headers: Mapping[str, str]) -> float:
    """Return how long the server keeps an idle connection, less a margin of 1 s."""
    stated = re.search(r"timeout=(\d+)", headers.get("Keep-Alive", ""))
    return float(stated[1]) - 1 if stated else _ASSUMED_KEEP_ALIVE


def _encoded(json: Any) -> bytes:
    try:
        return json_module.dumps(json, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the request cannot be written as JSON: {error}"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the innermost cause in words: "Connection refused"."""
    seen: BaseException | None = error
    innermost = error
    while seen is not None:
        innermost = seen
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return str(innermost) or type(innermost).__name__
