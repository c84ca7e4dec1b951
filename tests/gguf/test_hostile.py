"""Damaged and hostile files: only GGUFError comes out, and it costs little."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest
from gguf_writer import (
    ARRAY,
    F32,
    INT32,
    Q4_0,
    Q8_0,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Array,
    File,
    Tensor,
    put,
    small_file,
)

from llamatelemetry._units import KIB, MIB
from llamatelemetry.exceptions import GGUFError
from llamatelemetry.gguf._source import BytesSource
from llamatelemetry.gguf.reader import GGUFArray, GGUFHeader, read_header

ORDERS = ["<", ">"]
SMALL = {order: small_file(order) for order in ORDERS}
DATA = {order: SMALL[order].build() for order in ORDERS}
VALUES = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


class MeasuredSource(BytesSource):
    """Memory that counts what is taken from it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.bytes_read = 0

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Give bytes and count them."""
        piece = super().fetch(offset, length, expected)
        self.bytes_read += len(piece)
        return piece


def read_all(data: bytes) -> GGUFHeader:
    """Read a header and decode every array of it."""
    header = read_header(data)
    for value in header.metadata.values():
        if isinstance(value, GGUFArray):
            assert len(value.tolist()) == len(value)
            assert repr(value)
    return header


def refused(data: bytes) -> GGUFError:
    """Return the error of a file, whose place must lie within reach."""
    with pytest.raises(GGUFError) as caught:
        read_header(data)
    error = caught.value
    assert error.path == "<bytes>"
    assert error.offset is not None
    return error


@pytest.mark.parametrize("order", ORDERS)
def test_truncated_at_every_byte(order: str) -> None:
    """No beginning of a file passes for the file."""
    data = DATA[order]
    for length in range(len(data)):
        error = refused(data[:length])
        if length > 4:
            assert "the download is incomplete" in str(error), length


def test_a_truncated_file_says_how_much_is_missing() -> None:
    """The message names the tensor and the bytes."""
    file = File(tensors=[Tensor("blk.0.ffn_up.weight", (1024, 1024))])
    data = file.build()[:-1_048_576]

    assert "ends 1.0 MB before the end of tensor 'blk.0.ffn_up.weight'" in str(
        refused(data)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", VALUES)
def test_every_number_replaced(order: str, value: int) -> None:
    """Whatever stands in a number's place, there is a header or a GGUFError."""
    for number in SMALL[order].numbers:
        data = put(DATA[order], number, value, order)
        with suppress(GGUFError):
            read_all(data)
            # No count, length, type or place of this file can be as large as that.
            assert value % (1 << 8 * number.size) < 2**31, number.name


def test_every_byte_replaced() -> None:
    """A byte turned over anywhere gives a header or a GGUFError."""
    data = bytearray(DATA["<"])
    for position in range(SMALL["<"].header_bytes):
        for change in (0x01, 0x80, 0xFF):
            data[position] ^= change
            with suppress(GGUFError):
                read_all(bytes(data))
            data[position] ^= change


