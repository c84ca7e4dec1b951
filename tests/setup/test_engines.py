"""Engines: chosen, fetched, verified, proven, on a machine with two T4s or without."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_tools import MISSING_LIBCUDA, bundle, engine_script, entry, single, tar_of
from nvml_tools import StandInDriver
from stand_in_hub import StandInHub

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    DownloadError,
    EngineNotFoundError,
    LLCudaError,
    OfflineError,
    SetupError,
    SetupWarning,
)
from llamatelemetry.server import ServerConfig, ServerManager, find_engine
from llamatelemetry.server._installed import engines_folder, installed_engines
from llamatelemetry.setup import ensure_engine
from llamatelemetry.setup._needs import least_build
from llamatelemetry.setup.catalog import find_model

Manifest = Callable[..., Path]
REPO = "owner/engines"
PATH = "v9/engine.tar.gz"


def on_hub(hub: StandInHub, data: bytes, **values: Any) -> dict[str, Any]:
    """Put an archive into a repository, and return its entry."""
    hub.add(REPO, values.get("path", PATH), data)
    return entry(data, **{"repo": REPO, "path": PATH} | values)


def in_bucket(hub: StandInHub, data: bytes, **values: Any) -> dict[str, Any]:
    """Put one compressed executable into a bucket, and return its entry."""
    hub.add("buckets/ggml-org/install.sh", "b9940/x86_64/llama-app.zst", data)
    address = "/buckets/ggml-org/install.sh/resolve/b9940/x86_64/llama-app.zst"
    one = {"archive": "zst", "executable": "llama", "arguments": ["serve"]}
    return entry(data, **one | {"url": hub.url + address} | values)


def runnable_below(folder: Path) -> list[Path]:
    """Return every file below a folder that could be run."""
    return [
        place
        for place in folder.rglob("*")
        if place.is_file() and place.stat().st_mode & stat.S_IXUSR
    ]


# The main job


def test_a_bundle_from_the_hub_ends_in_a_chat(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest, demo_model: Path
) -> None:
    """What is downloaded, verified and unpacked is what answers a chat."""
    manifest_of(on_hub(hub, bundle()))

    engine = ensure_engine(progress=False)
    config = ServerConfig(demo_model, port=0, context_size=512, threads=1)
    with (
        ServerManager(config, engine=engine, timeout=60) as server,
        LlamaCppClient(server.get_url()) as client,
    ):
        answer = client.chat_completion(
            [{"role": "user", "content": "What is GGUF?"}], max_tokens=8, temperature=0
        )

    assert answer.choices[0].message.content.startswith("GGUF is a file format")
    assert engine.source == "setup"
    assert Path(engine.command[0]).is_relative_to(engines_folder())
    assert [record.build for record in installed_engines()] == [9940]
    assert len(installed_engines()[0].devices) == 2


def test_a_single_executable_from_a_bucket_runs_with_its_arguments(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """ggml-org's one compressed file becomes `llama serve`, over a signed redirect."""
    manifest_of(in_bucket(hub, single()))

    engine = ensure_engine(progress=False)

    assert Path(engine.command[0]).name == "llama"
    assert engine.command[1:] == ("serve",)
    assert engine.capabilities().accepts("--flash-attn")
    assert len(hub.seen("cdn")) == 1


