"""Archives of engines: unpacked without trust, packed the same way every time."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatelemetry.exceptions import (
    ConfigurationError,
    DiskSpaceError,
    LLCudaError,
    SetupError,
    UnsafeArchiveError,
)
from llamatelemetry.setup import _archive
from llamatelemetry.setup._archive import pack, unpack
from llamatelemetry.setup._archive_bytes import content

MIB = 2**20
GB_100 = 100 * 10**9
END = bytes(1024)
PROGRAM = b"\x7fELF" + bytes(range(256)) * 700

_Usage = namedtuple("_Usage", "total used free")  # noqa: PYI024 - as shutil has it

zstd = zstandard.ZstdCompressor(level=3).compress
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder to unpack into, with a neighbour to be left alone."""
    place = tmp_path / "around" / "staging"
    place.mkdir(parents=True)
    (place.parent / "secret").write_text("untouched")
    return place


@pytest.fixture(autouse=True)
def _nothing_around_is_touched(folder: Path) -> Iterator[None]:
    yield
    assert sorted(os.listdir(folder.parent)) == ["secret", "staging"]
    assert (folder.parent / "secret").read_text() == "untouched"
    assert (folder.parent / "secret").stat().st_nlink == 1
    assert_all_within(folder)


def assert_all_within(folder: Path) -> None:
    """Check that no link in a folder leads out of it, whatever it leads through."""
    real = os.path.realpath(folder)
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(root, name)
            assert stat.S_IFMT(os.lstat(path).st_mode) in (
                stat.S_IFREG,
                stat.S_IFDIR,
                stat.S_IFLNK,
            )
            assert f"{os.path.realpath(path)}/".startswith(f"{real}/"), path


def member(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    mode: int = 0o644,
    size: int | None = None,
    form: int = tarfile.GNU_FORMAT,
    pax: dict[str, str] | None = None,
) -> bytes:
    """Return a member of a tar as bytes, its size as told or that of its content."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, target, mode
    entry.size = len(content) if size is None else size
    entry.uid, entry.gid, entry.uname = 12345, 54321, "somebody"
    entry.pax_headers = pax or {}
    head = entry.tobuf(form, "utf-8", "surrogateescape")
    return head + content + bytes(-len(content) % 512)


def link(name: str, target: str) -> bytes:
    """Return a symbolic link as a member."""
    return member(name, kind=tarfile.SYMTYPE, target=target)


def hard_link(name: str, target: str) -> bytes:
    """Return a hard link as a member."""
    return member(name, kind=tarfile.LNKTYPE, target=target)


def with_sum(block: bytes) -> bytes:
    """Return a header with the checksum it should have."""
    spaced = block[:148] + b" " * 8 + block[156:]
    return spaced[:148] + b"%06o\0 " % sum(spaced) + spaced[156:]


def patched(block: bytes, place: int, data: bytes) -> bytes:
    """Return a header with some bytes replaced."""
    return with_sum(block[:place] + data + block[place + len(data) : 512]) + block[512:]


def written(folder: Path, data: bytes, name: str = "engine.tar") -> Path:
    """Write an archive outside of everything a test looks at."""
    place = folder.parents[1] / "archives"
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(data)
    return place / name


def names_in(folder: Path) -> list[str]:
    """Return all that is in a folder, by name."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def mode_of(path: Path) -> int:
    """Return a file's permissions with all special bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def unpack_tar(folder: Path, *members: bytes, **limits: int) -> list[str]:
    """Unpack a tar of these members; return the names of the files."""
    archive = written(folder, b"".join(members) + END)
    files = unpack(archive, folder, kind="tar", **limits)
    return [str(path.relative_to(folder)) for path in files]


# What a good archive becomes.


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, 2])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression_and_format_is_unpacked(
    folder: Path, compression: str, form: int
) -> None:
    """What a tar is compressed with is found by its bytes, in all three formats."""
    deep = "/".join(["a-folder-of-some-length"] * 4)
    data = b"".join(
        [
            member("./", kind=tarfile.DIRTYPE, form=form),
            member("./engine/bin/llama-server", PROGRAM, mode=0o755, form=form),
            member(f"engine/{deep}/grüße.txt", b"text", form=form),
            member("engine//lib/./libggml.so.0", b"", mode=0o640, form=form),
        ]
    )
    archive = written(folder, COMPRESSIONS[compression](data + END), "any-name")

    files = unpack(archive, folder, kind="tar")

    assert files == [
        folder / "engine/bin/llama-server",
        folder / "engine" / deep / "grüße.txt",
        folder / "engine/lib/libggml.so.0",
    ]
    assert [path.read_bytes() for path in files] == [PROGRAM, b"text", b""]
    assert [mode_of(path) for path in files] == [0o755, 0o644, 0o644]


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_what_gnu_tar_writes_is_unpacked(folder: Path, form: str) -> None:
    """The program tar's own archives come out as they went in, in each format."""
    source = folder.parents[1] / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin/llama").write_bytes(PROGRAM)
    (source / "bin/llama").chmod(0o750)
    (source / "libggml.so").symlink_to("bin/../bin/llama")
    os.link(source / "bin/llama", source / "llama-server")
    if form in ("gnu", "oldgnu", "pax"):
        (source / ("n" * 200)).write_text("long")
        (source / "far").symlink_to("n" * 200)
    archive = folder.parents[1] / "made.tar.gz"
    subprocess.run(
        ["tar", f"--format={form}", "-czf", archive, "-C", source, "."], check=True
    )

    unpack(archive, folder, kind="tar")

    assert names_in(folder) == names_in(source)
    for name in names_in(source):
        if (source / name).is_symlink():
            assert os.readlink(folder / name) == os.readlink(source / name)
        elif (source / name).is_file():
            assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert (folder / "bin/llama").samefile(folder / "llama-server")
    assert mode_of(folder / "bin/llama") == 0o755


