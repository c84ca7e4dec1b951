"""Files made by a generator: right ones read like the oracle, others only refused.

The corpus is what ten minutes of coverage-guided fuzzing (``tests/tools/fuzz_gguf.py``,
5.4 million files, none with anything but a GGUFError) found: the smallest files that
together go every way through the reader that any of them went.
"""

from __future__ import annotations

import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_writer import ARRAY, BOOL, CODES, STRING, Array, File, Tensor
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llamatelemetry.exceptions import GGUFError
from llamatelemetry.gguf.reader import GGUFArray, read_header

CORPUS = sorted((Path(__file__).parents[1] / "data" / "gguf_corpus").iterdir())
# What a run does must not depend on the day, so the examples are always the same.
FIXED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def read_all(data: bytes) -> None:
    """Read a header and decode everything in it."""
    header = read_header(data)
    for value in header.metadata.values():
        if isinstance(value, GGUFArray):
            assert len(value.tolist()) == len(value)
            assert [*value[:2], *value[2:]] == list(value) or value != value[:]
    for tensor in header.tensors:
        assert tensor.offset + tensor.n_bytes <= len(data)


def numbers(code: str) -> st.SearchStrategy[Any]:
    """Return what fits into a number of that type."""
    if code in "fd":
        return st.floats(width=32 if code == "f" else 64, allow_nan=False)
    if code == "?":
        return st.booleans()
    bits = 8 * struct.calcsize("<" + code)
    if code.isupper():
        return st.integers(0, 2**bits - 1)
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
BY_KIND = {kind: numbers(code) for kind, code in CODES.items()} | {STRING: TEXTS}
SINGLE = st.sampled_from(list(BY_KIND)).flatmap(
    lambda kind: st.tuples(st.just(kind), BY_KIND[kind])
)
ARRAYS = st.sampled_from(list(BY_KIND)).flatmap(
    lambda kind: st.lists(BY_KIND[kind], max_size=8).map(
        lambda values: (ARRAY, Array(kind, values))
    )
)
KEYS = st.dictionaries(
    TEXTS.filter(lambda key: key != "" and not key.startswith("GGUF.")),
    SINGLE | ARRAYS,
    max_size=6,
)
TENSORS = st.dictionaries(
    st.text("abc._0123456789", min_size=1, max_size=30),
    st.tuples(
        st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from([0, 1])
    ),
    max_size=5,
)


@settings(FIXED, max_examples=60)
@given(KEYS, TENSORS, st.sampled_from("<>"), st.sampled_from([2, 3]))
@example({}, {}, "<", 3)
def test_any_right_file_equals_the_package(
    keys: dict[str, tuple[int, Any]],
    tensors: dict[str, tuple[list[int], int]],
    order: str,
    version: int,
) -> None:
    """Whatever keys, values and tensors a right file has, GGUFReader gives the same."""
    keys.pop("general.alignment", None)
    file = File(
        [(key, *entry) for key, entry in keys.items()],
        [Tensor(name, tuple(shape), kind) for name, (shape, kind) in tensors.items()],
        order=order,
        version=version,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = file.write(Path(folder) / "model.gguf")
        header = read_header(path)
        oracle = gguf.GGUFReader(path)

        fields = {
            name: field.contents()
            for name, field in oracle.fields.items()
            if not name.startswith("GGUF.")
        }
        assert dict(header.metadata) == fields
        for key, (kind, _) in keys.items():
            assert isinstance(header.metadata[key], bool) == (kind == BOOL)
        assert [
            (one.name, one.shape, one.n_bytes, one.offset) for one in header.tensors
        ] == [
            (one.name, tuple(one.shape.tolist()), one.n_bytes, one.data_offset)
            for one in oracle.tensors
        ]


@FIXED
@given(st.binary(max_size=200), st.sampled_from([b"", b"GGUF", b"GGUF\3\0\0\0"]))
def test_noise_is_refused_or_read(noise: bytes, beginning: bytes) -> None:
    """Bytes at random, behind more or less of a right beginning."""
    with suppress(GGUFError):
        read_all(beginning + noise)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name[:12])
def test_the_corpus_is_refused_or_read(path: Path) -> None:
    """Each file that once led a new way through the reader still ends well."""
    with suppress(GGUFError):
        read_all(path.read_bytes())


@settings(FIXED, max_examples=300)
@given(st.data())
def test_corpus_files_with_changes(data: st.DataObject) -> None:
    """Corpus files with bytes replaced, cut out and doubled end well too."""
    content = bytearray(data.draw(st.sampled_from(CORPUS)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        if not content:
            break
        start = data.draw(st.integers(0, len(content) - 1))
        stop = data.draw(st.integers(start, min(start + 16, len(content))))
        content[start:stop] = data.draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(bytes(content[start:stop] * 2)),
                st.sampled_from([b"\xff" * 8, bytes(8), bytes(7) + b"\x80"]),
            )
        )
    with suppress(GGUFError):
        read_all(bytes(content))
