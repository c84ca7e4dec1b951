"""The embedded engine: in all that is promised, what llama-server is."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamatelemetry.server import Engine, ServerConfig, find_engine
from llamatelemetry.server.engine import build_environment
from llamatelemetry.server.flags import build_arguments

LOCALHOST = "127.0.0.1"


def run_engine(
    engine: Engine, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run an engine that is expected to end by itself."""
    return subprocess.run(
        [*engine.command, *arguments],
        env=build_environment(engine, environment=variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class RunningEngine:
    """An engine on a free port, and its answers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def request(
        self, path: str, body: object = None, key: str | None = None
    ) -> HTTPResponse:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        response: HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(
                f"http://{LOCALHOST}:{self.port}{path}",
                None if body is None else json.dumps(body).encode(),
                headers,
            ),
            timeout=30,
        )
        return response

    def status(self, path: str, key: str | None = None) -> int | None:
        try:
            with self.request(path, key=key) as response:
                return response.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None

    def wait_for(self, status: int) -> None:
        deadline = time.monotonic() + 60
        while self.status("/health") != status:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def end_with(self, number: signal.Signals) -> int:
        """Send a signal; return the exit code. No stall of a machine is as long."""
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


@contextmanager
def running(
    engine: Engine, folder: Path, model: Path, *arguments: str, **variables: str
) -> Iterator[RunningEngine]:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port = probe.getsockname()[1]
    log = folder / f"{port}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(*engine.command, "-m", str(model), "--port", str(port)),
                *("-t", "1", "-fit", "off", *arguments),
            ],
            env=build_environment(engine, environment=variables),
            stdout=stream,
            stderr=stream,
        )
    try:
        yield RunningEngine(process, port, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def embedded() -> Engine:
    """The embedded engine."""
    return find_engine("embedded")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 440 MB of zeros, which take no room on the disk but time to load."""
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    width, wide, layers = 1024, 16384, 2
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 256)
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (width, width)
        shapes[f"blk.{layer}.ffn_gate"] = shapes[f"blk.{layer}.ffn_up"] = (wide, width)
        shapes[f"blk.{layer}.ffn_down"] = (width, wide)
        shapes[f"blk.{layer}.attn_norm"] = shapes[f"blk.{layer}.ffn_norm"] = (width,)
    size = 0
    for name, shape in shapes.items():
        tensor_bytes = int(np.prod(shape)) * 4
        writer.add_tensor_info(
            f"{name}.weight", shape, np.dtype(np.float32), tensor_bytes
        )
        size += tensor_bytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size + 4096)
    return path


# What llama-server says of each; the same rows run on both engines.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "error: invalid argument: --bogus"),
        (["--port=8080"], "error: invalid argument: --port=8080"),
        (["word"], "error: invalid argument: word"),
        (["-c"], 'error while handling argument "-c": '),
        (["-c", "many"], 'error while handling argument "-c": stoi'),
        (["-c", "99999999999"], 'error while handling argument "-c": stoi'),
        (["--ctx_size", "x"], 'error while handling argument "--ctx-size": stoi'),
        (["--temp", "warm"], 'error while handling argument "--temp": stof'),
        (["-np", "0"], 'argument "-np": error: invalid value for n_parallel'),
        (["-fa", "maybe"], "error: unknown value for --flash-attn: 'maybe'"),
        (["-fit", "maybe"], "error: unknown value for --fit: 'maybe'"),
        (["-sm", "up"], 'error while handling argument "-sm": invalid value'),
        (["--pooling", "up"], 'argument "--pooling": invalid value'),
        (["-ctk", "q9"], 'argument "-ctk": Unsupported cache type: q9'),
        (["-ts", "a,b"], 'error while handling argument "-ts": stof'),
        (["-ts", ",".join("1" * 200)], "got 200 input configs"),
        (["--reasoning-format", "x"], "Unknown reasoning format: x"),
        (["--slot-save-path", "/no/such"], "not a directory: /no/such"),
        (["--chat-template-file", "/no/such"], "failed to open file '/no/such'"),
        (["--sleep-idle-seconds", "0"], "cannot be 0 or less than -1"),
    ],
)
def test_bad_arguments(engine: Engine, arguments: list[str], message: str) -> None:
    """A bad flag or value ends both engines with 1 and the same words."""
    done = run_engine(engine, *arguments)

    assert done.returncode == 1
    assert message in done.stderr.splitlines()[0]
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "12abc"],
        ["-c", " +12"],
        ["-fa", "1"],
        ["--flash_attn", "auto"],
        ["-ngl", "auto", "-ngl", "all", "-ngl", "3"],
        ["-ts", "1/2,3"],
        ["-t", "0", "-tb", "-1"],
        ["--kv-unified", "-no-kvu", "--no-jinja", "--webui"],
        ["-s", "-1", "--temp", "-1", "--top-k", "7"],
    ],
)
def test_unusual_arguments(engine: Engine, arguments: list[str]) -> None:
    """What llama-server takes in spite of its looks, the embedded engine takes too."""
    assert run_engine(engine, *arguments, "--version").returncode == 0


