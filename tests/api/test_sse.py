"""Bytes to events."""

from __future__ import annotations

import itertools

import pytest

from llamatelemetry.api._sse import EventDecoder


def events_of(*blocks: bytes) -> list[tuple[str, bytes]]:
    """Feed blocks to a new decoder and return all events."""
    decoder = EventDecoder()
    return list(itertools.chain.from_iterable(map(decoder.feed, blocks)))


STREAM = (
    b'data: {"a": 1}\n\n:\n\nevent: error\ndata: two\ndata:  lines\nid: 7\nretry\n\n'
    b"data\n\n: words\ndata:x\n\nevent: dropped\n\nerror: old\n\ndata: [DONE]\n\n"
)
EVENTS = [
    ("message", b'{"a": 1}'),
    ("error", b"two\n lines"),
    ("message", b""),
    ("message", b"x"),
    ("error", b"old"),
    ("message", b"[DONE]"),
]


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_events_are_read_with_every_line_end(line_end: bytes) -> None:
    """Data, names, comments and unknown fields mean what the standard says."""
    assert events_of(STREAM.replace(b"\n", line_end)) == EVENTS


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_a_stream_may_be_cut_anywhere(line_end: bytes) -> None:
    """Cut in two at each place, and into single bytes, it gives the same events."""
    stream = STREAM.replace(b"\n", line_end)

    for place in range(len(stream)):
        assert events_of(stream[:place], stream[place:]) == EVENTS, place
    assert events_of(*(stream[i : i + 1] for i in range(len(stream)))) == EVENTS


def test_an_event_is_told_with_its_last_byte() -> None:
    """Nothing waits for a further block, also where lines end in CR."""
    for line_end in (b"\n", b"\r"):
        decoder = EventDecoder()
        assert decoder.feed(b"data: x" + line_end) == []
        assert decoder.feed(line_end) == [("message", b"x")]


def test_an_event_without_its_end_is_not_told() -> None:
    """Half an event at the end of a stream is dropped, as the standard says."""
    assert events_of(b"data: whole\n\ndata: half\n") == [("message", b"whole")]


def test_whole_events_in_one_block_are_all_told() -> None:
    """Several events in a block, and the short way for one, agree."""
    block = b'data: {"x": "\xc3\xa9"}\n\n'

    assert events_of(block * 3) == events_of(block, block, block)
    assert len(events_of(block)) == 1


def test_the_short_way_is_not_taken_inside_an_event() -> None:
    """A block that looks whole belongs to the event that was begun before it."""
    assert events_of(b"data: a\n", b"data: b\n\n") == [("message", b"a\nb")]
    assert events_of(b"event: n\n", b"data: b\n\n") == [("n", b"b")]
    assert events_of(b"data: a\r\r", b"\ndata: b\n\n") == [
        ("message", b"a"),
        ("message", b"b"),
    ]