def test_a_tar_of_git_is_unpacked(folder: Path) -> None:
    """A header about all members is passed over where it names none of them."""
    about_all = b"52 comment=" + b"0" * 40 + b"\n"
    head = member("pax_global_header", about_all, kind=tarfile.XGLTYPE)

    assert unpack_tar(folder, head, member("a", b"1")) == ["a"]


def test_times_in_gnus_header_are_no_part_of_the_name(folder: Path) -> None:
    """Where POSIX has the begin of a long name, GNU's header may have other things."""
    times = patched(member("a", b"1"), 345, b"01234567012\0" * 2)

    assert unpack_tar(folder, times) == ["a"]


def test_links_within_the_folder_are_made(folder: Path) -> None:
    """Libraries' links, links to folders, and links to nothing that is there stay."""
    files = unpack_tar(
        folder,
        link("e/lib/libggml.so", "libggml.so.0"),
        link("e/lib/libggml.so.0", "./libggml.so.0.9"),
        member("e/lib/libggml.so.0.9", PROGRAM, mode=0o755),
        link("e/current", "lib"),
        link("e/bin/lib", "../current/../lib"),
        link("e/lib/libcudart.so", "libcudart.so.12"),
        link("only/a/link", "../../e/bin"),
        hard_link("e/bin/copy", "./e/lib/libggml.so.0.9"),
    )

    assert files == ["e/lib/libggml.so.0.9", "e/bin/copy"]
    assert (folder / "e/lib/libggml.so").read_bytes() == PROGRAM
    assert (folder / "e/bin/lib/libggml.so").read_bytes() == PROGRAM
    assert (folder / "only/a/link/copy").samefile(folder / files[0])
    assert os.readlink(folder / "e/lib/libcudart.so") == "libcudart.so.12"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_permissions_are_two(folder: Path, umask: int) -> None:
    """Of all bits the owner's "may execute" alone counts, whatever the umask is."""
    before = os.umask(umask)
    try:
        unpack_tar(
            folder,
            member("suid", mode=0o6755),
            member("sticky", mode=0o1666),
            member("open", mode=0o777),
            member("others", mode=0o011),
            member("none", mode=0o000),
            member("dir", kind=tarfile.DIRTYPE, mode=0o7777),
            member("closed/file", mode=0o100),
        )
    finally:
        os.umask(before)

    found = {name: oct(mode_of(folder / name)) for name in names_in(folder)}
    assert found == {
        "suid": "0o755",
        "sticky": "0o644",
        "open": "0o755",
        "others": "0o644",
        "none": "0o644",
        "dir": "0o755",
        "closed": "0o755",
        "closed/file": "0o755",
    }
    assert (folder / "suid").stat().st_uid == os.getuid()


def test_the_bytes_written_are_noted(folder: Path) -> None:
    """Progress rises piece by piece over all files, to the sum of their bytes."""
    data = member("a", bytes(3 * MIB)) + member("b", b"12345") + END
    seen: list[int] = []

    unpack(written(folder, data), folder, kind="tar", note=seen.append)

    assert seen == sorted(set(seen))
    assert len(seen) >= 4
    assert seen[-1] == 3 * MIB + 5


# What a hostile archive does not become.


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("../evil", "leaves the folder by '..'"),
        ("a/../../evil", "leaves the folder by '..'"),
        ("a/..", "leaves the folder by '..'"),
        ("..", "leaves the folder by '..'"),
        ("/tmp/evil", "absolute"),
        ("//evil", "absolute"),
        ("/", "absolute"),
        (".", "the folder itself"),
        ("a\nb", "cannot be shown"),
        ("a\x1b[2Jb", "cannot be shown"),
        ("a\u202egnp.exe", "cannot be shown"),
        ("a\udcffb", "cannot be shown"),
        ("n" * 256, "over 255 bytes"),
        ("ü" * 128, "over 255 bytes"),
        ("/".join(["n" * 200] * 6), "over 1024 bytes"),
        ("/".join("a" * 65), "64 folders deep"),
    ],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hostile_names_are_refused(
    folder: Path, name: str, rule: str, form: int
) -> None:
    """Names that leave the folder, steer a terminal or fit no disk are refused."""
    with pytest.raises(UnsafeArchiveError, match=rule) as caught:
        unpack_tar(folder, member("first", b"1"), member(name, form=form))

    assert "engine.tar: the member '" in str(caught.value)
    assert str(caught.value).isprintable()
    assert names_in(folder) == ["first"]


def test_a_name_of_nothing_is_refused(folder: Path) -> None:
    """A member without a name, and one with a zero inside of it, are no members."""
    with pytest.raises(UnsafeArchiveError, match="its name is empty"):
        unpack_tar(folder, patched(member("a"), 0, b"\0"))
    record = b"16 path=a\0/../b\n"
    with pytest.raises(UnsafeArchiveError, match="cannot be shown"):
        unpack_tar(folder, member("x", record, kind=tarfile.XHDTYPE), member("a"))


