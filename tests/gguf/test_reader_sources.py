"""Where headers are read from, how much is read, and files that are something else."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from gguf_writer import ARRAY, STRING, UINT8, Array, File, Tensor, small_file

from llamatelemetry._units import KIB, MIB
from llamatelemetry.exceptions import GGUFError, LLCudaError, ModelError, OfflineError
from llamatelemetry.gguf._remote import RemoteSource
from llamatelemetry.gguf._source import LocalSource, Source, open_source
from llamatelemetry.gguf.reader import read_header


class CountingSource:
    """Gives exactly the bytes that are asked for, as a careful server would.

    Over a long way it is asked once for what is expected, and half a MiB or an eighth
    more, as the reader of remote files does.
    """

    name = "counting"
    file_name = ""

    def __init__(self, data: bytes, first: int = 256 * KIB, known: bool = True) -> None:
        self._data = data
        self._first = first
        self.size: int | None = len(data) if known else None
        self.requests: list[tuple[int, int]] = []

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Give what is asked for, and note it."""
        ahead = max(self._first, (offset + expected) // 8) if self._first else 0
        wanted = max(length, expected) + ahead if self.requests else self._first
        piece = self._data[offset : offset + max(wanted, length)]
        self.requests.append((offset, len(piece)))
        return piece

    def sibling(self, name: str) -> Source:
        """Refuse; there is one file."""
        raise ModelError(name)

    def close(self) -> None:
        """Do nothing."""

    @property
    def bytes_read(self) -> int:
        """What was given in sum."""
        return sum(length for _, length in self.requests)


def test_all_local_sources_give_the_same(tmp_path: Path) -> None:
    """Path, text, bytes in every form, and open files agree on everything."""
    path = small_file().write(tmp_path / "model.gguf")
    data = path.read_bytes()
    wanted = read_header(path)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for source in (
            str(path),
            data,
            bytearray(data),
            memoryview(data),
            file,
            raw,
            io.BytesIO(data),
            LocalSource(path),
            CountingSource(data),
            CountingSource(data, first=1),
            CountingSource(data, known=False),
        ):
            found = read_header(source)
            assert found.metadata == wanted.metadata
            assert found.tensors == wanted.tensors
            assert found.header_bytes == wanted.header_bytes


def test_an_open_file_is_left_where_it_was(tmp_path: Path) -> None:
    """It is read from its beginning, and its position comes back."""
    path = small_file().write(tmp_path / "model.gguf")
    with path.open("rb") as file:
        file.seek(17)
        assert read_header(file).source == str(path)
        assert file.tell() == 17


def test_a_bytearray_can_change_after_reading() -> None:
    """Nothing holds on to the caller's memory."""
    data = bytearray(small_file().build())
    header = read_header(data)
    data.clear()

    assert header.metadata["tokenizer.ggml.tokens"][2] == "é"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Reading, and failing to, closes what it opened."""
    good = small_file().write(tmp_path / "good.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(good.read_bytes()[:50])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_header(good)
        with pytest.raises(GGUFError):
            read_header(bad)

    assert len(os.listdir("/proc/self/fd")) == before


def test_missing_files_and_what_is_no_file(tmp_path: Path) -> None:
    """Each is a ModelError that says what is there, and no GGUFError."""
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("none.gguf", "no such file"),
        ("", "directory"),
        ("pipe", "not a regular file"),
        ("a\0b", "cannot be opened"),
        ("x" * 300, "cannot be opened"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            read_header(tmp_path / name)
        assert not isinstance(caught.value, GGUFError)
        with pytest.raises(ModelError, match=words):
            read_header(str(tmp_path / name))


def test_files_that_cannot_be_positioned_are_refused(tmp_path: Path) -> None:
    """A pipe and a text file say how to give them instead."""
    reading, writing = os.pipe()
    os.close(writing)
    with (
        os.fdopen(reading, "rb") as pipe,
        pytest.raises(ModelError, match="give the bytes"),
    ):
        read_header(pipe)
    path = small_file().write(tmp_path / "model.gguf")
    with path.open(encoding="latin-1") as text, pytest.raises(ModelError, match="'rb'"):
        read_header(text)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="from int"):
        read_header(5)  # type: ignore[arg-type]


class BrokenFile(io.BytesIO):
    """An open file on a disk that fails once it is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Fail, but where nothing is asked for."""
        if size:
            raise OSError(5, "Input/output error")
        return b""


def closed_file(path: Path) -> BinaryIO:
    """Return a file that was open."""
    with path.open("rb") as file:
        return file


def cut_gzip(path: Path) -> BinaryIO:
    """Return a compressed file that ends too early."""
    return cast(
        "BinaryIO", gzip.open(io.BytesIO(gzip.compress(path.read_bytes())[:-9]))
    )


def bad_gzip(path: Path) -> BinaryIO:
    """Return a compressed file with noise in it."""
    data = bytearray(gzip.compress(path.read_bytes()))
    data[20:40] = bytes(20)
    return cast("BinaryIO", gzip.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    "broken", [closed_file, cut_gzip, bad_gzip, lambda path: BrokenFile(b"GGUF")]
)
def test_an_open_file_that_cannot_be_read_is_a_model_error(
    tmp_path: Path, broken: Callable[[Path], BinaryIO]
) -> None:
    """Closed, compressed and damaged, or on a bad disk: it is one error of ours."""
    file = broken(small_file().write(tmp_path / "model.gguf"))

    with pytest.raises(ModelError, match="cannot be read at") as caught:
        read_header(file)
    assert not isinstance(caught.value, GGUFError)


def test_the_size_of_a_mapped_file_is_known(tmp_path: Path) -> None:
    """A mapped file that lacks data is refused as any other; it has no name."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file().build()[:-200])

    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        pytest.raises(GGUFError, match="<open file>: the file has 1,080 bytes"),
    ):
        read_header(mapped)  # type: ignore[arg-type]
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(small_file().build())
        assert spooled.name is None
        assert read_header(cast("BinaryIO", spooled)).source == "<open file>"


