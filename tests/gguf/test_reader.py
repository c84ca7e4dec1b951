"""The reader against the `gguf` package: every key, array and tensor must be equal."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_writer import (
    ARRAY,
    BOOL,
    CODES,
    FLOAT64,
    INT8,
    INT64,
    STRING,
    UINT32,
    UINT64,
    Array,
    File,
    Tensor,
    small_file,
)
from plain_gguf import read_plainly

from llamatelemetry.gguf.quantization import GGML_TYPES
from llamatelemetry.gguf.reader import GGUFArray, GGUFHeader, TensorInfo, read_header

BIG = gguf.GGUFEndian.BIG
LITTLE = gguf.GGUFEndian.LITTLE
# Of Q8_1 the package has other bytes than llama.cpp; test_quantization says more.
TYPES = [kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"]


def assert_equal_to_oracle(path: Path, header: GGUFHeader) -> None:
    """Compare everything that GGUFReader gives."""
    oracle = gguf.GGUFReader(path)
    fields = {
        name: field.contents()
        for name, field in oracle.fields.items()
        if not name.startswith("GGUF.")
    }
    assert list(header.metadata) == list(fields)
    for key, wanted in fields.items():
        found = header.metadata[key]
        assert same(found, wanted), key
        if isinstance(wanted, list):
            assert isinstance(found, GGUFArray)
            assert len(found) == len(wanted)
        else:
            assert type(found) is type(wanted), key
    assert [
        (one.name, one.shape, one.type, one.n_elements, one.n_bytes, one.offset)
        for one in header.tensors
    ] == [
        (
            one.name,
            tuple(one.shape.tolist()),
            one.tensor_type.name,
            one.n_elements,
            one.n_bytes,
            one.data_offset,
        )
        for one in oracle.tensors
    ]
    assert header.alignment == oracle.alignment
    assert header.version == oracle.fields["GGUF.version"].contents()
    assert header.byte_order == oracle.endianess.name.lower()


def same(found: Any, wanted: Any) -> bool:
    """Whether two values are equal, not-a-number included."""
    if isinstance(wanted, list):
        return all(same(*pair) for pair in zip(found, wanted, strict=True))
    if isinstance(wanted, float) and math.isnan(wanted):
        return math.isnan(found)
    return bool(found == wanted)


def write_with_package(path: Path, order: gguf.GGUFEndian) -> Path:
    """Write a file with every type of value the package can write."""
    writer = gguf.GGUFWriter(str(path), "llama", endianess=order)
    writer.add_uint8("a.uint8", 255)
    writer.add_int8("a.int8", -128)
    writer.add_uint16("a.uint16", 65535)
    writer.add_int16("a.int16", -32768)
    writer.add_uint32("a.uint32", 2**32 - 1)
    writer.add_int32("a.int32", -(2**31))
    writer.add_uint64("a.uint64", 2**64 - 1)
    writer.add_int64("a.int64", -(2**63))
    writer.add_float32("a.float32", 1e-5)
    writer.add_float64("a.float64", 1e-300)
    writer.add_float32("a.infinite", float("inf"))
    writer.add_float64("a.no_number", float("nan"))
    writer.add_bool("a.true", True)
    writer.add_bool("a.false", False)
    writer.add_string("a.text", "Zürich 東京 🦙\n")
    writer.add_string("a.long", "x" * 70_000)
    writer.add_array("b.int32", [-1, 0, 2**31 - 1])
    writer.add_array("b.float", [0.1, -2.5e30])
    writer.add_array("b.bool", [True, False, True, True])
    writer.add_array("b.string", ["", "é", "🦙" * 100, "a\0b"])
    writer.add_array("b.bytes", b"\x00\x7f\xff")
    for kind in gguf.GGUFValueType:
        if kind.value in CODES and kind.value != BOOL:
            writer.add_key_value(
                f"c.{kind.name}", [1, 2, 3], gguf.GGUFValueType.ARRAY, sub_type=kind
            )
    for index, kind in enumerate(TYPES):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (3, 2, size * (256 // block if block < 256 else 1))
        writer.add_tensor(f"t.{index}", np.zeros(shape, np.uint8), raw_dtype=kind)
    writer.add_tensor("one", np.zeros(1, np.float32))
    writer.add_tensor("four", np.zeros((2, 3, 4, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("order", [LITTLE, BIG], ids=["little", "big"])
def test_everything_equals_the_package(tmp_path: Path, order: gguf.GGUFEndian) -> None:
    """All value types, arrays and tensor types come out as GGUFReader gives them."""
    path = write_with_package(tmp_path / "model.gguf", order)

    header = read_header(path)

    assert_equal_to_oracle(path, header)
    assert {one.type for one in header.tensors} == {kind.name for kind in TYPES}


def test_version_2_is_read_as_version_3(tmp_path: Path) -> None:
    """A file whose version is patched to 2 gives the same, and says 2."""
    path = write_with_package(tmp_path / "model.gguf", LITTLE)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, 2)
    path.write_bytes(data)

    assert_equal_to_oracle(path, read_header(path))
    assert read_header(path).version == 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_files_written_by_hand(tmp_path: Path, order: str, version: int) -> None:
    """The tests' own writer makes files that package and reader agree on."""
    file = small_file(order, version)
    file.keys = [entry for entry in file.keys if entry[0] != "nested"]
    path = file.write(tmp_path / "model.gguf")

    header = read_header(path)

    assert_equal_to_oracle(path, header)
    assert header.header_bytes == file.header_bytes
    assert header.file_bytes == path.stat().st_size
    assert header.shards == (str(path),)
    assert header.complete