def test_what_is_installed_needs_no_connection(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """The second call asks nobody, and neither does find_engine."""
    manifest_of(on_hub(hub, bundle()))
    first = ensure_engine(progress=False)
    hub.requests.clear()

    assert ensure_engine(progress=False) == first
    assert find_engine() == first
    assert hub.requests == []


def test_nothing_but_the_engine_is_left(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """Neither archive nor unpacked leftovers stay beside what was installed."""
    manifest_of(on_hub(hub, bundle()))
    ensure_engine(progress=False)

    assert list((engines_folder() / ".staging").iterdir()) == []
    assert len([p for p in engines_folder().iterdir() if p.name[0] != "."]) == 1


def test_an_engine_that_was_changed_is_installed_anew(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """A program of another size or time than was installed is not run."""
    manifest_of(on_hub(hub, bundle()))
    program = Path(ensure_engine(progress=False).command[0])
    program.write_bytes(b"#!/bin/sh\nexit 1\n")

    again = ensure_engine(progress=False)

    assert Path(again.command[0]).read_bytes() == engine_script()
    assert len(hub.seen("cdn")) == 2


# What fits


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"least_driver": "580.65.06"}, "needs driver 580.65.06, here is 570.172.08"),
        ({"least_glibc": "2.99"}, "needs glibc 2.99, here is"),
        (
            {"compute_capabilities": ["8.6", "8.9"]},
            "compute capability 8.6, 8.9 only, not for Tesla T4 (7.5)",
        ),
        ({"build": 7760}, "it is llama.cpp b7760, the model needs b8639 or newer"),
    ],
)
def test_what_does_not_fit_is_passed_over(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    change: dict[str, Any],
    reason: str,
) -> None:
    """Driver, glibc, cards and model each decide; the next that fits is taken."""
    unfit = entry(b"", **{"id": "unfit", "url": hub.url + "/never"} | change)
    manifest_of(unfit, on_hub(hub, bundle()))
    engine = ensure_engine(min_build=8639, progress=False)
    assert "test-engine" in engine.note

    manifest_of(unfit)
    with pytest.warns(SetupWarning, match="with the embedded engine") as said:
        engine = ensure_engine(min_build=8639, progress=False)
    assert engine.embedded
    assert reason in engine.note
    assert reason in str(said[0].message)
    assert said[0].filename == __file__


