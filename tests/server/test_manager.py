"""ServerManager with an engine that misbehaves on demand, and with none at all."""

from __future__ import annotations

import http.server
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from manager_tools import STAND_IN, Make, children, wait_for

from llamatelemetry.exceptions import (
    ConfigurationError,
    EngineNotFoundError,
    ModelError,
    OutOfMemoryError,
    PortInUseError,
    ServerError,
    ServerNotRunningError,
    ServerStartError,
    ServerTimeoutError,
)
from llamatelemetry.server import ServerConfig, ServerManager, ServerState, _linux
from llamatelemetry.server.events import Exited, Loading, LoadProgress, Notice


def test_a_life_from_new_to_stopped(
    make: Make, config: ServerConfig, held: Path
) -> None:
    """Every state is passed in order, and each question is answered in each."""
    server = make("held")
    assert server.state is ServerState.NEW
    assert not server.is_running()
    assert server.pid is None
    assert server.get_logs() == ""
    assert list(server.follow_logs()) == []
    server.stop()  # nothing to stop: quiet

    assert server.start_with_config(config.replace(alias=str(held))) is True
    assert server.state is ServerState.STARTING
    assert server.wait_until_ready(timeout=0.1) is False  # time is over, it goes on
    held.unlink()
    assert server.wait_until_ready(timeout=20) is True
    assert server.state is ServerState.READY
    assert server.wait_until_ready(timeout=1) is True
    assert server.is_running()
    assert server.config is not None
    assert server.get_url() == f"http://127.0.0.1:{server.config.port}"
    assert str(server.pid) in repr(server)

    server.stop()
    server.stop()
    assert server.state is ServerState.STOPPED
    assert server.error is None
    assert not server.is_running()
    assert "listening on" in server.get_logs()  # readable after the end
    assert isinstance(server.events[-1], Exited)
    assert any(isinstance(event, Loading) for event in server.events)


def test_what_was_never_started_is_said_so(make: Make) -> None:
    """Questions that need a start raise an error that names the call to make."""
    server = make("good")

    with pytest.raises(ServerNotRunningError, match="start_with_config"):
        server.wait_until_ready()
    with pytest.raises(ServerNotRunningError, match="start_with_config"):
        server.get_url()
    with pytest.raises(ConfigurationError, match="start_with_config"):
        server.restart()
    with pytest.raises(ConfigurationError), server:
        pass


def test_a_second_start_is_an_error_and_never_an_adoption(
    make: Make, config: ServerConfig
) -> None:
    """While a server runs, starting again raises and leaves it alone."""
    server = make("good")
    server.start_with_config(config)
    assert server.wait_until_ready(20)
    pid = server.pid

    with pytest.raises(ServerError, match="running already"):
        server.start_with_config(config)
    assert server.pid == pid


def test_more_log_than_a_pipe_holds_blocks_nothing(
    make: Make, config: ServerConfig
) -> None:
    """400 KB of log before the server listens are read, kept from the first line."""
    server = make("noisy")
    server.start_with_config(config)

    assert server.wait_until_ready(30)
    wait_for(lambda: "noise 03999" in server.get_logs())  # read while it got ready
    assert "noise 00000" in server.get_logs()


def test_a_log_that_is_no_text_blocks_nothing(make: Make, config: ServerConfig) -> None:
    """Bytes that are no UTF-8 and lines without end do not stop the reader."""
    server = make("binary")
    server.start_with_config(config)

    assert server.wait_until_ready(30)


def test_a_log_can_be_followed_while_it_grows(make: Make, config: ServerConfig) -> None:
    """A follower gets all lines and ends with the server."""
    server = make("noisy")
    server.start_with_config(config)
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(server.follow_logs()))
    follower.start()
    assert server.wait_until_ready(30)
    server.stop()
    follower.join(10)

    assert not follower.is_alive()
    assert lines == server.get_logs().splitlines()


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("crash", ServerStartError, "SIGSEGV"),
        ("out_of_memory", OutOfMemoryError, "CUDA1"),
        ("old_engine", ConfigurationError, "--fit"),
    ],
)
def test_a_death_while_loading_is_explained(
    make: Make, config: ServerConfig, mode: str, kind: type[Exception], words: str
) -> None:
    """wait_until_ready returns False, and the error is ready to be raised."""
    server = make(mode)
    server.start_with_config(config)

    assert server.wait_until_ready(20) is False
    assert server.state is ServerState.FAILED
    assert server.pid is None
    with pytest.raises(kind, match=words):
        server.raise_if_failed()
    server.stop()  # it has ended: quiet
    assert server.state is ServerState.FAILED


