"""Capsules: packed where there is internet, opened where there is none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from engine_tools import engine_script, entry, single
from nvml_tools import StandInDriver
from stand_in_hub import StandInHub

from llamatelemetry import _environment, prepare
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    DownloadError,
    EngineNotFoundError,
    LLCudaError,
    ModelError,
    SetupWarning,
)
from llamatelemetry.server._installed import engines_folder, installed_engines
from llamatelemetry.setup import _capsule_wheels, open_capsule, pack
from llamatelemetry.setup._capsule_files import find_capsule
from tests.conftest import missing_part

Manifest = Callable[..., Path]
REPO = "owner/Demo-GGUF"
NAME = f"{REPO}:demo-Q8_0.gguf"


@pytest.fixture
def capsule(shop: StandInHub, tmp_path: Path) -> Path:
    """A capsule as it lies below /kaggle/input: no run bits, no links, read-only."""
    made = pack(tmp_path / "made", NAME, wheels=[], progress=False)
    attached = tmp_path / "root" / "kaggle" / "input" / "my-capsule"
    shutil.copytree(made.folder, attached)
    for place in attached.rglob("*"):
        place.chmod(0o555 if place.is_dir() else 0o444)
    shop.repositories.clear()
    shop.requests.clear()
    shutil.rmtree(tmp_path / "hub")
    shutil.rmtree(_environment.cache_folder())
    return attached


def test_a_capsule_holds_all_and_says_what(shop: StandInHub, tmp_path: Path) -> None:
    """Engine, model, lock and Kaggle's metadata; every file's digest is in the lock."""
    made = pack(tmp_path / "capsule", NAME, wheels=[], progress=False)

    folder = made.folder
    lock = json.loads((folder / "capsule.json").read_text())
    listed = {
        file["path"]: file["sha256"]
        for part in (lock["model"]["files"], lock["engine"]["files"], lock["wheels"])
        for file in part
    }
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert present == {*listed, "capsule.json", "dataset-metadata.json"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    metadata = json.loads((folder / "dataset-metadata.json").read_text())
    assert 6 <= len(metadata["title"]) <= 50
    assert 3 <= len(metadata["id"].partition("/")[2]) <= 50
    assert metadata["licenses"] == [{"name": "other"}]
    assert (made.model, made.engine, made.files) == (NAME, "test-engine", len(present))
    assert str(folder) in str(made)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


GUARDED = """
import fcntl, os, pathlib, socket, struct, sys

# A network of its own in which there is nothing but loopback, once it is switched on.
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))

def without_route():
    # Counted by the kernel for each connect() or datagram of any process in this
    # network that has nowhere to go: Ip OutNoRoutes of /proc/net/snmp.
    names, values = [
        line.split() for line in pathlib.Path("/proc/net/snmp").read_text().splitlines()
        if line.startswith("Ip:")
    ]
    return int(values[names.index("OutNoRoutes")])

called = []
sys.addaudithook(
    lambda name, arguments: called.append((name, arguments))
    if name in ("socket.connect", "socket.getaddrinfo", "socket.sendto") else None
)

sys.path.insert(0, {tools!r})
import ctypes, pynvml
pynvml.nvmlLib = ctypes.CDLL({library!r})
from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager, prepare
prepared = prepare(capsule={capsule!r}, progress=False)
config = ServerConfig(prepared.model, port=0, context_size=512, threads=1)
with ServerManager(config, engine=prepared.engine, timeout=60) as server:
    with LlamaCppClient(server.get_url()) as client:
        asked = [{{"role": "user", "content": "What is GGUF?"}}]
        answer = client.chat_completion(asked)
print(answer.choices[0].message.content)
print(prepared.engine.command[0])

elsewhere = [
    (name, arguments[1:]) for name, arguments in called
    if "127.0.0.1" not in str(arguments) and "localhost" not in str(arguments)
    and not isinstance(arguments[1], (str, bytes))  # a Unix socket of this machine
]
print("elsewhere", elsewhere, "without route", without_route())
# And the guard sees what it is there to see.
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError:
    pass