def test_help_and_version(engine: Engine) -> None:
    """Both print help on stdout and the version on stderr, and end with 0."""
    help_run, version_run = (run_engine(engine, flag) for flag in ("-h", "--version"))

    assert (help_run.returncode, version_run.returncode) == (0, 0)
    assert "--ctx-size N" in help_run.stdout
    assert version_run.stdout == ""
    assert version_run.stderr.startswith("version: ")
    assert "built with" in version_run.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "failed to load model"),
        (b"junk" * 10, "invalid magic characters"),
        (b"GGUF\x03\0\0\0", "failed to load model"),
    ],
)
def test_models_that_cannot_be_loaded(
    engine: Engine, tmp_path: Path, content: bytes | None, message: str
) -> None:
    """A missing or broken model ends both with 1, the cause in the log."""
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    done = run_engine(engine, "-m", str(model), "--port", "0")

    assert done.returncode == 1
    assert message in done.stderr
    assert "exiting due to model loading error" in done.stderr.splitlines()[-1]


def test_a_port_that_is_taken(engine: Engine, tiny_model: Path) -> None:
    """A port in use ends both with 1 before the model is loaded."""
    with socket.create_server((LOCALHOST, 0)) as stranger:
        port = str(stranger.getsockname()[1])
        done = run_engine(engine, "-m", str(tiny_model), "--port", port)

    assert done.returncode == 1
    assert f"couldn't bind HTTP server socket, hostname: {LOCALHOST}" in done.stderr
    assert "load_model" not in done.stderr


