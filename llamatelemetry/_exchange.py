"""What is sent to a server and what comes back, whoever sends it.

``_http`` sends to one server. Whatever has these methods can stand in for it: a pool of
servers does.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack

from llamatelemetry.exceptions import ClientError

__all__ = ["Reply", "ReplyStream", "RequestOptions", "Requests", "StreamOptions"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply.

    Attributes:
        status: The HTTP status.
        headers: The reply's headers; names in any case.
        body: The bytes of the body.
        server: The base URL of the server that gave it, or None.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    server: str | None = None

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


class ReplyStream(Protocol):
    """A request and its reply, read block by block; see :class:`StreamedReply`."""

    status: int
    headers: Mapping[str, str]

    @property
    def server(self) -> str | None:
        """The base URL of the server that is asked, or was last; None before."""

    @property
    def opened(self) -> bool:
        """Whether something may have been sent."""

    @property
    def reached(self) -> bool:
        """Whether a connection was opened for it."""

    def open(self) -> int:
        """Send the request, wait for the reply's headers, and return the status."""

    def __next__(self) -> bytes:
        """Return the next block as it came."""

    def __iter__(self) -> Iterator[bytes]:
        """Return the blocks."""

    def read(self) -> bytes:
        """Return all that is left of the body."""

    def finish(self, within: float = 0.25) -> None:
        """Read what follows the part that matters."""

    def close(self) -> None:
        """End the request; any thread may call this."""

    def again(self) -> ReplyStream | None:
        """Return the same request anew, for another server; None if there is none."""


class RequestOptions(TypedDict, total=False):
    """What may be said of a request; see ``HTTPClient.request``."""

    json: Any
    parameters: Mapping[str, str | int] | None
    headers: Mapping[str, str] | None
    connect_timeout: float
    silence_timeout: float
    total_timeout: float | None


class StreamOptions(RequestOptions, total=False):
    """The same for a stream; ``body`` is JSON that was written already."""

    body: bytes | None


class Requests(Protocol):
    """What sends requests to a server, or to one of several."""

    @property
    def base_url(self) -> str:
        """Where the paths of the requests are appended to."""

    def request(
        self, method: str, path: str, **options: Unpack[RequestOptions]
    ) -> Reply:
        """Send one request and return the whole reply, whatever its status."""

    def stream(
        self, method: str, path: str, **options: Unpack[StreamOptions]
    ) -> ReplyStream:
        """Prepare a request; nothing is sent before the result's ``open()``."""

    def close(self) -> None:
        """Close the kept connections."""
