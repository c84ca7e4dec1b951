"""A GGUF file on a server: ranges of it, and no more than its header needs.

Trouble on the way is a :class:`~llamatelemetry.exceptions.DownloadError`; a missing
file is a :class:`~llamatelemetry.exceptions.ModelError`. Addresses are shown without
their query, which may hold a signature, and headers are never shown. No error holds
one of the HTTP door's as its context, since those name the whole address.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from llamatelemetry._address import PASSING_STATUS, RemoteAddress
from llamatelemetry._deadline import Deadline
from llamatelemetry._http import StreamedReply
from llamatelemetry._units import (
    KIB,
    MIB,
    format_memory,
    printable,
    without_secrets,
)
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    DownloadError,
    GGUFError,
    ModelError,
    RequestTimeoutError,
)
from llamatelemetry.gguf._diagnosis import shown
from llamatelemetry.setup._hub import list_files, resolve_file
from llamatelemetry.setup._names import (
    HubReference,
    choose_model,
    model_files,
    parse_reference,
)

__all__ = ["MOST_REMOTE_BYTES", "RemoteSource", "open_reference", "open_url"]

MOST_REMOTE_BYTES = 64 * MIB
"""Bytes taken from a server for one file; four times the largest header known."""

_FIRST_BYTES = 240 * KIB  # holds the metadata before the vocabulary, of known models
_ALWAYS_ALLOWED = 512 * KIB
_MOST_GROWTH = 4
_MARGIN_BYTES = 128 * KIB

_MOST_REQUESTS = 16  # for one fetch; a server may give less than asked
_SILENCE_SECONDS = 15.0
_TOTAL_SECONDS = 120.0
_PATIENCE_SECONDS = 10.0
_RETRY_DELAYS = (0.25, 0.5, 1.0)
_LONGEST_WAIT_SECONDS = 5.0
_LONGEST_NAME = 4096  # of a reference; a path has no more anywhere

_REFUSED = {401, 403}
_MISSING = {404, 410}
_WHOLE, _RANGE, _BEYOND_END = 200, 206, 416

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_NO_BYTES_BEYOND = re.compile(r"bytes \*/(\d{1,18})")


def plan_request(offset: int, length: int, expected: int) -> int:
    """Return how many bytes to ask for.

    A header of H bytes may cost max(25 %, 512 KiB) more than H. What lies before
    ``offset`` was needed, so H is at least that, and a quarter of it (or half a MiB)
    can be asked for whatever comes. An estimate beyond that is followed as far as four
    times what has been seen, which is what it was made from.

    Args:
        offset: Bytes of the file that are known already.
        length: Bytes that are needed.
        expected: Bytes that are thought to be needed in the end.
    """
    if offset < _FIRST_BYTES:
        return max(length, _FIRST_BYTES)
    # The metadata alone may cost 512 KiB: two small requests and what redirects say.
    least = _FIRST_BYTES if offset < 2 * _FIRST_BYTES else _ALWAYS_ALLOWED
    margin = max((offset + expected) // 8, _MARGIN_BYTES)
    trusted = min(expected + margin, _MOST_GROWTH * offset)
    return max(length, least, offset // 4, trusted)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a request gave less than it should, where another one may give more.

    Attributes:
        words: What happened.
        wait: Seconds the server wants to be left alone, or None.
    """

    words: str
    wait: float | None = None