@pytest.mark.parametrize(
    "members",
    [
        [link("a", "/etc")],
        [link("a", "..")],
        [link("a", "../staging/b"), member("b")],
        [link("a", "b/../.."), member("b/c")],
        [link("a", "missing/../../x")],
        [link("d/a", "../.."), member("d/b")],
        [link("a", "b/../.."), link("b", "c/d"), link("c", "."), member("d/e")],
        [link("d/e/up", ".."), link("out", "d/e/up/../../..")],
        [link("a", "b/../../x"), link("b", "c"), member("c/d")],
        # By names alone a/.. is harmless; through the link it is the folder above.
        [link("d/here", ".."), link("d/out", "here/../secret")],
        [link("x/y/z", "../.."), link("out", "x/y/z/..")],
    ],
)
def test_links_out_of_the_folder_are_refused(
    folder: Path, members: list[bytes]
) -> None:
    """A link that ends outside is refused, in whatever order its parts come."""
    for order in (members, members[::-1]):
        with pytest.raises(UnsafeArchiveError, match="leaves the folder"):
            unpack_tar(folder, *order)
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        shutil.rmtree(folder)
        folder.mkdir()


def test_links_without_an_end_are_refused(folder: Path) -> None:
    """Circles and chains longer than Linux follows are refused, and do not hang."""
    chain = [link(f"l{number}", f"l{number + 1}") for number in range(50)]
    for members in ([link("a", "b"), link("b", "a")], [link("a", "a/b")], chain):
        with pytest.raises(UnsafeArchiveError, match="more than 40 links"):
            unpack_tar(folder, *members)


def test_links_that_multiply_take_no_time(folder: Path) -> None:
    """Each of thirty links goes through the next one twice: a billion steps in all."""
    members = [
        link(f"l{number}", f"l{number + 1}/l{number + 1}") for number in range(30)
    ]

    assert unpack_tar(folder, *members, link("l30", ".")) == []


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ([link("a", "b"), member("a/evil", b"1")], "'a', where it lies, is a link"),
        ([link("a", "/tmp"), member("a/evil", b"1")], "'a', where it lies, is a link"),
        ([link("a", "b"), member("a", b"1")], "there twice, as a link and as a file"),
        ([link("a", "b"), link("a", "/etc")], "there twice, as a link and as a link"),
        ([link("a", "b"), link("./a//", "/etc")], "there twice"),
        ([member("a/b"), link("a", "/tmp")], "there twice, as a folder and as a link"),
        ([member("a"), member("a/b")], "'a', where it lies, is a file"),
        ([member("a/b"), member("a")], "there twice, as a folder and as a file"),
        ([member("a", b"1"), member("./a", b"2")], "as a file and as a file"),
        ([member("a"), member("a", kind=tarfile.DIRTYPE)], "as a file and as a folder"),
        ([link(".", "a")], "the folder itself"),
        ([link("a", "b\n")], "its target holds what cannot be shown"),
        ([link("a", "b/" * 600)], "its target has over 1024 bytes"),
        ([patched(link("a", "b"), 157, b"\0")], "its target is empty"),
        ([hard_link("a", "/etc/passwd")], "absolute"),
        ([hard_link("a", "../secret")], "leaves the folder"),
        ([hard_link("a", "secret")], "no file before it"),
        ([hard_link("a", "a")], "no file before it"),
        ([link("b", "../secret"), hard_link("a", "b")], "no file before it"),
        ([link("b", ".."), hard_link("a", "b/secret")], "no file before it"),
        ([member("b/c"), hard_link("a", "b")], "no file before it"),
        ([member("b"), hard_link("b", "b")], "there twice"),
    ],
)
def test_no_member_changes_another(
    folder: Path, members: list[bytes], rule: str
) -> None:
    """Nothing is written through a link, over a file, or into what is no folder."""
    with pytest.raises(UnsafeArchiveError, match=rule):
        unpack_tar(folder, *members)


def test_a_folder_may_be_named_again(folder: Path) -> None:
    """Folders are often named after what is in them, and more than once."""
    again = member("a", kind=tarfile.DIRTYPE)

    assert unpack_tar(folder, member("a/b", b"1"), again, again) == ["a/b"]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (b"3", "a character device"),
        (b"4", "a block device"),
        (b"6", "a named pipe"),
        (b"D", "a folder's listing"),
        (b"M", "a part of a file"),
        (b"V", "a volume's label"),
        (b"Z", "of the unknown kind b'Z'"),
        (b"\xff", "of the unknown kind"),
    ],
)
def test_other_kinds_are_refused(folder: Path, kind: bytes, rule: str) -> None:
    """Devices, pipes and kinds that no engine needs are refused by name."""
    block = patched(member("thing", kind=b"0"), 156, kind)
    with pytest.raises(UnsafeArchiveError, match=f"'thing' is refused: it is {rule}"):
        unpack_tar(folder, block)
    assert names_in(folder) == []


def test_links_and_folders_hold_no_bytes(folder: Path) -> None:
    """Readers disagree whether content follows such a member, so there may be none."""
    for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
        with pytest.raises(UnsafeArchiveError, match="with 7 bytes in it"):
            unpack_tar(folder, member("a", b"content", kind=kind, target="b"))


# Bombs.


def sparse_members() -> list[bytes]:
    """Return files of 100 GB with nothing in them, in the four ways there are."""
    old = patched(
        member("hole", kind=b"S"), 483, (b"\x80" + GB_100.to_bytes(11, "big"))
    )
    records = [
        {"GNU.sparse.size": str(GB_100), "GNU.sparse.map": "0,0"},
        {"GNU.sparse.size": str(GB_100), "GNU.sparse.numblocks": "1"},
        {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "hole",
            "GNU.sparse.realsize": str(GB_100),
        },
    ]
    return [old, *(member("hole", form=tarfile.PAX_FORMAT, pax=one) for one in records)]


