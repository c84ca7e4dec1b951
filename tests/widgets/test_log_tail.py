"""What of a server's log a panel shows."""

from __future__ import annotations

import itertools

import pytest

from llamatelemetry.server.logs import LogBuffer, LogPosition
from llamatelemetry.widgets._log_tail import (
    BLOCK_LINES,
    BLOCKS,
    Level,
    LogFilter,
    LogTail,
    level_of,
)

ALL = LogFilter()


class Log:
    """A log that is written by the test, as a manager has one."""

    def __init__(self) -> None:
        self.buffer = LogBuffer()
        self.reads = 0

    def write(self, *lines: str) -> None:
        for line in lines:
            self.buffer.append(line)

    def read_logs(
        self, position: LogPosition | None = None
    ) -> tuple[LogPosition | None, list[str]]:
        position, lines = self.buffer.since(position)
        self.reads += len(lines)
        return position, lines


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("0.00.003.325 W srv  init: no API key is set", "warnings"),
        ("0.00.003.325 I srv  init: using 6 threads", "all"),
        ("0.00.003.325 E srv  init: it went wrong", "errors"),
        ("[1] 0.00.003.325 E srv  init: it went wrong", "errors"),
        ("ggml_cuda: cudaMalloc failed: out of memory", "errors"),
        ("GGML_ASSERT(n > 0) failed", "errors"),
        ("warning: old flag", "warnings"),
        ("an unfailing line without error_count or warnings_off", "all"),
    ],
)
def test_a_line_has_the_level_that_llama_cpp_gave_it(line: str, level: Level) -> None:
    """The letter after the time counts, and the words where there is none."""
    assert level_of(line) == level


def test_the_tail_holds_the_last_lines_and_says_whether_they_changed() -> None:
    """200 lines at most, the newest last; nothing new is no change."""
    log, tail = Log(), LogTail()
    log.write(*(f"line {number}" for number in range(500)))

    assert tail.read([log], ALL)
    assert not tail.read([log], ALL)
    assert tail.lines[-1] == "line 499"
    assert len(tail.lines) == BLOCK_LINES * BLOCKS


def test_only_what_is_new_is_read() -> None:
    """A look at a log of any length costs as much as what came since the last one."""
    log, tail = Log(), LogTail()
    log.write(*map(str, range(1000)))
    tail.read([log], ALL)
    log.write("new")
    tail.read([log], ALL)

    assert log.reads == 1001


def test_a_new_line_changes_one_block() -> None:
    """Blocks that are full stay as they are, letter by letter, however long it goes on.

    They are numbered through, so that what is shown can be told from what is new.
    """
    log, tail = Log(), LogTail()
    log.write(*(f"line {number}" for number in range(BLOCK_LINES * 3 + 1)))
    tail.read([log], ALL)
    before = dict(tail.blocks())
    log.write("one more")
    tail.read([log], ALL)
    after = dict(tail.blocks())

    assert list(before) == list(after) == [0, 1, 2, 3]
    assert [number for number in after if after[number] != before[number]] == [3]
    for number in range(1000):
        log.write(f"line {number}")
        tail.read([log], ALL)
        blocks = dict(tail.blocks())
        assert len(blocks) <= BLOCKS
        common = set(blocks) & set(after) - {max(after)}
        assert all(blocks[each] == after[each] for each in common)
        after = blocks


def test_a_filter_looks_through_the_whole_log() -> None:
    """Another filter begins at the beginning of what is kept, in any letters."""
    log, tail = Log(), LogTail()
    log.write("0.0 E first", *(f"0.0 I line {number}" for number in range(999)))
    log.write("0.0 W Something")
    tail.read([log], ALL)

    assert tail.read([log], LogFilter(level="errors"))
    assert tail.lines == ["0.0 E first"]
    assert tail.read([log], LogFilter(level="warnings"))
    assert tail.lines == ["0.0 E first", "0.0 W Something"]
    assert tail.read([log], LogFilter("LINE 77"))
    assert len(tail.lines) == 11
    assert tail.read([log], LogFilter("nothing like it"))
    assert tail.lines == []


def test_a_new_start_begins_a_new_log() -> None:
    """What the last start logged is gone when the next one logs as many lines."""
    log, tail = Log(), LogTail()
    log.write("old 1", "old 2")
    tail.read([log], ALL)
    log.buffer = LogBuffer()
    log.write("new 1", "new 2")

    assert tail.read([log], ALL)
    assert tail.lines == ["new 1", "new 2"]


def test_lines_of_several_servers_say_whose_they_are() -> None:
    """Each line of a pool begins with its server's number; a restart keeps the rest."""
    logs, tail = [Log(), Log()], LogTail()
    logs[0].write("a")
    logs[1].write("b")
    tail.read(logs, ALL)
    logs[1].buffer = LogBuffer()
    logs[1].write("c")

    assert tail.read(logs, ALL)
    assert tail.lines == ["[0] a", "[1] b", "[1] c"]


def test_nothing_in_a_log_is_markup() -> None:
    """Tags, escapes of a terminal, marks of direction and endless lines do no harm."""
    log, tail = Log(), LogTail()
    log.write(
        "<img src=x onerror=alert(1)>", "\x1b[31mred\x1b[0m", "a\u202eb", "z" * 9999
    )
    tail.read([log], ALL)
    ((_, page),) = tail.blocks()

    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert tail.lines[1:3] == ["red", "a\ufffdb"]
    assert len(page) < 2000


def test_positions_of_other_logs_are_the_beginning() -> None:
    """A position means its own log only, and lines that were dropped are left out."""
    first, second = LogBuffer(), LogBuffer(max_bytes=500)
    first.append("a")
    position, lines = first.since(None)
    for number in itertools.islice(itertools.count(), 100):
        second.append(f"line {number}")

    assert lines == ["a"]
    assert first.since(position) == (position, [])
    later, lines = second.since(position)
    assert lines[-1] == "line 99"
    assert len(lines) + second.dropped == 100
    assert second.since(later)[1] == []
