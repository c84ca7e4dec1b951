"""A pinned file from an address: resumed where it broke off, verified as it comes.

For what the Hub's client cannot fetch (buckets, releases), and for engines of the Hub,
since that client does not resume in a new process. What has come so far stands in a
file whose name ends in ``.part``; the final name appears only once the digest is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from llamatelemetry._address import PASSING_STATUS, RemoteAddress
from llamatelemetry._environment import detect_platform
from llamatelemetry._http import StreamedReply
from llamatelemetry._internet import start_probe
from llamatelemetry._progress import FileBar
from llamatelemetry._units import format_file_size, printable
from llamatelemetry.exceptions import (
    ClientError,
    DownloadError,
    OfflineError,
    RequestTimeoutError,
)
from llamatelemetry.setup._checksums import mismatch, remember
from llamatelemetry.setup._disk import disk_errors, require_space

__all__ = ["PinnedFile", "download", "fetch_into"]

_SILENCE_SECONDS = 30.0
_RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between tries that bring nothing; one that brings something begins anew."""
_MOST_OFFLINE_DELAY = 0.5
_LONGEST_WAIT_SECONDS = 60.0
_MOST_BYTES = 8 * 10**9
"""Of a file whose size nobody pinned; engines have up to 1.4 GB."""
_BLOCK_BYTES = 1 << 20

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")
_WHOLE, _RANGE, _BEYOND_END = 200, 206, 416
_REFUSED = {401, 403}
_MISSING = {404, 410}


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file that is known by its digest before it comes.

    Attributes:
        name: What it is called in messages and beside the bar.
        url: Its address.
        sha256: The digest of its content; in hex, small letters.
        size: Bytes, or None if not known.
        headers: Sent to the address's origin only; not shown.
        location: Where the address leads at the moment, if known; not shown.
        advice: What to do if the bytes are others; ``{actual}`` in it stands for the
            digest of what came.
    """

    name: str
    url: str = field(repr=False)
    sha256: str
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    location: str | None = field(default=None, repr=False)
    advice: str = "Download it again later, or from elsewhere."


def download(file: PinnedFile, target: Path, bar: FileBar) -> Path:
    """Fetch a file, whole and right, or raise.

    To be called by one process at a time for each target.

    Args:
        file: What to fetch.
        target: Where to; its folder is made. A part of it from an earlier try is
            continued.
        bar: Shows the progress; its cancelling ends the download, which keeps its part.

    Returns:
        The target.

    Raises:
        ChecksumError: Other bytes came than the pinned ones. They are deleted.
        DiskSpaceError: There is no room, or no more.
        OfflineError: No connection came about at all.
        DownloadError: The server refuses, or breaks off again and again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    actual = fetch_into(part, file, bar)
    if actual != file.sha256 and resumed:
        # The part may have been of other bytes than the server has today.
        part.unlink()
        bar.move_to(0)
        actual = fetch_into(part, file, bar)
    if actual != file.sha256:
        part.unlink()
        raise mismatch(
            file.name,
            expected=file.sha256,
            actual=actual,
            advice=file.advice.replace("{actual}", actual),
        )
    part.replace(target)
    remember(target, actual)
    return target


def fetch_into(part: Path, file: PinnedFile, bar: FileBar) -> str:
    """Fetch what is missing of a file, and return the digest of what is there then.

    The digest is not compared with anything.

    Args:
        part: Where to; what is there already is continued.
        file: What to fetch.
        bar: Shows the progress.

    Raises:
        SetupError: See :func:`download`.
    """
    address = RemoteAddress(
        file.url, name=file.name, headers=file.headers, location=file.location
    )
    with contextlib.closing(address):
        return _Transfer(file, address, part, bar).run()


