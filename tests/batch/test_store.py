"""The file of results: appended once, kept whatever happens, and read again."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from small_disk import fill, small_disk

from llamatelemetry.batch import _results_file, _store
from llamatelemetry.batch._lines import encode_line, own_record
from llamatelemetry.batch._places import Place
from llamatelemetry.batch._store import Store
from llamatelemetry.exceptions import (
    BatchError,
    ConfigurationError,
    DiskSpaceError,
    SetupWarning,
)
from tests.conftest import missing_part

MB = 10**6


def key(number: int = 0) -> str:
    return f"{number:032x}"


def record(position: int, **more: Any) -> dict[str, Any]:
    """Return a result as a batch makes it."""
    return {
        "answer": f"answer {position} ä\u2028",
        "error": None,
        "model": "demo",
        "id": f"row {position}",
        "key": key(),
        "position": position,
        **more,
    }


def failed(position: int, **more: Any) -> dict[str, Any]:
    error = {"type": "ContextLengthError", "message": "too long"}
    return record(position, answer=None, error=error, **more)


def written(path: Path, *records: dict[str, Any]) -> Path:
    """Write a file of results without the store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(encode_line, records)))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# Writing and reading


def test_results_are_appended_and_found_again(tmp_path: Path) -> None:
    """Each is one line in the order of its coming; places are in the rows' order."""
    out = tmp_path / "new" / "results.jsonl"
    with Store.open(out) as store:
        assert (store.path, store.found, len(store.places)) == (out, 0, 0)
        for position in (2, 0, 5):
            assert not store.claim(position, f"row {position}", key())
            store.add(record(position) if position else failed(position))
            found = store.find(f"row {position}", key())
            assert found is not None
            assert found.failed == (not position)
        places = store.places

        # Before it is closed too: a reader finds what was written.
        assert [line["position"] for line in lines_of(out)] == [2, 0, 5]

    assert [place.position for place in places] == [0, 2, 5]
    assert [place.failed for place in places] == [True, False, False]
    assert (len(places), places.done, places.failed) == (3, 2, 1)
    assert [one["answer"] for one in places.records()] == [
        None,
        "answer 2 ä\u2028",
        "answer 5 ä\u2028",
    ]
    found = places.find("row 2")
    assert found == Place(2, out, 0, failed=False)
    assert places.read(found) == record(2)
    assert places.at(1) is places.at(6) is places.at(-1) is places.find("row 1") is None
    assert out.read_text().startswith('{"id":"row 2","key":"000')


def test_a_second_call_takes_what_is_done_and_asks_errors_again(
    tmp_path: Path,
) -> None:
    """Only what was asked like this, under this id, and answered, is done."""
    out = tmp_path / "results.jsonl"
    with Store.open(out) as store:
        store.add(record(0, id=1, model="old"))
        store.add(record(1, id="1", model="other"))
        store.add(failed(2, id="x"))
        store.add(record(3, id="z", model=None))

    with Store.open(out) as store:
        assert store.found == 3
        # The table has another order now, and a row more.
        assert store.claim(5, 1, key())
        assert not store.claim(0, "x", key())
        assert not store.claim(1, "1", key(7))
        assert not store.claim(2, "y", key())
        found = store.find("1", key())
        assert found is not None
        assert (found.failed, found.model, store.kept) == (False, "other", 1)
        assert store.find("y", key()) is None
        assert store.claim(9, "z", key())
        assert store.models == {"old"}
        store.add(record(0, id="x", answer="better"))
        assert [place.position for place in store.places] == [0, 5, 9]
        assert store.places.done == 3
        assert [one["id"] for one in store.places.records()] == ["x", 1, "z"]

    with Store.open(out) as store:
        assert store.claim(0, "x", key())
        assert [one["answer"] for one in store.places.records()] == ["better"]


