"""The log buffer and the pipe reader."""

from __future__ import annotations

import io
import threading

from llamatelemetry.server.logs import MAX_LINE_BYTES, LogBuffer, read_lines


def test_the_buffer_keeps_the_last_lines_within_its_bound() -> None:
    """However much is logged, the newest lines stay and memory is bounded."""
    log = LogBuffer(max_bytes=1000)
    for number in range(10_000):
        log.append(f"line {number}")

    text = log.text()
    assert len(text) < 1200
    assert text.endswith("line 9999\n")
    assert log.tail(2) == "line 9998\nline 9999"
    assert log.dropped + text.count("\n") == 10_000


def test_a_line_longer_than_the_bound_is_still_kept() -> None:
    """The last line is never dropped, whatever its length."""
    log = LogBuffer(max_bytes=10)
    log.append("x" * 100)

    assert log.text() == "x" * 100 + "\n"


def test_followers_see_every_line_and_end_with_the_log() -> None:
    """Two followers, one late, both get all lines in order."""
    log = LogBuffer()
    seen: list[list[str]] = [[], []]

    def follow(place: int) -> None:
        seen[place].extend(log.follow())

    threads = [threading.Thread(target=follow, args=(place,)) for place in (0, 1)]
    threads[0].start()
    lines = [f"line {number}" for number in range(500)]
    for number, line in enumerate(lines):
        log.append(line)
        if number == 250:
            threads[1].start()
    log.close()
    for thread in threads:
        thread.join(10)

    assert seen == [lines, lines]


def test_lines_are_split_whole_cut_when_endless_and_decoded_whatever_they_are() -> None:
    """Carriage returns, missing ends, bad UTF-8 and endless lines all come through."""
    endless = b"z" * (2 * MAX_LINE_BYTES + 5)
    stream = io.BytesIO(b"one\r\ntwo\n\n\xff\xfe\n" + endless + b"\nlast")
    lines: list[str] = []
    read_lines(stream, lines.append)

    assert lines[:4] == ["one", "two", "", "\ufffd\ufffd"]
    assert [len(line) for line in lines[4:7]] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 5]
    assert lines[7:] == ["last"]


class Dripping(io.RawIOBase):
    """A pipe that gives one byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(1)


def test_a_line_is_handed_over_when_it_is_whole() -> None:
    """Bytes that drip in one by one become the same lines."""
    lines: list[str] = []
    read_lines(Dripping("grün\nblau\n".encode()), lines.append)  # type: ignore[arg-type]

    assert lines == ["grün", "blau"]
