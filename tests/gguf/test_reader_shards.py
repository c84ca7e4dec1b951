"""Models in several files are read as one, whichever file is given."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_writer import ARRAY, INT32, STRING, UINT16, Array, File, Tensor

from llamatelemetry._units import MIB
from llamatelemetry.exceptions import GGUFError, ModelError
from llamatelemetry.gguf import reader
from llamatelemetry.gguf._remote import RemoteSource
from llamatelemetry.gguf._shards import parse_shard_name
from llamatelemetry.gguf.reader import read_header


def write_shards(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    """Write a model as llama-gguf-split does: the first file has all the keys.

    Args:
        folder: Where to write.
        count: How many files.
        changes: Other values: ``no_1=5`` puts 5 for the second file's split.no,
            ``count_0=4`` for the first one's split.count, ``total=7`` for the number
            of tensors, ``name_2="t.0"`` another name for the third's tensor.
    """
    paths = []
    for number in range(count):
        keys = [
            ("split.no", UINT16, changes.get(f"no_{number}", number)),
            ("split.count", UINT16, changes.get(f"count_{number}", count)),
            ("split.tensors.count", INT32, changes.get("total", count)),
        ]
        if number == 0:
            keys.insert(0, ("general.architecture", STRING, "llama"))
        tensor = Tensor(changes.get(f"name_{number}", f"t.{number}"), (32, number + 1))
        path = folder / f"model-{number + 1:05}-of-{count:05}.gguf"
        paths.append(File(keys, [tensor]).write(path))
    return paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_shard_opens_the_model(tmp_path: Path, given: int) -> None:
    """Keys come from the first, tensors from all, sizes are sums."""
    paths = write_shards(tmp_path)

    header = read_header(paths[given])

    assert header.source == str(paths[0])
    assert header.shards == tuple(map(str, paths))
    assert header.metadata["general.architecture"] == "llama"
    assert [(one.name, one.shard) for one in header.tensors] == [
        ("t.0", 0),
        ("t.1", 1),
        ("t.2", 2),
    ]
    assert header.file_bytes == sum(path.stat().st_size for path in paths)
    for tensor in header.tensors:
        end = tensor.offset + tensor.n_bytes
        assert end == paths[tensor.shard].stat().st_size
    assert "3 files" in repr(header)


def test_shards_written_by_the_package(tmp_path: Path) -> None:
    """What GGUFWriter splits by tensor count is one model again."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"t.{number}", np.full((4, 32), number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(tmp_path / "model-00002-of-00003.gguf")

    assert [tensor.name for tensor in header.tensors] == [f"t.{n}" for n in range(5)]
    assert [tensor.shard for tensor in header.tensors] == [0, 0, 1, 1, 2]


def test_a_shard_can_be_read_alone(tmp_path: Path) -> None:
    """shards=False takes the one file, from a path or from memory."""
    paths = write_shards(tmp_path)

    for source in (paths[1], paths[1].read_bytes()):
        header = read_header(source, shards=False)
        assert [tensor.name for tensor in header.tensors] == ["t.1"]
        assert len(header.shards) == 1


def test_metadata_of_shards_is_that_of_the_first(tmp_path: Path) -> None:
    """With stop_before the first file is enough."""
    paths = write_shards(tmp_path)
    paths[2].unlink()

    header = read_header(paths[1], stop_before="split.")

    assert header.source == str(paths[0])
    assert dict(header.metadata) == {"general.architecture": "llama"}


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_shard_is_named(tmp_path: Path, missing: int) -> None:
    """The error says which of how many, and by what name."""
    paths = write_shards(tmp_path)
    paths[missing].unlink()
    given = paths[0] if missing else paths[1]

    with pytest.raises(ModelError, match=f"shard {missing + 1} of 3") as caught:
        read_header(given)

    assert paths[missing].name in str(caught.value)
    assert not isinstance(caught.value, GGUFError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"no_1": 2}, "split.no = 2 where 1"),
        ({"no_0": 1}, "split.no = 1 where 0"),
        ({"count_2": 4}, "split.count = 4 where 3"),
        ({"count_0": 4}, "one of 4 shards"),
        ({"total": 4}, "3 tensors instead of the 4"),
        ({"name_2": "t.0"}, "'t.0' is in two"),
    ],
)
def test_shards_that_do_not_belong_together(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Files of another place or another model are refused by name."""
    paths = write_shards(tmp_path, **changes)

    with pytest.raises(GGUFError, match=words):
        read_header(paths[0])


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    """An error in the second file carries the second file's path."""
    paths = write_shards(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-10])

    with pytest.raises(GGUFError, match="incomplete") as caught:
        read_header(paths[0])

    assert caught.value.path == str(paths[1])


def test_shards_under_other_names(tmp_path: Path) -> None:
    """A renamed shard is refused with the name it should have."""
    paths = write_shards(tmp_path)
    renamed = paths[0].rename(tmp_path / "mine.gguf")

    with pytest.raises(GGUFError, match="-00001-of-00003.gguf"):
        read_header(renamed)
    with pytest.raises(GGUFError, match="shards=False"):
        read_header(io.BytesIO(renamed.read_bytes()))