def test_a_model_decides_how_new_the_engine_must_be(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """Gemma 4 and Qwen3.5 pass over January's build, which Qwen3 runs on."""
    old = on_hub(hub, bundle(build=7760), id="old", build=7760, path="old.tar.gz")
    new = on_hub(hub, bundle(), id="new")
    manifest_of(old, new)

    assert "old, from" in ensure_engine(model="qwen3-4b", progress=False).note
    for name in ("gemma-4-12b", "qwen3.5-4b", "unsloth/Qwen3.5-4B-GGUF:Q4_K_M"):
        assert "new" in ensure_engine(model=name, progress=False).command[0]


def test_a_model_that_the_catalog_has_not_is_answered_with_the_nearest(
    two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """A misspelt model does not silently mean any engine."""
    manifest_of()

    with pytest.raises(ConfigurationError, match="nearest are: qwen3-4b"):
        ensure_engine(model="qwen-3-4b")


def test_no_card_means_the_embedded_engine(
    hub: StandInHub, driver: StandInDriver, manifest_of: Manifest
) -> None:
    """Without a card nothing is fetched, and one sentence says why and what to do."""
    manifest_of(on_hub(hub, bundle()))
    driver.unplug()

    with pytest.warns(SetupWarning, match="no NVIDIA card .*: install") as said:
        engine = ensure_engine(progress=False)

    assert engine.embedded
    assert len(said) == 1
    assert hub.requests == []


def test_without_card_and_wheel_the_error_names_the_wheel(
    driver: StandInDriver, manifest_of: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the embedded engine is installed, the pip command is told."""
    manifest_of()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    with pytest.raises(EngineNotFoundError, match="pip install xllamacpp"):
        ensure_engine(progress=False)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"first": MISSING_LIBCUDA}, "libcuda.so.1 is missing"),
        ({"devices": ()}, "sees none of the cards"),
        ({"first": "exit 3"}, "exit code 3"),
    ],
)
def test_an_engine_that_cannot_run_here_is_not_kept(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    script: dict[str, Any],
    reason: str,
) -> None:
    """The proof fails, nothing gets its final name, the next candidate is tried."""
    broken = on_hub(hub, bundle(**script), id="broken", path="broken.tar.gz")
    manifest_of(broken)
    with pytest.warns(SetupWarning, match=reason):
        assert ensure_engine(progress=False).embedded
    assert installed_engines() == []
    assert runnable_below(engines_folder()) == []

    manifest_of(broken, on_hub(hub, bundle()))
    assert "test-engine" in ensure_engine(progress=False).note


# What is here already


def test_a_server_on_path_that_sees_the_cards_is_taken(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that lists the cards is used; one that does not, or is too old, is not."""
    manifest_of(on_hub(hub, bundle()))
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    def put(**script: Any) -> None:
        program.write_bytes(engine_script(**script))
        program.chmod(0o755)

    put()
    assert ensure_engine(progress=False).source == "PATH"
    put(devices=())
    assert ensure_engine(progress=False).source == "setup"
    put(build=7760)
    assert ensure_engine(min_build=8639, progress=False).source == "setup"
    put(first="exit 1")
    assert ensure_engine(progress=False).source == "setup"


def test_the_variable_counts_before_all(
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LLAMATELEMETRY_SERVER is used; one that is too old for the model is refused."""
    manifest_of()
    program = tmp_path / "llama-server"
    program.write_bytes(engine_script(build=7760))
    program.chmod(0o755)
    monkeypatch.setenv("LLAMATELEMETRY_SERVER", str(program))

    assert ensure_engine(progress=False).command == (str(program),)
    with pytest.raises(EngineNotFoundError, match="is llama.cpp b7760; .* b8639"):
        ensure_engine(model="gemma-4-26b-a4b", progress=False)


# What a user names


def test_an_engine_can_be_named_in_many_ways(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest, tmp_path: Path
) -> None:
    """A name of the manifest, a file on the Hub, an address, a program, a folder."""
    data = bundle()
    manifest_of(on_hub(hub, data))
    digest = hashlib.sha256(data).hexdigest()
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "llama-server").write_bytes(engine_script())
    (folder / "llama-server").chmod(0o755)

    by_name = ensure_engine("test-engine", progress=False)
    by_reference = ensure_engine(f"{REPO}:{PATH}", progress=False)
    address = f"{hub.url}/{REPO}/resolve/main/{PATH}"
    by_address = ensure_engine(address, sha256=digest, progress=False)

    for engine in (by_name, by_reference, by_address):
        assert engine.source == "setup"
        assert engine.capabilities().accepts("--port")
    assert ensure_engine(folder).command == (str(folder / "llama-server"),)
    assert ensure_engine(str(folder / "llama-server")) == ensure_engine(folder)
    assert ensure_engine(by_name) is by_name
    assert ensure_engine("embedded").embedded


def test_a_repository_alone_names_no_engine(hub: StandInHub) -> None:
    """The file in it must be named; one without a digest needs the user's."""
    data = bundle()
    hub.add(REPO, PATH, data, large=False)

    with pytest.raises(ConfigurationError, match="name the engine's file in it"):
        ensure_engine(f"https://huggingface.co/{REPO}")
    with pytest.raises(ConfigurationError, match="states no digest of this file"):
        ensure_engine(f"{REPO}:{PATH}")
    engine = ensure_engine(
        f"{REPO}:{PATH}", sha256=hashlib.sha256(data).hexdigest(), progress=False
    )
    assert engine.capabilities().accepts("--port")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("llama-app.zst", single(), ("serve",)),
        ("llama", engine_script(), ("serve",)),
        ("llama-server", engine_script(), ()),
        ("llama-server.zst", single(), ()),
    ],
)
def test_single_files_are_known_by_their_names(
    hub: StandInHub,
    two_t4s: StandInDriver,
    name: str,
    data: bytes,
    words: tuple[str, ...],
) -> None:
    """ggml-org's one file is `llama serve`; any other is llama-server itself."""
    hub.add(REPO, name, data)

    engine = ensure_engine(f"{REPO}:{name}", progress=False)

    assert engine.command[1:] == words
    assert engine.capabilities().accepts("--port")


def test_a_file_that_cannot_be_read_needs_any_engine(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest, tmp_path: Path
) -> None:
    """What a model's file is wrong about, the server will say; Qwen3.5's is known."""
    manifest_of(on_hub(hub, bundle(build=7760), build=7760))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but no more")

    assert ensure_engine(model=broken, progress=False).source == "setup"
    assert ensure_engine(model=find_model("qwen3-4b"), progress=False).source == "setup"
    assert least_build(None) is None
    assert least_build(find_model("qwen3.5-4b")) == 7761
    assert least_build("qwen3-4b", 9000) == 9000


def test_an_address_needs_a_digest(two_t4s: StandInDriver) -> None:
    """A URL alone pins nothing; the error says what to add, and hides its query."""
    with pytest.raises(ConfigurationError, match="needs the digest") as raised:
        ensure_engine("https://host/engine.tar.gz?token=hf_secret")

    assert "hf_secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test-engin", "nearest of the manifest: test-engine"),
        ("/nowhere/llama-server", "no such program"),
        ("owner/repo:", "no such program"),
    ],
)
def test_a_name_that_is_none_gets_the_nearest(
    two_t4s: StandInDriver, manifest_of: Manifest, name: str, message: str
) -> None:
    """A misspelt engine is answered with those that there are."""
    manifest_of(entry(b"", url="http://127.0.0.1:9/x"))

    with pytest.raises((ConfigurationError, EngineNotFoundError), match=message):
        ensure_engine(name)