class RemoteSource:
    """A file on a server that gives ranges; see ``gguf._source.Source``.

    Redirects are followed, and where they led is asked directly until it refuses: then
    the first address is asked anew. A file that changes meanwhile is an error.

    Args:
        url: Its address.
        headers: Sent to that address's origin only. Never shown.
        location: Where the address leads at the moment, if that is known.
        reference: What it is called on the Hub, if it is a file there.

    Attributes:
        name: What it is called in messages: the reference, or the address without what
            may be secret in it.
        file_name: The name it has in its folder.
        size: Bytes of the file; None before the first bytes came, or if not told.

    Raises:
        ConfigurationError: The address is not one of HTTP.
        DownloadError: It leads where no redirect may lead.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        location: str | None = None,
        reference: HubReference | None = None,
    ) -> None:
        if reference is None:
            self.name = without_secrets(url)
        else:
            self.name = printable(str(reference), _LONGEST_NAME)
        self.size: int | None = None
        self._address = RemoteAddress(
            url, name=self.name, headers=headers, location=location
        )
        self._reference = reference
        self.file_name = unquote(urlsplit(self._address.url).path.rpartition("/")[2])
        self._identity: tuple[str | None, int | None] | None = None
        self._received = 0

    def __repr__(self) -> str:
        return f"RemoteSource({self.name!r})"

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Return bytes from an offset on; see ``gguf._source.Source``.

        Raises:
            DownloadError: The server cannot be reached, gives no ranges or wrong ones,
                or the file changed.
            ModelError: There is no such file.
            GGUFError: More bytes would come than any header has.
        """
        stop = offset + self._allowed(offset, length, expected)
        body = bytearray()
        deadline = Deadline.after(_TOTAL_SECONDS)
        patience = Deadline.after(_PATIENCE_SECONDS)
        delays = iter(_RETRY_DELAYS)
        for _ in range(_MOST_REQUESTS):
            if self.size is not None:
                stop = min(stop, self.size)
            start = offset + len(body)
            if start >= stop:
                return bytes(body)
            trouble = self._get(start, stop, body, deadline)
            if offset + len(body) > start:
                patience = Deadline.after(_PATIENCE_SECONDS)
            if trouble is not None:
                delay = next(delays, None)
                wait = trouble.wait if trouble.wait is not None else delay or 0.0
                if delay is None or patience.expired or wait > _LONGEST_WAIT_SECONDS:
                    raise DownloadError(f"{self.name}: {trouble.words}. Try again.")
                time.sleep(wait)
        raise DownloadError(
            f"{self.name}: the server gives ranges in pieces that are too small to "
            "read a header by. Download the file and read it here."
        )

    def sibling(self, name: str) -> RemoteSource:
        """Return the file of this name beside this one."""
        reference = self._reference
        if reference is not None and reference.path is not None:
            folder = reference.path.removesuffix(self.file_name)
            reference = replace(reference, path=folder + name)
        return RemoteSource(
            _beside(self._address.url, name),
            headers=self._address.headers,
            reference=reference,
        )

    def close(self) -> None:
        """Close the connections."""
        self._address.close()

    def _allowed(self, offset: int, length: int, expected: int) -> int:
        """Return how many bytes to ask for; no more than one file may cost."""
        left = MOST_REMOTE_BYTES - self._received
        if length > left:
            raise GGUFError(
                f"{self.name}: reading the header would take more than "
                f"{format_memory(MOST_REMOTE_BYTES)}; no known model has such a one.",
                path=self.name,
                offset=offset,
            )
        return min(plan_request(offset, length, expected), left)

    def _get(
        self, start: int, stop: int, body: bytearray, deadline: Deadline
    ) -> _Trouble | None:
        """Ask for a range once, and add to the body what comes of it."""
        try:
            reply = self._address.open(
                {"Range": f"bytes={start}-{stop - 1}"},
                silence_timeout=_SILENCE_SECONDS,
                total_timeout=deadline.remaining,
            )
            with contextlib.closing(reply):
                return self._take(reply, start, stop, body)
        except RequestTimeoutError:
            words = "the server is silent"
        except ClientError as error:
            # The cause is the reason in words; the error itself names the address.
            words = (
                f"the connection failed ({error.__cause__ or 'closed'}); in a "
                "notebook, see that its internet is on"
            )
        return _Trouble(words)

    def _take(
        self, reply: StreamedReply, start: int, stop: int, body: bytearray
    ) -> _Trouble | None:
        """Add a reply's bytes to the body once it is sure what they are."""
        if reply.status in PASSING_STATUS:
            wait = reply.headers.get("Retry-After", "")
            words = f"the server answers {reply.status}"
            if not wait.isdecimal():
                return _Trouble(words)
            return _Trouble(f"{words} and wants to be asked in {wait} s", float(wait))
        if reply.status == _BEYOND_END:
            self._note_end(reply.headers, start)
            return None
        if reply.status != _RANGE:
            raise self._refusal(reply.status)
        count = self._checked_range(reply.headers, start, stop)
        for block in reply:
            count -= len(block)
            if count < 0:
                raise DownloadError(f"{self.name}: the server gives more than it says.")
            self._received += len(block)
            body += block
        return _Trouble("the reply broke off") if count else None

    def _checked_range(self, headers: Mapping[str, str], start: int, stop: int) -> int:
        """Return how many bytes come, if they are the ones asked for."""
        if headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(
                f"{self.name}: the server gives ranges of a compressed file, which "
                "cannot be read. Download the file and read it here."
            )
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        first, last = (int(match[1]), int(match[2])) if match else (-1, -1)
        if match is None or first != start or not start <= last < stop:
            raise DownloadError(
                f"{self.name}: asked for bytes {start:,} to {stop - 1:,}, the server "
                f"says it gives {shown(headers.get('Content-Range', 'something'))}. "
                "Download the file and read it here."
            )
        total = None if match[3] == "*" else int(match[3])
        identity = (headers.get("ETag") or headers.get("Last-Modified"), total)
        if self._identity not in (None, identity):
            raise DownloadError(
                f"{self.name}: the file changed while it was read. Read it again."
            )
        self._identity = identity
        self.size = total
        return last - first + 1

    def _note_end(self, headers: Mapping[str, str], start: int) -> None:
        """Learn from a refused range that the file has no bytes there."""
        match = _NO_BYTES_BEYOND.fullmatch(headers.get("Content-Range", "").strip())
        size = int(match[1]) if match else start
        if size > start or (self._identity and self._identity[1] not in (None, size)):
            raise DownloadError(
                f"{self.name}: the server refuses bytes {start:,} and following of "
                f"{size:,}. Download the file and read it here."
            )
        self.size = size

    def _refusal(self, status: int) -> ModelError | DownloadError:
        if status == _WHOLE:
            return DownloadError(
                f"{self.name}: the server gives whole files only, no ranges, so its "
                "header cannot be read without all the rest. Download the file and "
                "read it here."
            )
        if status in _REFUSED:
            return DownloadError(
                f"{self.name}: the server refuses the file ({status}). Give the "
                "credentials that it wants, or a newer link."
            )
        if status in _MISSING:
            return ModelError(f"{self.name}: there is no such file ({status}).")
        return DownloadError(f"{self.name}: the server answers {status}.")


