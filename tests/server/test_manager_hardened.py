"""ServerManager under interrupts, threads, and engines that leave things behind."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from manager_tools import STAND_IN, Make, children, wait_for

from llamatelemetry.exceptions import (
    ConfigurationError,
    LLCudaError,
    OutOfMemoryError,
    PortInUseError,
    ServerError,
    ServerNotRunningError,
    ServerStartError,
)
from llamatelemetry.server import (
    ServerConfig,
    ServerManager,
    ServerState,
    _linux,
    _run,
    find_strays,
)
from llamatelemetry.server._run import Run
from llamatelemetry.server.events import OutOfMemory, Ready


def asks_for_help(mode: str) -> bool:
    """Whether a stand-in engine of this mode is asked for --help at the moment."""
    commands = map(_linux.process_command, _linux.process_ids())
    return any(
        f"{STAND_IN} {mode} --help" in command and "_run_with_parent" not in command
        for command in commands
    )


# ── the end of a run ─────────────────────────────────────────────────────────────────


def test_the_last_words_of_an_engine_are_read(
    make: Make, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints between a look that finds nothing and its end explains the end."""
    runs: list[Run] = []
    begin = Run.begin

    class LateLooks:
        """Sees nothing at the first look, in which the engine speaks and dies."""

        def __init__(self) -> None:
            self._real, self._looks = select.poll(), 0
            self.register = self._real.register

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            self._looks += 1
            if self._looks > 1:
                return self._real.poll(milliseconds)
            wait_for(lambda: _linux.process_start_time(runs[0].process.pid) is None)
            return []

    def noted(run: Run) -> None:
        runs.append(run)
        begin(run)

    monkeypatch.setattr(Run, "begin", noted)
    late = SimpleNamespace(poll=LateLooks, POLLIN=select.POLLIN)
    monkeypatch.setattr(_run, "select", late)
    server = make("out_of_memory")
    server.start_with_config(config)

    assert server.wait_until_ready(20) is False
    assert isinstance(server.error, OutOfMemoryError)