def test_memory_that_runs_out_names_the_card_and_the_bytes(
    make: Make, config: ServerConfig
) -> None:
    """An out-of-memory error carries device and bytes, and all the evidence."""
    server = make("out_of_memory")
    server.start_with_config(config)
    server.wait_until_ready(20)
    error = server.error

    assert isinstance(error, OutOfMemoryError)
    assert error.device == "CUDA1"
    assert error.needed == round(13824.5 * 2**20)
    assert isinstance(error.__cause__, ServerStartError)
    assert "cudaMalloc failed" in error.__cause__.log_tail
    assert "--model" in error.__cause__.command


def test_a_server_that_dies_later_is_noticed(make: Make, config: ServerConfig) -> None:
    """A ready server that ends by itself becomes FAILED without being asked."""
    server = make("short_lived")
    server.start_with_config(config)
    assert server.wait_until_ready(20)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGUSR1)
    wait_for(lambda: server._state is ServerState.FAILED)  # set by the log's reader

    with pytest.raises(ServerStartError, match="after it was ready") as caught:
        server.raise_if_failed()
    assert caught.value.exit_code == 3


def test_a_failed_server_can_be_started_again(make: Make, config: ServerConfig) -> None:
    """A new start after a failure clears the error and the log."""
    server = make("beaten_once")
    server.start_with_config(config.replace(port=free_port()))
    assert server.wait_until_ready(20) is False
    assert isinstance(server.error, PortInUseError)

    server.restart()
    assert server.state is ServerState.READY
    assert server.error is None
    assert "couldn't bind" not in server.get_logs()


def test_a_free_port_lost_to_another_program_is_replaced(
    make: Make, config: ServerConfig, tmp_path: Path
) -> None:
    """With port=0 a bind that fails after the test is tried on another port."""
    model = tmp_path / "model.gguf"
    model.write_bytes(Path(config.model_path or "").read_bytes())
    server = make("beaten_once")
    server.start_with_config(config.replace(model_path=model))

    assert server.wait_until_ready(20)


def test_a_port_that_is_lost_every_time_is_an_error(
    make: Make, config: ServerConfig
) -> None:
    """Trying other ports ends after a few starts."""
    server = make("beaten")
    server.start_with_config(config)

    assert server.wait_until_ready(20) is False
    assert isinstance(server.error, PortInUseError)


def test_an_immortal_server_is_killed(make: Make, config: ServerConfig) -> None:
    """A server that ignores SIGTERM is ended by SIGKILL."""
    server = make("immortal")
    server.start_with_config(config)
    assert server.wait_until_ready(20)
    pid = server.pid
    server.stop()

    assert server.events[-1] == Exited(-signal.SIGKILL)
    assert pid is not None
    assert _linux.process_start_time(pid) is None


def test_a_server_behind_a_wrapper_is_ready_and_stopped_too(
    make: Make, config: ServerConfig
) -> None:
    """The listening socket of a grandchild counts, and the grandchild is ended."""
    server = make("wrapper")
    server.start_with_config(config)
    assert server.wait_until_ready(20)
    assert server.pid is not None
    members = _linux.group_members(server.pid)
    assert len(members) == 2

    server.stop()
    assert all(_linux.process_start_time(pid) is None for pid in members)


def test_a_server_that_never_listens_times_out(
    make: Make, config: ServerConfig
) -> None:
    """`with` raises when time is over, and leaves nothing running."""
    server = make("mute", config, timeout=0.5)

    with pytest.raises(ServerTimeoutError, match="timeout="), server:
        pass
    assert server.state is ServerState.STOPPED
    with pytest.raises(TimeoutError):
        server.restart()
    server.stop()


def test_with_stops_the_server_whatever_happens(
    make: Make, config: ServerConfig
) -> None:
    """Leaving the block, by an error too, ends the server."""
    server = make("good", config)
    pids: list[int | None] = []
    with pytest.raises(ZeroDivisionError), server:
        pids.append(server.pid)
        1 / 0  # noqa: B018 - for its error

    assert pids[0] is not None
    assert _linux.process_start_time(pids[0]) is None