@pytest.mark.parametrize("number", range(4))
def test_sparse_files_are_refused_unread(folder: Path, number: int) -> None:
    """A file of 100 GB that is all hole is refused by what its header says."""
    with pytest.raises(UnsafeArchiveError, match="'hole'.* sparse file, .*100.0 GB"):
        unpack_tar(folder, sparse_members()[number])
    assert names_in(folder) == []


def test_what_gnu_tar_writes_of_holes_is_refused(folder: Path) -> None:
    """The program tar's own sparse archives are recognised, in both its formats."""
    source = folder.parents[1] / "source"
    source.mkdir()
    with (source / "hole").open("wb") as file:
        file.truncate(GB_100)
    for form in ("gnu", "pax"):
        archive = folder.parents[1] / f"{form}.tar"
        command = ["tar", f"--format={form}", "-cSf", archive, "-C", source, "hole"]
        subprocess.run(command, check=True)
        with pytest.raises(
            UnsafeArchiveError, match="'hole'.* sparse file, .*100.0 GB"
        ):
            unpack(archive, folder, kind="tar")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_declared_size_is_refused_before_writing(folder: Path, form: int) -> None:
    """A member that says it has 100 GB is not even begun."""
    with pytest.raises(UnsafeArchiveError, match="100.0 GB or more, and 8.6 GB are"):
        unpack_tar(folder, member("big", size=GB_100, form=form))
    assert names_in(folder) == []


def test_the_sum_of_all_files_is_limited(folder: Path) -> None:
    """What is left after each file is what the next ones may have together."""
    parts = [member(name, bytes(400)) for name in "abc"]

    assert len(unpack_tar(folder, *parts, most_bytes=1200)) == 3
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UnsafeArchiveError, match="'c' it unpacks to 1.2 kB"):
        unpack_tar(folder, *parts, most_bytes=1199)
    assert names_in(folder) == ["a", "b"]


def test_the_number_of_members_is_limited(folder: Path) -> None:
    """Files, links, repeated folders and folders that names alone make are counted."""
    again = member("a", kind=tarfile.DIRTYPE)
    for members in (
        [member(str(number)) for number in range(11)],
        [member("/".join("abcdefghijk"))],
        [again] * 11,
        [link(str(number), "x") for number in range(11)],
    ):
        with pytest.raises(UnsafeArchiveError, match="more than 10 members"):
            unpack_tar(folder, *members, most_members=10)
        shutil.rmtree(folder)
        folder.mkdir()
    assert len(unpack_tar(folder, *[member(c) for c in "0123456789"], most_members=10))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
def test_headers_about_headers_are_limited(folder: Path, kind: bytes) -> None:
    """Neither one of 50 GB nor tens of thousands of them are read."""
    huge = patched(
        member("h", kind=b"0"), 124, b"\x80" + (50 * 10**9).to_bytes(11, "big")
    )
    with pytest.raises(UnsafeArchiveError, match="longer than any archive's"):
        unpack_tar(folder, patched(huge, 156, kind))
    empty = patched(member("h", kind=b"0"), 156, kind)
    archive = written(folder, gzip.compress(empty * 40_000 + END, 1))
    with pytest.raises(UnsafeArchiveError, match="longer than any archive's"):
        unpack(archive, folder, kind="tar")


def zstd_bomb(blocks: int, head: bytes = b"\x28\xb5\x2f\xfd\x00\x58") -> bytes:
    """Return a frame of so many blocks of 128 KiB zeros; 2 MiB of window, no size."""
    block = (2**17 << 3) | (1 << 1)
    last = block | 1
    return head + (
        (block.to_bytes(3, "little") + b"\0") * (blocks - 1)
        + last.to_bytes(3, "little")
        + b"\0"
    )


MEMORY_PROBE = """
import sys
from pathlib import Path
from llamatelemetry.exceptions import SetupError
from llamatelemetry.setup._archive import unpack

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

archive, small, folder, kind = sys.argv[1:]
(Path(folder) / "1").mkdir()
(Path(folder) / "2").mkdir()
unpack(Path(small), Path(folder) / "1", kind=kind)  # what is loaded once
Path("/proc/self/clear_refs").write_text("5")  # forget the highest until now
before = kib("VmRSS")
try:
    unpack(Path(archive), Path(folder) / "2", kind=kind, most_bytes=40 * 2**20)
except SetupError as error:
    print(type(error).__name__, kib("VmHWM") - before)
"""


@pytest.mark.parametrize("name", ["zst", "tar.zst", "gz", "bz2", "xz"])
def test_a_bomb_takes_little_memory(folder: Path, name: str) -> None:
    """A few kB that become gigabytes end at the limit, with under 10 MiB in use."""
    kind = "zst" if name == "zst" else "tar"
    head = member("bomb", size=39 * MIB)  # and then zeros behind the end, with no end
    bombs: dict[str, Callable[[], bytes]] = {
        "zst": lambda: zstd_bomb(2**15),
        "tar.zst": lambda: zstd(head) + zstd_bomb(2**15),
        "gz": lambda: gzip.compress(head + bytes(120 * MIB)),
        "bz2": lambda: bz2.compress(head) + bz2.compress(bytes(40 * MIB), 9) * 3,
        "xz": lambda: (
            lzma.compress(head, preset=0) + lzma.compress(bytes(40 * MIB), preset=0) * 3
        ),
    }
    data = bombs[name]()
    compress = COMPRESSIONS["zst" if "zst" in name else name]
    small = written(
        folder, compress(member("a", bytes(5 * MIB)) + END), f"small.{name}"
    )
    archive = written(folder, data, f"bomb.{name}")
    assert len(data) < MIB

    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, archive, small, folder, kind],
        capture_output=True,
        text=True,
        check=True,
    )

    error, grown = done.stdout.split()
    assert error == ("UnsafeArchiveError" if kind == "zst" else "SetupError")
    assert int(grown) < 10 * 1024
    sizes = [path.stat().st_size for path in folder.glob("2/*")]
    assert sum(sizes) <= 40 * MIB