class _Transfer:
    """One file on its way, over as many connections as it takes."""

    def __init__(
        self, file: PinnedFile, address: RemoteAddress, part: Path, bar: FileBar
    ) -> None:
        self._file = file
        self._address = address
        self._part = part
        self._bar = bar
        self._size = file.size
        self._have = 0
        self._digest = hashlib.sha256()
        self._connected = False

    def run(self) -> str:
        """Fetch what is missing, and return the digest of the whole."""
        folder, name = self._part.parent, self._file.name
        with (
            disk_errors(
                folder, name, lambda: self._size or self._have, self._give_room
            ),
            self._part.open("a+b") as output,
        ):
            self._take_in(output)
            self._fetch(output)
        return self._digest.hexdigest()

    def _give_room(self) -> None:
        """Delete what has come: room is what is missing now."""
        self._part.unlink(missing_ok=True)

    def _take_in(self, output: BinaryIO) -> None:
        """Count and digest what an earlier try has brought."""
        output.seek(0)
        while block := output.read(_BLOCK_BYTES):
            self._digest.update(block)
            self._have += len(block)
            self._bar.advance(len(block))
        if self._size is not None and self._have > self._size:
            self._begin_anew(output)

    def _begin_anew(self, output: BinaryIO) -> None:
        output.truncate(0)
        self._bar.advance(-self._have)
        self._have = 0
        self._digest = hashlib.sha256()

    def _fetch(self, output: BinaryIO) -> None:
        delays = iter(_RETRY_DELAYS)
        while self._size is None or self._have < self._size:
            self._bar.check()
            before = self._have
            trouble = self._try_once(output)
            if trouble is None:
                return
            if self._have > before:
                delays = iter(_RETRY_DELAYS)
            delay = next(delays, None)
            if not self._connected and not self._is_reachable(delay or 0):
                delay = None  # where there is no internet, nobody wants to wait for it
            wait = trouble.wait if trouble.wait is not None else delay
            if delay is None or wait is None or wait > _LONGEST_WAIT_SECONDS:
                raise self._given_up(trouble)
            self._pause(wait)

    def _is_reachable(self, delay: float) -> bool:
        """Whether it is worth asking again where nothing has ever answered."""
        if delay > _MOST_OFFLINE_DELAY:
            return False
        return start_probe(self._file.url).result().available is True

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._bar.check()
            time.sleep(min(left, 0.2))

    def _try_once(self, output: BinaryIO) -> _Trouble | None:
        """Take what one connection gives; return what was wrong, or None at the end."""
        wanted = {"Range": f"bytes={self._have}-"} if self._have else {}
        try:
            reply = self._address.open(wanted, silence_timeout=_SILENCE_SECONDS)
            with contextlib.closing(reply):
                self._connected = True
                trouble = self._prepare(reply, output)
                if trouble is None:
                    trouble = self._take(reply, output)
                return trouble
        except RequestTimeoutError:
            return _Trouble(f"no byte came for {_SILENCE_SECONDS:g} s")
        except ClientError as error:
            # The cause is the reason in words; the error itself names the address.
            return _Trouble(f"the connection failed ({error.__cause__ or 'closed'})")

    def _prepare(self, reply: StreamedReply, output: BinaryIO) -> _Trouble | None:
        """See what is coming, and make the part ready for it."""
        status, headers = reply.status, reply.headers
        if status in PASSING_STATUS:
            wait = headers.get("Retry-After", "")
            seconds = float(wait) if re.fullmatch(r"\d{1,6}", wait) else None
            later = f" and wants to be asked in {wait} s" if seconds else ""
            return _Trouble(f"the server answers {status}{later}", seconds)
        if status == _BEYOND_END:
            self._begin_anew(output)
            return _Trouble("the server has fewer bytes than are here already")
        if status not in (_WHOLE, _RANGE):
            raise self._refusal(status)
        if headers.get("Content-Encoding", "identity") != "identity":
            return _Trouble("the server gives the file compressed once more")
        if status == _WHOLE:
            self._begin_anew(output)
            return self._learn_size(headers.get("Content-Length", ""))
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != self._have:
            self._begin_anew(output)
            return _Trouble("the server gives another range than was asked for")
        return self._learn_size(match[2])

    def _learn_size(self, told: str) -> _Trouble | None:
        """Compare the size that the server tells with what is known, and the disk."""
        size = int(told) if re.fullmatch(r"\d{1,18}", told) else None
        if self._file.size is not None and size not in (None, self._file.size):
            raise DownloadError(
                f"{self._file.name}: the server has a file of "
                f"{format_file_size(size or 0)}, the one that is pinned has "
                f"{format_file_size(self._file.size)}. {self._file.advice}"
            )
        if size is not None and self._size is None:
            self._size = size
            self._bar.learn_total(size)
        most = self._size or 0
        if most > _MOST_BYTES and self._file.size is None:
            raise DownloadError(
                f"{self._file.name}: the file has {format_file_size(most)}, more than "
                "any engine. See that the address is the right one."
            )
        require_space(self._part.parent, max(0, most - self._have), self._file.name)
        return None

    def _take(self, reply: StreamedReply, output: BinaryIO) -> _Trouble | None:
        """Write what comes; None if that was all of it."""
        most = self._size or _MOST_BYTES
        for block in reply:
            if self._have + len(block) > most:
                raise DownloadError(
                    f"{self._file.name}: the server gives more than it says."
                )
            output.write(block)
            self._digest.update(block)
            self._have += len(block)
            self._bar.advance(len(block))
        if self._size is not None and self._have < self._size:
            return _Trouble("the reply broke off")
        return None

    def _refusal(self, status: int) -> DownloadError:
        words = f"{self._file.name}: the server answers {status}"
        if status in _REFUSED:
            return DownloadError(f"{words}: it does not give the file to everybody.")
        if status in _MISSING:
            return DownloadError(f"{words}: there is no such file any more.")
        return DownloadError(
            f"{words}. See that the address is right; try again later."
        )

    def _given_up(self, trouble: _Trouble) -> DownloadError | OfflineError:
        name, words = self._file.name, printable(trouble.words)
        if not self._connected:
            advice = detect_platform().internet_advice
            return OfflineError(f"{name}: {words}; {advice}")
        kept = format_file_size(self._have)
        return DownloadError(
            f"{name}: {words}; {kept} have come and are kept. Run it again later to "
            "continue there."
        )


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a connection gave less than all, where another one may give the rest."""

    words: str
    wait: float | None = None
