"""Models: a name becomes verified files, with the real client and a Hub on loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from stand_in_hub import StandInHub

from llamatelemetry import _environment
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    DiskSpaceError,
    DownloadError,
    GatedModelError,
    LLCudaError,
    ModelError,
    OfflineError,
    SetupWarning,
)
from llamatelemetry.gguf import read_header
from llamatelemetry.setup import catalog as catalog_module
from llamatelemetry.setup import ensure_model
from llamatelemetry.setup.catalog import CatalogFile, CatalogModel

REPO = "owner/Demo-GGUF"
MIB = 2**20


@pytest.fixture(scope="module")
def model_bytes(demo_model: Path) -> bytes:
    """A model that can be loaded, 6 MB of it so that it can break off in the middle."""
    return demo_model.read_bytes() + bytes(4 * MIB)


def cached(hub_cache: Path, name: str) -> Path:
    """Return the blob behind a file of the cache."""
    return next(hub_cache.glob(f"models--*/snapshots/*/{name}")).resolve()


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """The folder that the fixture `hub` makes the library's cache."""
    return tmp_path / "hub"


@pytest.fixture
def small_catalog(monkeypatch: pytest.MonkeyPatch, model_bytes: bytes) -> CatalogModel:
    """A catalog of one model, which the stand-in may have."""
    entry = CatalogModel(
        id="demo-1b",
        tasks=("chat",),
        repo=REPO,
        files=(
            CatalogFile(
                "demo-Q8_0.gguf",
                len(model_bytes),
                hashlib.sha256(model_bytes).hexdigest(),
                None,
            ),
        ),
        mmproj=None,
        architecture="llama",
        parameters=10**9,
        active_parameters=None,
        native_context=4096,
        native_context_confirmed=True,
        license="mit",
        gated=False,
        fits=("t4",),
        min_llama_cpp=7760,
        min_llama_cpp_note="",
        runs_on_b7760=True,
        name_confirmed=True,
        note="",
    )
    monkeypatch.setattr(catalog_module, "catalog", lambda: (entry,))
    return entry


# What it is for


@pytest.mark.parametrize(
    "name",
    [
        f"{REPO}:demo-Q8_0.gguf",
        f"{REPO}:q8_0",
        f"{REPO}:demo-Q8_0",
        f"https://huggingface.co/{REPO}/blob/main/demo-Q8_0.gguf",
        "demo-1b",
    ],
)
def test_every_kind_of_name_leads_to_the_file(
    hub: StandInHub, small_catalog: CatalogModel, model_bytes: bytes, name: str
) -> None:
    """A reference, a quantization, a page's address, a name of the catalog."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.add(REPO, "demo-Q4_K_M.gguf", b"GGUF")

    model = ensure_model(name, progress=False)

    assert model.path.read_bytes() == model_bytes
    assert model.size == len(model_bytes)
    assert model.sha256 == hashlib.sha256(model_bytes).hexdigest()
    assert os.fspath(model) == str(model) == str(model.path)
    assert read_header(model).metadata["general.architecture"] == "llama"
    hub.requests.clear()
    assert ensure_model(name, progress=False) == model
    assert hub.requests == []


def test_a_repository_alone_means_its_usual_quantization(
    hub: StandInHub, hub_cache: Path
) -> None:
    """Without a file Q4_K_M is taken, also where another one lies in the cache."""
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF8")
    hub.add(REPO, "demo-Q4_K_M.gguf", b"GGUF4")
    ensure_model(f"{REPO}:Q8_0", progress=False)

    assert ensure_model(REPO, progress=False).path.read_bytes() == b"GGUF4"


def test_a_file_of_this_machine_is_itself(
    hub: StandInHub, demo_model: Path, tmp_path: Path
) -> None:
    """A path is read and returned; nobody is asked; the demo model has a name."""
    model = ensure_model(demo_model)
    assert model.path == demo_model
    assert ensure_model("demo").path == demo_model
    assert ensure_model(str(demo_model), sha256=_digest(demo_model)) is not None
    with pytest.raises(ChecksumError, match="not the ones that were pinned"):
        ensure_model(demo_model, sha256="0" * 64)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo_model.read_bytes()[:1000])
    with pytest.raises(ModelError):
        ensure_model(broken)
    assert hub.requests == []


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_shards_come_together_into_one_folder(hub: StandInHub, hub_cache: Path) -> None:
    """All shards are fetched, whichever one or quantization was named."""
    names = [f"Q4_K_M/m-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        hub.add(REPO, name, b"GGUF" + bytes([number]) * MIB)

    model = ensure_model(f"{REPO}:Q4_K_M", progress=False)

    assert [path.name for path in model.files] == [Path(n).name for n in names]
    assert len({path.parent for path in model.files}) == 1
    assert model.size == 3 * (MIB + 4)
    hub.requests.clear()
    assert ensure_model(f"{REPO}:{names[1]}", progress=False).files == model.files
    assert hub.requests == []


def test_a_name_that_changed_its_case_is_found(
    hub: StandInHub, small_catalog: CatalogModel, model_bytes: bytes
) -> None:
    """The catalog's file may be spelt otherwise by now; its digest counts."""
    hub.add(REPO, "Demo-q8_0.GGUF", model_bytes)

    model = ensure_model("demo-1b", progress=False)

    assert model.path.name == "Demo-q8_0.GGUF"
    hub.requests.clear()
    assert ensure_model("demo-1b", progress=False) == model
    assert hub.requests == []


