"""The names of a model's shards, from any one of them."""

from __future__ import annotations

import pytest

from llamatelemetry.setup._names import shard_names


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_shard_tells_them_all(number: int) -> None:
    """From each of three shards come all three, in order, in their folder."""
    assert shard_names(f"Q8_0/m-Q8_0-{number:05}-of-00003.gguf") == (
        "Q8_0/m-Q8_0-00001-of-00003.gguf",
        "Q8_0/m-Q8_0-00002-of-00003.gguf",
        "Q8_0/m-Q8_0-00003-of-00003.gguf",
    )


def test_the_ending_stays_as_it_is_written() -> None:
    """A name in capitals is a name in capitals for all shards."""
    assert shard_names("M-00001-of-00002.GGUF") == (
        "M-00001-of-00002.GGUF",
        "M-00002-of-00002.GGUF",
    )


@pytest.mark.parametrize(
    "path", ["m.gguf", "a/m-Q8_0.gguf", "m-1-of-2.gguf", "m-00001-of-00002.bin"]
)
def test_what_is_no_shard_is_itself(path: str) -> None:
    """A model of one file is that file."""
    assert shard_names(path) == (path,)