def test_windows_are_limited(folder: Path) -> None:
    """Frames and streams that ask their reader for much memory are refused unread."""
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    object_ = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = object_.compress(b"a") + object_.flush()
    archive = written(folder, data, "a.zst")
    with pytest.raises(UnsafeArchiveError, match="take 128.0 MiB of memory, and 64.0"):
        unpack(archive, folder, kind="zst")

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**27}]
    archive = written(folder, lzma.compress(member("a") + END, filters=filters))
    with pytest.raises(UnsafeArchiveError, match="more memory, and 96.0 MiB are"):
        unpack(archive, folder, kind="tar")
    assert names_in(folder) == []


@pytest.mark.parametrize("preset", [9, 9 | lzma.PRESET_EXTREME])
def test_the_strongest_usual_compression_is_unpacked(folder: Path, preset: int) -> None:
    """``xz -9`` and ``zstd -19`` stay under the limits of memory."""
    data = member("a", PROGRAM) + END
    strong = zstandard.ZstdCompressor(level=19).compressobj()
    for packed in (
        lzma.compress(data, preset=preset),
        strong.compress(data) + strong.flush(),
    ):
        unpack(written(folder, packed), folder, kind="tar")
        assert (folder / "a").read_bytes() == PROGRAM
        (folder / "a").unlink()


def test_countless_streams_and_blocks_are_refused(folder: Path) -> None:
    """A file cut into hundreds of thousands of empty parts is not followed for long."""
    for empty, most in ((gzip.compress(b""), 110_000), (bz2.compress(b""), 110_000)):
        archive = written(folder, empty * most)
        with pytest.raises(SetupError, match="over 100000 streams"):
            unpack(archive, folder, kind="tar")
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + bytes(3) * (2**20 + 5)
    archive = written(folder, frame + b"\x01\0\0")
    with pytest.raises(SetupError, match="too many blocks"):
        unpack(archive, folder, kind="zst", name="a")
    archive = written(folder, b"\x50\x2a\x4d\x18\0\0\0\0" * (2**20 + 5))
    with pytest.raises(SetupError, match="too many blocks"):
        unpack(archive, folder, kind="zst", name="a")