def test_a_tilde_may_be_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there as it is named wins; else the user's folder is meant, if any."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    small_file().write(Path("home", "mine.gguf"))

    for literal in ("~model.gguf", "~/model.gguf", "https:/model.gguf"):
        Path(literal).parent.mkdir(exist_ok=True)
        small_file().write(Path(literal))
        assert read_header(literal).source == literal
        assert read_header(Path(literal)).source == literal
    assert read_header("~/mine.gguf").source == str(tmp_path / "home" / "mine.gguf")
    for source in ("~nosuchuser/m.gguf", Path("~nosuchuser/m.gguf")):
        with pytest.raises(ModelError, match="~nosuchuser/m.gguf: no such file"):
            read_header(source)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ('"https://host.example/x.gguf?Signature=SECRET"', "https://host.example: is"),
        (Path("https://host.example/x.gguf?Signature=SECRET"), "https://host.example:"),
        ("s3://bucket/x.gguf?Signature=SECRET", "s3://bucket: is"),
        ("ftp://user:SECRET@host/x.gguf", "ftp://…: is"),
        ("/tmp/https://user:SEC/RET@host/" + "x" * 300, "https://…: is"),
        ("https://user:SEC/RET@host/x.gguf", "https://…: the"),
        ("https://user:SEC#RET@host/x.gguf", "https://…: the"),
        ("  HTTPS://user:SECRET@host/x.gguf", "HTTPS://…: the"),
    ],
)
def test_an_address_that_is_no_path_keeps_its_secrets(
    source: str | Path, shown: str
) -> None:
    """Only its scheme and host are shown, and no host where a password may be."""
    with pytest.raises(LLCudaError) as caught:
        read_header(source)

    assert str(caught.value).startswith(shown)
    assert "SEC" not in str(caught.value)
    assert "RET" not in str(caught.value)
    assert caught.value.__context__ is None


def test_an_address_is_one_in_any_case_and_with_blanks() -> None:
    """What was pasted with a blank, or in capitals, is no path."""
    for text in (" http://host/m.gguf?Signature=SECRET\n", "HTTP://host/m.gguf#x"):
        source = open_source(text)

        assert isinstance(source, RemoteSource)
        assert source.name.lower() == "http://host/m.gguf"
        source.close()


