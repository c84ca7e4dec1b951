"""Room on disks, locks between processes, files that are whole, folders that go."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import fill, small_disk

from llamatelemetry import _environment
from llamatelemetry.exceptions import DiskSpaceError
from llamatelemetry.setup import _disk
from llamatelemetry.setup._disk import (
    bytes_in,
    disk_errors,
    existing_parent,
    free_bytes,
    locked,
    remove_tree,
    require_space,
    write_json,
)
from tests.conftest import missing_part

MB = 10**6


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that is neither Kaggle nor Colab, whatever it is."""
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_environment, "_ROOT", tmp_path / "root")


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kaggle's folders; the quota of outputs is 100 MB, of a disk with more room."""
    monkeypatch.setattr(_disk, "KAGGLE_OUTPUT_BYTES", 100 * MB)
    for name in ("working", "temp", "input"):
        (tmp_path / "root" / "kaggle" / name).mkdir(parents=True)
    return tmp_path / "root" / "kaggle"


@pytest.fixture
def little_room(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB."""
    with small_disk(tmp_path / "little", 80 * MB) as allowed:
        if not allowed:
            missing_part("the right to mount a file system", "run as root")
        yield tmp_path / "little"


# Room


def test_the_nearest_folder_counts(tmp_path: Path) -> None:
    """What does not exist yet will lie in the nearest folder that does."""
    (tmp_path / "file").write_text("")

    assert existing_parent(tmp_path) == tmp_path
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(tmp_path / "file" / "b") == tmp_path
    assert existing_parent(Path("/no-such-folder/at-all")) == Path("/")
    assert existing_parent(Path("no-such-folder/at-all")) == Path()


def test_free_bytes_are_the_systems(little_room: Path, tmp_path: Path) -> None:
    """Elsewhere than on Kaggle the disk is what counts, also through a link."""
    (little_room / "file").write_bytes(bytes(MB))
    (tmp_path / "link").symlink_to(little_room)
    free = shutil.disk_usage(little_room).free

    assert free < 80 * MB
    assert free_bytes(little_room / "not" / "there") == free
    assert free_bytes(tmp_path / "link" / "not" / "there") == free


def test_the_bytes_of_a_folder_are_those_on_the_disk(tmp_path: Path) -> None:
    """Holes take no room, links are not followed, and all below is counted."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(os.urandom(3 * MB))
    (tmp_path / "a" / "link").symlink_to(sys.executable)
    with (tmp_path / "a" / "hole").open("wb") as file:
        file.truncate(10**12)

    assert 3 * MB <= bytes_in(tmp_path) < 4 * MB
    assert bytes_in(tmp_path / "nothing") == 0


def test_kaggles_quota_counts_below_its_output(kaggle: Path, tmp_path: Path) -> None:
    """Below /kaggle/working there is what the quota leaves, not what the disk has."""
    (kaggle / "working" / "m.gguf").write_bytes(os.urandom(30 * MB))
    left = 100 * MB - bytes_in(kaggle / "working")
    (tmp_path / "link").symlink_to(kaggle / "working")

    assert 69 * MB < left <= 70 * MB
    assert free_bytes(kaggle / "working") == left
    assert free_bytes(kaggle / "working" / "not" / "there") == left
    assert free_bytes(tmp_path / "link" / "models") == left
    assert free_bytes(kaggle / "temp") > 100 * MB


def test_a_quota_that_is_overdrawn_leaves_nothing(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the quota in the output is no room, and no negative one."""
    monkeypatch.setattr(_disk, "KAGGLE_OUTPUT_BYTES", MB)
    (kaggle / "working" / "m.gguf").write_bytes(os.urandom(2 * MB))

    assert free_bytes(kaggle / "working") == 0


def test_what_has_no_room_is_not_begun(kaggle: Path, tmp_path: Path) -> None:
    """The error says what, where, how much is needed and free, and of which quota."""
    working = kaggle / "working"
    require_space(working, 30 * MB, "m.gguf")
    with pytest.raises(DiskSpaceError) as raised:
        require_space(working / "models", 50 * MB, "m.gguf")

    assert raised.value.needed == 50 * MB
    assert raised.value.free == free_bytes(working)
    assert str(raised.value) == (
        f"m.gguf needs 50.0 MB in {working}/models, where 100.0 MB are free of the "
        "100.0 MB that Kaggle keeps as output. Delete what is no longer needed there, "
        "name another folder, or take a smaller model."
    )


def test_a_quota_is_told_through_a_link_too(kaggle: Path, tmp_path: Path) -> None:
    """A link into the output is below the quota, and the error says so."""
    (tmp_path / "link").symlink_to(kaggle / "working")

    with pytest.raises(DiskSpaceError, match="that Kaggle keeps as output"):
        require_space(tmp_path / "link" / "models", 50 * MB, "m.gguf")


def test_a_disk_without_room_is_refused(little_room: Path) -> None:
    """On a disk of 80 MB there is room for 10 MB beside what is kept free."""
    require_space(little_room, 10 * MB, "m.gguf")

    with pytest.raises(DiskSpaceError, match="needs 30.0 MB in .* MB are free. Delete"):
        require_space(little_room, 30 * MB, "m.gguf")


def test_a_full_disk_says_what_to_do(little_room: Path) -> None:
    """The system's error becomes ours, once what is in vain was deleted."""
    half = little_room / "half"
    fill(little_room).rename(half)
    order: list[str] = []

    def full() -> None:
        order.append(f"{shutil.disk_usage(little_room).free} free")
        half.unlink()

    with (
        pytest.raises(DiskSpaceError, match="needs 5.0 MB") as raised,
        disk_errors(little_room, "m.gguf", lambda: 5 * MB, full),
    ):
        (little_room / "more").write_bytes(bytes(MB))

    assert order == ["0 free"]
    assert raised.value.needed == 5 * MB
    assert raised.value.free == 0
    assert raised.value.__cause__ is None
    assert not half.exists()


def test_the_device_that_is_always_full(tmp_path: Path) -> None:
    """Without anything to delete, the error is the same."""
    with (
        pytest.raises(DiskSpaceError) as raised,
        disk_errors(tmp_path, "m.gguf", lambda: 7),
    ):
        Path("/dev/full").write_bytes(b"x")

    assert (raised.value.needed, raised.value.free > 0) == (7, True)


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    """What is no lack of room is not called one, and nothing is deleted for it."""

    def full() -> None:
        raise AssertionError("deleted")

    with (
        pytest.raises(FileNotFoundError),
        disk_errors(tmp_path, "m.gguf", lambda: 1, full),
    ):
        (tmp_path / "no" / "file").write_bytes(b"")
    with disk_errors(tmp_path, "m.gguf", lambda: 1, full):
        (tmp_path / "file").write_bytes(b"")


# Locks

HOLD = """
import sys
from pathlib import Path
from llamatelemetry.setup._disk import locked
with locked(Path(sys.argv[1]), waiting=lambda: print("waiting", flush=True)):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


class Holder:
    """A process that holds a lock, or waits for it."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        """Return the next thing it says that is not that it waits."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line != "waiting\n":
                return line.strip()
        return "gone"

    def waits(self) -> None:
        """Wait until it says that it waits."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "waiting\n"

    def let_go(self) -> None:
        """Let it release the lock."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Kill it if it still runs."""
        with self.process:
            self.process.kill()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[tuple[Holder, Holder]]:
    """Two processes after the same lock: the first one holds it, the second waits."""
    path = tmp_path / "folder" / "lock"
    first = Holder(path)
    assert first.says() == "held"
    second = Holder(path)
    second.waits()
    yield first, second
    first.end()
    second.end()


def test_a_lock_is_held_by_one_process(
    holders: tuple[Holder, Holder], tmp_path: Path
) -> None:
    """Who comes second waits until the first one is done; the file stays."""
    first, second = holders

    second.waits()
    first.let_go()

    assert first.says() == "released"
    assert second.says() == "held"
    assert (tmp_path / "folder" / "lock").exists()


def test_a_lock_does_not_outlive_its_holder(holders: tuple[Holder, Holder]) -> None:
    """A process that is killed while it holds a lock gives it back by dying."""
    first, second = holders

    first.process.kill()

    assert second.says() == "held"


def test_who_waits_for_a_lock_can_give_up(
    holders: tuple[Holder, Holder], tmp_path: Path
) -> None:
    """What ``waiting`` raises ends the waiting; a thread waits like a process."""
    first, second = holders

    def enough() -> None:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        locked(tmp_path / "folder" / "lock", waiting=enough),
    ):
        raise AssertionError("two hold it")
    second.process.kill()
    second.process.wait()
    first.let_go()
    assert first.says() == "released"
    with (  # it holds within this process as well
        locked(tmp_path / "folder" / "lock", waiting=enough),
        pytest.raises(KeyboardInterrupt),
        locked(tmp_path / "folder" / "lock", waiting=enough),
    ):
        raise AssertionError("two hold it")


def test_a_thread_waits_as_long_as_it_takes(
    holders: tuple[Holder, Holder], tmp_path: Path
) -> None:
    """Without a word to say nobody gives up: the lock is got once it is free."""
    first, second = holders
    second.process.kill()
    second.process.wait()
    waited: list[int] = []

    def waiting() -> None:
        waited.append(1)
        if len(waited) == 2:
            first.let_go()

    with locked(tmp_path / "folder" / "lock", waiting=waiting):
        assert first.says() == "released"
    assert len(waited) >= 2


def test_an_error_gives_a_lock_back(tmp_path: Path) -> None:
    """What is raised under a lock passes, and the lock is free again."""

    def never() -> None:
        raise AssertionError("it is still held")

    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        _ = 1 / 0
    with locked(tmp_path / "lock", waiting=never):
        pass


# Files

WRITE = """
import sys
from pathlib import Path
from llamatelemetry.setup._disk import write_json
values = [["one"] * 20_000, {"two": [2] * 30_000}]
write_json(Path(sys.argv[1]), values[0])
print("began", flush=True)
while True:
    for value in values:
        write_json(Path(sys.argv[1]), value)
"""


def test_a_file_is_never_half_written(tmp_path: Path) -> None:
    """A reader finds a whole file at all times, also when the writer is killed."""
    path = tmp_path / "folder" / "values.json"
    values = [["one"] * 20_000, {"two": [2] * 30_000}]
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"began\n"
            for _ in range(20):
                assert json.loads(path.read_bytes()) in values
            process.kill()
        assert json.loads(path.read_bytes()) in values


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """A value that is no JSON is an error; the file is the old one, nothing beside."""
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})

    with pytest.raises(TypeError):
        write_json(path, {"b": [1, 2, object()]})

    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(little_room: Path) -> None:
    """Without room for the new file the old one stays whole, and nothing beside."""
    path = little_room / "values.json"
    write_json(path, {"a": 1})
    filler = fill(little_room)

    with pytest.raises(OSError, match="No space left") as raised:
        write_json(path, ["much"] * 100_000)

    assert raised.value.errno == errno.ENOSPC
    assert json.loads(path.read_text()) == {"a": 1}
    assert sorted(little_room.iterdir()) == sorted([path, filler])