def test_bytes_at_random() -> None:
    """Noise behind a right beginning, and noise within a file."""
    generator = random.Random(0)
    for _ in range(500):
        noise = DATA["<"][:24] + generator.randbytes(generator.randrange(300))
        changed = bytearray(DATA["<"])
        for _ in range(generator.randint(1, 8)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        for data in (noise, bytes(changed)):
            with suppress(GGUFError):
                read_all(data)


def keys(*entries: object) -> bytes:
    """Return a file of these keys."""
    return File(list(entries)).build() + bytes(16)  # type: ignore[arg-type]


def tensors(*entries: Tensor, **more: object) -> bytes:
    """Return a file of these tensors, with data."""
    return File(tensors=list(entries), **more).build() + bytes(8192)  # type: ignore[arg-type]


def nested(depth: int) -> Array:
    """Return arrays within arrays."""
    return Array(UINT8, [1]) if depth == 1 else Array(ARRAY, [nested(depth - 1)])


REFUSED: dict[str, tuple[bytes, str]] = {
    "version 0": (File(version=0).build(), "version 0"),
    "version 1": (File(version=1).build(), "no longer reads that version"),
    "version 4": (File(version=4).build(), "newer than this reader"),
    "big version 1": (File(version=1, order=">").build(), "version 1 "),
    "big version 99": (File(version=99, order=">").build(), "version 99"),
    "magic": (File(magic=b"GGUG").build(), "instead of b'GGUF'"),
    "no key": (keys(("", UINT8, 1)), "key 1 of 1 is empty"),
    "key twice": (keys(("a", UINT8, 1), ("a", UINT8, 1)), "'a' stands in"),
    "key no UTF-8": (keys((b"\xff", UINT8, 1)), "no UTF-8"),
    "long key": (keys(("k" * 65536, UINT8, 1)), "at most 65,535"),
    "type 13": (keys(("a", 13, b"\0")), "has type 13; known are 0 uint8"),
    "element type 13": (keys(("a", ARRAY, Array(13, [b"\0"]))), "has type 13"),
    "nested 5": (keys(("a", ARRAY, nested(5))), "more than 4 deep"),
    "nested 200": (keys(("a", ARRAY, nested(200))), "more than 4 deep"),
    "alignment 0": (keys(("general.alignment", UINT32, 0)), "no power of two"),
    "alignment 24": (keys(("general.alignment", UINT32, 24)), "no power of two"),
    "alignment text": (keys(("general.alignment", STRING, "32")), "no power of"),
    "five axes": (tensors(Tensor("t", (1, 1, 1, 1, 1))), "has 5 axes"),
    "type 31": (tensors(Tensor("t", kind=31)), "no longer reads"),
    "type 1000": (tensors(Tensor("t", kind=1000)), "type 1,000"),
    "block": (tensors(Tensor("t", (33,), Q4_0)), "blocks of 32"),
    "offset": (tensors(Tensor("t", offset=16)), "no multiple of the alignment"),
    "long name": (tensors(Tensor("t" * 64)), "at most 63"),
    "name no UTF-8": (tensors(Tensor(b"\xc3")), "no UTF-8"),
    "name twice": (tensors(Tensor("t"), Tensor("t")), "stands in the table twice"),
    "overlap": (tensors(Tensor("a", (64,)), Tensor("b", offset=128)), "begins at"),
    "same place": (tensors(Tensor("a"), Tensor("b", offset=0)), "begins at"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_rules(name: str) -> None:
    """Each rule of the format has an error that names it."""
    data, words = REFUSED[name]

    assert words in str(refused(data))


@pytest.mark.parametrize(
    "shape",
    [
        (2**63,),
        (2**32, 2**32),
        (2**16, 2**16, 2**16, 2**16),
        (2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1),
        (0, 2**63),
        (2**64 - 1, 0),
    ],
)
def test_axes_whose_product_overflows(shape: tuple[int, ...]) -> None:
    """More elements than 63 bits count are refused, also beside an axis of zero."""
    file = File(tensors=[Tensor("t", shape, F32)], with_data=False)

    assert "more elements than ggml" in str(refused(file.build()))


def test_bytes_that_overflow_do_not_wrap() -> None:
    """Sizes and offsets near 2^64 end beyond the file, and are refused there."""
    for tensor in (
        Tensor("t", (2**62,), Q8_0, 0),
        Tensor("t", (32,), F32, 2**64 - 32),
        Tensor("t", (2**61 - 32,), F32, 2**63),
    ):
        file = File(tensors=[tensor], with_data=False)
        assert "before the end of tensor" in str(refused(file.build()))


LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "keys": (lambda: _lie("key count", 2**60), "at most 16,384"),
    "tensors": (lambda: _lie("tensor count", 2**60), "at most 32,768"),
    "strings": (lambda: _lie("count of 'tokenizer.ggml.tokens'", 2**40), "at most 2,0"),
    "few strings": (lambda: _lie("count of 'tokenizer.ggml.tokens'", 2**20), "cannot"),
    "numbers": (lambda: _lie("count of 'tokenizer.ggml.scores'", 2**40), "cannot be"),
    "arrays": (lambda: _lie("count of 'nested'", 2**40), "cannot be in the"),
    "string": (
        lambda: _lie("length of value of 'tokenizer.ggml.tokens'", 2**40),
        "string 1 of 'tokenizer.ggml.tokens' is 1,099,511,627,776 bytes long",
    ),
    "text": (lambda: _lie("length of value of 'general.architecture'", 2**40), "wrong"),
}


def _lie(name: str, value: int) -> bytes:
    number = next(one for one in SMALL["<"].numbers if one.name == name)
    return put(DATA["<"], number, value) + bytes(MIB)


@pytest.mark.parametrize("name", LIES)
def test_a_count_that_lies_costs_nothing(name: str) -> None:
    """Counts are compared with the file before anything is read for them."""
    make, words = LIES[name]
    source = MeasuredSource(make())

    with pytest.raises(GGUFError) as caught:
        read_header(source)

    assert words in str(caught.value)
    assert source.bytes_read <= 128 * KIB


def _with_count(number: str, count: int, entry: bytes) -> bytes:
    """Return a file whose tensors or keys are this entry; {} is its number."""
    counts = {"tensors": (count, 0), "keys": (0, count)}[number]
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts)
    return head + b"".join(entry % index for index in range(count)) + bytes(64)


def _array(kind: int, count: int, elements: bytes) -> bytes:
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", ARRAY, kind, count)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + elements


_TENSOR = (
    struct.pack("<Q", 63)
    + b"%063d"
    + struct.pack("<IQQQQIQ", 4, *[2**15 - 1] * 3, 0, F32, 0)
)
_KEY = struct.pack("<Q", 8) + b"%08d" + struct.pack("<IIQ", ARRAY, INT32, 0)
_BROAD = ("🦙" + "x" * (3 * MIB - 64)).encode()


def _everything() -> bytes:
    """Return a file with the most tensors, keys, text, arrays and bytes at once."""

    def key(name: bytes, kind: int, value: bytes) -> bytes:
        return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value

    def array(kind: int, count: int, elements: bytes) -> bytes:
        return struct.pack("<IQ", kind, count) + elements

    tensors, count = 32768, 16384
    table = b"".join(_TENSOR % number for number in range(tensors))
    text = ("🦙" + "x" * (3 * MIB - tensors * 63 - count * 8 - 64)).encode()
    inner = struct.pack("<IQ", UINT16, 0) * 4096
    values = [
        key(b"text", STRING, struct.pack("<Q", len(text)) + text),
        key(b"arrays", ARRAY, array(ARRAY, 4096, inner)),
    ]
    few = [key(b"%08d" % n, ARRAY, array(INT32, 0, b"")) for n in range(count - 4)]
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, count)
    known = len(head + table + b"".join(values + few)) + 64
    strings = 2**21
    values.append(key(b"strings", ARRAY, array(STRING, strings, bytes(strings * 8))))
    rest = 32 * MIB - known - strings * 8 - 64
    values.append(key(b"rest", ARRAY, array(UINT8, rest, bytes(rest))))
    return head + b"".join(values + few) + table + bytes(64)


