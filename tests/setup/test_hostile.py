"""What a stranger's capsule, a lying mirror, or a changed disk cannot do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_tools import bundle, engine_script, entry, tar_of
from nvml_tools import StandInDriver
from stand_in_hub import StandInHub

from llamatelemetry import prepare
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    DownloadError,
    LLCudaError,
    ModelError,
    OfflineError,
    SetupError,
)
from llamatelemetry.server._installed import engines_folder, installed_engines
from llamatelemetry.setup import (
    _hub_cache,
    ensure_engine,
    ensure_model,
    open_capsule,
    pack,
)

Manifest = Callable[..., Path]
REPO = "owner/Demo-GGUF"
TOKEN = "hf_secret_of_the_stand_in"


def described(path: Path, folder: Path) -> dict[str, Any]:
    """Return what a lock says of a file."""
    return {
        "path": path.relative_to(folder).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


@pytest.fixture
def stranger(demo_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a capsule as a stranger would, with a lock of their own."""

    def make(
        values: dict[str, Any],
        links: dict[str, str] | None = None,
        *,
        name: str = "m.gguf",
        script: bytes = b"",
        library: bytes = b"library",
    ) -> Path:
        folder = tmp_path / f"capsule{len(list(tmp_path.glob('capsule*')))}"
        for part in ("engine/bin", "engine/lib", "model"):
            (folder / part).mkdir(parents=True)
        (folder / "engine/bin/llama-server").write_bytes(script or engine_script())
        (folder / "engine/lib/libggml.so").write_bytes(library)
        shutil.copyfile(demo_model, folder / "model" / "m.gguf")
        files = [
            described(path, folder)
            for path in sorted((folder / "engine").rglob("*"))
            if path.is_file()
        ]
        lock = {
            "format": 1,
            "model": {
                "name": name,
                "files": [described(folder / "model" / "m.gguf", folder)],
            },
            "engine": {
                "id": "x", "entry": values, "files": files, "links": links or {},
            },
            "wheels": [],
        }  # fmt: skip
        (folder / "capsule.json").write_text(json.dumps(lock))
        return folder

    return make


# Capsules


def test_a_capsules_engine_is_never_taken_for_the_pinned_one(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    stranger: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A lock that names the manifest's engine and digest gets a name of its own."""
    good = bundle()
    hub.add("owner/engines", "e.tar.gz", good)
    pinned = entry(good, repo="owner/engines", path="e.tar.gz")
    manifest_of(pinned)
    ran = tmp_path / "ran"
    open_capsule(
        stranger(pinned, script=engine_script(first=f"touch {ran}")), progress=False
    )
    ran.unlink()

    engine = ensure_engine("test-engine", progress=False)

    assert Path(engine.command[0]).read_bytes() == engine_script()
    assert len(hub.seen("cdn")) == 1
    assert not ran.exists()


def test_capsules_of_one_program_with_other_libraries_are_two_engines(
    two_t4s: StandInDriver, stranger: Callable[..., Path]
) -> None:
    """What names an engine is all of its files, not the program alone."""
    values = entry(b"")
    engines = [
        open_capsule(
            stranger(values | {"url": "http://x/"}, library=library), progress=False
        )[0]
        for library in (b"one", b"two")
    ]

    found = [Path(engine.library_path[0], "libggml.so") for engine in engines]
    assert [path.read_bytes() for path in found] == [b"one", b"two"]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../x"},
        {"id": "/tmp/thesis", "sha256": ""},
        {"sha256": "../" * 21 + "x"},
        {"executable": "../../bin/sh"},
        {"executable": 7},
        {"bytes": "many"},
        {"compute_capabilities": [7]},
        {"least_driver": 525},
        {"archive": "rar"},
        {"repo": "a/b", "path": None},
    ],
)
def test_an_entry_cannot_name_a_place_elsewhere(
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    stranger: Callable[..., Path],
    tmp_path: Path,
    change: dict[str, Any],
) -> None:
    """Of a capsule as of a manifest: what could lead out is refused."""
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "years of work.txt").write_text("work")
    values = entry(b"", url="http://x/") | change
    if values["id"].startswith("/tmp"):
        values["id"] = str(thesis)

    with pytest.raises(ConfigurationError, match="not understood"):
        open_capsule(stranger(values), progress=False)
    manifest_of(values)
    with pytest.raises(ConfigurationError, match="manifest of engines"):
        ensure_engine(progress=False)
    assert (thesis / "years of work.txt").read_text() == "work"


