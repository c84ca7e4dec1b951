"""prepare(): engine and model in one call; and what it would do, without doing it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_tools import bundle, entry
from manager_tools import wait_for
from nvml_tools import StandInDriver, t4
from stand_in_hub import StandInHub

from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager, prepare
from llamatelemetry._progress import FileProgress
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    ModelError,
    SetupWarning,
)
from llamatelemetry.gguf import GPUMemory
from llamatelemetry.server._installed import installed_engines
from llamatelemetry.setup import recommend_model

Manifest = Callable[..., Path]
REPO = "owner/Demo-GGUF"
NAME = f"{REPO}:demo-Q8_0.gguf"


def test_one_call_gets_all_that_a_chat_needs(shop: StandInHub) -> None:
    """Cold: both are fetched; then a server runs and answers. Warm: nobody is asked."""
    prepared = prepare(NAME, progress=False)

    config = ServerConfig(prepared.model, port=0, context_size=512, threads=1)
    with (
        ServerManager(config, engine=prepared.engine, timeout=60) as server,
        LlamaCppClient(server.get_url()) as client,
    ):
        said = client.chat_completion([{"role": "user", "content": "What is GGUF?"}])
    assert said.choices[0].message.content
    assert [gpu.name for gpu in prepared.gpus] == ["Tesla T4", "Tesla T4"]
    assert prepared.plan.fits
    assert "demo-Q8_0.gguf" in repr(prepared)
    on_cards = prepared.config(context_size=512)
    assert (on_cards.n_gpu_layers, on_cards.flash_attn) == (99, True)
    assert on_cards.context_size == 512

    shop.requests.clear()
    assert prepare(NAME, progress=False) == prepared
    assert shop.requests == []


def test_shop_come_side_by_side(shop: StandInHub) -> None:
    """Each one's transfer begins before the other's has ended."""
    shop.meet = 2  # the CDN answers when both have asked

    prepare(NAME, progress=False)

    assert len(shop.seen("cdn")) == 2


def test_a_dry_run_tells_and_fetches_nothing(shop: StandInHub) -> None:
    """Sizes, sources, folders, room and cards are told; only the header is read."""
    plan = prepare(NAME, dry_run=True)

    engine, model = plan.items
    size = shop.repositories[REPO].files["demo-Q8_0.gguf"].size
    assert (model.kind, model.size, model.origin) == ("model", size, NAME)
    assert engine.kind == "engine"
    assert engine.origin == "owner/engines:engine.tar.gz"
    assert plan.download_bytes == size + (engine.size or 0)
    assert plan.fits_disk
    assert plan.fits_cards
    text = str(plan)
    for part in (NAME, "1.9 MB", "fits", str(model.folder)):
        assert part in text
    asked = {request.path for request in shop.seen("cdn")}
    assert asked <= {f"/{REPO}/demo-Q8_0.gguf"}
    assert all("range" in request.headers for request in shop.seen("cdn"))
    assert installed_engines() == []

    prepare(NAME, progress=False)
    again = prepare(NAME, dry_run=True)
    assert again.ok
    assert prepare("demo", "embedded", dry_run=True).ok
    assert "with all layers on the cards" in repr(again)
    assert again.download_bytes == 0
    assert all(item.here for item in again.items)
    assert str(again).count("here") == 2


def test_a_dry_run_says_what_stands_in_the_way(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """A disk without room and a Hub that does not know the model are told."""
    manifest_of(entry(b"", url=f"{hub.url}/x", confirmed_live=False))
    hub.add(REPO, "demo-Q8_0.gguf", b"GGUF", zeros=10**15)

    plan = prepare(NAME, dry_run=True)
    assert not plan.fits_disk
    assert "does NOT fit" in str(plan)
    assert "never seen live" in str(plan)

    plan = prepare("owner/other:m.gguf", dry_run=True)
    assert plan.fits_cards is None
    assert any("no such repository" in problem for problem in plan.problems)
    assert len(plan.problems) == 1
    assert not plan.ok
    assert "not known" in str(plan)


def test_a_dry_run_looks_at_the_engine_that_is_named(
    shop: StandInHub,
) -> None:
    """One of the manifest would be fetched, one that is here not; a typo raises."""
    plan = prepare(NAME, "test-engine", dry_run=True)
    assert plan.items[0].origin == "owner/engines:engine.tar.gz"
    prepare(NAME, "test-engine", progress=False)
    assert prepare(NAME, "test-engine", dry_run=True).items[0].here
    assert prepare(NAME, "embedded", dry_run=True).items[0].here
    with pytest.raises(ConfigurationError, match="nearest of the manifest"):
        prepare(NAME, "test-engin", dry_run=True)


def test_a_failure_of_one_calls_the_other_off(
    shop: StandInHub, demo_model: Path
) -> None:
    """The error is that of what failed, whichever of the two it was."""
    shop.add(REPO, "demo-Q4_K_M.gguf", b"GGUF")
    with pytest.raises(ChecksumError, match="demo-Q4_K_M"):
        shop.fail_next("cdn", "flip", times=9, after=1)
        prepare(f"{REPO}:Q4_K_M", engine="embedded", progress=False)
    with pytest.raises(ModelError, match="no such repository"):
        prepare("owner/other:m.gguf", progress=False)
    with pytest.raises(ConfigurationError, match="nearest"):
        prepare("qwen3-4bb", progress=False)


def test_without_a_card_one_warning_says_so_at_the_call(
    hub: StandInHub, driver: StandInDriver, manifest_of: Manifest
) -> None:
    """Embedded engine and demo model need nothing; the reason is told once."""
    manifest_of()
    driver.unplug()

    with pytest.warns(SetupWarning, match="on the CPU") as said:
        prepared = prepare("demo", progress=False)

    assert prepared.engine.embedded
    assert len(said) == 1
    assert said[0].filename == __file__
    assert hub.requests == []


def test_a_dry_run_without_a_list_says_what_it_cannot_know(
    hub: StandInHub, two_t4s: StandInDriver, manifest_of: Manifest
) -> None:
    """A quantization of a repository that cannot be asked: size and file not known."""
    manifest_of()

    plan = prepare("owner/other:Q4_K_M", dry_run=True)

    model = plan.items[-1]
    assert (model.name, model.size) == ("owner/other:Q4_K_M", None)
    assert "not known" in repr(plan)
    assert "on the CPU" in repr(plan)


# What is recommended


def test_the_largest_that_fits_is_recommended(two_t4s: StandInDriver) -> None:
    """Two cards hold more than one; a limit on the download is kept; no gated ones."""
    two, one = recommend_model(), recommend_model("15")
    small = recommend_model(most_bytes=5 * 10**9)

    assert two.total_bytes > one.total_bytes > small.total_bytes
    assert small.total_bytes <= 5 * 10**9
    assert not (two.gated)
    assert not (one.gated)
    assert not (small.gated)
    assert recommend_model(GPUMemory.t4(1)) == one
    assert "coder" in recommend_model(task="coder").tasks
    assert recommend_model([]).total_bytes <= 3 * 10**9
    named = prepare(small, "embedded", dry_run=True)
    assert named.items[1].name == Path(small.files[0].path).name


@pytest.mark.parametrize(
    ("gpus", "task", "error", "message"),
    [
        ("2x15", "cooking", ConfigurationError, "none of the catalog's: chat"),
        ("1", "chat", ModelError, "no chat model .* fits"),
        ("none", "coder", ModelError, "no coder model .* a CPU"),
    ],
)
def test_what_cannot_be_recommended_is_said(
    gpus: str, task: str, error: type[Exception], message: str
) -> None:
    """An unknown task, and cards that nothing fits."""
    with pytest.raises(error, match=message):
        recommend_model(gpus, task)  # type: ignore[arg-type]


def test_nothing_named_means_what_fits_the_cards(
    shop: StandInHub, driver: StandInDriver
) -> None:
    """prepare() alone takes a model of the catalog of 10 GB at most."""
    driver.describe(t4(0))

    plan = prepare(dry_run=True)

    meant = recommend_model([GPUMemory.t4(1)[0]], most_bytes=10**10)
    models = [item for item in plan.items if item.kind == "model"]
    assert [item.origin for item in models] == [meant.reference]
    assert 10**9 < sum(item.size or 0 for item in models) <= 10**10
    assert "no such repository" in plan.problems[0]  # here, that is


# The token

SECRET = "hf_never_to_be_seen_anywhere_0123456789"

EVERYTHING = """
import logging, os, sys, traceback, warnings
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from llamatelemetry import ensure_engine, ensure_model, prepare, doctor
from llamatelemetry.setup import _hub
token = os.environ.pop("THE_TOKEN")
how = sys.argv[1]
if how == "argument":
    given = dict(token=token)
