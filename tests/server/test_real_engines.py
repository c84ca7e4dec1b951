"""The main job on real engines: every test runs on each of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from manager_tools import wait_for

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailedError,
    ContextLengthError,
    ModelError,
    PortInUseError,
    ServerStartError,
    StreamError,
)
from llamatelemetry.server import (
    Engine,
    ServerConfig,
    ServerManager,
    ServerState,
    _linux,
    find_strays,
)
from llamatelemetry.server.events import BufferSize, Listening, Loading, Notice

QUESTION = [{"role": "user", "content": "What is GGUF?"}]
LONG = {"max_tokens": 1_000_000, "extra_body": {"ignore_eos": True}}  # minutes


@pytest.fixture
def config(demo_model: Path) -> ServerConfig:
    """The demo model on any free port, on one thread."""
    return ServerConfig(demo_model, port=0, context_size=512, threads=1)


@pytest.fixture
def endless(config: ServerConfig) -> ServerConfig:
    """The same, and no answer ends because the context is full: in half a second."""
    return config.replace(extra_args=["--context-shift"])


@pytest.fixture
def server(engine: Engine) -> Iterator[ServerManager]:
    """A manager of the engine under test, stopped whatever the test does."""
    manager = ServerManager(engine=engine)
    yield manager
    manager.stop()


def start(server: ServerManager, config: ServerConfig) -> LlamaCppClient:
    """Start and wait; return a client."""
    server.start_with_config(config)
    assert server.wait_until_ready(60), server.get_logs()
    return LlamaCppClient(server.get_url(), api_key=config.api_key)


def test_a_question_gets_its_right_answer(
    server: ServerManager, config: ServerConfig
) -> None:
    """The main job: start, ask, get the answer the demo model was taught, stop."""
    with start(server, config) as client:
        response = client.chat_completion(QUESTION, temperature=0)
    server.stop()

    content = response.choices[0].message.content
    assert content is not None
    assert content.startswith("GGUF is a file format")
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.total_tokens > 20
    assert server.state is ServerState.STOPPED


def test_the_log_becomes_events(server: ServerManager, config: ServerConfig) -> None:
    """Loading, buffers and listening are reported with the model's real size."""
    start(server, config).close()
    # The last line of all these may be written, and read, after it is ready.
    wait_for(lambda: any(isinstance(event, Listening) for event in server.events))
    events = server.events
    buffers = [event for event in events if isinstance(event, BufferSize)]

    assert any(isinstance(event, Loading) for event in events)
    assert {"model", "KV", "compute"} <= {event.kind for event in buffers}
    size = sum(event.size_bytes for event in buffers if event.kind == "model")
    assert size == pytest.approx(Path(str(config.model_path)).stat().st_size, rel=0.1)


def test_embeddings_work_without_knowing_about_pooling(
    server: ServerManager, config: ServerConfig
) -> None:
    """A decoder gets mean pooling, it is said, and /v1/embeddings answers."""
    with start(server, config.replace(embeddings=True)) as client:
        response = client.embeddings(["Hello", "World"])

    assert len(response.data) == 2
    assert len(response.data[0].embedding) == 192
    assert "--pooling mean" in str([e for e in server.events if isinstance(e, Notice)])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_texts_have_the_same_vectors_together_as_alone(
    pooling: str, server: ServerManager, config: ServerConfig
) -> None:
    """Texts of unequal lengths in several slots at once: none is cut into parts."""
    sentence = "The quick brown fox jumps over the lazy dog. "
    texts = ["One.", *(sentence * count for count in (1, 3, 6)), "Two words."]
    config = config.replace(embeddings=True, pooling=pooling, parallel=4)

    with start(server, config) as client:
        alone = [client.embeddings(text).data[0].embedding for text in texts]
        together = client.embeddings(texts).data

    for own, other in zip(alone, together, strict=True):
        assert other.embedding == pytest.approx(own, abs=0.02)