# Damage.


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_end_in_the_middle_is_told(folder: Path, compression: str) -> None:
    """An archive without its last byte, its last half, or anything is cut off."""
    data = COMPRESSIONS[compression](member("a", os.urandom(5000)) + END)
    for length in (0, 1, 7, 600, len(data) // 2, len(data) - 600, len(data) - 1):
        # The last of a plain tar's own zeros are not missed, as by all programs.
        if compression == "none" and length > len(data) - 512:
            continue
        archive = written(folder, data[:length])
        with pytest.raises(SetupError, match="delete it and download") as caught:
            unpack(archive, folder, kind="tar")
        assert str(archive) in str(caught.value)
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2", "zst"])
def test_a_changed_byte_is_told(folder: Path, compression: str) -> None:
    """The checksum behind the content is compared though the tar ended before."""
    data = bytearray(COMPRESSIONS[compression](member("a", os.urandom(5000)) + END))
    if compression == "zst":
        checked = zstandard.ZstdCompressor(write_checksum=True)
        data = bytearray(checked.compress(member("a", os.urandom(5000)) + END))
    data[2000] ^= 1
    with pytest.raises(SetupError, match="cannot be decompressed"):
        unpack(written(folder, bytes(data)), folder, kind="tar")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_more_behind_the_end_is_told(folder: Path, compression: str) -> None:
    """What stands behind an archive is no part of it, inside or outside."""
    compress = COMPRESSIONS[compression]
    tar = member("a", b"1") + END
    for data in (
        compress(tar) + b"garbage" * 99,
        compress(tar + member("b", b"2") + END),
    ):
        with pytest.raises(SetupError, match="delete it and download"):
            unpack(written(folder, data), folder, kind="tar")
        (folder / "a").unlink(missing_ok=True)


def test_zeros_and_streams_behind_each_other_belong_to_an_archive(folder: Path) -> None:
    """Tapes fill up with zeros, and parallel packers write one stream after another."""
    tar = member("a", PROGRAM) + END
    for compress in COMPRESSIONS.values():
        parts = [compress(tar[:700]), compress(b""), compress(tar[700:] + bytes(9000))]
        archive = written(folder, b"".join(parts))
        unpack(archive, folder, kind="tar")
        assert (folder / "a").read_bytes() == PROGRAM
        (folder / "a").unlink()
    for compress in (gzip.compress, lzma.compress, bz2.compress):
        unpack(written(folder, compress(tar) + bytes(512)), folder, kind="tar")
        (folder / "a").unlink()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>" * 100, "but '<!DOCTYPE html>"),
        (b"\x7fELF" + bytes(2000), "no tar header at byte 0"),
        (member("a", b"1") + b"x" * 512 + END, "no tar header at byte 1024"),
        (
            with_sum(member("a")[:512].replace(b"00000000000", b"0000000_000")),
            "is none",
        ),
        (patched(member("a"), 124, b"-0000000001\0"), "is none"),
        (patched(member("a"), 124, b"\xff" * 12), "is none"),
        (member("x", b"9 path=a\n", kind=b"x"), "ends behind"),
        (member("x", b"99 path=a\n", kind=b"x"), "cannot be read"),
        (member("x", b"0 path=a\n", kind=b"x"), "cannot be read"),
        (member("x", b"-1 path=a\n", kind=b"x"), "is none"),
        (member("x", b" path=a\n", kind=b"x"), "cannot be read"),
        (member("x", b"9 path a\n", kind=b"x"), "cannot be read"),
        (member("x", b"10 size=-1\n", kind=b"x"), "cannot be read"),
        (member("x", b"11 size=-1\n", kind=b"x"), "is none"),
        (member("x", b"12 path=../\n", kind=b"g"), "for all members"),
    ],
)
def test_what_is_no_tar_is_told(folder: Path, data: bytes, what: str) -> None:
    """Web pages, other files and headers that are none are told, with the place."""
    with pytest.raises(SetupError, match=what):
        unpack(written(folder, data + END), folder, kind="tar")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tar_stays_in_its_folder(data: st.DataObject) -> None:
    """Random members and changed bytes never leave the folder, nor strange errors."""
    steps = st.sampled_from(["a", "b", "c", ".", "..", "", "a\n"])
    names = st.lists(steps, min_size=1, max_size=4).map("/".join).filter(bool)
    kinds = st.sampled_from([b"0", b"5", b"1", b"2", b"2"])
    members = data.draw(st.lists(st.tuples(names, kinds, names), max_size=8))
    tar = b"".join(
        member(name, b"content" if kind == b"0" else b"", kind=kind, target=target)
        for name, kind, target in members
    )
    changes = data.draw(
        st.lists(st.tuples(st.integers(0, len(tar) - 1), st.binary(max_size=3)))
        if tar
        else st.just([])
    )
    if data.draw(st.booleans()):
        for place, change in changes:
            tar = tar[:place] + change + tar[place + len(change) :]
            head = place // 512 * 512
            tar = tar[:head] + with_sum(tar[head : head + 512]) + tar[head + 512 :]
    with tempfile.TemporaryDirectory() as place:
        folder, archive = Path(place, "around", "staging"), Path(place, "a.tar")
        folder.mkdir(parents=True)
        archive.write_bytes(tar + END)
        try:
            files = unpack(archive, folder, kind="tar")
        except LLCudaError:
            files = []
        assert os.listdir(folder.parent) == ["staging"]
        assert_all_within(folder)
        assert all(stat.S_ISREG(path.lstat().st_mode) for path in files)


# One file.


@pytest.mark.parametrize("sized", [True, False])
def test_one_compressed_file_is_unpacked(folder: Path, sized: bool) -> None:
    """A program in zstandard comes out whole, under its name, not executable yet."""
    data = zstandard.ZstdCompressor(write_content_size=sized).compress(PROGRAM)
    more = zstandard.ZstdCompressor(write_checksum=True).compress(PROGRAM * 9)
    skipped = b"\x5f\x2a\x4d\x18\x03\0\0\0abc"
    archive = written(folder, skipped + data + zstd(b"") + more + skipped, "app.zst")

    files = unpack(archive, folder, kind="zst", name="llama")

    assert files == [folder / "llama"]
    assert files[0].read_bytes() == PROGRAM * 10
    assert mode_of(files[0]) == 0o644


def test_every_place_to_cut_a_frame_is_noticed(folder: Path) -> None:
    """However many bytes are missing of a zstandard file, it is told."""
    checked = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False)
    data = checked.compress(os.urandom(40) + bytes(2**18)) + zstd(b"second")
    whole = len(data) - len(zstd(b"second"))
    for length in set(range(len(data))) - {whole}:
        archive = written(folder, data[:length], "app.zst")
        with pytest.raises(SetupError, match="delete it and download"):
            unpack(archive, folder, kind="zst", name="llama")
        assert names_in(folder) == []


def test_what_is_no_zstandard_is_told(folder: Path) -> None:
    """Other bytes, before or behind a frame, are told with their place."""
    for data, place in ((PROGRAM, 0), (b"", 0), (zstd(b"a") + b"<html>", 10)):
        with pytest.raises(SetupError, match=f"no zstandard frame at byte {place}"):
            unpack(written(folder, data), folder, kind="zst", name="llama")


def test_a_large_frame_is_refused_by_its_size(folder: Path) -> None:
    """A frame that says it has more than is allowed is not begun."""
    head = b"\x28\xb5\x2f\xfd\xc0\x58" + GB_100.to_bytes(8, "little")
    archive = written(folder, zstd_bomb(9, head), "app.zst")
    with pytest.raises(UnsafeArchiveError, match="100.0 GB or more"):
        unpack(archive, folder, kind="zst", name="llama")
    assert names_in(folder) == []


def test_a_plain_file_is_copied(folder: Path) -> None:
    """A file comes under its own name or another, however it could be executed."""
    archive = written(folder, PROGRAM, "llama-server")
    archive.chmod(0o4777)

    assert unpack(archive, folder, kind="file") == [folder / "llama-server"]
    assert (folder / "llama-server").read_bytes() == PROGRAM
    assert mode_of(folder / "llama-server") == 0o644
    (folder / "llama-server").unlink()
    with pytest.raises(UnsafeArchiveError, match="are allowed"):
        unpack(archive, folder, kind="file", name="b", most_bytes=len(PROGRAM) - 1)
    assert names_in(folder) == []