print("control", without_route())
"""


def test_a_capsule_run_connects_to_nothing_but_loopback(
    capsule: Path, nvml_library: Path, two_t4s: StandInDriver
) -> None:
    """In a network without a way out: a chat, and no connection was even tried."""
    tools = str(Path(__file__).parents[1] / "tools")
    program = GUARDED.format(
        tools=tools, library=str(nvml_library), capsule=str(capsule)
    )
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", program],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "unshare failed" in done.stderr:
        missing_part("the right to make a network namespace", "run as root")

    assert done.returncode == 0, done.stderr[-3000:]
    answer, program, verdict, control = done.stdout.strip().splitlines()[-4:]
    assert answer.startswith("GGUF is a file format")
    assert Path(program).is_relative_to(engines_folder())
    assert verdict == "elsewhere [] without route 0"
    assert control == "control 1"


def test_an_opened_capsule_is_found_again(
    capsule: Path, shop: StandInHub, two_t4s: StandInDriver
) -> None:
    """The engine is copied once; the model is used where it lies."""
    engine, model = open_capsule(capsule, progress=False)
    program = Path(engine.command[0])
    before = program.stat().st_mtime_ns

    again = open_capsule(capsule, progress=False)

    assert again == (engine, model)
    assert program.stat().st_mtime_ns == before
    assert model.path == capsule / "model" / "demo-Q8_0.gguf"
    assert os.access(program, os.X_OK)
    assert engine.library_path != ()
    assert shop.requests == []


def test_prepare_finds_an_attached_capsule_by_itself(
    capsule: Path,
    shop: StandInHub,
    two_t4s: StandInDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Kaggle the one below /kaggle/input is taken, if it holds what is asked for."""
    (tmp_path / "root" / "kaggle" / "working").mkdir()
    monkeypatch.setattr(_environment, "_ROOT", tmp_path / "root")

    assert find_capsule() == find_capsule(NAME) == capsule
    with pytest.warns(
        SetupWarning, match=f"attached capsule {capsule} is used"
    ) as said:
        assert prepare(progress=False).model.path.is_relative_to(capsule)
    assert said[0].filename == __file__
    warnings.simplefilter("ignore", SetupWarning)
    assert prepare(NAME, progress=False).model.path.is_relative_to(capsule)
    plan = prepare(NAME, dry_run=True)
    assert plan.download_bytes == 0
    assert all(item.here for item in plan.items)
    assert shop.requests == []
    for same in (
        f"{REPO}:Q8_0",
        "demo-Q8_0.gguf",
        NAME.upper().replace("GGUF", "gguf"),
    ):
        assert prepare(same, progress=False).model.path.is_relative_to(capsule)
    for other in ("qwen3-4b", REPO, f"{REPO}:Q4_K_M", "no such", "owner/Demo:Q8_0"):
        assert find_capsule(other) is None
    plain = prepare(NAME, engine="embedded", progress=False)
    assert plain.engine.embedded
    assert plain.model.path.is_relative_to(capsule)
    shutil.copytree(capsule, capsule.with_name("another"))
    with pytest.raises(ConfigurationError, match=r"several .*another.* Name one"):
        prepare(progress=False)


@pytest.mark.parametrize("part", ["engine/*/bin/llama-server", "model/*.gguf"])
def test_a_changed_file_is_refused(capsule: Path, part: str) -> None:
    """A capsule that was tampered with is not run, and the file is named."""
    path = next(capsule.glob(part))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    with pytest.raises(ChecksumError, match=path.name):
        open_capsule(capsule, progress=False)
    assert installed_engines() == []


def test_a_missing_file_is_said(capsule: Path) -> None:
    """A dataset that was uploaded in part names what it lacks."""
    path = next(capsule.glob("model/*.gguf"))
    path.unlink()

    with pytest.raises(ModelError, match="lacks its file 'model/demo-Q8_0.gguf'"):
        open_capsule(capsule, progress=False)