COSTLY: dict[str, Callable[[], bytes]] = {
    "most tensors": lambda: _with_count("tensors", 32768, _TENSOR),
    "most keys": lambda: _with_count("keys", 16384, _KEY),
    "most strings": lambda: _array(
        STRING, 2 * MIB, (struct.pack("<Q", 7) + bytes(7)) * 2 * MIB
    ),
    "more than a header": lambda: _array(UINT64, 8 * MIB, bytes(64 * MIB)),
    "most inner arrays": lambda: _array(
        ARRAY, 4096, struct.pack("<IQ", UINT16, 0) * 4096
    ),
    "a broad text": lambda: keys(("a", STRING, _BROAD)),
    "too much text": lambda: keys(*((f"{n}", STRING, b"x" * MIB) for n in range(4))),
    "one huge string": lambda: _array(
        STRING, 1, struct.pack("<Q", 60 * MIB) + bytes(60 * MIB)
    ),
    "many numbers": lambda: _array(UINT64, 4 * MIB - 8, bytes(32 * MIB - 64)),
    "everything at once": _everything,
}


@pytest.mark.parametrize("name", COSTLY)
def test_no_file_costs_much_memory(name: str) -> None:
    """The worst files that can be made within the limits stay under 64 MiB."""
    source = MeasuredSource(COSTLY[name]())
    tracemalloc.start()
    try:
        with suppress(GGUFError):
            read_header(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 64 * MIB
    assert source.bytes_read <= 32 * MIB + 2 * MIB


_LONG = "\x1b[2J" + "\x01" * (2 * MIB)
_LONG_ARRAY = Array(STRING, [b"\xff" * (8 * MIB)])

WRONG_VALUES: dict[str, Callable[[], bytes]] = {
    "alignment": lambda: keys(("general.alignment", STRING, _LONG)),
    "alignment array": lambda: keys(("general.alignment", ARRAY, _LONG_ARRAY)),
    "split.count": lambda: keys(("split.count", STRING, _LONG)),
    "split.count array": lambda: keys(("split.count", ARRAY, _LONG_ARRAY)),
    "key twice": lambda: keys(*[("\x1b" + "k" * 60_000, UINT8, 1)] * 2),
    "key": lambda: keys(("\x1b" + "k" * 60_000, 13, b"")),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_no_message_holds_a_whole_value(name: str) -> None:
    """A wrong value or key is shown by its beginning, in letters that are harmless."""
    data = WRONG_VALUES[name]()
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError) as caught:
            read_header(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert peak < 3 * len(data) + MIB


def test_limits_let_everything_up_to_them_through() -> None:
    """The largest files within the limits are read, and one more is refused."""
    assert len(read_header(COSTLY["most tensors"]()).tensors) == 32768
    assert len(read_header(COSTLY["most keys"]()).metadata) == 16384
    assert len(read_header(COSTLY["most inner arrays"]()).metadata["a"]) == 4096
    assert len(read_header(COSTLY["most strings"]()).metadata["a"]) == 2**21
    assert read_header(COSTLY["a broad text"]()).metadata["a"][0] == "🦙"
    everything = read_header(COSTLY["everything at once"]())
    assert (len(everything.tensors), len(everything.metadata)) == (32768, 16384)
    assert everything.header_bytes > 31 * MIB
    inner = struct.pack("<IQ", UINT16, 0) * 4097
    assert "at most 4,096" in str(refused(_array(ARRAY, 4097, inner)))
    strings = _array(STRING, 2**21 + 1, bytes(17 * MIB))
    assert "at most 2,097,152" in str(refused(strings))
    assert "in sum" in str(refused(COSTLY["too much text"]()))
    assert "cannot be in a header" in str(refused(COSTLY["more than a header"]()))
    assert "larger than 32.0 MiB" in str(refused(COSTLY["one huge string"]()))