else:
    os.environ["HF_TOKEN"] = token
    given = {}

def show(call):
    try:
        print(repr(call()), flush=True)
    except BaseException:
        # As %xmode Verbose and cgitb do: every local variable of every frame.
        kind, error, trace = sys.exc_info()
        told = traceback.TracebackException(kind, error, trace, capture_locals=True)
        shown = "".join(told.format())
        own = [line for line in shown.splitlines() if "given" not in line]
        print("\\n".join(own), flush=True)
        print(repr(vars(error)), flush=True)

for name in ("owner/Demo-GGUF:Q8_0", "owner/Gated:Q8_0", "owner/none:x.gguf",
             "owner/Demo-GGUF:Q4_K_M", "owner/Wrong:Q8_0", "owner/Busy:Q8_0"):
    show(lambda: ensure_model(name, progress=True, **given))
show(lambda: ensure_engine("owner/engines:engine.tar.gz", **given))
show(lambda: ensure_engine("owner/engines:wrong.tar.gz", sha256="0" * 64, **given))
show(lambda: prepare("owner/Demo-GGUF:Q8_0", "embedded", **given))
show(lambda: prepare("owner/Demo-GGUF:Q8_0", "embedded", dry_run=True, **given))
show(doctor)
show(lambda: _hub.token_finder(given.get("token"))())
"""


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_the_token_appears_nowhere(hub: StandInHub, tmp_path: Path, how: str) -> None:
    """Output, logs at DEBUG, reprs, errors with all their locals: not one has it."""
    hub.token = SECRET
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", b"GGUF", private=True)
    hub.add("owner/Gated", "demo-Q8_0.gguf", b"GGUF", gated=True)
    hub.add("owner/Wrong", "demo-Q8_0.gguf", b"GGUF", sha256="0" * 64)
    hub.add("owner/engines", "engine.tar.gz", bundle())
    hub.add("owner/engines", "wrong.tar.gz", bundle(build=1))

    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING, how],
        env={
            **os.environ,
            "THE_TOKEN": SECRET,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    # It was used: the private repository was opened with it.
    assert any(
        SECRET in request.headers.get("authorization", "") for request in hub.requests
    )
    assert not [
        r for r in hub.seen("cdn", "GET", "HEAD") if "authorization" in r.headers
    ]
    assert "demo-Q8_0.gguf" in done.stdout
    assert "ChecksumError" in done.stdout
    assert SECRET not in done.stdout
    assert SECRET not in done.stderr
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_a_function_sees_how_far_both_are(
    shop: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Engine and model are told of in the caller's thread, to their last byte."""
    told: list[FileProgress] = []
    threads = set()

    def progress(file: FileProgress) -> None:
        threads.add(threading.current_thread())
        told.append(file)

    prepared = prepare(NAME, progress=progress)

    assert threads == {threading.current_thread()}
    last = {file.name: file for file in told if file.ended}
    assert last["demo-Q8_0.gguf"].done == prepared.model.size
    assert last["test-engine"].total
    assert len(last) == 2
    assert capsys.readouterr().err == ""


def test_a_function_that_raises_calls_both_off(shop: StandInHub) -> None:
    """The error comes out as it is, and no thread goes on."""

    def progress(_: FileProgress) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare(NAME, progress=progress)
    wait_for(
        lambda: (
            not any(
                thread.name == "llamatelemetry-download"
                for thread in threading.enumerate()
            )
        ),
        60,
    )