def test_it_says_where_it_listens(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    """Both log where they listen, once, after the model is loaded."""
    with running(engine, tmp_path, tiny_model) as server:
        server.wait_for(200)
        line = f"listening on http://{LOCALHOST}:{server.port}"
        deadline = time.monotonic() + 10
        while line not in server.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        log = server.log.read_text()

    assert log.count(line) == 1
    assert log.index("model loaded") < log.index(line)


def test_the_defaults_are_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """Without further flags /props shows four slots with the model's whole context."""
    with running(find_engine("embedded"), tmp_path, tiny_model) as server:
        server.wait_for(200)
        with server.request("/props") as response:
            properties = json.load(response)
        with server.request("/v1/models") as response:
            models = json.load(response)
        statuses = {path: server.status(path) for path in ("/metrics", "/slots")}

    assert properties["total_slots"] == 4
    assert properties["default_generation_settings"]["n_ctx"] == 2048
    assert properties["default_generation_settings"]["params"]["temperature"] == (
        pytest.approx(0.8)
    )
    assert models["data"][0]["id"] == str(tiny_model)
    assert statuses == {"/metrics": 501, "/slots": 200}


def test_flags_have_their_effect(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    """What the flags say is what both servers' /props and answers show."""
    arguments = ["-np", "2", "-c", "1024", "-a", "one,two", "--metrics", "--no-slots"]
    arguments += ["--embeddings", "--pooling", "mean", "--temp", "0.25", "--top-k", "7"]
    arguments += ["-fa", "on", "-ctk", "f32", "-ctv", "bf16", "--props"]
    with running(engine, tmp_path, tiny_model, *arguments) as server:
        server.wait_for(200)
        with server.request("/props") as response:
            properties = json.load(response)
        with server.request("/v1/embeddings", {"input": "x"}) as response:
            embeddings = json.load(response)
        statuses = {path: server.status(path) for path in ("/metrics", "/slots")}

    settings = properties["default_generation_settings"]
    assert (properties["total_slots"], settings["n_ctx"]) == (2, 512)
    assert (settings["params"]["temperature"], settings["params"]["top_k"]) == (0.25, 7)
    assert embeddings["model"] in {"one", "two"}
    assert len(embeddings["data"][0]["embedding"]) == 64
    assert statuses == {"/metrics": 200, "/slots": 501}


def test_the_key_comes_from_the_environment(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    """LLAMA_API_KEY locks both servers, all but /health."""
    with running(engine, tmp_path, tiny_model, LLAMA_API_KEY="sesame") as server:
        server.wait_for(200)

        assert server.status("/v1/models") == 401
        assert server.status("/v1/models", key="sesame") == 200
        assert "sesame" not in server.log.read_text()


def test_a_configuration_starts(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    """The arguments of a configuration start both engines as it says."""
    config = ServerConfig(tiny_model, port=0, threads=1, slot_save_path=tmp_path)
    arguments = build_arguments(config, engine.capabilities(), memory_log=True)
    with running(engine, tmp_path, tiny_model, *arguments) as server:
        deadline = time.monotonic() + 30
        # --port 0 comes after the port of `running`, so the log alone tells it.
        while "listening on" not in server.log.read_text():
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.02)
        log = server.log.read_text()

    assert "KV buffer size" in log
    assert "n_slots = 1, n_ctx_slot = 2048" in log


@pytest.mark.parametrize(
    "flag", ["--grammar-file", "--log-disable", "--override-kv", "-hf", "--device"]
)
def test_flags_it_does_not_have_are_refused(embedded: Engine, flag: str) -> None:
    """A llama-server flag it lacks is refused by name, not passed over."""
    done = run_engine(embedded, flag, "x")

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: invalid argument: {flag}\n")
    assert "does not have it" in done.stderr


def test_without_a_model_it_does_not_start(embedded: Engine) -> None:
    """There is no router mode; the message says how to name a model."""
    done = run_engine(embedded, "--port", "0")

    assert done.returncode == 1
    assert "error: no model; give one with -m" in done.stderr


def test_without_its_library_it_says_so(embedded: Engine, tmp_path: Path) -> None:
    """Where xllamacpp cannot be imported it ends with 1 and names the remedy."""
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('no such library')")
    done = run_engine(embedded, "-m", "x", PYTHONPATH=f"{tmp_path}:{embedded_root()}")

    assert done.returncode == 1
    assert "(no such library)" in done.stderr
    assert "pip install xllamacpp" in done.stderr


def embedded_root() -> Path:
    """Return the folder the package is imported from."""
    return Path(__file__).parents[2]


def test_a_template_file_is_read(
    embedded: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    """--chat-template-file replaces the model's own template."""
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }} in German:")
    with running(
        embedded, tmp_path, tiny_model, "--chat-template-file", str(template)
    ) as server:
        server.wait_for(200)
        body = {"messages": [{"role": "user", "content": "one"}]}
        with server.request("/apply-template", body) as response:
            prompt = json.load(response)["prompt"]

    assert prompt == "one in German:"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)]
)
class TestSignals:
    """SIGTERM ends as by default and SIGINT with 0, at once, in every state."""

    def test_idle(
        self,
        embedded: Engine,
        tiny_model: Path,
        tmp_path: Path,
        number: signal.Signals,
        code: int,
    ) -> None:
        """An idle server ends at once."""
        with running(embedded, tmp_path, tiny_model) as server:
            server.wait_for(200)
            ended = server.end_with(number)

        assert ended == code

    def test_streaming(
        self,
        embedded: Engine,
        tiny_model: Path,
        tmp_path: Path,
        number: signal.Signals,
        code: int,
    ) -> None:
        """A server with a client in the middle of a stream ends at once too."""
        body = {"prompt": "x", "n_predict": 10**6, "ignore_eos": True, "stream": True}
        with running(
            embedded, tmp_path, tiny_model, "-c", "65536", "--context-shift"
        ) as server:
            server.wait_for(200)
            with server.request("/completion", body) as stream:
                assert stream.readline().startswith(b"data: ")
                ended = server.end_with(number)

        assert ended == code

    def test_loading(
        self,
        embedded: Engine,
        slow_model: Path,
        tmp_path: Path,
        number: signal.Signals,
        code: int,
    ) -> None:
        """A server that loads, when no Python code can run, ends at once too."""
        with running(embedded, tmp_path, slow_model, "-lm", "none") as server:
            server.wait_for(503)
            ended = server.end_with(number)

        assert ended == code
        assert "model loaded" not in server.log.read_text()
