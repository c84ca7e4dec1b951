"""An address of a file, and where it leads at the moment.

Redirects are followed, and where they led is asked directly until it refuses: a signed
address expires. Then the first address is asked anew. Headers, which may hold a token,
are sent to the first address's origin only and never shown; addresses are shown without
their query, which may hold a signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit, urlunsplit

from llamatelemetry._connection import checked_url
from llamatelemetry._http import HTTPClient, StreamedReply
from llamatelemetry.exceptions import ConfigurationError, DownloadError

__all__ = ["PASSING_STATUS", "REFUSING_STATUS", "RemoteAddress"]

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server answers that may answer otherwise in a moment."""

REFUSING_STATUS = frozenset({401, 403, 404, 410})
"""What a signed address answers when it has expired, among others."""

_MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_GIVEN = {200, 206}


class RemoteAddress:
    """Where a file is, reached through redirects, with connections kept alive.

    Args:
        url: Its address.
        name: What it is called in messages.
        headers: Sent to that address's origin only. Never shown.
        location: Where the address leads at the moment, if that is known.

    Attributes:
        url: The address as it is sent.

    Raises:
        ConfigurationError: The address is not one of HTTP.
        DownloadError: It leads where no redirect may lead.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        headers: Mapping[str, str] | None = None,
        location: str | None = None,
    ) -> None:
        self._name = name
        self.url = self._checked(url)
        self._headers = dict(headers or {})
        self._resolved = self._next(self.url, location) if location else None
        self._clients: dict[str, HTTPClient] = {}

    def __repr__(self) -> str:
        return f"RemoteAddress({self._name!r})"

    @property
    def headers(self) -> Mapping[str, str]:
        """What is sent to the address's own origin; may hold a token."""
        return self._headers

    def open(
        self,
        headers: Mapping[str, str],
        *,
        silence_timeout: float,
        total_timeout: float | None = None,
    ) -> StreamedReply:
        """Ask for the file, where it was last, else where it was first.

        Args:
            headers: Sent with each request, on every origin: a range, say.
            silence_timeout: Seconds without a byte before giving up.
            total_timeout: Seconds the whole reply may take; None for any time.

        Returns:
            The reply, whatever its status but a redirect; to be closed.

        Raises:
            ConnectionFailedError: No connection, or it broke.
            RequestTimeoutError: Silence, or the whole took too long.
            DownloadError: It redirects for ever, or to where it may not.
        """
        limits = (silence_timeout, total_timeout)
        known = self._resolved
        if known is not None and known != self.url:
            reply = self._follow(known, headers, limits)
            if reply.status not in REFUSING_STATUS:
                return reply
            reply.close()
        self._resolved = None
        return self._follow(self.url, headers, limits)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def _follow(
        self, address: str, headers: Mapping[str, str], limits: _Limits
    ) -> StreamedReply:
        for _ in range(_MOST_REDIRECTS + 1):
            reply = self._send(address, headers, limits)
            if reply.status in _GIVEN:
                self._resolved = address
            if reply.status not in _REDIRECTS:
                return reply
            reply.close()
            address = self._next(address, reply.headers.get("Location", ""))
        raise DownloadError(
            f"{self._name}: the server redirects more than {_MOST_REDIRECTS} times. "
            "Give the address where the file itself is."
        )

    def _send(
        self, address: str, headers: Mapping[str, str], limits: _Limits
    ) -> StreamedReply:
        origin, target = _split(address)
        client = self._clients.get(origin)
        if client is None:
            client = self._clients[origin] = HTTPClient(origin)
        own = self._headers if origin == _split(self.url)[0] else {}
        reply = client.stream(
            "GET",
            target,
            headers={**own, **headers},
            silence_timeout=limits[0],
            total_timeout=limits[1],
        )
        reply.open()
        return reply

    def _next(self, address: str, location: str) -> str:
        """Return where a redirect leads."""
        try:
            following = self._checked(urljoin(address, location)) if location else ""
        except (ValueError, ConfigurationError):
            following = ""
        if not following:
            raise DownloadError(f"{self._name}: the server redirects to no address.")
        if address.startswith("https:") and not following.startswith("https:"):
            raise DownloadError(
                f"{self._name}: the server redirects from https to http, where anybody "
                "between could change the file."
            )
        return following

    def _checked(self, url: str) -> str:
        """Return an address as it is sent."""
        try:
            if "@" not in urlsplit(url).netloc:
                return checked_url(url)
            reason = "it holds a user name or password; give those as headers"
        except ValueError:
            reason = "write it like https://host/folder/file"
        raise ConfigurationError(f"{self._name}: the address cannot be used: {reason}.")


_Limits = tuple[float, float | None]


def _split(url: str) -> tuple[str, str]:
    """Return an address's origin, and what is asked of it."""
    parts = urlsplit(url)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return f"{parts.scheme}://{parts.netloc}", target
