"""The one door to requests and urllib3: one connection, and the reply that it brings.

Errors leave this module as builtins: ``TimeoutError`` for silence, and
``ConnectionError`` with the innermost cause in words for everything else.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["Connection", "RawReply", "checked_url", "is_loopback", "surroundings_of"]

_BLOCK_BYTES = 65536
_LEAST_TIMEOUT = 1e-3  # seconds; urllib3 refuses 0

_LIBRARY_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    HTTPException,
    OSError,
)
_SILENCE_ERRORS = (
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


def checked_url(url: str) -> str:
    """Return a URL as it is sent.

    Raises:
        ValueError: It is none that HTTP can be spoken to.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("it begins neither with http:// nor with https://")
    prepared = requests.PreparedRequest()
    try:
        prepared.prepare_url(url, None)
    except requests.RequestException as error:
        raise ValueError(str(error)) from error
    return str(prepared.url)


def surroundings_of(url: str) -> dict[str, Any]:
    """Return proxies and certificates for a URL; none at all for loopback.

    A proxy from the environment would take requests to this machine elsewhere. A
    .netrc is never read: it would replace the API key.
    """
    with requests.Session() as session:
        session.trust_env = not is_loopback(url)
        settings = session.merge_environment_settings(url, {}, None, None, None)
    return {name: settings[name] for name in ("proxies", "verify", "cert")}


class _Line:
    """The socket of a connection, whichever it is at the time.

    It knows nothing of the pool that holds the connection: urllib3 keeps connections
    reachable, so that a pool they refer to would never be closed by being let go.
    """

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.opened = 0
        self.ended = False

    def note(self, connected: socket.socket) -> None:
        self.socket = connected
        self.opened += 1
        if self.ended:  # ended while it was connecting
            self.end()

    def end(self) -> None:
        self.ended = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                # Past ssl.SSLSocket.shutdown, which takes the TLS state away from
                # under the thread that reads.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


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


class _Adapter(HTTPAdapter):
    """Opens connections that tell their socket; all of them to one server."""

    def __init__(self, on_connect: Callable[[socket.socket], None]) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._on_connect = on_connect
        self._pool: Any = None

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: Any,
        proxies: Any = None,
        cert: Any = None,
    ) -> Any:
        if self._pool is None:  # looked up once: it is the same for every request
            pool: Any = super().get_connection_with_tls_context(
                request, verify, proxies, cert
            )
            secure = pool.scheme == "https"
            pool.ConnectionCls = _SecureConnection if secure else _PlainConnection
            pool.conn_kw["on_connect"] = self._on_connect
            self._pool = pool
        return self._pool

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> Any:  # noqa: ARG002 -- requests' method
        """Return urllib3's reply as it is; nothing more of requests' is looked at.

        Its cookies, encoding and history would cost as much as sending does, between
        the first bytes of an answer and whoever waits for them.
        """
        return resp


@dataclass(slots=True)
class RawReply:
    """The head of a reply, and its body as it comes.

    Attributes:
        status: The HTTP status.
        headers: The reply's headers; names in any case.
        blocks: The body. Raises ``TimeoutError`` and ``ConnectionError``.
        hang_up: Closes the connection that the reply comes through.
    """

    status: int
    headers: Mapping[str, str]
    blocks: Iterator[bytes]
    hang_up: Callable[[], None]


class Connection:
    """One connection, used by one request at a time; opened when first needed.

    Attributes:
        fresh_until: Monotonic time up to which the server keeps it open when idle.
        uses: How many requests it has carried.
    """

    def __init__(self) -> None:
        self.fresh_until = 0.0
        self.uses = 0
        self._line = _Line()
        self._adapter = _Adapter(self._line.note)

    @property
    def opened(self) -> int:
        """How many times it was opened; more than once if the server closed it."""
        return self._line.opened

    @property
    def ended(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._line.ended

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        connect_timeout: float,
        silence_timeout: float,
        surroundings: Mapping[str, Any],
    ) -> RawReply:
        """Send a request and return the reply once its head is there.

        Raises:
            TimeoutError: Silence.
            ConnectionError: Anything else that went wrong.
        """
        request = requests.PreparedRequest()
        request.method = method
        request.url = url
        request.headers = requests.structures.CaseInsensitiveDict(headers)
        request.body = body
        try:
            raw: Any = self._adapter.send(
                request,
                stream=True,
                timeout=(
                    max(connect_timeout, _LEAST_TIMEOUT),
                    max(silence_timeout, _LEAST_TIMEOUT),
                ),
                **surroundings,
            )
        except requests.ConnectTimeout:
            raise ConnectionError(
                f"no connection within {connect_timeout:g} s"
            ) from None
        except _LIBRARY_ERRORS as error:
            # The libraries' own chain is 60 lines long in a notebook, and says no more.
            raise _as_builtin(error) from None
        return RawReply(raw.status, raw.headers, _blocks_of(raw), raw.close)

    def limit_silence(self, seconds: float) -> None:
        """Let the next wait end after this time."""
        if self._line.socket is not None:
            # It may be closed by now, with the reply's end: the next read finds out.
            with contextlib.suppress(OSError):
                self._line.socket.settimeout(max(seconds, _LEAST_TIMEOUT))

    def end(self) -> None:
        """Break the connection under a reader of another thread; never blocks."""
        self._line.end()

    def close(self) -> None:
        """Close the connection, which nobody uses any more."""
        self._adapter.close()


def _blocks_of(raw: Any) -> Iterator[bytes]:
    """Yield the body's blocks, each one as soon as its bytes are there.

    Whole HTTP chunks where the reply is chunked, the large ones in pieces, since a
    server may call one as large as it likes; else what one read of the socket gives.
    Every other way waits for a full buffer when the reply is not chunked:
    ``iter_lines`` for 512 bytes, which delays tokens by about 150 ms at 20 a second.
    """
    try:
        if raw.chunked:
            yield from raw.read_chunked(_BLOCK_BYTES, decode_content=True)
        else:
            yield from iter(lambda: raw.read1(_BLOCK_BYTES), b"")
    except _LIBRARY_ERRORS as error:
        raise _as_builtin(error) from None


def _as_builtin(error: Exception) -> TimeoutError | ConnectionError:
    """Return the builtin error for one of the libraries."""
    if isinstance(error, _SILENCE_ERRORS):
        return TimeoutError()
    innermost: BaseException = error
    link: BaseException | None = error
    while link is not None:
        innermost = link
        if isinstance(link, OSError) and link.strerror:
            return ConnectionError(link.strerror)
        link = link.__cause__ or link.__context__
    return ConnectionError(str(innermost) or type(innermost).__name__)