def test_an_existing_path_wins_over_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and file named like a file on the Hub are read from the disk."""
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    small_file().write(Path("owner/repository:model.gguf"))

    assert isinstance(open_source("owner/repository:model.gguf"), LocalSource)


def test_a_shrinking_file_is_an_error(tmp_path: Path) -> None:
    """A file that somebody shortens while it is read is reported, and kills nobody."""
    path = small_file().write(tmp_path / "model.gguf")
    source = LocalSource(path)
    os.truncate(path, 100)

    with pytest.raises(GGUFError, match="the file ends at byte"):
        read_header(source)
    source.close()


def test_a_disk_that_cannot_be_read_is_named() -> None:
    """An error of the system is a ModelError with the place, and no GGUFError."""
    with pytest.raises(ModelError, match="cannot be read at byte 0") as caught:
        read_header("/proc/self/mem")  # its first page is nobody's: an I/O error
    assert not isinstance(caught.value, GGUFError)


@pytest.mark.parametrize("known", [True, False])
def test_a_source_that_ends_early(known: bool) -> None:
    """Without a size to go by, the end shows when no more bytes come."""
    file = small_file()
    data = file.build()
    for length in range(5, file.header_bytes, 7):
        with pytest.raises(GGUFError, match="download is incomplete"):
            read_header(CountingSource(data[:length], first=16, known=known))
    assert read_header(CountingSource(data[: file.header_bytes], known=False)).tensors


def test_a_missing_file_with_a_colon_is_no_reference(tmp_path: Path) -> None:
    """What is neither there nor a file on the Hub is a missing file."""
    with pytest.raises(ModelError, match="no such file"):
        read_header(str(tmp_path / "a: b.gguf"))


def test_a_misspelt_name_is_told_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is the catalog's in any case; one it has not is answered with the like."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match="Qwen/Qwen3-4B-GGUF: "):
        open_source("QWEN3-4B")
    with pytest.raises(ModelError, match=r"no such name.*qwen3-4b, qwen3-14b"):
        open_source("qwen3-4x")
    with pytest.raises(ModelError, match="Give the path"):
        open_source("qwen3-4x.gguf")


def test_local_reading_loads_no_client(tmp_path: Path) -> None:
    """Reading a local file imports no HTTP client, no Hub client and no numpy."""
    path = small_file().write(tmp_path / "model.gguf")
    program = (
        "import sys\n"
        "from llamatelemetry.gguf.reader import read_header\n"
        f"read_header({str(path)!r})\n"
        "heavy = {'requests', 'urllib3', 'http.client', 'huggingface_hub', 'numpy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


FOREIGN = {
    b"": "is empty",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "git lfs pull",
    b"<!DOCTYPE html><html lang='en'>": "web page",
    b"\n  <html><head>": "web page",
    b"<?xml version='1.0'?><Error><Code>AccessDenied": "XML",
    b'{"error":"Repository not found"}': "JSON",
    b"Entry not found": "error message",
    b"Invalid username or password.": "error message",
    (1000).to_bytes(8, "little") + b'{"__metadata__":{}}': "safetensors",
    pickle.dumps({"a": 1}, 2): "pickle",
    pickle.dumps({"a": 1}, 4): "pickle",
    b"lmgg" + bytes(20): "2023",
    b"fmgg" + bytes(20): "2023",
    b"tjgg" + bytes(20): "2023",
    b"algg" + bytes(20): "adapter",
    b"\x1f\x8b\x08\x00": "gzip",
    b"\x28\xb5\x2f\xfd\x04": "Zstandard",
    bytes(100): "zero bytes",
    b"\x93NUMPY\x01\x00": "begins with b'\\x93NUM'",
    b"FUGG" + bytes(20): "backwards",
}


@pytest.mark.parametrize("data", FOREIGN, ids=lambda data: repr(data[:12]))
def test_files_of_another_kind_are_named(data: bytes, tmp_path: Path) -> None:
    """What is not GGUF is said to be what it is, with what to do."""
    path = tmp_path / "model.gguf"
    path.write_bytes(data)

    with pytest.raises(GGUFError) as caught:
        read_header(path)

    assert FOREIGN[data] in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert caught.value.path == str(path)
    assert caught.value.offset == 0


def test_a_torch_checkpoint_is_named() -> None:
    """PyTorch's ZIP files, most often renamed to .gguf, are recognised."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", "x")
        with pytest.raises(GGUFError, match="PyTorch"):
            read_header(file)


def vocabulary(count: int, tensors: int = 0) -> File:
    """Return a model whose tokens, as usual, begin short and grow long."""
    tokens = [f"{number:x}" * (1 + number.bit_length() // 6) for number in range(count)]
    return File(
        [
            ("general.name", STRING, "vocabulary"),
            ("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens)),
            ("tokenizer.ggml.token_type", ARRAY, Array(UINT8, [1] * count)),
            ("tokenizer.ggml.merges", ARRAY, Array(STRING, tokens[::-1])),
        ],
        [Tensor(f"blk.{number}.attn_q.weight", (64, 64)) for number in range(tensors)],
    )


@pytest.mark.parametrize(
    ("count", "tensors"),
    [(0, 10), (100, 300), (5_000, 700), (40_000, 2_000), (120_000, 300)],
)
def test_a_header_takes_few_requests(count: int, tensors: int) -> None:
    """The parser's estimates lead to at most 8 requests, and to little too much."""
    file = vocabulary(count, tensors)
    source = CountingSource(file.build() + bytes(16 * MIB))

    header = read_header(source)

    assert len(source.requests) <= 8
    allowed = max(header.header_bytes // 4, 512 * KIB)
    assert source.bytes_read <= header.header_bytes + allowed
    assert header.header_bytes == file.header_bytes


def test_the_metadata_alone_takes_one_request() -> None:
    """Stopping before the vocabulary asks for nothing of it."""
    source = CountingSource(vocabulary(120_000).build())

    read_header(source, stop_before="tokenizer.")

    assert source.requests == [(0, 256 * KIB)]


def test_bytes_are_read_once_and_in_order() -> None:
    """Each request begins where the one before ended."""
    source = CountingSource(vocabulary(40_000, 100).build(), first=100)

    read_header(source)

    position = 0
    for offset, length in source.requests:
        assert offset == position
        position += length


def test_long_first_strings_do_not_mislead() -> None:
    """An estimate from a few long strings reaches only so far."""
    texts = ["x" * 20_000] * 13 + ["y"] * 100_000
    file = File([("texts", ARRAY, Array(STRING, texts))])
    source = CountingSource(file.build() + bytes(64 * MIB))

    header = read_header(source)

    assert source.bytes_read <= header.header_bytes + 16 * 256 * KIB
    assert header.metadata["texts"] == texts