@pytest.mark.parametrize("kind", [*CODES, STRING])
def test_empty_arrays(tmp_path: Path, kind: int) -> None:
    """An array without elements is an empty sequence of its type."""
    path = File([("empty", ARRAY, Array(kind, []))]).write(tmp_path / "model.gguf")

    header = read_header(path)

    assert_equal_to_oracle(path, header)
    assert header.metadata["empty"].tolist() == []


def test_the_tiny_and_the_demo_model(tiny_model: Path, demo_model: Path) -> None:
    """Two real models come out equal, tensors and their places included."""
    for path in (tiny_model, demo_model):
        header = read_header(path)
        assert_equal_to_oracle(path, header)
        last = max(header.tensors, key=lambda one: one.offset)
        assert last.offset + last.n_bytes <= path.stat().st_size
        assert header.tensor("token_embd.weight") == header.tensors[0]
        assert header.tensor("no such tensor") is None


def test_the_plain_reader_of_the_tests(demo_model: Path) -> None:
    """The short reader that stands in for GGUFReader agrees with it."""
    values, tensors = read_plainly(demo_model)
    oracle = gguf.GGUFReader(demo_model)

    assert values == {
        name: field.contents()
        for name, field in oracle.fields.items()
        if not name.startswith("GGUF.")
    }
    assert [(name, shape) for name, shape, _, _ in tensors] == [
        (one.name, tuple(one.shape.tolist())) for one in oracle.tensors
    ]


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_alignment_moves_the_data(tmp_path: Path, alignment: int) -> None:
    """Data begins at the next multiple of what the header says."""
    file = small_file()
    file.keys = [entry for entry in file.keys if entry[0] != "nested"]
    file.keys.append(("general.alignment", UINT32, alignment))
    file.alignment = alignment
    path = file.write(tmp_path / "model.gguf")

    header = read_header(path)

    assert_equal_to_oracle(path, header)
    assert all(tensor.offset % alignment == 0 for tensor in header.tensors)


def test_tensors_without_axes_and_without_elements(tmp_path: Path) -> None:
    """A tensor of no axes is one number, and an axis may be zero, as ggml allows."""
    file = File(tensors=[Tensor("one", ()), Tensor("none", (32, 0)), Tensor("all")])
    header = read_header(file.build())

    assert [(one.n_elements, one.n_bytes) for one in header.tensors] == [
        (1, 4),
        (0, 0),
        (32, 128),
    ]
    assert header.tensors[1].offset == header.tensors[2].offset


def test_tensor_data_may_have_gaps() -> None:
    """Space between tensors is no damage, and their order in the file is free."""
    file = File(tensors=[Tensor("late", (32,), offset=4096), Tensor("early", offset=0)])
    file.build()
    file.data += bytes(8192)

    header = read_header(bytes(file.data))

    assert [one.name for one in header.tensors] == ["late", "early"]