def test_a_compressed_file_has_its_name_without_the_ending(folder: Path) -> None:
    """Without a name the archive's own is taken."""
    archive = written(folder, zstd(b"1"), "llama-app.zst")

    assert unpack(archive, folder, kind="zst") == [folder / "llama-app"]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\0", "a\n"])
def test_the_name_of_one_file_is_plain(folder: Path, name: str) -> None:
    """A name with slashes or worse is a mistake of the caller."""
    for kind in ("zst", "file"):
        with pytest.raises(ConfigurationError, match="without slashes"):
            unpack(written(folder, zstd(b"1")), folder, kind=kind, name=name)


# The machine.


def test_an_archive_must_be_a_file(folder: Path) -> None:
    """What is not there, a folder, and a pipe that never ends are told at once."""
    pipe = folder.parents[1] / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SetupError, match="missing.tar.*cannot be opened"):
        unpack(folder.parents[1] / "missing.tar", folder, kind="tar")
    for path in (pipe, folder.parents[1], Path("/dev/zero")):
        with pytest.raises(SetupError, match="is no file"):
            unpack(path, folder, kind="tar")


def test_the_folder_must_be_empty(folder: Path) -> None:
    """A folder with something in it, or none, is a mistake of the caller."""
    archive = written(folder, member("a") + END)
    with pytest.raises(ConfigurationError, match="needs an empty folder"):
        unpack(archive, folder.parents[1], kind="tar")
    with pytest.raises(ConfigurationError, match="needs an empty folder"):
        unpack(archive, folder / "missing", kind="tar")


@pytest.mark.parametrize("kind", ["tar", "zst", "file"])
def test_a_full_disk_is_known_before_writing(
    folder: Path, kind: _archive.ArchiveKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that does not fit is not begun, and the error has both figures."""
    data = {"tar": member("a", PROGRAM) + END, "zst": zstd(PROGRAM), "file": PROGRAM}
    archive = written(folder, data[kind], "a")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(9, 9, 1000))
    with pytest.raises(DiskSpaceError, match="1.0 kB free") as caught:
        unpack(archive, folder, kind=kind)
    assert (caught.value.needed, caught.value.free) == (len(PROGRAM), 1000)
    assert names_in(folder) == []


def test_a_disk_that_fills_up_is_noticed_on_the_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the size was not told, the room is looked at before each piece."""
    frees = iter([10 * MIB, 10 * MIB, 10 * MIB, 1000])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(9, 9, next(frees)))
    with pytest.raises(DiskSpaceError) as caught:
        unpack(written(folder, zstd_bomb(99)), folder, kind="zst", name="a")
    assert (caught.value.needed, caught.value.free) == (MIB, 1000)
    assert (folder / "a").stat().st_size == 2 * MIB


def test_the_kernels_word_for_a_full_disk_is_understood(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full though it seemed not to be becomes the same error."""
    opened = Path.open

    def open_full(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
        full = path.name == "full" and "x" in mode
        return opened(
            Path("/dev/full") if full else path, mode.replace("x", "w"), **more
        )

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DiskSpaceError, match="full: 179.2 kB are to be") as caught:
        unpack_tar(folder, member("full", PROGRAM))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert caught.value.free > 0


def test_a_folder_that_cannot_be_written_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other errors of the system become an error of this package, with its words."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    archive = written(folder, member("a", PROGRAM) + END)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SetupError, match="staging/a .*Read-only file system"):
        unpack(archive, folder, kind="tar")


def test_a_disk_that_fails_is_told(folder: Path) -> None:
    """An archive on a broken disk is not called damaged: the system's word is told."""

    class Broken(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().read(6)

    archive = written(folder, b"123456789")
    with Broken(archive) as raw:
        pieces, _ = content(raw, archive, "tar")
        assert next(pieces) == b"123456"
        with pytest.raises(SetupError, match="reading failed .Input/output error"):
            next(pieces)


@pytest.mark.parametrize("kind", ["tar", "zst", "file"])
def test_an_interrupt_leaves_what_was_written(
    folder: Path, kind: _archive.ArchiveKind
) -> None:
    """Ctrl-C comes through, files stay for the caller, and none is left open."""

    def interrupt(count: int) -> None:
        if count > MIB:
            raise KeyboardInterrupt

    big = os.urandom(1000) * 5000
    data = {"tar": gzip.compress(member("a", big) + END), "zst": zstd(big), "file": big}
    archive = written(folder, data[kind], "a")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, folder, kind=kind, note=interrupt)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert MIB < (folder / "a").stat().st_size < len(big)


def test_no_error_leaves_a_file_open(folder: Path) -> None:
    """After a refused, a damaged and a cut off archive no descriptor is held."""
    before = os.listdir("/proc/self/fd")
    errors = []
    for data in (member("a", b"1") + member("../b"), b"x" * 999, member("c", size=9)):
        try:
            unpack(written(folder, data), folder, kind="tar")
        except SetupError as error:
            errors.append(error)
        shutil.rmtree(folder)
        folder.mkdir()
    assert len(errors) == 3
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_missing_zstandard_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package the error says how to install it; a tar needs it not."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for kind in ("zst", "tar"):
        archive = written(folder, zstd(member("a") + END))
        with pytest.raises(SetupError, match="pip install zstandard"):
            unpack(archive, folder, kind=kind, name="a")
    assert unpack_tar(folder, member("a")) == ["a"]


# Packing.


def make_bundle(place: Path, *, backwards: bool = False) -> Path:
    """Make a folder as an engine has it; the files are made in one order or another."""
    names = ["bin/llama-server", "lib/libggml.so.0", "BUILD_INFO.json", "bin.txt"]
    for name in names[:: -1 if backwards else 1]:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PROGRAM + name.encode())
        path.chmod(0o700 if name.startswith("bin/") else 0o666)
        if backwards:
            os.utime(path, (1, 1))
            path.chmod(0o6755 if name.startswith("bin/") else 0o400)
    (place / "lib/libggml.so").symlink_to("libggml.so.0")
    (place / "lib/bin").symlink_to("../bin")
    (place / "empty").mkdir()
    (place / ("ü" * 120)).write_text("")
    return place