@pytest.mark.parametrize("digest", ["abc", "g" * 64, ""])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    """A user's digest must be a SHA-256."""
    with pytest.raises(ConfigurationError, match="is no SHA-256"):
        ensure_engine(sha256=digest)


# Wrong bytes


def test_wrong_bytes_are_never_made_executable(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest, tmp_path: Path
) -> None:
    """A replaced archive is refused; what it holds never ran and is nowhere."""
    ran = tmp_path / "ran"
    evil = bundle(first=f"touch {ran}")
    pinned = entry(bundle(), url=None, repo=REPO, path=PATH, bytes=None)
    hub.add(REPO, PATH, evil)
    in_place = in_bucket(hub, single(first=f"touch {ran}"), id="bucket")
    right = hashlib.sha256(single()).hexdigest()
    manifest_of(pinned, in_place | {"sha256": right, "bytes": None})

    with pytest.raises(ChecksumError) as raised:
        ensure_engine(progress=False)

    message = str(raised.value)
    actual = hashlib.sha256(evil).hexdigest()
    for part in (pinned["sha256"], actual, right, in_place["sha256"]):
        assert part in message
    assert f"ensure_engine('test-engine', sha256='{actual}')" in message
    assert f"ensure_engine('bucket', sha256='{in_place['sha256']}')" in message
    assert raised.value.expected == pinned["sha256"]
    assert raised.value.actual == actual
    assert not ran.exists()
    assert runnable_below(engines_folder()) == []
    assert installed_engines() == []