def test_nested_arrays_keep_their_shape() -> None:
    """Arrays in arrays become arrays in arrays, four deep at most."""
    inner = Array(INT64, [1, -2])
    file = File(
        [
            (
                "two",
                ARRAY,
                Array(ARRAY, [inner, Array(STRING, ["x"]), Array(BOOL, [])]),
            ),
            ("four", ARRAY, Array(ARRAY, [Array(ARRAY, [Array(ARRAY, [inner])])])),
        ]
    )
    metadata = read_header(file.build()).metadata

    assert metadata["two"].tolist() == [[1, -2], ["x"], []]
    assert metadata["two"].element_type == "array"
    assert metadata["two"][0] == [1, -2]
    assert metadata["two"][1].element_type == "string"
    assert metadata["four"].tolist() == [[[[1, -2]]]]


def test_invalid_utf8_is_replaced() -> None:
    """Broken bytes become U+FFFD; the strings around them stay as they are."""
    broken = b"a\xff\xfeb"
    file = File(
        [("text", STRING, broken), ("texts", ARRAY, Array(STRING, ["é", broken, "c"]))]
    )
    metadata = read_header(file.build()).metadata

    assert metadata["text"] == "a��b"
    assert metadata["texts"] == ["é", "a��b", "c"]
    assert metadata["texts"][1] == "a��b"


def test_reading_can_stop_before_the_vocabulary() -> None:
    """stop_before gives the keys in front, and says that it is not all."""
    data = small_file().build()

    header = read_header(data, stop_before="tokenizer.")

    assert not header.complete
    assert header.tensors == ()
    assert list(header.metadata)[-1] == f"one.of.{FLOAT64}"
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert header.header_bytes == data.index(b"tokenizer.ggml.tokens") - 8
    assert read_header(data, stop_before="nothing.").complete


def test_a_header_is_shown_in_a_line() -> None:
    """The repr counts instead of printing a vocabulary."""
    header = read_header(small_file().build())

    assert repr(header) == "<GGUFHeader <bytes>: version 3, 17 keys, 2 tensors, 1 file>"
    assert header == read_header(small_file().build())


def test_a_header_shows_no_control_characters_of_a_name(tmp_path: Path) -> None:
    """A file's name may hold an escape, or a byte that is no text; neither is shown."""
    for name in (b"m\x1b[2J.gguf", b"m\xe9.gguf"):
        path = small_file().write(tmp_path / os.fsdecode(name))
        shown = repr(read_header(path))

        assert "m\ufffd" in shown
        assert shown.isprintable()


def test_the_beginning_of_a_file_is_enough_without_the_data_check() -> None:
    """check_data=False reads a header whose tensors' data is not there."""
    file = small_file()
    whole = file.build()
    part = whole[: file.header_bytes]

    header = read_header(part, check_data=False)

    assert header.tensors == read_header(whole).tensors
    assert header.tensors[0] == TensorInfo(
        name="token_embd.weight",
        shape=(64, 4),
        type="Q8_0",
        n_bytes=272,
        offset=-(-file.header_bytes // 32) * 32,
        shard=0,
    )


def test_every_living_type_is_read() -> None:
    """A tensor of each type of the table gets the bytes its blocks take."""
    for kind in GGML_TYPES.values():
        file = File(tensors=[Tensor("t", (kind.block_size, 3), kind.id)])
        header = read_header(file.build(), check_data=False)
        assert header.tensors[0].n_bytes == 3 * kind.type_bytes


def test_extreme_numbers_survive() -> None:
    """The ends of the 64-bit types come out exactly."""
    file = File(
        [
            ("most", UINT64, 2**64 - 1),
            ("least", INT64, -(2**63)),
            ("all", ARRAY, Array(UINT64, [0, 2**64 - 1])),
            ("small", ARRAY, Array(INT8, [-128, 127])),
        ]
    )

    assert read_header(file.build()).metadata == {
        "most": 2**64 - 1,
        "least": -(2**63),
        "all": [0, 2**64 - 1],
        "small": [-128, 127],
    }
