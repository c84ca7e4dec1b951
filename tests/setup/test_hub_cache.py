"""The Hub's cache as the real client makes it: what lies there, and what is swept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_hub import StandInHub

from llamatelemetry.setup._hub_cache import (
    cached_models,
    cached_snapshot,
    discard_cached,
    sweep_incomplete,
)

REPO = "owner/Model-GGUF"
FOLDER = "models--owner--Model-GGUF"
DAY = 24 * 3600


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that nobody has written to yet."""
    return tmp_path / "cache"


def fetch(cache: Path, path: str, revision: str | None = None) -> Path:
    """Fetch a file with the real client."""
    from huggingface_hub import hf_hub_download

    found = hf_hub_download(REPO, path, revision=revision, cache_dir=cache)
    return Path(str(found))


def leave(cache: Path, name: str, *, age: float = 0.0, size: int = 100_000) -> Path:
    """Leave an unfinished file behind, as a client that was killed does."""
    path = cache / FOLDER / "blobs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_what_the_client_has_fetched_is_found(hub: StandInHub, cache: Path) -> None:
    """Files of the main branch and of a commit, in folders too; of others none."""
    hub.add(REPO, "Q8_0/m-Q8_0.gguf", b"GGUF" * 9)
    hub.add(REPO, "README.md", b"hello", large=False)
    commit = hub.repositories[REPO].commit
    assert cached_snapshot(cache, REPO) == []

    fetch(cache, "Q8_0/m-Q8_0.gguf")
    fetch(cache, "README.md")

    files = ["Q8_0/m-Q8_0.gguf", "README.md"]
    assert cached_snapshot(cache, REPO) == files
    assert cached_snapshot(cache, REPO, "main") == files
    assert cached_snapshot(cache, REPO, commit) == files
    assert cached_snapshot(cache, REPO, "v9") == []
    assert cached_snapshot(cache, "owner/Other") == []


@pytest.mark.parametrize("revision", ["..", ".", "../..", "../blobs", "/", "a/../.."])
def test_a_revision_leads_nowhere_else(
    hub: StandInHub, cache: Path, revision: str
) -> None:
    """What is no revision finds nothing, whatever folder it would lead to."""
    hub.add(REPO, "m.gguf", b"GGUF" * 9)
    fetch(cache, "m.gguf")

    assert cached_snapshot(cache, REPO, revision) == []


def test_a_reference_that_is_empty_is_nothing(hub: StandInHub, cache: Path) -> None:
    """A branch whose file was cut off by a full disk is as good as none."""
    hub.add(REPO, "m.gguf", b"GGUF" * 9)
    fetch(cache, "m.gguf")
    (cache / FOLDER / "refs" / "main").write_text("")

    assert cached_snapshot(cache, REPO) == []


def test_the_models_of_the_cache_are_listed(hub: StandInHub, cache: Path) -> None:
    """GGUF files with repository, path and bytes, by name; broken ones are left out."""
    assert cached_models(cache) == []
    hub.add(REPO, "Q8_0/m-Q8_0.gguf", b"GGUF" * 9)
    hub.add(REPO, "m-Q4_K_M.gguf", b"GGUF" * 5)
    hub.add(REPO, "gone.gguf", b"GGUF")
    hub.add(REPO, "README.md", b"hello", large=False)
    for path in hub.repositories[REPO].files:
        fetch(cache, path)
    (cache / "datasets--owner--data" / "snapshots" / "0").mkdir(parents=True)
    (cache / "datasets--owner--data" / "snapshots" / "0" / "d.gguf").write_text("")
    fetch(cache, "gone.gguf").resolve().unlink()

    assert cached_models(cache) == [
        ("owner/Model-GGUF:Q8_0/m-Q8_0.gguf", 36),
        ("owner/Model-GGUF:m-Q4_K_M.gguf", 20),
    ]


def test_a_wrong_file_goes_with_its_bytes(hub: StandInHub, cache: Path) -> None:
    """Link and content are deleted, so that the client fetches it anew."""
    hub.add(REPO, "m.gguf", b"GGUF" * 9)
    path = fetch(cache, "m.gguf")
    path.resolve().write_bytes(b"rust" * 9)

    discard_cached(path)

    assert not path.is_symlink()
    assert list((cache / FOLDER / "blobs").iterdir()) == []
    assert fetch(cache, "m.gguf").read_bytes() == b"GGUF" * 9
    discard_cached(path)
    discard_cached(path)  # nothing there is nothing to do


