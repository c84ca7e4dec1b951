"""Real headers: nineteen vocabularies that come with llama.cpp's source package."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from plain_gguf import read_plainly
from vocabularies import HOW_MANY

from llamatelemetry.exceptions import GGUFError
from llamatelemetry.gguf.reader import GGUFArray, read_header

# GGUFReader takes a second or two for each of these and up to 25 s for the others.
SMALLEST = 3


@pytest.mark.slow
def test_the_smallest_equal_the_package(vocabulary_files: list[Path]) -> None:
    """Package, plain reader and reader agree on every key of real vocabularies."""
    by_size = sorted(vocabulary_files, key=lambda path: path.stat().st_size)
    for path in by_size[:SMALLEST]:
        fields = gguf.GGUFReader(path).fields
        wanted = {
            name: field.contents()
            for name, field in fields.items()
            if not name.startswith("GGUF.")
        }
        assert read_plainly(path)[0] == wanted
        assert dict(read_header(path).metadata) == wanted


@pytest.mark.slow
def test_all_equal_the_plain_reader(vocabulary_files: list[Path]) -> None:
    """Every key and every element of every array of all the vocabularies is equal."""
    assert len(vocabulary_files) == HOW_MANY
    for path in vocabulary_files:
        header = read_header(path)
        wanted, tensors = read_plainly(path)
        assert list(header.metadata) == list(wanted)
        for key, value in header.metadata.items():
            if isinstance(value, GGUFArray):
                assert value.tolist() == wanted[key], (path.name, key)
                # The way by single elements is another one.
                for index in range(0, len(value), 9973):
                    assert value[index] == wanted[key][index]
                assert value[-3:] == wanted[key][-3:]
            else:
                assert value == wanted[key], (path.name, key)
                assert type(value) is type(wanted[key])
        assert tensors == []
        assert header.header_bytes == path.stat().st_size


def test_a_vocabulary_cut_anywhere_is_refused(vocabulary_files: list[Path]) -> None:
    """A real header without its end is incomplete, wherever it is cut."""
    path = min(vocabulary_files, key=lambda one: one.stat().st_size)
    data = path.read_bytes()
    for length in range(5, len(data), len(data) // 50):
        with pytest.raises(GGUFError, match="the download is incomplete"):
            read_header(data[:length])