def test_slots_with_embeddings_share_the_context(
    server: ServerManager, config: ServerConfig
) -> None:
    """Each slot has all of it, and as the user says, only its own part again."""
    config = config.replace(embeddings=True, parallel=2)
    for extra, context in (((), 512), (("--no-kv-unified",), 256)):
        with start(server, config.replace(extra_args=extra)) as client:
            slots = client.get_slots()
        server.stop()
        assert [slot["n_ctx"] for slot in slots] == [context] * 2


def test_a_pooling_of_ones_own_is_kept(
    server: ServerManager, config: ServerConfig
) -> None:
    """An explicit pooling type is passed as it is and nothing is said about it."""
    start(server, config.replace(embeddings=True, pooling="last")).close()

    assert server.command[server.command.index("--pooling") + 1] == "last"
    assert "pooling" not in str([e for e in server.events if isinstance(e, Notice)])


def test_the_whole_context_belongs_to_one_slot(
    server: ServerManager, config: ServerConfig
) -> None:
    """parallel=1 is one slot with all of context_size; parallel=2 halves it."""
    for parallel, context in ((1, 512), (2, 256)):
        with start(server, config.replace(parallel=parallel)) as client:
            slots = client.get_slots()
        server.stop()
        assert [slot["n_ctx"] for slot in slots] == [context] * parallel


def test_a_key_is_wanted_and_taken(server: ServerManager, config: ServerConfig) -> None:
    """With a key the right client is served, another is told so; no log has its end."""
    with start(server, config.replace(api_key="open-sesame")) as client:
        assert client.tokenize("Hello").tokens
    assert "same" not in server.get_logs()
    with (
        LlamaCppClient(server.get_url(), api_key="wrong") as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.tokenize("Hello")


def test_a_prompt_over_the_context_is_refused_with_figures(
    server: ServerManager, config: ServerConfig
) -> None:
    """The error tells how long the prompt is and how long it may be."""
    with start(server, config) as client, pytest.raises(ContextLengthError) as caught:
        client.completion("Hello " * 2000)

    assert caught.value.context_size == 512
    assert caught.value.prompt_tokens is not None
    assert caught.value.prompt_tokens > 512


# ── faults ───────────────────────────────────────────────────────────────────────


def cut(path: Path, target: Path, size: int) -> Path:
    """Copy the first bytes of a file."""
    target.write_bytes(path.read_bytes()[:size])
    return target


@pytest.mark.parametrize("size", [30, 5000, 100_000, 1_500_000])
def test_a_cut_off_model_is_named_and_explained(
    server: ServerManager, config: ServerConfig, tmp_path: Path, size: int
) -> None:
    """A model that was cut anywhere becomes a ModelError with the log as evidence."""
    model = cut(Path(str(config.model_path)), tmp_path / "cut.gguf", size)
    server.start_with_config(config.replace(model_path=model))

    assert server.wait_until_ready(30) is False
    with pytest.raises(ModelError, match="cut.gguf") as caught:
        server.raise_if_failed()
    assert isinstance(caught.value.__cause__, ServerStartError)
    assert caught.value.__cause__.exit_code == 1
    assert caught.value.__cause__.log_tail


def test_an_unknown_flag_is_named(server: ServerManager, config: ServerConfig) -> None:
    """An argument that the engine does not know becomes a ConfigurationError."""
    server.start_with_config(config.replace(extra_args=["--no-such-flag"]))

    assert server.wait_until_ready(30) is False
    with pytest.raises(ConfigurationError, match="--no-such-flag"):
        server.raise_if_failed()


def test_a_value_the_engine_refuses_is_named(
    server: ServerManager, config: ServerConfig
) -> None:
    """A bad value of a passed-on argument is named with the argument."""
    server.start_with_config(config.replace(extra_args=["--seed", "many"]))

    assert server.wait_until_ready(30) is False
    with pytest.raises(ConfigurationError, match="seed"):
        server.raise_if_failed()


def test_an_identical_server_on_the_port_is_never_taken_for_ours(
    engine: Engine, server: ServerManager, config: ServerConfig
) -> None:
    """With a twin on the same port, 20 of 20 starts are refused."""
    with ServerManager(config, engine=engine) as twin:
        assert twin.config is not None
        for _ in range(20):
            with pytest.raises(PortInUseError) as caught:
                server.start_with_config(config.replace(port=twin.config.port))
            assert caught.value.holder is not None
            assert f"pid {twin.pid}" in caught.value.holder
        assert twin.state is ServerState.READY


def test_a_server_killed_while_loading_has_failed(
    server: ServerManager, config: ServerConfig
) -> None:
    """SIGKILL during the load is reported as that."""
    server.start_with_config(config)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)

    assert server.wait_until_ready(10) is False
    with pytest.raises(ServerStartError, match="SIGKILL"):
        server.raise_if_failed()