def test_an_end_may_be_noted_before_the_log_is_read(
    make: Make, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the end of the log waits for its beginning, too."""
    begin = Run.begin
    with ThreadPoolExecutor(1) as threads:

        def late(run: Run) -> None:
            finished = threads.submit(run.finish)
            assert not futures.wait([finished], 0.2).done
            begin(run)

        monkeypatch.setattr(Run, "begin", late)
        server = make("good")
        server.start_with_config(config)
        server.stop()


# ── threads ──────────────────────────────────────────────────────────────────────


def test_threads_may_start_and_stop_one_manager_as_they_like(
    make: Make, config: ServerConfig
) -> None:
    """Six threads race; each start or stop is whole, and nothing is left at the end."""
    server = make("good")
    unexpected: list[BaseException] = []

    def live() -> None:
        for _ in range(12):
            try:
                random.choice(
                    [
                        lambda: server.start_with_config(config),
                        server.stop,
                        lambda: server.wait_until_ready(random.choice([0, 0.2])),
                    ]
                )()
            except (ServerNotRunningError, ServerError) as error:
                if "running already" in str(error) or "nothing was" in str(error):
                    continue
                unexpected.append(error)
            except BaseException as error:  # noqa: BLE001 - reported below
                unexpected.append(error)

    threads = [threading.Thread(target=live) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(children()) <= 1
    server.stop()

    assert unexpected == []
    assert children() == []
    server.start_with_config(config)
    assert server.wait_until_ready(20)


def test_a_start_waits_for_the_stop_that_is_under_way(
    make: Make, config: ServerConfig
) -> None:
    """Starting while another thread stops gives one new server, not two."""
    server = make("immortal")
    server.start_with_config(config)
    assert server.wait_until_ready(20)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    wait_for(lambda: server.state is ServerState.STOPPING)
    server.start_with_config(config)
    stopping.join()

    assert server.state is ServerState.STARTING
    assert children() == [server.pid]


def test_a_stop_waits_for_the_start_that_is_under_way(
    make: Make, config: ServerConfig
) -> None:
    """Stopping while another thread still asks the engine for help is not lost."""
    server = make("slow_help")
    starting = threading.Thread(target=server.start_with_config, args=(config,))
    starting.start()
    wait_for(lambda: asks_for_help("slow_help") or not starting.is_alive())
    server.stop()
    starting.join()

    assert server.state is ServerState.STOPPED
    assert children() == []


def test_many_waiters_share_a_lost_port(make: Make, config: ServerConfig) -> None:
    """Eight threads wait for a server that never gets a port: all get False."""
    server = make("beaten")
    server.start_with_config(config)
    answers: list[object] = []

    def wait() -> None:
        try:
            answers.append(server.wait_until_ready(20))
        except LLCudaError as error:
            answers.append(error)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [False] * 8
    assert isinstance(server.error, PortInUseError)


def test_with_says_so_when_another_thread_stops_it(
    make: Make, config: ServerConfig
) -> None:
    """A stop from elsewhere is not called a time-out."""
    server = make("mute", config, timeout=60)
    stopper = threading.Timer(0.5, server.stop)
    stopper.start()

    with pytest.raises(ServerNotRunningError, match="was stopped"), server:
        pass
    stopper.join()


def test_a_server_ready_in_a_thread_stays_when_the_thread_ends(
    make: Make, config: ServerConfig
) -> None:
    """The parent-death signal, set by then, does not follow the worker thread."""
    server = make("good")

    def work() -> None:
        server.start_with_config(config)
        server.wait_until_ready(20)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    time.sleep(0.3)

    assert server.state is ServerState.READY


# ── interrupts ───────────────────────────────────────────────────────────────────


INTERRUPTS = STAND_IN.with_name("interrupts.py")


@pytest.mark.parametrize("scenario", ["any_moment", "stopping", "waiting"])
def test_ctrl_c_leaves_nothing(scenario: str, tiny_model: Path) -> None:
    """Interrupted at random moments, while stopping, while waiting: no server is left.

    In a program of its own: an interrupt inside of coverage's lock would hang it.
    """
    done = subprocess.run(
        [sys.executable, str(INTERRUPTS), scenario, str(tiny_model)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr


# ── what ends with what ──────────────────────────────────────────────────────────

HOLDER = """
import sys, time
from llamatelemetry.server import ServerConfig, ServerManager
server = ServerManager(engine=[sys.executable, {stand_in!r}, {mode!r}])
server.start_with_config(ServerConfig({model!r}, port=0))
server.wait_until_ready(20)
print(server.get_url(), flush=True)
time.sleep(60)
"""


def hold(mode: str, model: Path) -> subprocess.Popen[str]:
    """Start a program that holds a server."""
    program = HOLDER.format(stand_in=str(STAND_IN), mode=mode, model=str(model))
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )


def test_a_server_behind_a_wrapper_dies_with_a_killed_parent(tiny_model: Path) -> None:
    """The kernel's signal does not reach a grandchild; the guard does."""
    strays = {stray.pid for stray in find_strays()}
    parent = hold("wrapper", tiny_model)
    assert parent.stdout is not None
    port = int(parent.stdout.readline().rpartition(":")[2])
    assert _linux.listening_inodes(port)
    parent.kill()
    parent.communicate()

    wait_for(lambda: not _linux.listening_inodes(port))
    wait_for(lambda: {stray.pid for stray in find_strays()} <= strays)


def test_a_question_for_help_dies_with_a_killed_parent(tiny_model: Path) -> None:
    """Not even the short run of --help outlives its parent."""
    parent = hold("endless_help", tiny_model)
    wait_for(lambda: asks_for_help("endless_help"))
    parent.kill()
    parent.communicate()
    wait_for(lambda: not asks_for_help("endless_help"))


def test_servers_are_asked_to_end_when_python_exits(tiny_model: Path) -> None:
    """At a normal exit there is time for SIGTERM; it is no kill."""
    program = HOLDER.format(stand_in=str(STAND_IN), mode="good", model=str(tiny_model))
    program = program.replace(
        "time.sleep(60)",
        "import atexit\n"
        "run = server._run\n"
        "from llamatelemetry.server import manager\n"
        "atexit._run_exitfuncs()\n"
        "print(run.process.poll(), server.state.value)",
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split()[1:] == ["-15", "stopped"]
    assert done.stderr == ""


# ── engines that leave things behind ─────────────────────────────────────────────


def test_a_daemon_that_holds_the_log_holds_up_nobody(
    make: Make, config: ServerConfig
) -> None:
    """The log ends with the engine, also when somebody else still has its pipe."""
    server = make("daemon")
    server.start_with_config(config)
    lines = list(server.follow_logs())

    assert "left somebody behind" in lines[-1]
    assert server.state is ServerState.FAILED  # known when the log has ended
    with pytest.raises(ServerStartError) as caught:
        server.raise_if_failed()
    assert caught.value.exit_code == 7
    assert "left somebody behind" in caught.value.log_tail
    strangers = [
        pid
        for pid in _linux.process_ids()
        if _linux.process_command(pid) == "sleep 30"
        and (_linux.process_variable(pid, "LLAMATELEMETRY_OWNER") or "").startswith(
            f"{os.getpid()}:"
        )
    ]
    for pid in strangers:
        os.kill(pid, signal.SIGKILL)


def test_an_engine_may_close_its_output(make: Make, config: ServerConfig) -> None:
    """Without a log line, the listening socket tells that the server is ours."""
    server = make("closed_output")
    server.start_with_config(config)

    assert server.wait_until_ready(20)
    assert "listening" not in server.get_logs()


def test_a_strangers_socket_is_not_ours(make: Make, config: ServerConfig) -> None:
    """What listens on the port counts only if it belongs to the engine's group."""
    server = make("mute")
    server.start_with_config(config)
    run = server._run
    assert isinstance(run, Run)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", run.config.port))
        stranger.listen()

        assert not run.listens()


def test_a_problem_it_got_over_is_not_blamed_for_its_end(
    make: Make, config: ServerConfig, held: Path
) -> None:
    """A full card while loading does not explain a kill hours later."""
    server = make("warned")
    server.start_with_config(config.replace(alias=str(held)))
    wait_for(lambda: any(isinstance(event, OutOfMemory) for event in server.events))
    held.unlink()
    assert server.wait_until_ready(20)
    assert any(isinstance(event, Ready) for event in server.events)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: server.state is ServerState.FAILED)

    assert type(server.error) is ServerStartError


def test_a_key_that_the_engine_logs_is_masked(make: Make, config: ServerConfig) -> None:
    """Neither the key nor its end, which llama-server logs, is in our log."""
    server = make("tells_key")
    server.start_with_config(config.replace(api_key="open-sesame-wxyz"))
    wait_for(lambda: "listening on" in server.get_logs())  # after all about the key

    assert "wxyz" not in server.get_logs()
    assert server.get_logs().count("****") == 2


# ── small promises ───────────────────────────────────────────────────────────────


def test_no_time_means_one_look(make: Make, config: ServerConfig) -> None:
    """A time-out of 0 answers at once, True if it is ready by then."""
    server = make("good")
    server.start_with_config(config)
    while server.wait_until_ready(0) is False:
        assert server.is_running()

    assert server.state is ServerState.READY


def test_restart_keeps_the_port_and_survives_a_change_of_folder(
    make: Make, config: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's URL stays right, and a relative path stays found."""
    model = Path(str(config.model_path))
    monkeypatch.chdir(model.parent)
    server = make("good", config.replace(model_path=model.name))
    with server:
        url = server.get_url()
        monkeypatch.chdir(tmp_path)
        server.restart()
        assert server.get_url() == url


def test_a_port_that_was_served_a_moment_ago_is_free(
    make: Make, config: ServerConfig
) -> None:
    """Connections in TIME_WAIT do not keep a server from its port."""
    server = make("good", config)
    with server:
        port = int(server.get_url().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            while connection.recv(4096):  # the server closes first: TIME_WAIT is its
                pass
    server.start_with_config(config.replace(port=port))

    assert server.wait_until_ready(20)


@pytest.mark.parametrize("wrong", ["m.gguf", None, {"model_path": "m.gguf"}])
def test_what_is_no_configuration_is_refused(make: Make, wrong: object) -> None:
    """A path in place of a configuration is an error that says what to write."""
    with pytest.raises(ConfigurationError, match="takes a ServerConfig"):
        make("good").start_with_config(wrong)  # type: ignore[arg-type]
    if wrong is not None:
        with pytest.raises(ConfigurationError, match="takes a ServerConfig"):
            ServerManager(wrong)  # type: ignore[arg-type]


def test_a_key_too_long_for_the_system_is_named(
    make: Make, config: ServerConfig
) -> None:
    """The system's refusal is not taken for a missing engine."""
    with pytest.raises(ConfigurationError, match="longer than"):
        make("good").start_with_config(config.replace(api_key="k" * 200_000))


def test_a_configuration_in_json_is_a_configuration(config: ServerConfig) -> None:
    """What a notebook saved can be loaded again."""
    saved = json.dumps(config.to_dict())

    assert ServerConfig.from_dict(json.loads(saved)) == config