@pytest.mark.parametrize(
    "links",
    [
        {"a/b/l": "../..", "up": "a/b/l/../../victim", "up/sub/link": "../../x"},
        {"l": "..", "l/victim/link": "x"},
        {"d": "lib", "d/link": "../../../../../x"},
        {"out": "../../../../victim"},
        {"out": "/etc/passwd"},
    ],
)
def test_links_cannot_lead_out_of_a_capsules_engine(
    two_t4s: StandInDriver,
    stranger: Callable[..., Path],
    links: dict[str, str],
) -> None:
    """Neither by themselves nor through one another; nothing is made elsewhere."""
    victim = engines_folder().parent / "victim"
    victim.mkdir(parents=True)
    values = entry(b"", url="http://x/")

    with pytest.raises(ConfigurationError, match="outside of the capsule"):
        open_capsule(stranger(values, links), progress=False)
    assert list(victim.iterdir()) == []
    assert installed_engines() == []


def test_a_capsule_cannot_call_another_file_by_the_catalogs_name(
    two_t4s: StandInDriver, stranger: Callable[..., Path]
) -> None:
    """A model of the catalog has the catalog's digest, wherever it comes from."""
    folder = stranger(entry(b"", url="http://x/"), name="Qwen3-4B")

    with pytest.raises(ChecksumError, match="not the model that the catalog has"):
        prepare("qwen3-4b", capsule=folder, progress=False)