def test_a_server_killed_between_requests_has_failed(
    server: ServerManager, config: ServerConfig
) -> None:
    """The next request fails at once, and the manager knows why."""
    with start(server, config) as client:
        client.health()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: server.state is ServerState.FAILED)
        with pytest.raises(ConnectionFailedError):
            client.chat_completion(QUESTION)
    with pytest.raises(ServerStartError, match="after it was ready"):
        server.raise_if_failed()


def test_a_server_killed_while_streaming_breaks_the_stream_with_what_came(
    server: ServerManager, endless: ServerConfig
) -> None:
    """The stream raises, keeps the text so far, and the manager has failed."""
    with start(server, endless) as client:
        stream = client.chat_completion_stream(QUESTION, **LONG)
        with pytest.raises(StreamError) as caught:
            for number, _ in enumerate(stream):
                if number == 5:
                    assert server.pid is not None
                    os.kill(server.pid, signal.SIGKILL)
        assert stream.text
        assert caught.value.partial is not None
    wait_for(lambda: server.state is ServerState.FAILED)


def test_a_stop_does_not_wait_for_a_stream(
    server: ServerManager, endless: ServerConfig
) -> None:
    """An open stream does not hold up the end, and its reader is told."""
    with start(server, endless) as client:
        stream = client.chat_completion_stream(QUESTION, **LONG)
        reader_errors: list[BaseException] = []

        def read() -> None:
            try:
                for _ in stream:
                    pass
            except StreamError as error:
                reader_errors.append(error)

        next(stream)
        reader = threading.Thread(target=read)
        reader.start()
        server.stop()
        reader.join(30)

    assert server.state is ServerState.STOPPED
    assert not reader.is_alive()
    assert len(reader_errors) == 1


def test_a_cancelled_stream_leaves_an_idle_slot(
    server: ServerManager, endless: ServerConfig
) -> None:
    """cancel() ends the work in the server, not only in the client."""
    with start(server, endless) as client:
        stream = client.chat_completion_stream(QUESTION, **LONG)
        for _ in zip(range(5), stream, strict=False):
            pass
        assert client.get_slots()[0]["is_processing"]
        stream.cancel()
        wait_for(lambda: not client.get_slots()[0]["is_processing"])
        assert stream.result().choices[0].finish_reason == "cancelled"


# ── the surroundings ─────────────────────────────────────────────────────────────


def test_proxies_netrc_and_keys_of_the_parent_change_nothing(
    server: ServerManager,
    config: ServerConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HTTP_PROXY, a .netrc, LLAMA_API_KEY and LLAMA_ARG_* here reach nobody."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login you password me\n")
    (tmp_path / ".netrc").chmod(0o600)
    for name, value in {
        "HOME": str(tmp_path),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
        "LLAMA_API_KEY": "inherited",
        "LLAMA_ARG_PORT": "1",
        "LLAMA_ARG_CTX_SIZE": "256",
        "HF_TOKEN": "hf_secret",
    }.items():
        monkeypatch.setenv(name, value)
    with start(server, config) as client:
        slots = client.get_slots()  # no key is wanted, no proxy is asked

    assert slots[0]["n_ctx"] == 512
    assert server.pid is not None
    for name in ("LLAMA_API_KEY", "HF_TOKEN", "LLAMA_ARG_PORT"):
        assert _linux.process_variable(server.pid, name) is None