def test_a_mismatch_moves_on_to_the_next(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """One overwritten engine does not stand in the way of another one."""
    replaced = in_bucket(hub, single(), id="replaced", sha256="0" * 64, bytes=None)
    manifest_of(replaced, on_hub(hub, bundle()))

    assert "test-engine" in ensure_engine(progress=False).note


def test_a_replaced_engine_can_be_accepted_knowingly(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """With the digest from the error, the same call takes the new file."""
    manifest_of(in_bucket(hub, single(), sha256="0" * 64, bytes=None))
    with pytest.raises(ChecksumError) as raised:
        ensure_engine(progress=False)

    engine = ensure_engine(sha256=raised.value.actual, progress=False)

    assert engine.source == "setup"
    assert installed_engines()[0].sha256 == raised.value.actual
    named = ensure_engine("test-engine", sha256=raised.value.actual, progress=False)
    assert named == engine


def test_a_flipped_byte_on_the_way_is_noticed(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """One wrong bit of the body is refused; the next try gets it right."""
    manifest_of(on_hub(hub, bundle()))
    hub.fail_next("cdn", "flip", after=200)

    with pytest.raises(ChecksumError):
        ensure_engine(progress=False)
    assert ensure_engine(progress=False).source == "setup"


def test_a_digest_that_nobody_has_seen_live_is_said(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """Fetching such an engine says so once; using it later does not."""
    manifest_of(on_hub(hub, bundle(), confirmed_live=False))

    with pytest.warns(SetupWarning, match="never compared") as said:
        ensure_engine(progress=False)
    assert len(said) == 1
    ensure_engine(progress=False)


def test_an_archive_that_leaves_its_folder_is_refused(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest, tmp_path: Path
) -> None:
    """A hostile archive with the right digest writes nothing anywhere."""
    hostile = tar_of({"../../outside": b"x", "bin/llama-server": engine_script()})
    manifest_of(on_hub(hub, hostile))

    with pytest.raises(SetupError, match="outside"):
        ensure_engine(progress=False)
    assert not list(tmp_path.rglob("outside"))
    assert installed_engines() == []


# Trouble on the way


def test_no_connection_is_told_for_every_engine(
    two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """With cards and without a network nobody is put on the CPU silently."""
    manifest_of(
        entry(b"1", id="one", url="http://127.0.0.1:9/one"),
        entry(b"2", id="two", url="http://127.0.0.1:9/two"),
        entry(b"3", id="three", url="http://127.0.0.2:9/three"),
    )

    with pytest.raises(OfflineError, match="- one: .*\n- three: ") as raised:
        ensure_engine(progress=False)
    assert "ensure_engine('embedded')" in str(raised.value)


def test_offline_by_choice_nothing_is_fetched(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HF_HUB_OFFLINE counts for engines too; what is installed is used all the same."""
    manifest_of(on_hub(hub, bundle()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
        ensure_engine(progress=False)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    engine = ensure_engine(progress=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert ensure_engine(progress=False) == engine


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"kind": "status", "status": 404}, DownloadError),
        ({"kind": "status", "status": 403}, LLCudaError),
    ],
)
def test_a_refusal_is_told(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    fault: dict[str, Any],
    kind: type[Exception],
) -> None:
    """What the server refuses for good is not asked for again and again."""
    manifest_of(in_bucket(hub, single()))
    hub.fail_next("hub", times=5, **fault)

    with pytest.raises(kind, match="the server answers 40"):
        ensure_engine(progress=False)
    assert len(hub.requests) == 1


FETCH = """
import sys
sys.path.insert(0, {tools!r})
import pynvml
from nvml_tools import StandInDriver
import ctypes
pynvml.nvmlLib = ctypes.CDLL({library!r})
from llamatelemetry.setup import ensure_engine
from llamatelemetry.setup._needs import least_build
from llamatelemetry.setup.catalog import find_model
print(ensure_engine(progress=False).command[0])
"""


def in_another_process(
    hub: StandInHub, library: Path, **variables: str
) -> subprocess.Popen[str]:
    tools = str(Path(__file__).parents[1] / "tools")
    return subprocess.Popen(
        [sys.executable, "-c", FETCH.format(tools=tools, library=str(library))],
        env={**os.environ, "HF_ENDPOINT": hub.url, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fetch_once(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest, nvml_library: Path
) -> None:
    """Two notebooks that start at the same time share one download."""
    manifest_of(on_hub(hub, bundle()))

    both = [in_another_process(hub, nvml_library) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]

    assert answers[0] == answers[1] != ""
    assert len(hub.seen("cdn")) == 1


def test_a_killed_process_leaves_a_part_that_the_next_one_continues(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest, nvml_library: Path
) -> None:
    """After kill -9 nothing has its final name, and only the rest is sent again."""
    noise = os.urandom(300_000)
    data = tar_of({"bin/llama-server": engine_script(), "noise": noise})
    manifest_of(on_hub(hub, data))
    hub.fail_next("cdn", "stall", after=200_000)

    with in_another_process(hub, nvml_library) as process:
        part = None
        while part is None or part.stat().st_size < 190_000:
            found = list(engines_folder().rglob("*.part"))
            part = found[0] if found else None
        process.kill()
    assert installed_engines() == []
    kept = part.stat().st_size

    ensure_engine(progress=False)
    assert hub.seen("cdn")[-1].headers["range"] == f"bytes={kept}-"
    assert hub.seen("cdn")[-1].sent == len(data) - kept
