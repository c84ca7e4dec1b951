"""Files that are never half written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from llamatelemetry._files import write_whole


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    """A reader that looks all the time finds the old text or the new one."""
    path = tmp_path / "table.csv"
    texts = [letter * 200_000 + "\n" for letter in "ab"]
    write_whole(path, texts[0])
    found: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        write_whole(path, texts[number % 2])
    done.set()
    reader.join()

    assert found <= set(texts)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """An error in the middle changes nothing and leaves nothing behind."""
    path = tmp_path / "table.csv"
    write_whole(path, "old\n")

    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new\n\ud800")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "table.csv", "new\n")
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, "new\n")

    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_what_was_given(tmp_path: Path) -> None:
    """A missing folder is called that; no name of ours is in any error."""
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        with pytest.raises(FileNotFoundError, match="no such folder") as missing:
            write_whole(tmp_path / folder / "table.csv", "new\n")
        assert missing.value.filename == str(tmp_path / folder)
        assert ".table.csv." not in str(missing.value)

    long = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match="too long") as caught:
        write_whole(long, "new\n")
    assert caught.value.filename == str(long)
    assert caught.value.filename2 is None
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_keeps_its_rights_and_a_link_stays_one(tmp_path: Path) -> None:
    """New files get what the umask leaves, old ones keep theirs, links lead on."""
    umask = os.umask(0o027)
    try:
        path, link = tmp_path / "table.csv", tmp_path / "link"
        write_whole(str(path), "one\n")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o604)
        link.symlink_to(path)

        write_whole(link, "ä\r\n")
    finally:
        os.umask(umask)

    assert link.is_symlink()
    assert path.read_bytes() == "ä\r\n".encode()
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """What is no plain file, such as /dev/stdout, is written into."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "through\n")
        assert os.read(reader, 100) == b"through\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