def test_packing_is_reproducible(folder: Path) -> None:
    """Two copies of a folder, made in other orders, times and modes, give one file."""
    place = folder.parents[1]
    before = os.umask(0o077)
    try:
        pack(make_bundle(place / "one"), place / "first.tar.gz", top="engine-1.0")
    finally:
        os.umask(before)
    pack(make_bundle(place / "2", backwards=True), place / "b.tgz", top="engine-1.0")

    data = (place / "first.tar.gz").read_bytes()
    assert data == (place / "b.tgz").read_bytes()
    assert data[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    assert mode_of(place / "first.tar.gz") == 0o644
    with tarfile.open(place / "b.tgz") as tar:
        found = tar.getmembers()
    assert [one.name for one in found[:6]] == [
        "engine-1.0",
        "engine-1.0/BUILD_INFO.json",
        "engine-1.0/bin",
        "engine-1.0/bin/llama-server",
        "engine-1.0/bin.txt",
        "engine-1.0/empty",
    ]
    assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in found} == {
        (0, 0, "", "", 0)
    }
    assert {one.mode for one in found if not one.issym()} == {0o755, 0o644}


def test_what_is_packed_is_unpacked(folder: Path) -> None:
    """All files, links and empty folders come back, under the one top folder."""
    place = folder.parents[1]
    source = make_bundle(place / "source")
    pack(source, place / "a.tar.gz", top="top")

    files = unpack(place / "a.tar.gz", folder, kind="tar")

    assert names_in(folder / "top") == names_in(source)
    assert len(files) == 5
    for path in files:
        name = path.relative_to(folder / "top")
        assert path.read_bytes() == (source / name).read_bytes()
    assert os.readlink(folder / "top/lib/libggml.so") == "libggml.so.0"
    assert mode_of(folder / "top/bin/llama-server") == 0o755


def test_packing_refuses_what_unpacking_would(folder: Path) -> None:
    """Links that leave the folder, pipes and sockets are told; nothing is written."""
    place = folder.parents[1]
    source = make_bundle(place / "source")
    (place / "old.tar.gz").write_bytes(b"old")

    def refused(rule: str) -> None:
        with pytest.raises(UnsafeArchiveError, match=rule):
            pack(source, place / "old.tar.gz", top="top")
        (source / "bad").unlink()
        assert (place / "old.tar.gz").read_bytes() == b"old"
        assert sorted(os.listdir(place)) == ["around", "old.tar.gz", "source"]

    for target in ("/etc/passwd", "../old.tar.gz", "lib/bin/../../x", "../source/bin"):
        (source / "bad").symlink_to(target)
        refused("'bad' is refused: it links to .* which leaves")
    os.mkfifo(source / "bad")
    refused("neither a file nor a folder")
    with socket.socket(socket.AF_UNIX) as listener:
        with contextlib.chdir(source):  # a socket's path may only be short
            listener.bind("bad")
        refused("neither a file nor a folder")


def test_packing_appears_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure or Ctrl-C leaves the old archive there, and no part of a new one."""
    place = folder.parents[1]
    source = make_bundle(place / "source")
    archive = place / "a.tar.gz"
    archive.write_bytes(b"old")
    for error, kind in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), DiskSpaceError),
        (OSError(errno.EIO, "Input/output error"), SetupError),
    ):
        # The archive has been written when this fails.
        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch, pytest.raises(kind) as caught:
            patch.setattr(os, "fchmod", fail)
            pack(source, archive, top="top")
        assert archive.read_bytes() == b"old"
        assert sorted(os.listdir(place)) == ["a.tar.gz", "around", "source"]
        if isinstance(caught.value, DiskSpaceError):
            assert caught.value.needed > 4 * len(PROGRAM)

    pack(source, archive, top="top")
    assert archive.read_bytes()[:2] == b"\x1f\x8b"


def test_packing_wants_its_places_right(folder: Path) -> None:
    """An archive in its own folder, a folder that is not there and tops are told."""
    place = folder.parents[1]
    source = make_bundle(place / "source")
    with pytest.raises(ConfigurationError, match="packed into itself"):
        pack(source, source / "lib" / "a.tar.gz", top="top")
    for top in ("", "..", "a/b"):
        with pytest.raises(ConfigurationError, match="without slashes"):
            pack(source, place / "a.tar.gz", top=top)
    with pytest.raises(SetupError, match="missing.*No such file"):
        pack(place / "missing", place / "a.tar.gz", top="top")
    with pytest.raises(SetupError, match="nowhere.*No such file"):
        pack(source, place / "nowhere" / "a.tar.gz", top="top")
    assert sorted(os.listdir(place)) == ["around", "source"]
