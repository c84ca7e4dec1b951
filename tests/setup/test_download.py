"""Pinned files on their way: every way a connection can let one down."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_disk import fill, small_disk
from stand_in_hub import HubFile, StandInHub

from llamatelemetry import _environment
from llamatelemetry._progress import CancelledError, FileBar
from llamatelemetry.exceptions import (
    ChecksumError,
    DiskSpaceError,
    DownloadError,
    OfflineError,
)
from llamatelemetry.setup import _disk, _download
from llamatelemetry.setup._checksums import known_digest
from llamatelemetry.setup._download import PinnedFile, download
from tests.conftest import missing_part

BUCKET = "buckets/owner/engines"
PATH = "b9940/engine.tar.zst"
SIZE = 3_000_000
SECRET = "hf_secret_of_the_stand_in"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little is waited for, and verdicts stay in the test's own folder."""
    monkeypatch.setenv("LLAMATELEMETRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_environment, "_ROOT", tmp_path / "root")
    monkeypatch.setattr(_download, "_RETRY_DELAYS", (0.01,) * 5)


@pytest.fixture(scope="module")
def content() -> bytes:
    """A file that no two of its parts are alike in."""
    return os.urandom(SIZE)


@pytest.fixture
def file(hub: StandInHub, content: bytes) -> PinnedFile:
    """The file in a bucket, as the manifest of engines names one."""
    hub.add(BUCKET, PATH, content)
    return PinnedFile(
        "engine.tar.zst",
        f"{hub.url}/{BUCKET}/resolve/{PATH}",
        hashlib.sha256(content).hexdigest(),
        SIZE,
        headers={"Authorization": f"Bearer {SECRET}"},
        advice="Install another one; got {actual}.",
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the file goes to; its folder is not there yet."""
    return tmp_path / "downloads" / "engine.tar.zst"


@pytest.fixture
def bar() -> Iterator[FileBar]:
    """A bar that nobody sees."""
    with FileBar("engine.tar.zst", None, shown=False) as bar:
        yield bar


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def begun(target: Path, data: bytes) -> None:
    """Leave a part of the file behind, as an earlier try does."""
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(data)


def ranges(hub: StandInHub) -> list[str]:
    """Return the ranges that the CDN was asked for, in order."""
    return [request.headers.get("range", "all") for request in hub.seen("cdn")]


def starts(hub: StandInHub) -> list[int]:
    """Return where in the file each request to the CDN began."""
    return [
        int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted != "all" else 0
        for wanted in ranges(hub)
    ]


def everything_said(error: BaseException) -> str:
    """Return all that an error shows anywhere: texts, arguments, what it came from."""
    shown = "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None:
        shown += repr(link) + str(link) + repr(link.args) + repr(vars(link))
        link = link.__cause__ or link.__context__
    return shown


def refused_words(error: BaseException) -> str:
    """Return the error's text once nothing secret was found anywhere in it."""
    assert "hf_secret" not in everything_said(error)
    assert "ignature=" not in everything_said(error)
    return str(error)


@pytest.fixture(autouse=True)
def no_token_on_the_cdn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does: only the file's own origin is sent the token."""
    hub: StandInHub = request.getfixturevalue("hub")
    yield
    for seen in hub.seen("hub"):
        assert seen.headers["authorization"] == f"Bearer {SECRET}"
    for seen in hub.seen("cdn"):
        assert "authorization" not in seen.headers


# When all goes well


def test_a_file_comes_whole(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """One request to the Hub, one to the CDN, each byte once; verified and renamed."""
    assert download(file, target, bar) == target

    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]
    assert [(r.origin, r.status) for r in hub.requests] == [("hub", 302), ("cdn", 200)]
    assert ranges(hub) == ["all"]
    assert hub.seen("cdn")[0].sent == SIZE
    assert bar.done == SIZE
    assert known_digest(target) == file.sha256


def test_a_known_location_spares_the_hub(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """Where the address leads, once known, is asked without a detour."""
    location = f"{hub.cdn_url}/{BUCKET}/{PATH}?Signature={hub.sign()}"

    download(replace(file, location=location), target, bar)

    assert [request.origin for request in hub.requests] == ["cdn"]


def test_a_location_that_has_expired_is_asked_for_anew(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """A signature that holds no longer costs one request, and is no error."""
    location = f"{hub.cdn_url}/{BUCKET}/{PATH}?Signature=of-yesterday"

    download(replace(file, location=location), target, bar)

    assert [r.status for r in hub.requests] == [403, 302, 200]


def test_what_stays_secret_is_not_shown(hub: StandInHub, file: PinnedFile) -> None:
    """A file's repr shows neither its headers nor its addresses."""
    shown = repr(replace(file, location=f"{hub.cdn_url}/x?Signature=secret"))

    assert "engine.tar.zst" in shown
    for secret in (SECRET, "ignature", "http"):
        assert secret not in shown


def test_a_size_that_nobody_pinned_is_learnt(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server's size is the bar's total."""
    with FileBar("engine.tar.zst", None) as bar:
        download(replace(file, size=None), target, bar)

    assert target.read_bytes() == content
    assert "3.00M/3.00M" in capsys.readouterr().err


def test_an_empty_file_needs_no_request(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """What has no bytes is there at once."""
    nothing = hashlib.sha256(b"").hexdigest()

    download(replace(file, sha256=nothing, size=0), target, bar)

    assert target.read_bytes() == b""
    assert hub.requests == []


def test_what_is_there_already_is_replaced(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """An older file at the target gives way only once the new one is whole."""
    target.parent.mkdir()
    target.write_bytes(b"older")
    hub.fail_next("cdn", "flip", after=5)
    with pytest.raises(ChecksumError):
        download(file, target, bar)
    assert target.read_bytes() == b"older"

    download(file, target, bar)

    assert target.read_bytes() == content


# Resumed

PROGRAM = """
import sys
from pathlib import Path
from llamatelemetry._progress import FileBar
from llamatelemetry.setup._download import PinnedFile, download
url, sha256, size, target = sys.argv[1:]
with FileBar("engine", None, shown=False) as bar:
    headers = {"Authorization": "Bearer hf_secret_of_the_stand_in"}
    download(PinnedFile("engine", url, sha256, int(size), headers), Path(target), bar)
"""


def test_a_killed_download_is_continued(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """After kill -9 another process asks for the rest, and only for that."""
    hub.fail_next("cdn", "stall", after=2_000_000)
    arguments = [file.url, file.sha256, str(SIZE), str(target)]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments]) as process:
        part = part_of(target)
        while not part.exists() or part.stat().st_size < 1_900_000:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = part.stat().st_size
    assert content.startswith(part.read_bytes())
    assert not target.exists()

    download(file, target, bar)

    assert target.read_bytes() == content
    assert ranges(hub) == ["all", f"bytes={kept}-"]
    assert hub.seen("cdn")[1].status == 206
    assert hub.seen("cdn")[1].sent == SIZE - kept
    assert bar.done == SIZE


def test_a_whole_part_is_not_asked_for_again(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """A process that was killed before it renamed has left nothing to send."""
    begun(target, content)

    download(file, target, bar)

    assert hub.requests == []
    assert target.read_bytes() == content
    assert not part_of(target).exists()


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_part_of_other_bytes_is_begun_anew(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    *,
    bar: FileBar,
    content: bytes,
    size: int | None,
) -> None:
    """What an earlier try brought may be of another file: then all comes once more."""
    begun(target, b"other bytes" * 1000)

    download(replace(file, size=size), target, bar)

    assert target.read_bytes() == content
    assert ranges(hub) == ["bytes=11000-", "all"]
    assert bar.done == SIZE


def test_a_part_that_is_too_long_is_begun_anew(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """More bytes than the file has cannot be a part of it."""
    begun(target, content + b"more")

    download(file, target, bar)

    assert target.read_bytes() == content
    assert ranges(hub) == ["all"]
    assert bar.done == SIZE


def test_a_range_beyond_the_end_is_begun_anew(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """Where nobody knows the size, 416 tells that the part is not of this file."""
    begun(target, content + b"more")

    download(replace(file, size=None), target, bar)

    assert target.read_bytes() == content
    assert [r.status for r in hub.seen("cdn")] == [416, 200]


def test_a_server_that_knows_no_ranges_sends_all(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """200 to a request for the rest is the whole file, and is taken as such."""
    begun(target, content[:1_000_000])
    hub.ranges = "ignored"

    download(file, target, bar)

    assert target.read_bytes() == content
    assert ranges(hub) == ["bytes=1000000-"]
    assert hub.seen("cdn")[0].sent == SIZE
    assert bar.done == SIZE


def test_a_wrong_range_is_not_appended(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """A Content-Range that begins elsewhere is refused, and all is asked for."""
    begun(target, content[:1_000_000])
    hub.ranges = "shifted"

    download(file, target, bar)

    assert target.read_bytes() == content
    assert ranges(hub) == ["bytes=1000000-", "all"]


@pytest.mark.parametrize("told", [{}, {"Content-Range": "bytes some-of/it"}])
def test_a_range_that_is_not_told_is_not_appended(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    *,
    bar: FileBar,
    content: bytes,
    told: dict[str, str],
) -> None:
    """206 without a Content-Range that can be read says nothing, and is not used."""
    begun(target, content[:1_000_000])
    hub.fail_next("cdn", "status", status=206, headers=told)

    download(file, target, bar)

    assert target.read_bytes() == content
    assert ranges(hub) == ["bytes=1000000-", "all"]


@pytest.mark.parametrize("behaviour", ["short", "endless"])
def test_ranges_that_come_in_pieces_are_put_together(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    *,
    bar: FileBar,
    content: bytes,
    behaviour: str,
) -> None:
    """A server that gives less than was asked for, or states no length, is enough."""
    begun(target, content[:2_650_000])
    hub.ranges = behaviour

    download(file, target, bar)

    assert target.read_bytes() == content
    pieces = [2_650_000, 2_750_000, 2_850_000, 2_950_000]
    assert starts(hub) == (pieces if behaviour == "short" else pieces[:1])


# Broken connections


def test_a_link_that_drops_is_taken_up_again(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """Three drops at three places: each goes on where the last one has ended."""
    for after in (300_000, 1_000_000, 1_200_000):
        hub.fail_next("cdn", "drop", after=after)

    download(file, target, bar)

    assert target.read_bytes() == content
    begins = starts(hub)
    assert begins == sorted(begins)
    assert len(begins) == 4
    # The Hub is not asked again: the CDN's address still holds.
    assert len(hub.seen("hub")) == 1
    assert bar.done == bar.farthest == SIZE


def test_many_drops_that_bring_something_are_no_end(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """More drops than there are tries: as long as something comes, it goes on."""
    hub.fail_next("cdn", "short", 12, after=200_000)
    begun(target, content[:100_000])

    download(file, target, bar)

    assert target.read_bytes() == content
    assert starts(hub) == [100_000 + 200_000 * number for number in range(13)]


def test_a_stalled_link_is_taken_up_again(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    *,
    bar: FileBar,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection that stays open and silent is left for another one."""
    monkeypatch.setattr(_download, "_SILENCE_SECONDS", 0.5)
    hub.fail_next("cdn", "stall", after=1_000_000)

    download(file, target, bar)

    assert target.read_bytes() == content
    assert starts(hub)[0] == 0
    assert starts(hub)[-1] > 0


def test_silence_again_and_again_is_an_error(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    *,
    bar: FileBar,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says for how long nothing came, and that what has come is kept."""
    monkeypatch.setattr(_download, "_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(_download, "_RETRY_DELAYS", (0.01,))
    begun(target, content[:1_000_000])
    hub.fail_next("cdn", "stall", 2)

    with pytest.raises(DownloadError, match="no byte came for 0.2 s") as raised:
        download(file, target, bar)

    assert "1.0 MB have come and are kept. Run it again" in refused_words(raised.value)
    assert part_of(target).stat().st_size == 1_000_000


def test_a_body_that_ends_early_is_continued(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """Fewer bytes than the range has, and stated so: the rest is asked for."""
    begun(target, content[:500_000])
    hub.fail_next("cdn", "short", after=700_000)

    download(file, target, bar)

    assert target.read_bytes() == content
    assert starts(hub) == [500_000, 1_200_000]


def test_a_link_that_never_brings_anything_is_given_up(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """After as many tries as there are delays the error says what was wrong."""
    begun(target, content[:1_000_000])
    hub.fail_next("cdn", "drop", 6)

    with pytest.raises(DownloadError, match="continue there") as raised:
        download(file, target, bar)

    assert "1.0 MB have come and are kept" in refused_words(raised.value)
    assert content[:1_000_000] == part_of(target).read_bytes()
    assert len(hub.seen("cdn")) == 6
    download(file, target, bar)
    assert target.read_bytes() == content


def test_no_connection_at_all_is_offline(
    file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """Where nobody listens it is an OfflineError with the system's words."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        nowhere = replace(file, url=f"http://127.0.0.1:{port}/engine?key=hf_secret")

        with pytest.raises(OfflineError, match="refused.*internet") as raised:
            download(nowhere, target, bar)

    assert "engine.tar.zst" in refused_words(raised.value)


def test_without_internet_nobody_waits_for_it(
    file: PinnedFile,
    target: Path,
    bar: FileBar,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The long delays are for links that broke: offline, the first of them ends it."""
    monkeypatch.setattr(_download, "_RETRY_DELAYS", (0.01, 0.02, 10_000.0, 10_000.0))
    monkeypatch.setattr(_download, "_LONGEST_WAIT_SECONDS", 20_000.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = replace(file, url=f"http://127.0.0.1:{unused.getsockname()[1]}/x")

        with pytest.raises(OfflineError, match="has internet"):
            download(nowhere, target, bar)


def test_a_link_that_is_lost_later_is_not_called_offline(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """Who was connected once, and then finds nobody, is told what has come."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        told = {"Location": f"http://127.0.0.1:{port}/engine?Signature=secret"}
        hub.fail_next("hub", "status", status=503)
        hub.fail_next("hub", "status", 5, status=302, headers=told)

        with pytest.raises(DownloadError, match="refused.*0 B have come") as raised:
            download(file, target, bar)

    refused_words(raised.value)


# Other bytes


@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_a_flipped_bit_is_found(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, place: int
) -> None:
    """Wherever one bit is another, the error has both digests and nothing is left."""
    hub.fail_next("cdn", "flip", after=place)

    with pytest.raises(ChecksumError, match="expected sha256") as raised:
        download(file, target, bar)

    error = raised.value
    assert error.expected == file.sha256
    assert f"Install another one; got {error.actual}." in refused_words(error)
    assert list(target.parent.iterdir()) == []
    assert len(hub.seen("cdn")) == 1


def test_a_flipped_bit_after_a_part_is_found_too(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """A part that was right is given up with the rest; the second time all must be."""
    begun(target, content[:1_000_000])
    hub.fail_next("cdn", "flip", after=7)
    hub.fail_next("cdn", "flip", after=7)

    with pytest.raises(ChecksumError):
        download(file, target, bar)

    assert ranges(hub) == ["bytes=1000000-", "all"]
    assert list(target.parent.iterdir()) == []


def test_a_file_of_another_size_is_refused_before_it_comes(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """The server's size is told before a byte is taken, and compared then."""
    hub.add(BUCKET, PATH, content + b"more" * 100_000)

    with pytest.raises(DownloadError, match="3.4 MB, the one that is pinned has 3.0"):
        download(file, target, bar)

    assert not target.exists()
    assert bar.done == 0


class _Generous(HubFile):
    """A file of which more comes than was asked for."""

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        yield from super().blocks(start, stop)
        yield b"more than it said"


def test_more_bytes_than_stated_are_not_taken(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """A reply without a length that goes on past the file's end is refused."""
    begun(target, content[:1_000_000])
    hub.repositories[BUCKET].files[PATH] = _Generous(content)
    hub.ranges = "endless"

    with pytest.raises(DownloadError, match="gives more than it says") as raised:
        download(file, target, bar)

    refused_words(raised.value)
    assert part_of(target).stat().st_size <= SIZE
    assert not target.exists()


def test_more_bytes_than_any_engine_has_are_not_asked_for(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """A file of 9 GB whose size nobody pinned is refused before it comes."""
    hub.add(BUCKET, PATH, b"x", zeros=9 * 10**9)

    with pytest.raises(DownloadError, match="9.0 GB, more than any engine"):
        download(replace(file, size=None), target, bar)

    assert bar.done == 0


def test_an_unending_reply_ends_somewhere(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    *,
    bar: FileBar,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a size of either side there is a limit to what is taken."""
    monkeypatch.setattr(_download, "_MOST_BYTES", 2_000_000)
    with _unstated(content) as url:
        hub.fail_next("hub", "status", status=302, headers={"Location": url})
        with pytest.raises(DownloadError, match="gives more than it says"):
            download(replace(file, size=None), target, bar)

    assert part_of(target).stat().st_size <= 2_000_000


def test_a_reply_without_a_length_is_taken_to_its_end(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """Without a size of either side the end of the connection is the end."""
    with _unstated(content) as url:
        hub.fail_next("hub", "status", status=302, headers={"Location": url})
        download(replace(file, size=None), target, bar)

    assert target.read_bytes() == content


class _unstated:  # noqa: N801 -- used like a function
    """A server that gives bytes, states no length, and hangs up at the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/file"

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while not connection.recv(65536).endswith(b"\r\n\r\n"):
                pass
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                connection.sendall(self._content)
            except ConnectionError:
                pass  # the client had enough


def test_a_file_that_is_compressed_once_more_is_not_taken(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """Bytes in another coding would have another digest; they are not written."""
    hub.encoding = "gzip"

    with pytest.raises(DownloadError, match="compressed once more"):
        download(file, target, bar)

    assert part_of(target).read_bytes() == b""


# Answers in the place of bytes


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_status_is_waited_for(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, status: int
) -> None:
    """What a server says that is busy costs a moment, at the Hub and at the CDN."""
    hub.fail_next("hub", "status", status=status)
    hub.fail_next("cdn", "status", status=status)

    download(file, target, bar)

    assert [r.status for r in hub.requests] == [status, 302, status, 302, 200]


def test_a_busy_server_in_the_middle_takes_nothing_away(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """503 in the body's place leaves what has come, and the rest is asked for."""
    begun(target, content[:1_000_000])
    hub.fail_next("cdn", "status", status=503)

    download(file, target, bar)

    assert target.read_bytes() == content
    assert starts(hub) == [1_000_000, 1_000_000]


def test_retry_after_is_obeyed(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    bar: FileBar,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server's own word counts, not the usual delay, which here is for ever."""
    monkeypatch.setattr(_download, "_RETRY_DELAYS", (50.0, 50.0, 50.0))
    began = time.monotonic()
    for told in ("1", "0"):
        hub.fail_next("cdn", "status", status=429, headers={"Retry-After": told})

    download(file, target, bar)

    assert time.monotonic() - began >= 1.0
    assert [r.status for r in hub.seen("cdn")] == [429, 429, 200]


@pytest.mark.parametrize("told", ["Fri, 31 Dec 2027 23:59:59 GMT", "-1", "1.5", "soon"])
def test_a_retry_after_that_is_no_number_is_as_good_as_none(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, told: str
) -> None:
    """Dates and nonsense are not obeyed; the usual delay is."""
    hub.fail_next("cdn", "status", status=429, headers={"Retry-After": told})

    download(file, target, bar)

    assert [r.status for r in hub.seen("cdn")] == [429, 200]


def test_nobody_waits_for_an_hour(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """A server that wants to be asked again in an hour is told of, at once."""
    hub.fail_next("cdn", "status", status=429, headers={"Retry-After": "3600"})

    with pytest.raises(DownloadError, match="the server answers 429"):
        download(file, target, bar)

    assert len(hub.seen("cdn")) == 1


def test_a_signature_that_expires_on_the_way_is_renewed(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """403 to the rest means that the Hub is asked for a new address, once."""
    hub.signature_uses = 1
    hub.fail_next("cdn", "drop", 3, after=800_000)  # the refusal takes one of them

    download(file, target, bar)

    assert target.read_bytes() == content
    assert [(r.origin, r.status) for r in hub.requests] == [
        ("hub", 302),
        ("cdn", 200),
        ("cdn", 403),
        ("hub", 302),
        ("cdn", 206),
        ("cdn", 403),
        ("hub", 302),
        ("cdn", 206),
    ]


@pytest.mark.parametrize(
    ("origin", "status", "words"),
    [
        ("hub", 401, "401: it does not give the file to everybody"),
        ("hub", 403, "403: it does not give the file to everybody"),
        ("hub", 404, "404: there is no such file any more"),
        ("hub", 410, "410: there is no such file any more"),
        ("cdn", 404, "404: there is no such file any more"),
    ],
)
def test_a_refusal_is_told_at_once(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    *,
    bar: FileBar,
    content: bytes,
    origin: str,
    status: int,
    words: str,
) -> None:
    """What will not change by asking again is not asked again; what came is kept."""
    begun(target, content[:1_000_000])
    hub.fail_next(origin, "status", status=status)

    with pytest.raises(DownloadError, match=words) as raised:
        download(file, target, bar)

    assert refused_words(raised.value).startswith("engine.tar.zst: the server answers")
    assert len(hub.seen(origin)) == 1
    assert part_of(target).stat().st_size == 1_000_000


@pytest.mark.parametrize("status", [400, 501, 507])
def test_another_refusal_does_not_say_that_there_is_no_file(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, status: int
) -> None:
    """A server that cannot do what it is asked says nothing about the file."""
    hub.fail_next("hub", "status", status=status)

    with pytest.raises(DownloadError, match=f"answers {status}") as raised:
        download(file, target, bar)

    assert "no such file" not in str(raised.value)


def test_redirects_in_a_circle_end(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """A server that redirects for ever is an error at once."""
    hub.endless_redirects = True

    with pytest.raises(DownloadError, match="redirects more than 5 times"):
        download(file, target, bar)

    assert len(hub.requests) == 6


# Room


@pytest.fixture
def little_room(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB."""
    with small_disk(tmp_path / "little", 80_000_000) as allowed:
        if not allowed:
            missing_part("the right to mount a file system", "run as root")
        yield tmp_path / "little"


def test_what_has_no_room_is_not_begun(
    hub: StandInHub, file: PinnedFile, little_room: Path, bar: FileBar
) -> None:
    """A disk without room for the file is told of before its bytes are taken."""
    hub.add(BUCKET, PATH, b"x", zeros=30_000_000)

    with pytest.raises(DiskSpaceError, match="engine.tar.zst needs 30.0 MB") as raised:
        download(replace(file, size=None), little_room / "file", bar)

    assert raised.value.needed == 30_000_001
    assert bar.done == 0


class _Filling(HubFile):
    """A file during whose coming somebody else fills the disk."""

    folder = Path("/nowhere")

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        for number, block in enumerate(super().blocks(start, stop)):
            if number == 10:
                fill(self.folder)
            yield block


@pytest.mark.parametrize("pinned", [True, False])
def test_a_disk_that_fills_up_is_told_of(
    hub: StandInHub,
    file: PinnedFile,
    little_room: Path,
    *,
    bar: FileBar,
    content: bytes,
    pinned: bool,
) -> None:
    """The error says how much is needed; what came in vain gives its room back."""
    served = _Filling(content)
    served.folder = little_room
    hub.repositories[BUCKET].files[PATH] = served
    size = SIZE if pinned else None

    with pytest.raises(DiskSpaceError, match="needs 3.0 MB in") as raised:
        download(replace(file, size=size), little_room / "file", bar)

    assert raised.value.needed == SIZE
    assert [place.name for place in little_room.iterdir()] == ["filler"]
    refused_words(raised.value)


def test_a_part_counts_towards_the_room(
    hub: StandInHub,
    file: PinnedFile,
    little_room: Path,
    *,
    bar: FileBar,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has come already needs no room again."""
    part_of(little_room / "file").write_bytes(content[:2_900_000])
    free = _disk.free_bytes(little_room)
    monkeypatch.setattr(_disk, "_SPARE_BYTES", free - 150_000)

    download(file, little_room / "file", bar)

    assert (little_room / "file").read_bytes() == content


# Called off


def test_who_waits_calls_a_download_off(
    hub: StandInHub,
    file: PinnedFile,
    target: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A download that is called off ends and keeps its part for the next one."""
    monkeypatch.setattr(_download, "_SILENCE_SECONDS", 0.5)
    hub.fail_next("cdn", "stall", after=1_000_000)
    hub.fail_next("cdn", "stall", 100)
    cancelled = threading.Event()
    ends: list[BaseException] = []

    def work() -> None:
        with FileBar("engine", SIZE, cancelled=cancelled, shown=False) as bar:
            try:
                download(file, target, bar)
            except BaseException as error:  # noqa: BLE001 -- looked at below
                ends.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not hub.seen("cdn"):
        time.sleep(0.01)
    cancelled.set()
    thread.join()

    assert [type(error) for error in ends] == [CancelledError]
    assert content.startswith(part_of(target).read_bytes())
    assert not target.exists()


def test_waiting_for_a_busy_server_is_called_off_too(
    hub: StandInHub, file: PinnedFile, target: Path
) -> None:
    """Nobody waits out a Retry-After that nobody wants any more."""
    hub.fail_next("cdn", "status", status=429, headers={"Retry-After": "59"})
    cancelled = threading.Event()

    def cancel() -> None:
        while not hub.seen("cdn"):
            time.sleep(0.01)
        cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with (
        FileBar("engine", SIZE, cancelled=cancelled, shown=False) as bar,
        pytest.raises(CancelledError),
    ):
        download(file, target, bar)
    canceller.join()

    assert part_of(target).exists()
    assert len(hub.seen("cdn")) == 1


def test_what_is_called_off_before_asks_nobody(
    hub: StandInHub, file: PinnedFile, target: Path
) -> None:
    """An event that is set already ends a download before its first request."""
    cancelled = threading.Event()
    cancelled.set()
    with (
        FileBar("engine", SIZE, cancelled=cancelled, shown=False) as bar,
        pytest.raises(CancelledError),
    ):
        download(file, target, bar)

    assert hub.requests == []


def test_an_address_that_is_none_is_refused(
    file: PinnedFile, target: Path, bar: FileBar
) -> None:
    """Addresses that are none, or hold a password, are refused without being shown."""
    for url in ("ftp://host/file", "http://user:hf_secret@host/file", "http://[hf_se"):
        with pytest.raises(ValueError, match="the address cannot be used") as raised:
            download(replace(file, url=url), target, bar)
        refused_words(raised.value)


def test_what_a_server_says_cannot_steer_a_terminal(
    hub: StandInHub, file: PinnedFile, target: Path, bar: FileBar, content: bytes
) -> None:
    """No message holds a control character, whatever the server sends."""
    begun(target, content[:10])
    told: dict[str, Any] = {"Retry-After": "7\x1b[2J", "Content-Range": "\x1b[2J"}
    hub.fail_next("cdn", "status", 9, status=503, headers=told)

    with pytest.raises(DownloadError) as raised:
        download(file, target, bar)

    assert str(raised.value).isprintable()