def test_stop_from_another_thread_ends_the_wait(
    make: Make, config: ServerConfig
) -> None:
    """Waiting for a server that somebody else stops returns False at once."""
    server = make("mute")
    server.start_with_config(config)
    threading.Timer(0.2, server.stop).start()
    began = time.monotonic()

    assert server.wait_until_ready(30) is False
    assert time.monotonic() - began < 10


def test_loading_is_reported(make: Make, config: ServerConfig, held: Path) -> None:
    """Progress goes to the callback and to the events, from 0 to 1, rising."""
    server = make("held")
    steps: list[LoadProgress] = []

    def note(step: LoadProgress) -> None:
        steps.append(step)
        held.unlink(missing_ok=True)

    server.start_with_config(config.replace(alias=str(held)))
    assert server.wait_until_ready(20, progress=note)

    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert all(0 < fraction <= 1 for fraction in fractions)
    assert [
        event for event in server.events if isinstance(event, LoadProgress)
    ] == steps
    assert steps


def test_with_reports_loading_too(make: Make, config: ServerConfig, held: Path) -> None:
    """The callback given to the manager is called by `with`."""
    config = config.replace(alias=str(held))
    with make("held", config, progress=lambda _: held.unlink(missing_ok=True)):
        assert not held.exists()


def test_more_threads_than_cpus_are_not_passed(
    make: Make, config: ServerConfig
) -> None:
    """The value holds, what is passed is at most the usable CPUs, and it is said."""
    server = make("good")
    server.start_with_config(config.replace(threads=4096, threads_batch=4096))
    cpus = str(_linux.usable_cpus())
    arguments = server.command

    assert arguments[arguments.index("--threads") + 1] == cpus
    assert arguments[arguments.index("--threads-batch") + 1] == cpus
    assert server.config is not None
    assert server.config.threads == 4096
    assert "threads=4096" in str([e for e in server.events if isinstance(e, Notice)])


def test_a_key_travels_in_the_environment_only(
    make: Make, config: ServerConfig
) -> None:
    """The key is in the server's environment and in no argument, log or repr."""
    server = make("good")
    arguments = f"-m '{config.model_path}' --port 0 --api-key hush-hush -ngl 5"
    server.start(arguments)
    assert server.wait_until_ready(20)
    assert server.pid is not None

    assert _linux.process_variable(server.pid, "LLAMA_API_KEY") == "hush-hush"
    assert "hush" not in _linux.process_command(server.pid)
    assert "hush" not in f"{server.command}{server.get_logs()}{server!r}{server.events}"
    assert server.config is not None
    assert server.config.n_gpu_layers == 5


def test_a_key_may_be_given_beside_the_arguments(
    make: Make, config: ServerConfig
) -> None:
    """start(args, api_key=...) is the same."""
    server = make("good")
    server.start(f"-m '{config.model_path}' --port 0", api_key="hush")

    assert server.config is not None
    assert server.config.api_key == "hush"