def test_what_has_changed_since_it_was_installed_is_not_packed(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    demo_model: Path,
    tmp_path: Path,
) -> None:
    """A library that was swapped does not get a digest of its own in a capsule."""
    data = bundle()
    hub.add("owner/engines", "e.tar.gz", data)
    manifest_of(entry(data, repo="owner/engines", path="e.tar.gz"))
    ensure_engine(progress=False)
    library = next(engines_folder().glob("test-engine-*/**/libggml.so"))
    status = library.stat()
    library.write_bytes(library.read_bytes()[::-1])
    os.utime(library, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(ChecksumError, match="changed since it was installed"):
        pack(
            tmp_path / "made", demo_model, engine="test-engine", wheels=[],
            progress=False,
        )  # fmt: skip


# The disk


def test_an_engine_that_was_copied_is_verified_and_not_fetched(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """Other times and the same bytes: it is read once more, without a connection."""
    data = bundle()
    hub.add("owner/engines", "e.tar.gz", data)
    manifest_of(entry(data, repo="owner/engines", path="e.tar.gz"))
    engine = ensure_engine(progress=False)
    for path in engines_folder().rglob("*"):
        if path.name in ("llama-server", "libggml.so"):
            os.utime(path, (1, 1))
    hub.repositories.clear()
    hub.requests.clear()

    assert ensure_engine(progress=False) == engine
    assert ensure_engine(progress=False) == engine
    assert hub.requests == []


def test_a_broken_engine_stays_until_there_is_another(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """Nothing is deleted before its successor has been verified."""
    data = bundle()
    hub.add("owner/engines", "e.tar.gz", data)
    manifest_of(entry(data, repo="owner/engines", path="e.tar.gz"))
    program = Path(ensure_engine(progress=False).command[0])
    program.write_bytes(b"broken")
    hub.repositories.clear()

    with pytest.raises(LLCudaError):
        ensure_engine(progress=False)
    assert program.read_bytes() == b"broken"


def test_a_pin_is_compared_as_a_whole(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """A digest that begins like the installed engine's is another one."""
    data = bundle()
    hub.add("owner/engines", "e.tar.gz", data)
    values = entry(data, repo="owner/engines", path="e.tar.gz")
    manifest_of(values)
    ensure_engine(progress=False)
    manifest_of(values | {"sha256": values["sha256"][:12] + "0" * 52})

    with pytest.raises(ChecksumError):
        ensure_engine(progress=False)


def test_a_users_attached_file_is_never_deleted(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with other bytes than the Hub states is passed over; the Hub's is fetched."""
    from llamatelemetry import _environment

    monkeypatch.setattr(_environment, "_ROOT", tmp_path / "root")
    folder = tmp_path / "root" / "kaggle" / "input" / "set"
    folder.mkdir(parents=True)
    (tmp_path / "root" / "kaggle" / "working").mkdir()
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF right")
    (folder / "demo-Q8_0.gguf").write_bytes(b"GGUF wrong")
    digest = hub.repositories[REPO].files["demo-Q8_0.gguf"].digest

    with pytest.raises(ChecksumError):
        ensure_model(f"{REPO}:demo-Q8_0.gguf", sha256=digest, progress=False)
    assert (folder / "demo-Q8_0.gguf").read_bytes() == b"GGUF wrong"


# Mirrors


def test_a_mirror_cannot_name_a_file_of_the_users(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ETag that is a path is refused before the library makes a file of it."""
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF", sha256="../../../thesis.txt")

    with pytest.raises(LLCudaError):
        ensure_model(f"{REPO}:Q8_0", progress=False)
    assert thesis.read_text() == "years of work"


def test_only_the_caches_own_blobs_are_discarded(tmp_path: Path) -> None:
    """A link of the cache that leads elsewhere is deleted, and what it names is not."""
    own = tmp_path / "thesis.txt"
    own.write_text("years of work")
    link = tmp_path / "hub" / "models--o--r" / "snapshots" / "c" / "m.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(own)

    _hub_cache.discard_cached(link)

    assert own.read_text() == "years of work"
    assert not link.is_symlink()


def test_a_large_file_without_a_digest_is_not_fetched(hub: StandInHub) -> None:
    """A mirror that states none is answered with the way to give one."""
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF", zeros=11 * 10**6, large=False)

    with pytest.raises(DownloadError, match="states no digest .*sha256="):
        ensure_model(f"{REPO}:Q8_0", progress=False)
    assert len(hub.requests) == 1


def test_shards_that_do_not_add_up_are_no_model(hub: StandInHub) -> None:
    """Shards 1 and 3 of 2 are not offered, and cost no crash."""
    for number in (1, 3):
        hub.add(REPO, f"m-Q4_K_M-0000{number}-of-00002.gguf", b"GGUF")

    with pytest.raises(ModelError, match="holds no GGUF model"):
        ensure_model(f"{REPO}:Q4_K_M", progress=False)


# What a user says


def test_a_digest_counts_for_whatever_is_named(
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program with another digest does not run; what has none is refused."""
    manifest_of()
    program = tmp_path / "llama-server"
    ran = tmp_path / "ran"
    program.write_bytes(engine_script(first=f"touch {ran}"))
    program.chmod(0o755)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()

    with pytest.raises(ChecksumError, match="Not run"):
        ensure_engine(program, sha256="0" * 64)
    for other in (tmp_path, "embedded", [str(program)]):
        with pytest.raises(ConfigurationError, match="digest of one file"):
            ensure_engine(other, sha256=digest)
    monkeypatch.setenv("LLAMATELEMETRY_SERVER", str(program))
    with pytest.raises(ConfigurationError, match="one of the two"):
        ensure_engine(sha256=digest)
    assert not ran.exists()
    assert ensure_engine(program, sha256=digest).command == (str(program),)


def test_a_private_engine_is_opened_with_the_token_given(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """`token=` counts for engines on the Hub as for models."""
    manifest_of()
    hub.add("owner/private", "e.tar.gz", bundle(), private=True)

    with pytest.raises(LLCudaError, match="no such repository"):
        ensure_engine("owner/private:e.tar.gz", progress=False)
    engine = ensure_engine("owner/private:e.tar.gz", token=hub.token, progress=False)
    assert engine.source == "setup"


@pytest.mark.parametrize(
    "call",
    [
        lambda token: ensure_model("./no.gguf", token=token),
        lambda token: ensure_model("qwen3-4bb", token=token),
        lambda token: ensure_model("demo", sha256="x", token=token),
        lambda token: ensure_engine(model="qwen3-4bb", token=token),
        lambda token: prepare("qwen3-4bb", token=token),
        lambda token: pack("/proc/self", "demo", token=token),
    ],
)
def test_no_error_has_the_token_among_its_locals(
    call: Callable[[str], object],
) -> None:
    """An error before the first request shows it as little as one after."""
    try:
        call(TOKEN)
    except LLCudaError as error:
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown = [
            line for line in "".join(frames.format()).splitlines()
            if "lambda token" not in line and not line.strip().startswith("token =")
        ]  # fmt: skip
        ours = [
            (frame.name, frame.locals)
            for frame in frames.stack
            if "llamatelemetry/" in frame.filename
        ]
        assert ours
        assert not [place for place in ours if TOKEN in str(place)]
        assert TOKEN not in "".join(shown)


@pytest.mark.parametrize("token", ["hf_with blank", "hf_\u200bzero", "hf_\n"])
def test_a_token_that_cannot_be_sent_is_said(token: str, hub: StandInHub) -> None:
    """A blank or an invisible letter in it is told as that, and not as a bad Hub."""
    if token == "hf_\n":
        ensure_model("demo", token=token)  # what ends a line is taken off
        return
    with pytest.raises(ConfigurationError, match="holds a blank") as raised:
        ensure_model(f"{REPO}:Q8_0", token=token)
    assert token not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["~nobody-of-that-name/m.gguf", "x" * 300 + ".gguf", "a\0b.gguf"]
)
def test_a_name_that_can_be_none_is_no_crash(name: str) -> None:
    """What the system itself refuses as a name is an error of ours."""
    with pytest.raises(LLCudaError):
        ensure_model(name)


@pytest.mark.parametrize("folder", ["/proc/nope", "/dev/null", "/dev/null/x"])
def test_a_cache_that_cannot_be_written_is_said(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    """The error names the folder and the variable; a model does not need it."""
    data = bundle()
    hub.add("owner/engines", "e.tar.gz", data)
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF")
    manifest_of(entry(data, repo="owner/engines", path="e.tar.gz"))
    monkeypatch.setenv("LLAMATELEMETRY_CACHE", folder)

    with pytest.raises(SetupError, match=f"{folder}.*LLAMATELEMETRY_CACHE"):
        ensure_engine(progress=False)
    assert ensure_model(f"{REPO}:Q8_0", progress=False).size == 4


def test_an_address_is_shown_and_packed_without_its_query(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    demo_model: Path,
    tmp_path: Path,
) -> None:
    """A key in an engine's address is in no note, and in no capsule."""
    data = tar_of({"bin/llama-server": engine_script()})
    hub.add("buckets/o/b", "e.tar.gz", data)
    address = f"{hub.url}/buckets/o/b/resolve/e.tar.gz?key={TOKEN}"
    manifest_of(entry(data, url=address))

    assert TOKEN not in ensure_engine(progress=False).note
    made = pack(tmp_path / "made", demo_model, wheels=[], progress=False)
    assert TOKEN not in (made.folder / "capsule.json").read_text()


def test_offline_is_said_once_for_one_host(
    two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """Engines of one address that cannot be reached are not waited for in turn."""
    manifest_of(
        *(entry(b"1", id=name, url=f"http://127.0.0.1:9/{name}") for name in "abc")
    )

    with pytest.raises(OfflineError, match="^a: ") as raised:
        ensure_engine(progress=False)
    assert "b: " not in str(raised.value)