def test_the_later_line_of_a_file_counts(tmp_path: Path) -> None:
    """For the same row and question, an answer or an error takes an earlier's place."""
    out = written(
        tmp_path / "results.jsonl",
        *(record(0, answer="first"), failed(1), record(2, answer="once")),
        *(record(0, answer="second"), record(1, answer="now"), failed(2)),
    )

    with Store.open(out) as store:
        claims = [store.claim(at, f"row {at}", key()) for at in range(3)]
        assert claims == [True, True, False]
        assert [one["answer"] for one in store.places.records()] == ["second", "now"]
        assert store.found == 2
        # A row may be recorded again while the call lasts, too.
        store.add(record(0, answer="third"))
        store.add(failed(1))
        assert (store.places.done, store.places.failed) == (1, 1)
        assert next(store.places.records())["answer"] == "third"


def test_ids_of_any_text_and_answers_that_are_hard_to_write(tmp_path: Path) -> None:
    """Half characters, line ends and numbers that JSON lacks do not break a line."""
    out = tmp_path / "results.jsonl"
    odd = record(
        0, id='"\n\ud800\0', answer="a\nb\u2029\x85\ud83d", value=[float("nan"), 1.5]
    )
    with Store.open(out) as store:
        store.add(odd)
        store.add(record(1, id=-(2**70), value=float("inf")))

    with Store.open(out) as store:
        assert store.claim(0, odd["id"], key())
        assert store.claim(1, -(2**70), key())
        first, second = store.places.records()
        assert first == {**odd, "value": [None, 1.5]}
        assert second["value"] is None
        assert store.places.find(odd["id"]) is not None
    assert len(out.read_text().splitlines()) == 2


def test_threads_may_add_at_the_same_time(tmp_path: Path) -> None:
    """No line is mixed with another, and each place leads to its own."""
    out = tmp_path / "results.jsonl"

    with Store.open(out) as store:

        def add(first: int) -> None:
            for position in range(first, 400, 4):
                store.add(record(position, answer="x" * position))

        threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [len(one["answer"]) for one in store.places.records()] == list(range(400))


# Other files


@pytest.mark.parametrize(
    "content",
    [
        b"id,key,position\n1,2,3\n",
        b'{"id":1,"text":"mine"}\n',
        b'{"id":1,"text":"mine"}',
        b'{"id":1,"key":"short","position":0}\n',
        b'{"id":1,"key":"00000000000000000000000000000000","position":"x"}\n',
        b'{"id":null,"key":"00000000000000000000000000000000","position":1}\n',
        b"[1, 2]\n",
        b"[1, 2]",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"\0\0\0\n{}\n",
        b"[" * 100_000,
    ],
)
def test_a_file_of_others_is_never_touched(content: bytes, tmp_path: Path) -> None:
    """Neither as out nor as resume: an error, and every byte as it was."""
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    before = path.stat()

    with pytest.raises(ConfigurationError, match="mine.jsonl' is not a file of result"):
        Store.open(path)
    with pytest.raises(ConfigurationError, match="^resume='.*is not a file of results"):
        Store.open(tmp_path / "out.jsonl", resume=path)

    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert not (tmp_path / "out.jsonl").exists()


def test_without_resume_the_file_has_to_be_empty(tmp_path: Path) -> None:
    """What is there is not gone over: another name, or resume=True."""
    out = tmp_path / "results.jsonl"
    out.touch()
    with Store.open(out, resume=False) as store:
        store.add(record(0))
    content = out.read_bytes()

    with pytest.raises(ConfigurationError, match="not empty .*resume=True goes on"):
        Store.open(out, resume=False)

    assert out.read_bytes() == content