def open_url(url: str, *, headers: Mapping[str, str] | None = None) -> RemoteSource:
    """Return a file at an address as a source.

    Args:
        url: The address. A page or file of huggingface.co is read through the Hub's
            own interface, with the user's token, unless there are headers.
        headers: Sent to the address's origin only.

    Raises:
        ConfigurationError: The address is not one of HTTP.
    """
    reference = parse_reference(url) if headers is None else None
    if reference is not None:
        return open_reference(reference)
    return RemoteSource(url, headers=headers)


def open_reference(reference: str | HubReference) -> RemoteSource:
    """Return a file on the Hub as a source.

    Args:
        reference: See :func:`~llamatelemetry.setup._hub.parse_reference`. Without a
            file, Q4_K_M or the only model of the repository is taken.

    Raises:
        ConfigurationError: It is no reference.
        ModelError: There is no such repository, revision, file or quantization.
        SetupError: The Hub cannot be asked, or refuses.
    """
    named = parse_reference(reference) if isinstance(reference, str) else reference
    if named is None:
        raise ConfigurationError(
            f"{reference!r} is no reference to the Hub; write it as "
            "owner/repository:file.gguf"
        )
    path = named.path
    if path is None or not path.lower().endswith(".gguf"):
        files = list_files(named.repo, named.revision)
        path = choose_model(named.repo, model_files(files), path)
    found = resolve_file(named.repo, path, named.revision)
    return RemoteSource(
        found.url,
        headers=found.headers,
        location=found.location,
        reference=HubReference(named.repo, path, named.revision),
    )


def _beside(url: str, name: str) -> str:
    """Return the address of another file in the same folder."""
    parts = urlsplit(url)
    folder = parts.path.rpartition("/")[0]
    path = f"{folder}/{quote(name, safe='')}"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