def rewrite(capsule: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = capsule / "capsule.json"
    path.chmod(0o644)
    lock = json.loads(path.read_text())
    change(lock)
    path.write_text(json.dumps(lock))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lock: lock["model"]["files"][0].update(path="/etc/passwd"),
            "lies outside of the capsule",
        ),
        (
            lambda lock: lock["engine"]["files"][0].update(path="engine/../../x"),
            "lies outside of the capsule",
        ),
        (
            lambda lock: lock["engine"]["links"].update({"lib/a.so": "../../../x"}),
            "lies outside of the capsule",
        ),
        (lambda lock: lock.update(format=9), "its format is 9"),
        (lambda lock: lock.pop("engine"), "'engine' is missing"),
        (lambda lock: lock["model"]["files"][0].pop("sha256"), "'sha256' is missing"),
        (lambda lock: lock["model"].update(files=[]), "no path, no size or no digest"),
        (lambda lock: lock["engine"]["entry"].pop("id"), "not understood"),
    ],
)
def test_a_lock_that_lies_is_refused(
    capsule: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A lock file is somebody else's text: nothing outside of the folder is touched."""
    rewrite(capsule, change)

    with pytest.raises(ConfigurationError, match=message):
        open_capsule(capsule, progress=False)
    assert installed_engines() == []


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_no_capsule_is_refused(
    tmp_path: Path, content: str | None
) -> None:
    """No lock file, or none that can be read."""
    if content is not None:
        (tmp_path / "capsule.json").write_text(content)

    with pytest.raises(ConfigurationError, match="capsule"):
        prepare(capsule=tmp_path, progress=False)


def test_a_capsule_of_another_model_is_refused(capsule: Path) -> None:
    """Who names a model does not silently get another one."""
    with pytest.raises(ConfigurationError, match=f"holds {NAME}, not qwen3-4b"):
        prepare("qwen3-4b", capsule=capsule, progress=False)


def test_without_cards_the_embedded_engine_stands_in(
    capsule: Path, driver: StandInDriver
) -> None:
    """A session without a card can still run the capsule, and is told why."""
    driver.unplug()

    with pytest.warns(
        SetupWarning, match=r"test-engine of the capsule: there is no NVIDIA"
    ):
        prepared = prepare(capsule=capsule, progress=False)

    assert prepared.engine.embedded
    assert installed_engines() == []


# Packing


def test_links_come_back(
    hub: StandInHub,
    two_t4s: StandInDriver,
    manifest_of: Manifest,
    demo_model: Path,
    tmp_path: Path,
) -> None:
    """A dataset keeps no links; the engine's are made again where it is copied to."""
    folder = tmp_path / "engine"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "bin" / "llama-server").write_bytes(engine_script())
    (folder / "lib" / "libggml.so.0").write_bytes(b"library")
    (folder / "lib" / "libggml.so").symlink_to("libggml.so.0")
    manifest_of()

    made = pack(tmp_path / "made", demo_model, engine=folder, wheels=[], progress=False)
    assert [path for path in made.folder.rglob("*") if path.is_symlink()] == []

    engine, _ = open_capsule(made.folder, progress=False)
    lib = Path(engine.command[0]).parents[1] / "lib"
    assert os.readlink(lib / "libggml.so") == "libggml.so.0"
    assert engine.capabilities().accepts("--port")


def test_the_engine_for_a_t4_is_packed_wherever_one_is(
    hub: StandInHub,
    driver: StandInDriver,
    manifest_of: Manifest,
    demo_model: Path,
    tmp_path: Path,
) -> None:
    """A laptop without a card packs what Kaggle's T4s run; it is not run there."""
    driver.unplug()
    ran = tmp_path / "ran"
    data = single(first=f"touch {ran}")
    hub.add("buckets/o/b", "llama-app.zst", data)
    other = entry(b"", id="other", url="http://x/", compute_capabilities=["8.9"])
    one = {"archive": "zst", "executable": "llama", "arguments": ["serve"]}
    manifest_of(
        other, entry(data, url=f"{hub.url}/buckets/o/b/resolve/llama-app.zst", **one)
    )

    made = pack(tmp_path / "made", demo_model, wheels=[], progress=False)

    assert made.engine == "test-engine"
    assert (made.folder / "engine" / "llama").is_file()
    assert not ran.exists()