def test_earlier_results_are_read_from_files_and_folders(tmp_path: Path) -> None:
    """Read-only ones, deep below a folder, beside others' files; new go to out."""
    inputs = tmp_path / "input"
    first = written(inputs / "run 1" / "results.jsonl", record(0), failed(1))
    second = written(inputs / "run 2" / "deep" / "part.jsonl", failed(0), record(1))
    single = written(tmp_path / "single.jsonl", record(2, model="other"))
    (inputs / "mine.jsonl").write_text('{"text": "not a result"}\n')
    (inputs / "folder.jsonl").mkdir()
    for path in (first, second, single):
        path.chmod(0o444)
    out = tmp_path / "results.jsonl"

    with Store.open(out, resume=[str(inputs), single]) as store:
        assert store.found == 3
        # Of several files an answer counts, whichever order they come in.
        claims = [store.claim(at, f"row {at}", key()) for at in range(4)]
        assert claims == [True, True, True, False]
        assert store.models == {"demo", "other"}
        store.add(record(3))
        paths = [place.path for place in store.places]
        assert paths == [first, second, single, out]

    assert [line["position"] for line in lines_of(out)] == [3]
    assert [one["position"] for one in store.places.records()] == [0, 1, 2, 3]
    with Store.open(out, resume=inputs) as store:
        assert store.found == 3