def test_an_attached_dataset_is_used_without_the_hub(
    hub: StandInHub,
    small_catalog: CatalogModel,
    model_bytes: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below /kaggle/input the right file is found by name, size and digest."""
    monkeypatch.setattr(_environment, "_ROOT", tmp_path)
    attached = tmp_path / "kaggle" / "input" / "some" / "folder" / "demo-Q8_0.gguf"
    attached.parent.mkdir(parents=True)
    (tmp_path / "kaggle" / "working").mkdir()
    attached.write_bytes(model_bytes)

    assert ensure_model("demo-1b", progress=False).path == attached
    assert ensure_model("demo-Q8_0.gguf", progress=False).path == attached
    for name in (f"{REPO}:demo-Q8_0.gguf", f"{REPO}:Q8_0"):
        with pytest.warns(SetupWarning, match="nobody has stated the digest"):
            assert ensure_model(name, progress=False).path == attached
        digest = small_catalog.files[0].sha256
        assert ensure_model(name, sha256=digest, progress=False).path == attached
    assert hub.requests == []

    attached.write_bytes(model_bytes[:-1] + b"x")
    with pytest.raises(ChecksumError, match="demo-Q8_0"):
        ensure_model("demo-1b", progress=False)
    attached.write_bytes(model_bytes[:-1])  # another size: another file
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    assert ensure_model("demo-1b", progress=False).path != attached


def test_the_projector_of_a_vision_model_comes_too(
    hub: StandInHub,
    small_catalog: CatalogModel,
    model_bytes: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `projector=True` both files are fetched; where there is none, it is said."""
    data = b"GGUF projector"
    extra = CatalogFile(
        "mmproj-F16.gguf", len(data), hashlib.sha256(data).hexdigest(), None
    )
    seeing = dataclasses.replace(small_catalog, id="seeing", mmproj=extra)
    monkeypatch.setattr(catalog_module, "catalog", lambda: (small_catalog, seeing))
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.add(REPO, "mmproj-F16.gguf", data)

    model = ensure_model("seeing", projector=True, progress=False)

    assert model.projector is not None
    assert model.projector.read_bytes() == data
    assert [path.name for path in model.files] == ["demo-Q8_0.gguf"]
    assert "demo-Q8_0.gguf" in repr(model)
    assert ensure_model(seeing, progress=False).projector is None
    for name, message in (
        ("demo-1b", "no vision projector"),
        (f"{REPO}:Q8_0", "for models of the catalog"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ensure_model(name, projector=True)


def test_a_digest_is_of_one_file(
    hub: StandInHub, small_catalog: CatalogModel, model_bytes: bytes
) -> None:
    """With a catalog's name it takes the pinned one's place; shards have one each."""
    changed = hub.add(REPO, "demo-Q8_0.gguf", b"GGUF changed")
    for number in (1, 2):
        hub.add(REPO, f"m-Q4_K_M-0000{number}-of-00002.gguf", b"GGUF")

    taken = ensure_model("demo-1b", sha256=changed.digest, progress=False)
    assert taken.path.read_bytes() == b"GGUF changed"
    for name in (f"{REPO}:Q4_K_M", f"{REPO}:m-Q4_K_M-00001-of-00002.gguf"):
        with pytest.raises(ConfigurationError, match="digest of one file"):
            ensure_model(name, sha256="0" * 64, progress=False)


def test_a_quantization_alone_can_be_pinned(hub: StandInHub) -> None:
    """A digest beside a quantization is compared before anything is fetched."""
    file = hub.add(REPO, "demo-Q8_0.gguf", b"GGUF")
    name = f"{REPO}:Q8_0"

    assert ensure_model(name, sha256=file.digest, progress=False).sha256 == file.digest
    with pytest.raises(ChecksumError):
        ensure_model(name, sha256="0" * 64, progress=False)


# Bad names


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("demo-1", ConfigurationError, "nearest are: demo-1b"),
        (f"{REPO}:Q5_K_M", ModelError, "no file is Q5_K_M; .* has Q4_K_M, Q8_0"),
        (f"{REPO}:demo-Q8.gguf", ModelError, "nearest: demo-Q8_0.gguf"),
        ("owner/Demo", ModelError, "no such repository"),
        (f"{REPO}@v9:Q8_0", ModelError, "no such revision"),
        ("owner/Empty", ModelError, "holds no GGUF"),
        ("demo-Q8_0.gguf", ConfigurationError, "no file .* here"),
        ("/nowhere/m.gguf", ModelError, "its folder does not exist"),
        (f"{REPO}/sub/m.gguf", ConfigurationError, f"write '{REPO}:sub/m.gguf'"),
        ("a b c", ConfigurationError, "has no model 'a b c'"),
    ],
)
def test_a_bad_name_is_answered_with_the_nearest(
    hub: StandInHub,
    small_catalog: CatalogModel,
    name: str,
    error: type[Exception],
    message: str,
) -> None:
    """What does not exist is answered with what does."""
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF and more")
    hub.add(REPO, "demo-Q4_K_M.gguf", b"GGUF")
    hub.add("owner/Empty", "README.md", b"hello")

    with pytest.raises(error, match=message):
        ensure_model(name, progress=False)
    assert hub.seen("cdn") == []


def test_a_missing_path_is_answered_with_its_neighbours(tmp_path: Path) -> None:
    """A misspelt file is answered with the nearest one of its folder."""
    (tmp_path / "qwen3-4b-Q4_K_M.gguf").touch()

    with pytest.raises(ModelError, match="its folder has qwen3-4b-Q4_K_M.gguf"):
        ensure_model(tmp_path / "qwen3-4b-Q4KM.gguf")


def test_a_gated_model_says_what_to_do(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page to visit and the variable to set; with a token it comes."""
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF", gated=True)
    name = f"{REPO}:Q8_0"

    with pytest.raises(GatedModelError, match=f"{REPO}.*accept its licence.*HF_TOKEN"):
        ensure_model(name, progress=False)
    with pytest.raises(GatedModelError):
        ensure_model(name, token="hf_of_somebody_else", progress=False)
    assert ensure_model(name, token=hub.token, progress=False).size == 4


# Wrong bytes


def test_a_flipped_byte_is_fetched_again(hub: StandInHub, model_bytes: bytes) -> None:
    """The Hub's client takes wrong bytes of the right length; here they are noticed."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", "flip", after=5 * MIB)

    model = ensure_model(f"{REPO}:Q8_0", progress=False)

    assert model.path.read_bytes() == model_bytes
    assert len(hub.seen("cdn")) == 2


def test_bytes_that_stay_wrong_are_an_error_and_are_gone(
    hub: StandInHub, model_bytes: bytes, hub_cache: Path
) -> None:
    """Twice wrong is an error with both digests; nothing is left to be loaded."""
    file = hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", "flip", times=2, after=100)

    with pytest.raises(ChecksumError) as raised:
        ensure_model(f"{REPO}:Q8_0", progress=False)

    assert raised.value.expected == file.digest
    wrong = bytearray(model_bytes)
    wrong[100] ^= 1
    assert raised.value.actual == hashlib.sha256(wrong).hexdigest()
    assert [p for p in hub_cache.rglob("*.gguf") if p.exists()] == []
    assert list(hub_cache.glob("models--*/blobs/*")) == []


def test_another_file_than_the_catalogs_is_not_fetched(
    hub: StandInHub, small_catalog: CatalogModel
) -> None:
    """Where the repository has changed, both digests and the knowing call are told."""
    changed = hub.add(REPO, "demo-Q8_0.gguf", b"GGUF, but another one")

    with pytest.raises(ChecksumError, match="nothing was fetched") as raised:
        ensure_model("demo-1b", progress=False)

    assert raised.value.expected == small_catalog.files[0].sha256
    assert raised.value.actual == changed.digest
    assert hub.seen("cdn") == []
    assert f"ensure_model('{REPO}:demo-Q8_0.gguf', sha256='{changed.digest}')" in str(
        raised.value
    )
    taken = ensure_model(
        f"{REPO}:demo-Q8_0.gguf", sha256=changed.digest, progress=False
    )
    assert taken.sha256 == changed.digest


def test_a_cached_file_that_rots_is_noticed(
    hub: StandInHub, model_bytes: bytes, hub_cache: Path
) -> None:
    """A changed byte on the disk is seen at the next start, and fetched again."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    name = f"{REPO}:Q8_0"
    ensure_model(name, progress=False)
    blob = cached(hub_cache, "demo-Q8_0.gguf")

    def rot() -> None:
        with blob.open("r+b") as file:
            file.seek(1000)
            file.write(b"rot")

    rot()
    assert ensure_model(name, progress=False).path.read_bytes() == model_bytes
    rot()
    hub.repositories.clear()
    with pytest.raises(LLCudaError):
        ensure_model(name, progress=False)


def test_a_rotten_file_without_internet_is_an_error(
    hub: StandInHub, model_bytes: bytes, hub_cache: Path, monkeypatch: Any
) -> None:
    """Offline a wrong file is refused as wrong, and not as missing."""
    from huggingface_hub import constants

    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    ensure_model(f"{REPO}:Q8_0", progress=False)
    cached(hub_cache, "demo-Q8_0.gguf").write_bytes(model_bytes[:-1] + b"x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(ChecksumError):
        ensure_model(f"{REPO}:Q8_0", progress=False)


# Trouble on the way


@pytest.mark.parametrize("after", [1, 2 * MIB + 7, -1])
@pytest.mark.parametrize("kind", ["drop", "cut"])
def test_a_dropped_link_is_continued(
    hub: StandInHub, model_bytes: bytes, kind: str, after: int
) -> None:
    """Dropped at the beginning, in the middle and at the end; whole MiB are kept."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", kind, after=after)

    model = ensure_model(f"{REPO}:Q8_0", progress=False)

    assert model.path.read_bytes() == model_bytes
    if kind == "cut":
        kept = (after if after > 0 else len(model_bytes) + after) // MIB * MIB
        again = hub.seen("cdn")[1].headers.get("range", "bytes=0-")
        assert int(again[6:].rstrip("-")) >= kept


def test_a_link_that_always_drops_gets_there(
    hub: StandInHub, model_bytes: bytes
) -> None:
    """A link that never holds for 10 MiB, with which the client alone gets nowhere."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", "cut", times=4, after=3 * MIB // 2)

    assert ensure_model(f"{REPO}:Q8_0", progress=False).path.read_bytes() == model_bytes


def test_a_stalled_transfer_is_continued(
    hub: StandInHub, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence ends a connection, and the rest comes over another one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", "stall", after=2 * MIB)

    assert ensure_model(f"{REPO}:Q8_0", progress=False).path.read_bytes() == model_bytes


def test_silence_is_waited_for_30_seconds_at_most(
    hub: StandInHub, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer limit of the library's is shortened while our transfer runs."""
    from huggingface_hub import constants

    from llamatelemetry.setup import _hub

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 600)
    with _hub._settings_of_transfers():
        assert constants.HF_HUB_DOWNLOAD_TIMEOUT == 30
        assert constants.HF_HUB_DISABLE_XET
        with _hub._settings_of_transfers():
            pass
        assert constants.HF_HUB_DOWNLOAD_TIMEOUT == 30
    assert constants.HF_HUB_DOWNLOAD_TIMEOUT == 600
    assert not constants.HF_HUB_DISABLE_XET