# ── what is known before anything starts ─────────────────────────────────────────


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no model file"),
        (b"", "empty"),
        (b"GGU", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(100), r"b'PK\\x03\\x04'"),
        (b"GGUF\x03\x00\x00\x00", "cut off"),
    ],
)
def test_a_bad_model_is_refused_before_anything_starts(
    make: Make, tmp_path: Path, content: bytes | None, words: str
) -> None:
    """A missing, empty or foreign file raises ModelError at once, nothing runs."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    server = make("good")

    with pytest.raises(ModelError, match=words):
        server.start_with_config(ServerConfig(path, port=0))
    assert server.state is ServerState.NEW


def test_files_that_are_missing_are_named(
    make: Make, config: ServerConfig, tmp_path: Path
) -> None:
    """No model, a folder for a model, a missing adapter, projector or slot folder."""
    server = make("good")
    for wrong, kind, words in (
        ({"model_path": None}, ConfigurationError, "model_path"),
        ({"model_path": tmp_path}, ModelError, "folder"),
        ({"lora_path": "no.gguf"}, ConfigurationError, "lora_path"),
        ({"mmproj_path": "no.gguf"}, ConfigurationError, "mmproj_path"),
        ({"slot_save_path": "nowhere"}, ConfigurationError, "slot_save_path"),
    ):
        with pytest.raises(kind, match=words):
            server.start_with_config(config.replace(**wrong))


def test_an_engine_that_is_missing_is_named(config: ServerConfig) -> None:
    """A named engine that does not exist is an error of its own."""
    server = ServerManager(engine="/nowhere/llama-server")

    with pytest.raises(EngineNotFoundError, match="/nowhere/llama-server"):
        server.start_with_config(config)


def test_a_taken_port_is_refused_and_its_holder_named(
    make: Make, config: ServerConfig
) -> None:
    """A stranger that answers 200 on the port is never taken for ours."""

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        try:
            server = make("good")
            with pytest.raises(PortInUseError, match="port=0") as caught:
                server.start_with_config(config.replace(port=stranger.server_port))
        finally:
            stranger.shutdown()
            thread.join()

    assert caught.value.port == stranger.server_port
    assert caught.value.holder is not None
    assert caught.value.holder.startswith(f"pid {os.getpid()}")


def test_an_address_that_is_not_here_is_refused(
    make: Make, config: ServerConfig
) -> None:
    """Binding an address of another machine is an error before the start."""
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
        make("good").start_with_config(config.replace(host="192.0.2.1", port=0))


# ── the end of the process ───────────────────────────────────────────────────────

LEFT_RUNNING = """
import sys
from llamatelemetry.server import ServerConfig, ServerManager
server = ServerManager(engine=[sys.executable, {stand_in!r}, "good"])
server.start_with_config(ServerConfig({model!r}, port=0))
assert server.wait_until_ready(20)
print(server.pid, flush=True)
{ending}
"""


@pytest.mark.parametrize(
    "ending",
    ["", "raise SystemExit(3)", "del server; import gc; gc.collect()", "1 / 0"],
    ids=["end", "exit", "forgotten", "error"],
)
def test_a_server_ends_with_the_program_that_forgot_it(
    tiny_model: Path, ending: str
) -> None:
    """However the program ends, and with no manager left, the server ends too."""
    program = LEFT_RUNNING.format(
        stand_in=str(STAND_IN), model=str(tiny_model), ending=ending
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    wait_for(lambda: _linux.process_start_time(pid) is None)


def test_a_fork_does_not_end_its_parents_server(
    make: Make, config: ServerConfig
) -> None:
    """A forked child that exits runs its exit handlers and leaves the server alone."""
    server = make("good")
    server.start_with_config(config)
    assert server.wait_until_ready(20)
    program = "import os, sys\n" + LEFT_RUNNING.format(
        stand_in=str(STAND_IN),
        model=str(config.model_path),
        ending="child = os.fork()\n"
        "if child == 0: sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert server.is_running()\n",
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert server.is_running()


@pytest.mark.slow
def test_many_lives_leak_nothing(make: Make, config: ServerConfig) -> None:
    """After 100 starts and stops at random moments no thread, file or child is left."""
    server = make("good")

    def live() -> None:
        server.start_with_config(config)
        server.wait_until_ready(random.choice([0, 0.05, 20]))
        server.stop()

    live()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(100):
        live()

    # Fewer if something that an earlier test has left has ended meanwhile.
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files
    assert children() == []


def test_signals_to_the_terminal_do_not_reach_the_server(
    make: Make, config: ServerConfig
) -> None:
    """Ctrl-C in a terminal goes to our process group; the server has its own."""
    server = make("good")
    server.start_with_config(config)
    assert server.pid is not None

    assert os.getpgid(server.pid) == server.pid != os.getpgid(0)
    assert signal.SIGINT not in signal.sigpending()


def test_the_status_is_one_value(make: Make, config: ServerConfig) -> None:
    """Before, while and after it runs; a server alone counts no requests."""
    assert ServerManager().status().state is ServerState.NEW
    server = make("good", config.replace(parallel=3, visible_devices=""))
    status = server.status()
    assert (status.state, status.ready, status.url, status.pid, status.slots) == (
        ServerState.NEW, False, None, None, 3,
    )  # fmt: skip
    with server:
        status = server.status()
        assert (status.state, status.ready) == (ServerState.READY, True)
        assert (status.url, status.pid) == (server.get_url(), server.pid)
        assert (status.cards, status.in_flight, status.requests) == ("", None, None)
        assert status.error is None
    status = server.status()
    assert (status.state, status.ready, status.pid) == (
        ServerState.STOPPED, False, None,
    )  # fmt: skip

    broken = make("crash", config)
    with pytest.raises(ServerStartError), broken:
        pass
    assert broken.status().error is broken.error
    assert broken.status().state is ServerState.FAILED