def test_out_may_lie_in_the_folder_that_is_resumed_from(tmp_path: Path) -> None:
    """It is read once, though the folder holds nothing else."""
    out = written(tmp_path / "results.jsonl", record(0))

    for resume in (tmp_path, [out, tmp_path], []):
        with Store.open(out, resume=resume) as store:
            assert store.found == 1
            assert store.claim(0, "row 0", key())


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("nowhere.jsonl", "nowhere.jsonl': there is no such file"),
        ("empty", "no file of results"),
        (["there.jsonl", "empty"], "no file of results"),
        (None, "resume takes the path of a file, not None"),
        ("", "resume takes the path of a file, not ''"),
        (7, "resume takes the path of a file, not 7"),
        ([b"x"], "resume takes the path of a file"),
    ],
)
def test_what_cannot_be_resumed_from_is_refused_at_once(
    resume: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong path would have everything asked anew, in silence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    written(tmp_path / "there.jsonl", record(0))

    with pytest.raises(ConfigurationError, match=message):
        Store.open("results.jsonl", resume=resume)

    assert not (tmp_path / "results.jsonl").exists()


def test_what_cannot_be_written_is_refused_at_once(as_anybody: Path) -> None:
    """A closed folder or file, a folder, a device and a path through a file."""
    closed = as_anybody / "closed"
    closed.mkdir(0o500)
    read_only = written(as_anybody / "file.jsonl", record(0))
    read_only.chmod(0o444)

    for out, message in [
        (closed / "results.jsonl", "cannot be written .Permission denied"),
        (closed / "new" / "results.jsonl", "cannot be written .Permission denied"),
        (read_only, "cannot be written .Permission denied"),
        (as_anybody, "cannot be written .Is a directory"),
        (read_only / "results.jsonl", "cannot be written: .*file.jsonl is no folder"),
        ("/dev/null", "no file that can be read again"),
        (b"bytes", "out takes the path of a file"),
        (None, "out takes the path of a file, not None"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            Store.open(out)  # type: ignore[arg-type]
    hidden = written(as_anybody / "hidden.jsonl", record(0))
    hidden.chmod(0)
    with pytest.raises(ConfigurationError, match="hidden.jsonl' cannot be read .Perm"):
        Store.open(as_anybody / "results.jsonl", resume=hidden)
    with Store.open(as_anybody / "results.jsonl", resume=as_anybody) as store:
        assert store.found == 1  # what cannot be read in a folder is left out


# Two at once


def test_a_second_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    """At once, with the pid; when that process is killed, the file is free."""
    out = tmp_path / "results.jsonl"
    program = (
        "import sys; from llamatelemetry.batch._store import Store\n"
        "store = Store.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"

        with pytest.raises(ConfigurationError, match=f"by process {other.pid}; wait"):
            Store.open(out)

        other.kill()
        other.wait()
        Store.open(out).close()


def test_a_second_call_of_this_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as such; where the kernel does not tell who, as another process."""
    out = tmp_path / "results.jsonl"
    with Store.open(out):
        with pytest.raises(ConfigurationError, match="by another call in this process"):
            Store.open(out)
        for text in (None, "", "1: POSIX ADVISORY WRITE 7 00:01:2 0 EOF\n"):
            locks = tmp_path / "locks"
            if text is not None:
                locks.write_text(text)
            monkeypatch.setattr(_results_file, "_LOCKS", locks)
            with pytest.raises(ConfigurationError, match="to by another process; wait"):
                Store.open(out)
    Store.open(out).close()


def test_a_file_system_without_locks_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be locked is written without a lock."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Store.open(tmp_path / "results.jsonl") as store:
        store.add(record(0))

    assert store.places.done == 1


# Torn and damaged files


def test_a_line_torn_at_any_byte_is_cut_off_and_asked_again(tmp_path: Path) -> None:
    """Cut within the last two of three lines: whole ones are kept, the rest is free."""
    whole = b"".join(encode_line(record(n, answer="ä")) for n in range(3))
    lines = whole.splitlines(keepends=True)
    out = tmp_path / "results.jsonl"
    for length in range(len(lines[0]), len(whole) + 1):
        out.write_bytes(whole[:length])
        # A line without its line feed is whole: nothing but the end was lost.
        kept = sum(
            whole[:length].startswith(b"".join(lines[:n])[:-1]) for n in (1, 2, 3)
        )

        with Store.open(out) as store:
            claims = [store.claim(n, f"row {n}", key()) for n in range(3)]
            assert claims == [n < kept for n in range(3)], length
            assert out.read_bytes() == b"".join(lines[:kept])
            for n in range(kept, 3):
                store.add(record(n, answer="ä"))

        assert out.read_bytes() == whole
        assert [one["position"] for one in store.places.records()] == [0, 1, 2]


def test_a_first_line_torn_at_any_byte_is_ours(tmp_path: Path) -> None:
    """Though it is alone in its file; what only looks like it is another's."""
    line = encode_line(record(0))
    out = tmp_path / "results.jsonl"
    for length in range(len(line) - 1):
        out.write_bytes(line[:length])
        with Store.open(out) as store:
            assert store.found == 0
        assert out.read_bytes() == b""
    out.write_bytes(b'{"id":1}')
    with pytest.raises(ConfigurationError, match="not a file of results"):
        Store.open(out)


def test_earlier_files_that_are_torn_are_left_as_they_are(tmp_path: Path) -> None:
    """Only read: what is whole in them counts, and nothing is mended."""
    content = encode_line(record(0)) + encode_line(record(1))[:-20]
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_bytes(content)
    ended = tmp_path / "ended.jsonl"
    ended.write_bytes(encode_line(record(2))[:-1])

    with Store.open(tmp_path / "results.jsonl", resume=[earlier, ended]) as store:
        claims = [store.claim(n, f"row {n}", key()) for n in range(3)]
        assert claims == [True, False, True]
        assert [one["position"] for one in store.places.records()] == [0, 2]

    assert earlier.read_bytes() == content
    assert not ended.read_bytes().endswith(b"\n")


def test_damaged_lines_are_left_alone_and_told(tmp_path: Path) -> None:
    """After a power cut: blocks of zeros and odd lines; the others are found."""
    parts = [
        *(b"\0" * 40 + b"\n", encode_line(record(0)), b"\n", b'{"id":1,"ke\n'),
        *(encode_line(record(1)), b'{"other": 1}\n', b"\0" * 4096),
    ]
    out = tmp_path / "results.jsonl"
    out.write_bytes(b"".join(parts))

    with pytest.warns(SetupWarning, match="results.jsonl has 3 line") as caught:
        store = Store.open(out)
    with store:
        claims = [store.claim(n, f"row {n}", key()) for n in range(2)]
        assert claims == [True, True]
        store.add(record(2))
    assert out.read_bytes() == b"".join([*parts[:-1], encode_line(record(2))])
    assert len(caught) == 1

    # Named a second time, through a link, it is not read a second time.
    link = tmp_path / "link.jsonl"
    link.symlink_to(out)
    for resume in (link, tmp_path):
        with pytest.warns(SetupWarning) as caught:
            Store.open(out, resume=resume).close()
        assert len(caught) == 1

    # A warning that is an error leaves the file free.
    with pytest.raises(SetupWarning):
        Store.open(out)
    with pytest.warns(SetupWarning):
        Store.open(out).close()


WRITER = """
import sys
from llamatelemetry.batch._store import Store
with Store.open(sys.argv[1]) as store:
    print(store.found, flush=True)
    for position in range(int(sys.argv[2])):
        key = f"{position:032x}"
        if not store.claim(position, f"row {position}", key):
            store.add({"id": f"row {position}", "key": key, "position": position,
                "answer": "x" * (position % 977), "error": None})
            print(position, flush=True)
"""


def test_a_writer_that_is_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """Killed five times: what it said was added is there, once, and it goes on."""
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-c", WRITER, str(out), "3000"]
    chance = random.Random(8)
    for kill in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            found = int(writer.stdout.readline())
            if kill < 5:
                for _ in range(chance.randrange(1, 400)):
                    writer.stdout.readline()
                writer.kill()
            said = [int(line) for line in writer.stdout.read().split()]
        records = [own_record(line) for line in out.read_bytes().splitlines(True)]
        whole = [one["position"] for one in records if one is not None]
        assert whole == list(range(len(whole)))
        assert found <= len(whole)
        assert not said or said[-1] < len(whole)
        assert None not in records[:-1]
    assert writer.returncode == 0
    assert len(whole) == 3000
    assert all(
        one is not None and len(one["answer"]) == one["position"] % 977
        for one in records
    )


# Disks that are full, or fail


def test_a_full_disk_is_told_and_the_file_is_whole(tmp_path: Path) -> None:
    """No half line is left; with room again, the same store goes on."""
    with small_disk(tmp_path / "little", 2 * MB) as allowed:
        if not allowed:
            missing_part("the right to mount a file system", "run as root")
        out = tmp_path / "little" / "results.jsonl"
        with Store.open(out) as store:
            store.add(record(0))
            filler = fill(tmp_path / "little")
            with pytest.raises(DiskSpaceError) as caught:
                for position in range(1, 50):
                    store.add(record(position, answer="x" * 1500))

            message = str(caught.value)
            done = store.places.done
            assert f"{done} of the rows are answered and kept in results.jsonl" in (
                message
            )
            assert "needs 1.6 kB" in message
            assert caught.value.needed > 1500 > caught.value.free
            assert [line["position"] for line in lines_of(out)] == list(range(done))
            assert out.read_bytes().endswith(b"\n")

            filler.unlink()
            store.add(record(99))
        assert [line["position"] for line in lines_of(out)] == [*range(done), 99]
        assert [one["position"] for one in store.places.records()] == [*range(done), 99]


@pytest.mark.parametrize("room", [0, 50])
def test_a_limit_on_the_size_of_files_is_told(room: int, tmp_path: Path) -> None:
    """Another reason than a full disk is told as the system tells it."""
    out = tmp_path / "results.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.getsignal(signal.SIGXFSZ)
    with Store.open(out) as store:
        store.add(record(0))
        size = out.stat().st_size
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, before[1]))
        try:
            with pytest.raises(BatchError, match="File too large.; 1 of the rows"):
                store.add(record(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert out.stat().st_size == size


def test_a_disk_that_fails_later_ends_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fsync says is told by the next add, and by close."""

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = Store.open(tmp_path / "results.jsonl")
    store.add(record(0))
    monkeypatch.setattr(os, "fsync", broken)
    store._sync()
    with pytest.raises(BatchError, match="Input/output error.; 1 of the rows"):
        store.add(record(1))
    with pytest.raises(BatchError, match="Input/output error"):
        store.close()
    store.close()

    # An error that is on its way already is not hidden by it.
    with (
        pytest.raises(ZeroDivisionError),
        Store.open(tmp_path / "another.jsonl") as store,
    ):
        store.add(record(0))
        raise ZeroDivisionError


def test_a_file_that_is_deleted_meanwhile_is_told(tmp_path: Path) -> None:
    """Nothing is written on into a file that nobody can find."""
    out = tmp_path / "results.jsonl"
    for replace in (False, True):
        store = Store.open(out)
        store.add(record(0))
        out.unlink()
        if replace:
            written(out, record(5))
        store._sync()
        with pytest.raises(BatchError, match="deleted or replaced"):
            store.add(record(1))
        with pytest.raises(BatchError, match="deleted or replaced"):
            store.close()
        out.unlink(missing_ok=True)


def test_what_is_written_reaches_the_disk_within_about_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of its own brings it there, and ends with the store."""
    synced = threading.Semaphore(0)
    real = os.fsync

    def noted(descriptor: int) -> None:
        real(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            synced.release()

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(_store, "_SYNC_SECONDS", 0.01)
    with Store.open(tmp_path / "results.jsonl") as store:
        names = [thread.name for thread in threading.enumerate() if thread.daemon]
        assert "llamatelemetry-results" in names
        for position in range(2):
            store.add(record(position))
            assert synced.acquire(timeout=30)
        store.add(record(2))
    assert synced.acquire(timeout=30)
    assert "llamatelemetry-results" not in [t.name for t in threading.enumerate()]
    store.close()
    with pytest.raises(BatchError, match="is closed"):
        store.add(record(3))


# What is read later


def test_results_whose_file_was_changed_are_not_mixed_up(tmp_path: Path) -> None:
    """A file that is gone, or is another one now, is an error that names it."""
    out = tmp_path / "results.jsonl"
    with Store.open(out) as store:
        store.add(record(0))
        store.add(record(1))
    place = store.places.at(1)
    assert place is not None
    content = out.read_bytes()

    for other in (b"", content[7:], encode_line(record(7)) * 2):
        out.write_bytes(other)
        with pytest.raises(BatchError, match="results.jsonl cannot be read .it was ch"):
            store.places.read(place)
        with pytest.raises(BatchError, match="it was changed meanwhile"):
            list(store.places.records())
    out.unlink()
    with pytest.raises(BatchError, match="No such file"):
        store.places.read(place)
    with pytest.raises(BatchError, match="No such file"):
        list(store.places.records())
    out.write_bytes(content)
    assert store.places.read(place) == record(1)


def test_a_place_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are found though the working folder is another one later."""
    monkeypatch.chdir(tmp_path)
    with Store.open("results.jsonl") as store:
        store.add(record(0))
    monkeypatch.chdir("/")

    assert store.path == tmp_path / "results.jsonl"
    assert next(store.places.records()) == record(0)


def test_ids_that_share_a_digest_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found by its digest is compared with the id itself."""
    from llamatelemetry.batch import _places

    monkeypatch.setattr(_places, "digest_of_id", lambda _: 0)
    with Store.open(tmp_path / "results.jsonl") as store:
        store.add(record(1, id="a"))
        store.add(record(2, id="b"))
    places = store.places

    assert places.find("b") == places.at(2)
    assert places.find("c") is None


def test_many_results_take_little_memory(tmp_path: Path) -> None:
    """3,000 earlier results of 1 kB take under 300 bytes each, and so do new ones."""
    many = 3000
    out = tmp_path / "results.jsonl"
    with out.open("wb") as file:
        for position in range(many):
            file.write(encode_line(record(position, id=position, answer="x" * 800)))

    gc.collect()
    tracemalloc.start()
    with Store.open(out) as store:
        for position in range(many):
            assert store.claim(position, position, key())
        for position in range(many, many + 100):
            store.add(record(position, id=position))
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert held < 300 * many
    assert peak < 400 * many
