"""Bytes as text, and deadlines."""

from __future__ import annotations

import time

import pytest

from llamatelemetry._deadline import Deadline
from llamatelemetry._units import GIB, MIB, format_file_size, format_memory


@pytest.mark.parametrize(
    ("size", "memory", "file"),
    [
        (0, "0 B", "0 B"),
        (999, "999 B", "999 B"),
        (1023, "1023 B", "1.0 kB"),
        (1536, "1.5 KiB", "1.5 kB"),
        (15360 * MIB, "15.0 GiB", "16.1 GB"),
        (GIB // 2, "512.0 MiB", "536.9 MB"),
    ],
)
def test_memory_is_binary_and_files_are_decimal(
    size: int, memory: str, file: str
) -> None:
    """The same bytes are shown as nvidia-smi and as the Hub would show them."""
    assert format_memory(size) == memory
    assert format_file_size(size) == file


def test_a_deadline_counts_down_and_ends() -> None:
    """Time left shrinks, stops at zero, and None never ends."""
    later = Deadline.after(600)
    first = later.remaining
    soon = Deadline.after(0.05)
    time.sleep(0.06)

    assert 0 < later.remaining < first <= 600
    assert not later.expired
    assert soon.expired
    assert soon.remaining == 0
    assert not Deadline.after(None).expired