FETCH = """
import sys
from huggingface_hub import hf_hub_download
hf_hub_download(sys.argv[1], sys.argv[2], cache_dir=sys.argv[3])
"""


@pytest.fixture
def fetching(hub: StandInHub, cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real client in another process, in the middle of a file that stalls."""
    hub.add(REPO, "m.gguf", os.urandom(30_000_000))
    hub.fail_next("cdn", "stall", 9, after=25_000_000)
    with subprocess.Popen(
        [sys.executable, "-c", FETCH, REPO, "m.gguf", str(cache)],
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        },
    ) as process:
        while not any(
            place.stat().st_size for place in cache.glob(f"{FOLDER}/blobs/*.incomplete")
        ):
            assert process.poll() is None
            time.sleep(0.01)
        yield process
        process.kill()


def test_what_is_being_written_is_left_alone(
    hub: StandInHub, cache: Path, fetching: subprocess.Popen[bytes]
) -> None:
    """While the real client writes a file nobody takes it, however old it seems."""
    (place,) = cache.glob(f"{FOLDER}/blobs/*.incomplete")
    os.utime(place, (0, 0))

    assert sweep_incomplete(cache) == 0

    assert place.exists()
    assert fetching.poll() is None


def test_what_a_killed_client_leaves_is_swept(
    hub: StandInHub, cache: Path, fetching: subprocess.Popen[bytes]
) -> None:
    """After kill -9 of the real client its unfinished file goes, and is counted."""
    (place,) = cache.glob(f"{FOLDER}/blobs/*.incomplete")
    fetching.kill()
    fetching.wait()
    blocks = place.stat().st_blocks

    assert sweep_incomplete(cache) == blocks * 512 > 0

    assert not place.exists()
    assert sweep_incomplete(cache) == 0


def test_only_orphans_and_old_parts_are_swept(cache: Path) -> None:
    """What an older client continues is kept for a day; other names are not ours."""
    digest = "0123456789abcdef" * 4
    orphan = leave(cache, f"{digest}.a1b2c3d4.incomplete")
    fresh = leave(cache, f"{digest}.incomplete", age=DAY - 600)
    old = leave(cache, f"{digest[:40]}.incomplete", age=DAY + 600)
    other = leave(cache, f"{digest}.of.somebody.incomplete", age=9 * DAY)
    whole = leave(cache, digest, age=9 * DAY)
    expected = sum(place.stat().st_blocks * 512 for place in (orphan, old))

    assert sweep_incomplete(cache) == expected

    assert [p.exists() for p in (orphan, fresh, old, other, whole)] == [
        False,
        True,
        False,
        True,
        True,
    ]


def test_where_room_is_missing_all_parts_go(cache: Path) -> None:
    """On a full disk what could be continued goes too, but nothing of others."""
    digest = "0123456789abcdef" * 4
    fresh = leave(cache, f"{digest}.incomplete")
    other = leave(cache, f"{digest}.of.somebody.incomplete", age=9 * DAY)
    expected = fresh.stat().st_blocks * 512

    assert sweep_incomplete(cache, all_of_them=True) == expected

    assert [fresh.exists(), other.exists()] == [False, True]


def test_a_lock_that_nobody_holds_keeps_nothing(cache: Path) -> None:
    """The client leaves its lock files behind; one alone protects nothing."""
    orphan = leave(cache, f"{'ab' * 32}.a1b2c3d4.incomplete")
    lock = cache / ".locks" / FOLDER / f"{'ab' * 32}.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")

    assert sweep_incomplete(cache) > 0

    assert not orphan.exists()
    assert lock.exists()


def test_what_cannot_be_deleted_is_left(cache: Path) -> None:
    """A name that is no file is passed over; a cache that is not there is empty."""
    folder = cache / FOLDER / "blobs" / f"{'ab' * 32}.a1b2c3d4.incomplete"
    folder.mkdir(parents=True)
    (cache / FOLDER / "blobs" / f"{'cd' * 32}.incomplete").symlink_to("nowhere")

    assert sweep_incomplete(cache) == 0

    assert folder.is_dir()
    assert sweep_incomplete(cache / "nowhere") == 0