def test_a_capsule_for_the_cpu_has_no_engine(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded engine comes as a wheel; where it is missing, pip's line is told."""
    made = pack(tmp_path / "made", "demo", engine="embedded", wheels=[])

    engine, model = open_capsule(made.folder)
    assert engine.embedded
    assert model.path.read_bytes() == demo_model.read_bytes()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EngineNotFoundError, match=r"--no-index --find-links .*wheels"):
        open_capsule(made.folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "nothing"}, "neither a name of the manifest"),
        ({"wheels": ["/nowhere/a.whl"]}, "there is no wheel"),
        ({"model": "owner/other:x.gguf"}, "no such repository"),
        ({"engine": "test-engine"}, "no such repository"),
        ({}, "no such repository"),
    ],
)
def test_a_capsule_that_cannot_be_packed_leaves_nothing(
    shop: StandInHub,
    manifest_of: Manifest,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    """Neither the folder nor a half of it stays."""
    manifest_of(entry(b"", repo="owner/nothing", path="engine.tar.gz"))
    arguments = {"model": "demo", "engine": None, "wheels": [], **options}
    if "wheels" in options:
        arguments["engine"] = "embedded"

    with pytest.raises(LLCudaError, match=message):
        pack(tmp_path / "made", progress=False, **arguments)
    assert [p for p in tmp_path.iterdir() if "made" in p.name] == []


def test_an_engine_too_old_for_the_model_is_not_packed(
    hub: StandInHub, manifest_of: Manifest, tmp_path: Path
) -> None:
    """Where nothing of the manifest will do, each one's reason is told."""
    manifest_of(entry(b"", id="old", url="http://x/", build=10))
    name = "unsloth/Qwen3.5-4B-GGUF"
    hub.add(name, "Qwen3.5-4B-Q4_K_M.gguf", b"GGUF")

    with pytest.raises(ConfigurationError, match="old: it is llama.cpp b10"):
        pack(tmp_path / "made", f"{name}:Q4_K_M", wheels=[], progress=False)


def test_a_folder_in_use_is_not_packed_into(tmp_path: Path) -> None:
    """What is there already stays as it is."""
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(ConfigurationError, match="is not empty"):
        pack(tmp_path, "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_wheels_are_packed_and_install_without_an_index(tmp_path: Path) -> None:
    """A requirement is downloaded, a file copied; pip installs both from the folder."""
    wheel = tmp_path / "own_thing-1.0-py3-none-any.whl"
    info = "own_thing-1.0.dist-info"
    with ZipFile(wheel, "w") as archive:
        archive.writestr("own_thing.py", "VALUE = 1\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: own-thing\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")

    made = pack(tmp_path / "made", "demo", engine="embedded", wheels=[wheel, "mdurl"])

    lock = json.loads((made.folder / "capsule.json").read_text())
    names = sorted(Path(file["path"]).name.split("-")[0] for file in lock["wheels"])
    assert names == ["mdurl", "own_thing"]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index"),
            *("--find-links", str(made.folder / "wheels")),
            *("--target", str(tmp_path / "installed"), "own-thing", "mdurl"),
        ],
        check=True,
    )
    assert (tmp_path / "installed" / "own_thing.py").is_file()
    with pytest.raises(DownloadError, match="pip download failed"):
        pack(
            tmp_path / "no", "demo", engine="embedded", wheels=["no-such-thing-at-all"]
        )


def test_an_installed_package_packs_itself(tmp_path: Path) -> None:
    """Where there is no source tree, the wheel is made of what is installed."""
    built, installed = tmp_path / "built", tmp_path / "installed"
    root = Path(__file__).parents[2]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", built, root], check=True)
    subprocess.run(
        [
            *pip, "install", "--no-deps", "--no-index", "--target", installed,
            *built.glob("*.whl"),
        ],
        check=True,
    )  # fmt: skip
    program = (
        "import sys; from pathlib import Path; import llamatelemetry\n"
        f"assert llamatelemetry.__file__.startswith({str(installed)!r})\n"
        "from llamatelemetry.setup._capsule_wheels import _own_wheel\n"
        "_own_wheel(Path(sys.argv[1]))"
    )
    again = tmp_path / "again"
    again.mkdir()
    subprocess.run(
        [sys.executable, "-c", program, again],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        check=True,
    )

    with (
        ZipFile(next(again.glob("*.whl"))) as made,
        ZipFile(next(built.glob("*.whl"))) as original,
    ):
        for name in original.namelist():
            assert made.read(name) or not original.read(name), name
        assert set(made.namelist()) >= set(original.namelist())
        assert made.testzip() is None


def test_the_usual_wheels_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word on wheels this package and what it needs are packed."""
    monkeypatch.setattr(_capsule_wheels, "USUAL_WHEELS", ("mdurl",))

    made = pack(tmp_path / "made", "demo", engine="embedded", progress=False)

    names = {path.name.split("-")[0] for path in made.folder.rglob("*.whl")}
    assert names == {"llamatelemetry", "mdurl"}


def test_a_model_of_another_disk_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: Path
) -> None:
    """Where no second name can be given to a file, its bytes are copied."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)

    made = pack(
        tmp_path / "made", demo_model, engine="embedded", wheels=[], progress=False
    )

    copy = next(made.folder.glob("model/*.gguf"))
    assert copy.read_bytes() == demo_model.read_bytes()
    assert copy.stat().st_ino != demo_model.stat().st_ino


def test_the_package_packs_its_own_wheel(tmp_path: Path) -> None:
    """From a source tree the wheel is built; it holds the package and its data."""
    from llamatelemetry.setup._capsule_wheels import _own_wheel

    _own_wheel(tmp_path)

    (wheel,) = tmp_path.glob("llamatelemetry-*.whl")
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"llamatelemetry/setup/engines.json", "llamatelemetry/cli.py"} <= names
