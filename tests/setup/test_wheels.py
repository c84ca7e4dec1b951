"""The CUDA wheel of xllamacpp, on request: a real pip, an index on loopback."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from nvml_tools import StandInDriver, t4

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    DownloadError,
    EngineNotFoundError,
)
from llamatelemetry.server import ServerConfig, ServerManager
from llamatelemetry.setup import ensure_engine
from tests.conftest import missing_part

Manifest = Callable[..., Path]

# The real package, with a card that it claims to see: nobody has one here.
PACKAGE = """
import importlib, sys
own = __path__[0].rpartition("/")[0]
del sys.modules["xllamacpp"]
before = list(sys.path)
sys.path[:] = [{real!r}] + [place for place in sys.path if place != own]
real = importlib.import_module("xllamacpp")
sys.path[:] = before
kind = type("Kind", (), {{"name": "GGML_BACKEND_DEVICE_TYPE_GPU"}})
real.get_device_info = lambda: {devices}
"""
CARD = (
    "[{'name': 'CUDA0', 'description': 'Tesla T4', 'memory_total': 15 << 30, "
    "'memory_free': 14 << 30, 'type': kind}]"
)


def wheel_of(path: Path, devices: str = CARD) -> Path:
    """Write a wheel of xllamacpp 9.0.1; return it."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        missing_part("xllamacpp", "run `make test`")
        raise AssertionError
    real = str(Path(found.origin).parents[1])
    info = "xllamacpp-9.0.1.dist-info"
    path.parent.mkdir(parents=True, exist_ok=True)
    wheel = path.with_name("xllamacpp-9.0.1-py3-none-any.whl")
    metadata = "Metadata-Version: 2.1\nName: xllamacpp\nVersion: 9.0.1\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with ZipFile(wheel, "w") as archive:
        program = PACKAGE.format(real=real, devices=devices)
        archive.writestr("xllamacpp/__init__.py", program)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(
    tmp_path: Path, two_t4s: StandInDriver, manifest_of: Manifest
) -> Iterator[Path]:
    """The folder of an index of wheels, for CUDA 13.2 and 12.8, being served."""
    folder = tmp_path / "index"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *anything: Any) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    wheels = {
        "package": "xllamacpp",
        "indexes": [
            {"cuda": [13, 2], "url": f"{url}/cu132", "note": "native"},
            {"cuda": [12, 8], "url": f"{url}/cu128", "note": "compiles first"},
        ],
    }
    manifest_of(wheels=wheels)
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def publish(index: Path, name: str, devices: str = CARD) -> str:
    """Put a wheel into an index; return its digest."""
    wheel = wheel_of(index / name / "xllamacpp" / "x.whl", devices)
    page = f'<a href="{wheel.name}">{wheel.name}</a>'
    (wheel.parent / "index.html").write_text(page)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_wheel_is_accepted_by_its_digest_and_serves(
    index: Path, demo_model: Path
) -> None:
    """Asked once, the digest is told; asked with it, a server runs and answers."""
    digest = publish(index, "cu128")
    with pytest.raises(ConfigurationError, match="no digest of it is pinned") as told:
        ensure_engine("xllamacpp")
    assert f"ensure_engine('xllamacpp', sha256='{digest}')" in str(told.value)

    engine = ensure_engine("xllamacpp", sha256=digest)

    assert engine.embedded
    assert engine.source == "setup"
    config = ServerConfig(demo_model, port=0, context_size=512, threads=1)
    with (
        ServerManager(config, engine=engine, timeout=60) as server,
        LlamaCppClient(server.get_url()) as client,
    ):
        said = client.chat_completion([{"role": "user", "content": "What is GGUF?"}])
    assert said.choices[0].message.content.startswith("GGUF is")
    (index / "cu128" / "xllamacpp" / "index.html").unlink()
    assert ensure_engine("xllamacpp", sha256=digest) == engine


def test_the_drivers_cuda_decides_which_wheel(
    index: Path, two_t4s: StandInDriver
) -> None:
    """A driver for CUDA 13.2 gets that wheel, one for 12.4 none, no card none."""
    digest = publish(index, "cu132")
    two_t4s.describe(t4(0), driver="590.44.01", cuda=13020)
    assert ensure_engine("xllamacpp", sha256=digest).note == "native"
    two_t4s.describe(t4(0), driver="550.54.15", cuda=12040)
    with pytest.raises(EngineNotFoundError, match=r"CUDA 12\.8 or newer.* 12\.4"):
        ensure_engine("xllamacpp", sha256=digest)
    two_t4s.describe()
    with pytest.raises(EngineNotFoundError, match="no NVIDIA card"):
        ensure_engine("xllamacpp", sha256=digest)


def test_another_wheel_than_the_accepted_one_is_refused(index: Path) -> None:
    """The index is overwritten in place too: the digest is the only pin."""
    digest = publish(index, "cu128")

    with pytest.raises(ChecksumError, match="another wheel now") as raised:
        ensure_engine("xllamacpp", sha256="0" * 64)
    assert (raised.value.expected, raised.value.actual) == ("0" * 64, digest)
    assert ensure_engine("xllamacpp", sha256=digest).embedded


def test_a_wheel_that_sees_no_card_is_not_kept(index: Path) -> None:
    """One that was built without CUDA, or for another card, is of no use."""
    digest = publish(index, "cu128", devices="[]")

    for _ in range(2):
        with pytest.raises(EngineNotFoundError, match="sees none of the cards"):
            ensure_engine("xllamacpp", sha256=digest)


def test_an_index_without_a_wheel_says_what_pip_says(index: Path) -> None:
    """The error has what pip itself said."""
    with pytest.raises(DownloadError, match="(?s)pip download failed.*xllamacpp"):
        ensure_engine("xllamacpp")