# Folders


def test_a_folder_goes_with_all_in_it(tmp_path: Path) -> None:
    """Folders in folders, links whose targets stay, and files."""
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "a" / "folder").symlink_to(tmp_path)

    remove_tree(tmp_path / "a")

    assert [place.name for place in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    """Nothing to delete is nothing to do; the folder around it stays as it was."""
    tmp_path.chmod(0o751)

    remove_tree(tmp_path / "nothing")

    assert tmp_path.stat().st_mode & 0o7777 == 0o751


def test_read_only_folders_go_too(as_anybody: Path) -> None:
    """What an archive has marked as read-only is deleted all the same."""
    tree = as_anybody / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    for folder in (tree / "a" / "b", tree / "a", tree):
        for number in range(3):
            (folder / f"file{number}").write_text("")
            (folder / f"file{number}").chmod(0o444)
        folder.chmod(0o555)

    remove_tree(tree)

    assert list(as_anybody.iterdir()) == []


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o333, 0o444])
def test_folders_that_cannot_be_opened_go_too(as_anybody: Path, mode: int) -> None:
    """A folder that may not be read or entered is no reason to leave anything."""
    tree = as_anybody / "tree"
    (tree / "closed").mkdir(parents=True)
    (tree / "closed" / "file").write_text("")
    (tree / "closed").chmod(mode)

    remove_tree(tree)

    assert list(as_anybody.iterdir()) == []


def test_what_cannot_be_deleted_is_left(as_anybody: Path) -> None:
    """What the system does not let go stays, without an error."""
    remove_tree(Path("/proc/self/fdinfo"))

    assert Path("/proc/self/fdinfo").is_dir()


def test_a_holder_that_is_stopped_still_holds(
    holders: tuple[Holder, Holder],
) -> None:
    """A process that does not run for a while has not given its lock back."""
    first, second = holders
    first.process.send_signal(signal.SIGSTOP)
    second.waits()
    second.waits()
    assert second.process.stdout is not None
    assert select.select([first.process.stdout], [], [], 0) == ([], [], [])
    first.process.send_signal(signal.SIGCONT)
    first.let_go()

    assert second.says() == "held"
