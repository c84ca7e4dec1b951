"""The log buffer and the pipe reader."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from llamatelemetry.server.logs import MAX_LINE_BYTES, LogBuffer, read_lines


def test_the_buffer_keeps_the_last_lines_within_its_bound() -> None:
    """However much is logged, the newest lines stay and memory is bounded."""
    log = LogBuffer(max_bytes=4000)
    for number in range(10_000):
        log.append(f"line {number}")

    text = log.text()
    assert 200 < len(text) < 4000
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
    data = b"one\r\ntwo\n\n\xff\xfe\n" + endless + b"\nlast"
    lines: list[str] = []
    read_lines([data[:7000], data[7000:]], lines.append)

    assert lines[:4] == ["one", "two", "", "\ufffd\ufffd"]
    assert [len(line) for line in lines[4:7]] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 5]
    assert lines[7:] == ["last"]


def test_a_line_is_handed_over_when_it_is_whole() -> None:
    """Bytes that drip in one by one become the same lines."""
    lines: list[str] = []
    seen_when_whole: list[list[str]] = []

    def drip() -> Iterator[bytes]:
        for byte in "grün\nblau\n".encode():
            yield bytes([byte])
            seen_when_whole.append(list(lines))

    read_lines(drip(), lines.append)

    assert lines == ["grün", "blau"]
    assert seen_when_whole[5] == ["grün"]  # five bytes and the line's end have come
    assert seen_when_whole[4] == []


def test_empty_lines_count_too() -> None:
    """Millions of empty lines do not stay in memory."""
    log = LogBuffer(max_bytes=10_000)
    for _ in range(5000):
        log.append("")

    assert log.text().count("\n") < 500


def test_a_late_follower_of_a_full_log_is_quick() -> None:
    """Catching up with 100,000 lines is one pass, not one search for each line."""
    log = LogBuffer(max_bytes=2**30)
    for number in range(100_000):
        log.append(str(number))
    log.close()

    assert sum(1 for _ in log.follow()) == 100_000  # took minutes when it searched
