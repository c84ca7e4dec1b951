"""Digests of files, and the verdicts that spare reading them again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamatelemetry.exceptions import ChecksumError, ConfigurationError
from llamatelemetry.setup import _checksums
from llamatelemetry.setup._checksums import (
    checked_digest,
    is_digest,
    known_digest,
    mismatch,
    remember,
    sha256_of,
)

DIGEST = hashlib.sha256(b"model").hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which is not there yet."""
    monkeypatch.setenv("LLAMATELEMETRY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of more than one block."""
    path = tmp_path / "m.gguf"
    path.write_bytes(os.urandom(2_500_000))
    return path


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Digests that users give


@pytest.mark.parametrize(
    "text", [DIGEST, DIGEST.upper(), f"sha256:{DIGEST}", f"  SHA256:{DIGEST}\n"]
)
def test_a_digest_may_be_written_in_several_ways(text: str) -> None:
    """Capitals, spaces around it and the prefix of other tools make no difference."""
    assert checked_digest(text) == DIGEST


@pytest.mark.parametrize(
    "text", ["", DIGEST[:-1], DIGEST + "0", "g" + DIGEST[1:], "٣" * 64, DIGEST[:40]]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    """The error shows what was given and what would be one."""
    with pytest.raises(ConfigurationError, match="64 digits.*sha256sum") as raised:
        checked_digest(text)

    assert repr(text) in str(raised.value)
    assert not is_digest(text)


def test_a_digest_is_known_by_its_form() -> None:
    """64 small hexadecimal digits; the Hub's short ETags and nothing are none."""
    assert is_digest(DIGEST)
    assert not is_digest(DIGEST.upper())
    assert not is_digest(None)


def test_a_mismatch_says_what_came() -> None:
    """Both digests stand in the message and on the error, with what to do."""
    error = mismatch("m.gguf", expected=DIGEST, actual="0" * 64, advice="Try again.")

    assert isinstance(error, ChecksumError)
    assert (error.expected, error.actual) == (DIGEST, "0" * 64)
    for words in ("m.gguf", DIGEST, "0" * 64, "Try again."):
        assert words in str(error)


# Verdicts


def test_a_file_is_read_once(model: Path) -> None:
    """All is read and told, and the verdict is known from then on."""
    noted: list[int] = []
    assert known_digest(model) is None

    assert sha256_of(model, noted.append) == digest_of(model)

    assert sum(noted) == 2_500_000
    assert len(noted) == 3
    assert known_digest(model) == digest_of(model)


def test_an_empty_file_has_a_digest_too(tmp_path: Path) -> None:
    """Nothing to read is no special case."""
    (tmp_path / "empty").write_bytes(b"")

    assert sha256_of(tmp_path / "empty") == hashlib.sha256(b"").hexdigest()
    assert known_digest(tmp_path / "empty") == hashlib.sha256(b"").hexdigest()


def test_a_verdict_is_that_of_the_file_behind_a_link(
    model: Path, tmp_path: Path
) -> None:
    """The Hub's cache holds links; the file behind one is what was verified."""
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    digest = sha256_of(link)

    assert known_digest(model) == known_digest(link) == digest
    link.unlink()
    assert known_digest(link) is None
    assert known_digest(model) == digest


def test_a_file_that_has_changed_is_not_known(model: Path) -> None:
    """Other bytes with another time or size: nothing is known of them."""
    digest = sha256_of(model)
    status = model.stat()
    model.write_bytes(os.urandom(2_500_000))
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert known_digest(model) is None

    with model.open("ab") as file:
        file.write(b"x")
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known_digest(model) is None

    assert sha256_of(model) == known_digest(model) != digest


def test_a_file_that_was_replaced_is_not_known(model: Path, tmp_path: Path) -> None:
    """Another file of the same size and time, as unpacking makes, is another file."""
    sha256_of(model)
    status = model.stat()
    other = tmp_path / "other"
    other.write_bytes(os.urandom(2_500_000))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(model)

    after = model.stat()
    assert (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert known_digest(model) is None


def test_a_file_that_changes_while_it_is_read_is_not_remembered(model: Path) -> None:
    """A digest of bytes that somebody was writing is no verdict on the file."""

    def change(count: int) -> None:
        if model.stat().st_size == 2_500_000:
            with model.open("ab") as file:
                file.write(b"more")

    sha256_of(model, change)

    assert known_digest(model) is None


def test_a_file_that_goes_while_it_is_read_is_not_remembered(
    model: Path, cache: Path
) -> None:
    """Its digest is returned, and nothing is kept of a name without a file."""
    digest = digest_of(model)

    assert sha256_of(model, lambda _: model.unlink(missing_ok=True)) == digest

    assert known_digest(model) is None
    assert not cache.exists()


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """To verify what is not there is the system's error."""
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "nothing")


def test_what_was_verified_elsewhere_can_be_remembered(model: Path) -> None:
    """A digest that was computed on the way counts for the file as it is now."""
    remember(model, DIGEST)

    assert known_digest(model) == DIGEST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "\udcff",
        '{"PATH": 7}',
        '{"PATH": {"state": STATE, "sha256": 7}}',
        '{"PATH": {"state": STATE}}',
        '{"PATH": {"sha256": "DIGEST"}}',
    ],
)
def test_verdicts_that_cannot_be_read_are_no_error(
    model: Path, cache: Path, text: str
) -> None:
    """A file of verdicts that is cut off or not ours is as good as none."""
    status = model.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ino]
    text = text.replace("PATH", str(model)).replace("STATE", json.dumps(state))
    cache.mkdir()
    place = cache / "verified.json"
    place.write_bytes(text.encode(errors="surrogateescape"))

    assert known_digest(model) is None
    digest = sha256_of(model)
    assert known_digest(model) == digest


def test_a_cache_that_cannot_be_written_costs_time_only(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be remembered the digest is right all the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMATELEMETRY_CACHE", str(tmp_path / "file" / "cache"))

    assert sha256_of(model) == digest_of(model)
    assert known_digest(model) is None


def test_the_oldest_verdicts_are_forgotten(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of verdicts does not grow for ever; what is renewed counts as new."""
    monkeypatch.setattr(_checksums, "_MOST_VERDICTS", 3)
    files = [tmp_path / f"{number}.gguf" for number in range(5)]
    for file in files:
        file.write_text(file.name)
    for file in (*files[:3], files[0], *files[3:]):
        sha256_of(file)

    known = [known_digest(file) is not None for file in files]
    assert known == [True, False, False, True, True]
    assert len(json.loads((cache / "verified.json").read_text())) == 3


REMEMBER = """
import sys
from pathlib import Path
from llamatelemetry.setup._checksums import sha256_of
print("ready", flush=True)
sys.stdin.readline()
for path in sys.argv[1:]:
    sha256_of(Path(path))
"""


def test_two_processes_lose_no_verdict(tmp_path: Path) -> None:
    """Processes that remember at the same time keep what the other one has added."""
    files = [tmp_path / f"{number}.gguf" for number in range(24)]
    for file in files:
        file.write_text(file.name)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REMEMBER, *map(str, files[start::2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for start in (0, 1)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0

    assert [known_digest(file) for file in files] == [digest_of(file) for file in files]