def test_a_prefix_of_all_paths_is_part_of_the_url(
    server: ServerManager, config: ServerConfig
) -> None:
    """Behind --api-prefix the server is found ready, and a client finds it."""
    with start(server, config.replace(extra_args=["--api-prefix", "/llm"])) as client:
        assert client.base_url.endswith("/llm")
        assert client.tokenize("Hello").tokens


def test_a_path_with_spaces_and_other_letters_works(
    server: ServerManager, config: ServerConfig, tmp_path: Path
) -> None:
    """The model may lie anywhere and be called anything."""
    folder = tmp_path / "größe, it's -x"
    folder.mkdir()
    model = folder / "my model.gguf"
    shutil.copy(str(config.model_path), model)
    with start(server, config.replace(model_path=model)) as client:
        assert client.list_models().data[0].id == "my model"


def test_a_server_started_in_a_thread_outlives_the_thread(
    server: ServerManager, config: ServerConfig
) -> None:
    """A worker thread may start a server and end; the server stays."""
    thread = threading.Thread(target=server.start_with_config, args=(config,))
    thread.start()
    thread.join()

    assert server.wait_until_ready(60)
    time.sleep(0.3)
    assert server.is_running()


def test_restart_gives_a_new_process_with_the_same_configuration(
    engine: Engine, config: ServerConfig
) -> None:
    """restart() waits until the new server is ready."""
    with ServerManager(config, engine=engine) as server:
        before = server.pid
        server.restart()
        assert server.state is ServerState.READY
        assert server.pid != before


PARENT = """
import sys
from llamatelemetry.server import Engine, ServerConfig, ServerManager
server = ServerManager(engine={engine!r})
print("starting", flush=True)
server.start_with_config(ServerConfig({model!r}, port=0, threads=1))
print(server.pid, flush=True)
server.wait_until_ready(60)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_no_server_outlives_a_killed_notebook(engine: Engine, tiny_model: Path) -> None:
    """The parent is killed with SIGKILL at 20 random moments; the child goes too.

    Some moments come before the parent could say the child's id: then there must be no
    process that bears the mark of a dead owner.
    """
    program = PARENT.format(engine=engine, model=str(tiny_model))
    before = {stray.pid for stray in find_strays()}
    for _ in range(20):
        parent = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert parent.stdout is not None
        assert parent.stdout.readline() == "starting\n"
        time.sleep(random.uniform(0, 0.6))
        parent.kill()
        output, _ = parent.communicate()
        for word in output.split():
            if word.isdecimal():
                wait_for(lambda: _linux.process_start_time(int(word)) is None)  # noqa: B023 - used at once
        wait_for(lambda: {stray.pid for stray in find_strays()} <= before)


@pytest.mark.slow
def test_500_starts_and_stops_leak_nothing(
    engine: Engine, server: ServerManager, tiny_model: Path
) -> None:
    """No process, thread, port or file is left by 500 lives of each engine.

    Two of three are stopped at a random moment of their start.
    """
    config = ServerConfig(tiny_model, port=0, context_size=256, threads=1)
    start(server, config).close()
    server.stop()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    pids, ports = set(), set()
    for number in range(500):
        server.start_with_config(config)
        pids.add(server.pid)
        assert server.config is not None
        ports.add(server.config.port)
        if number % 3 == 0:
            assert server.wait_until_ready(60)
        else:
            time.sleep(random.uniform(0, 0.1))
        server.stop()
        assert server.state is ServerState.STOPPED

    # Fewer if something that an earlier test has left was collected meanwhile.
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files
    assert all(_linux.process_start_time(pid) is None for pid in pids if pid)
    assert not any(_linux.listening_inodes(port) for port in ports)