def test_an_open_shard_asks_for_its_path(tmp_path: Path) -> None:
    """The other shards of an open file are not looked for."""
    path = write_shards(tmp_path)[0]

    with path.open("rb") as file, pytest.raises(ModelError, match="Give the path"):
        read_header(file)


def test_a_file_that_is_only_named_like_a_shard(tmp_path: Path) -> None:
    """The header is believed: a first file without split keys is a whole model."""
    plain = File(tensors=[Tensor("t")])
    first = plain.write(tmp_path / "m-00001-of-00002.gguf")
    second = plain.write(tmp_path / "m-00002-of-00002.gguf")
    single = plain.write(tmp_path / "m-00001-of-00001.gguf")

    assert len(read_header(first).shards) == 1
    assert len(read_header(single).shards) == 1
    with pytest.raises(GGUFError, match="shard"):
        read_header(second)


def test_a_split_count_that_is_no_count() -> None:
    """Text or a negative number is refused."""
    for kind, value in ((STRING, "3"), (INT32, -1)):
        with pytest.raises(GGUFError, match="no number of shards"):
            read_header(File([("split.count", kind, value)]).build())


@pytest.mark.parametrize("name", ["what? a:b#c", "%20", "a\nb"])
@pytest.mark.parametrize("end", ["gguf", "GGUF"])
def test_shards_of_any_name_in_any_folder(tmp_path: Path, name: str, end: str) -> None:
    """A path is no URL: what has a meaning there is part of a name here."""
    folder = tmp_path / "C#?a=b"
    folder.mkdir()
    paths = [
        path.rename(folder / f"{name}-{path.stem.removeprefix('model-')}.{end}")
        for path in write_shards(tmp_path)
    ]

    for path in paths:
        assert read_header(path).shards == tuple(map(str, paths))


@pytest.mark.parametrize(
    ("url", "file_name"),
    [
        ("https://host/x/m-00001-of-00002.gguf?download=true#top", "m-"),
        ("https://host/a%2Fm%20%23-00001-of-00002.gguf?x=/y", "a/m #-"),
    ],
)
def test_names_of_shards_at_addresses(url: str, file_name: str) -> None:
    """Of an address, the last step without query and escapes is the name."""
    source = RemoteSource(url)
    name = parse_shard_name(source.file_name)

    assert name is not None
    assert name.of(2) == f"{file_name}00002-of-00002.gguf"
    assert source.sibling(name.of(2)).name == source.name.replace("00001", "00002")


def write_heavy_shards(folder: Path, *sizes: int) -> Path:
    """Write shards with so many bytes of metadata each; return the first's path."""
    for number, size in enumerate(sizes):
        keys = [
            ("split.no", UINT16, number),
            ("split.count", UINT16, len(sizes)),
            ("zeros", ARRAY, Array(STRING, [bytes(size)])),
        ]
        path = folder / f"m-{number + 1:05}-of-{len(sizes):05}.gguf"
        File(keys, [Tensor(f"t.{number}")]).write(path)
    return folder / f"m-00001-of-{len(sizes):05}.gguf"


def test_shards_together_have_the_limits_of_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header bytes, tensors and the shards themselves are limited in sum."""
    with pytest.raises(GGUFError, match="one of 513 shards; at most 512 are read"):
        read_header(File([("split.count", UINT16, 513)]).build())
    path = write_heavy_shards(tmp_path, 12 * MIB, 12 * MIB, 12 * MIB)
    with pytest.raises(GGUFError, match="32.0 MiB together with the shards before it"):
        read_header(path)
    path = write_heavy_shards(tmp_path, 12 * MIB, 20 * MIB, 0)
    with pytest.raises(GGUFError, match="00002-of-00003.gguf: the header is larger"):
        read_header(path)
    assert len(read_header(write_heavy_shards(tmp_path, *[12 * MIB] * 2)).tensors) == 2
    monkeypatch.setattr(reader, "MOST_TENSORS", 2)
    path = write_heavy_shards(tmp_path, 0, 0, 0)
    with pytest.raises(GGUFError, match="beside those of the shards .*; at most 0"):
        read_header(path)


def test_the_metadata_of_further_shards_are_not_kept(tmp_path: Path) -> None:
    """Each one's bytes go before the next one is read."""
    path = write_heavy_shards(tmp_path, 0, *[7 * MIB] * 4)
    tracemalloc.start()
    try:
        header = read_header(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert header.header_bytes > 28 * MIB
    assert peak < 16 * MIB
    assert kept < MIB


@pytest.mark.parametrize(
    "text",
    [
        "model.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-1-of-3.gguf",
        "m-00001-of-00003.gguf.part",
    ],
)
def test_names_that_are_no_shards(text: str) -> None:
    """Numbers must fit and be written as llama.cpp writes them."""
    assert parse_shard_name(text) is None