def test_a_short_body_is_fetched_again(hub: StandInHub, model_bytes: bytes) -> None:
    """A reply that ends early and says so is not taken for the file."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", "short", after=MIB)

    assert ensure_model(f"{REPO}:Q8_0", progress=False).path.read_bytes() == model_bytes


@pytest.mark.parametrize(
    ("origin", "status", "headers"),
    [
        ("hub", 429, {"Retry-After": "1"}),
        ("hub", 503, {}),
        ("cdn", 429, {"Retry-After": "1"}),
        ("cdn", 503, {}),
        ("cdn", 500, {}),
    ],
)
def test_a_busy_hub_is_asked_again(
    hub: StandInHub,
    model_bytes: bytes,
    origin: str,
    status: int,
    headers: dict[str, str],
) -> None:
    """429 and 5xx, in the place of the list or of the body, are no end."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next(origin, "status", status=status, headers=headers)

    assert ensure_model(f"{REPO}:Q8_0", progress=False).path.read_bytes() == model_bytes


def test_a_hub_that_stays_busy_is_an_error(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few tries it is said, with the status."""
    from llamatelemetry.setup import _hub

    monkeypatch.setattr(_hub, "_TRANSFER_DELAYS", (0.01, 0.01))
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF")
    hub.fail_next("cdn", "status", times=99, status=503)

    with pytest.raises(DownloadError, match="503"):
        ensure_model(f"{REPO}:Q8_0", progress=False)


# Without internet


def test_offline_the_cache_is_enough(
    hub: StandInHub, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE and a cached file: it is used; another one: the error says so."""
    from huggingface_hub import constants

    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    model = ensure_model(f"{REPO}:Q8_0", progress=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()

    assert ensure_model(f"{REPO}:Q8_0", progress=False) == model
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE"):
        ensure_model(f"{REPO}:Q4_K_M", progress=False)
    assert hub.requests == []


# The disk


def test_no_room_is_said_before_the_first_byte(
    hub: StandInHub, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of a petabyte is not begun; the error has both sizes."""
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF", zeros=10**15)

    with pytest.raises(DiskSpaceError, match="needs 1000000.0 GB in") as raised:
        ensure_model(f"{REPO}:Q8_0", progress=False)
    assert raised.value.needed > 10**15 > raised.value.free
    assert hub.seen("cdn") == []
    assert not hub_cache.exists()


def test_what_kaggles_output_has_no_room_for_goes_to_scratch(
    hub: StandInHub,
    model_bytes: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the cache in /kaggle/working and its quota used up, scratch is taken."""
    from huggingface_hub import constants

    from llamatelemetry.setup import _disk

    root = tmp_path / "root"
    for name in ("working", "temp", "input"):
        (root / "kaggle" / name).mkdir(parents=True)
    monkeypatch.setattr(_environment, "_ROOT", root)
    working = root / "kaggle" / "working" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(working))
    monkeypatch.setattr(_disk, "KAGGLE_OUTPUT_BYTES", 70 * 10**6)
    monkeypatch.setattr(_disk, "_SPARE_BYTES", 10**6)
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    (root / "kaggle" / "working" / "results.csv").write_bytes(os.urandom(66 * 10**6))

    model = ensure_model(f"{REPO}:Q8_0", progress=False)

    assert model.path.is_relative_to(root / "kaggle" / "temp")
    hub.requests.clear()
    assert ensure_model(f"{REPO}:Q8_0", progress=False) == model
    assert hub.requests == []


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_a_full_disk_is_said_and_leaves_nothing(
    hub: StandInHub, tmp_path: Path, small_disk: Path
) -> None:
    """A disk that fills up on the way is an error with sizes, and is free again."""
    from llamatelemetry.setup import _disk

    # Somebody else takes the room after it was looked at.
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF" + os.urandom(6 * MIB))
    before = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(before - 3 * MIB))
    free = shutil.disk_usage(small_disk).free
    original = _disk.free_bytes
    _disk.free_bytes = lambda _: 10**12
    try:
        with pytest.raises(DiskSpaceError, match="6.3 MB"):
            ensure_model(f"{REPO}:Q8_0", cache_dir=small_disk / "hub", progress=False)
    finally:
        _disk.free_bytes = original
    assert shutil.disk_usage(small_disk).free > free - MIB
    assert list(small_disk.rglob("*.incomplete")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 16 MB; left out where none can be mounted."""
    from tests.conftest import missing_part

    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        missing_part("the right to mount a small file system", "run as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# Other processes

FETCH = """
import sys
from huggingface_hub import constants
constants.HF_HUB_CACHE = {cache!r}
from llamatelemetry.setup import ensure_model
print(ensure_model({name!r}, progress=False).path)
"""


def in_another_process(
    hub: StandInHub, hub_cache: Path, name: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH.format(cache=str(hub_cache), name=name)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fetch_once(
    hub: StandInHub, hub_cache: Path, model_bytes: bytes
) -> None:
    """Two notebooks that start at the same time share one transfer."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)

    both = [in_another_process(hub, hub_cache, f"{REPO}:Q8_0") for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]

    assert answers[0] == answers[1] != ""
    assert len(hub.seen("cdn")) == 1


@pytest.mark.parametrize("after", [MIB // 2, 3 * MIB, -1])
def test_a_killed_process_leaves_nothing_behind(
    hub: StandInHub, hub_cache: Path, model_bytes: bytes, after: int
) -> None:
    """After kill -9 no file has its final name; the next one sweeps the rest."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", "stall", after=after)
    with in_another_process(hub, hub_cache, f"{REPO}:Q8_0") as process:
        while not (hub.seen("cdn") and hub.seen("cdn")[0].sent >= min(after, MIB) > 0):
            if after < 0 and hub.seen("cdn") and hub.seen("cdn")[0].sent > 5 * MIB:
                break
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert list(hub_cache.rglob("*.gguf")) == []
    assert len(list(hub_cache.rglob("*.incomplete"))) == 1

    model = ensure_model(f"{REPO}:Q8_0", progress=False)
    assert model.path.read_bytes() == model_bytes
    assert list(hub_cache.rglob("*.incomplete")) == []


def test_ctrl_c_ends_a_transfer_and_the_next_one_is_right(
    hub: StandInHub, hub_cache: Path, model_bytes: bytes
) -> None:
    """SIGINT in the middle ends the process as Python ends; nothing wrong is left."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.fail_next("cdn", "stall", after=3 * MIB)
    with in_another_process(hub, hub_cache, f"{REPO}:Q8_0") as process:
        while not (hub.seen("cdn") and hub.seen("cdn")[0].sent >= 3 * MIB):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert list(hub_cache.rglob("*.gguf")) == []

    assert ensure_model(f"{REPO}:Q8_0", progress=False).path.read_bytes() == model_bytes


def test_others_that_use_the_library_meanwhile_are_not_disturbed(
    hub: StandInHub, model_bytes: bytes, hub_cache: Path
) -> None:
    """Another thread's own download of the same file shares ours; both are right."""
    from huggingface_hub import hf_hub_download

    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    answers: list[str] = []
    other = threading.Thread(
        target=lambda: answers.append(
            hf_hub_download(REPO, "demo-Q8_0.gguf", cache_dir=hub_cache, token=False)
        )
    )
    other.start()
    model = ensure_model(f"{REPO}:Q8_0", progress=False)
    other.join()

    assert answers == [str(model.path)]


# Progress


def test_there_is_one_bar_a_file_with_its_bytes(
    hub: StandInHub, model_bytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar goes to stderr and ends at 100 %; none when it is not wanted."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    hub.add(REPO, "demo-Q4_K_M.gguf", model_bytes + b"1")

    ensure_model(f"{REPO}:Q8_0")
    shown = capfd.readouterr()
    ensure_model(f"{REPO}:Q4_K_M", progress=False)
    ensure_model(f"{REPO}:Q8_0")

    assert shown.out == ""
    assert "demo-Q8_0.gguf" in shown.err
    assert "100%" in shown.err
    assert "B/s" in shown.err
    assert capfd.readouterr().err == ""


def test_the_memory_of_verdicts_is_a_file_of_plain_json(
    hub: StandInHub, model_bytes: bytes
) -> None:
    """Path, size, time and digest are remembered, and no secret."""
    hub.add(REPO, "demo-Q8_0.gguf", model_bytes)
    ensure_model(f"{REPO}:Q8_0", token=hub.token, progress=False)

    text = (_environment.cache_folder() / "verified.json").read_text()
    assert hub.token not in text
    assert [entry["sha256"] for entry in json.loads(text).values()] == [
        hashlib.sha256(model_bytes).hexdigest()
    ]


def test_a_folder_may_hold_what_is_no_model(tmp_path: Path, demo_model: Path) -> None:
    """Hidden twins, folders, projectors by any name, importance matrices."""
    folder = tmp_path / "models"
    (folder / "folder.gguf").mkdir(parents=True)
    (folder / "small-mmproj-f16.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="only small-mmproj-f16.gguf"):
        ensure_model(folder)
    for name in ("._small.gguf", "imatrix.gguf"):
        (folder / name).write_bytes(b"GGUF")
    (folder / "small.gguf").symlink_to(demo_model)
    assert ensure_model(folder).name == "small.gguf"


def test_a_folder_stands_for_the_one_model_in_it(
    tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projectors and other files are not counted; several models are named."""
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(ModelError, match="no GGUF file"):
        ensure_model(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError):  # a word, which may be the catalog's
        ensure_model("models")
    (folder / "demo.gguf").write_bytes(demo_model.read_bytes())
    (folder / "MMPROJ-demo.gguf").write_bytes(b"GGUF")
    (folder / "README.md").write_text("read me")
    for name in (folder, str(folder), "models", "./models/"):
        assert ensure_model(name).path == folder / "demo.gguf"
    found = ensure_model(folder)
    assert ensure_model(found) == found

    (folder / "other.gguf").write_bytes(demo_model.read_bytes())
    with pytest.raises(ModelError, match="has 2 models.*: demo.gguf, other.gguf"):
        ensure_model(folder)


def test_a_folder_may_hold_one_set_of_shards(tmp_path: Path) -> None:
    """The first shard is the model's path; one that is missing is told."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for number in range(2):
        writer.add_tensor(f"t.{number}", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = ensure_model(tmp_path)
    assert [path.name for path in found.files] == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    assert found.path == found.files[0]
    found.path.unlink()
    with pytest.raises(ModelError, match="m-00001-of-00002.gguf"):
        ensure_model(tmp_path)
