"""A pool over servers that die in the moment a test names."""

from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client_tools import MESSAGES
from manager_tools import STAND_IN, wait_for

from llamatelemetry._http import HTTPClient
from llamatelemetry.api.client import RequestRecord
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    ModelError,
    NotSupportedError,
    RequestTimeoutError,
    ServerError,
    ServerNotRunningError,
    ServerStartError,
    ServerTimeoutError,
    StreamError,
)
from llamatelemetry.pool import ServerPool, _member
from llamatelemetry.pool._prefixes import Prompt
from llamatelemetry.server import ServerConfig, ServerManager, ServerState
from llamatelemetry.server.events import LoadProgress

MakePool = Callable[..., ServerPool]


def asks(**options: object) -> dict[str, Any]:
    """Return the part of a request that says how it is answered."""
    return {"stand_in": ",".join(f"{key}={value}" for key, value in options.items())}


def seen(pool: ServerPool, number: int) -> list[dict[str, Any]]:
    """Return the requests that came to a server, but for those of the manager."""
    url = pool.servers[number].get_url()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/seen") as reply:
        entries = json.load(reply)
    return [entry for entry in entries if entry["path"] != "/health"]


def takes_connections(server: ServerManager) -> bool:
    """Whether anybody listens where a server did."""
    port = int(server.get_url().rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def threads_of_pools() -> list[str]:
    return [
        one.name
        for one in threading.enumerate()
        if one.name.startswith("llamatelemetry-pool")
    ]


# ── life ─────────────────────────────────────────────────────────────────────────


def test_a_pool_lives_as_long_as_its_block(make_pool: MakePool) -> None:
    """All servers are ready inside the block and gone after it, with the threads."""
    with make_pool() as pool:
        status = pool.status()
        assert [one.state for one in status] == [ServerState.READY] * 2
        assert status.ready == 2
        assert len({one.url for one in status}) == 2
        assert threads_of_pools() == ["llamatelemetry-pool-0", "llamatelemetry-pool-1"]
        with pytest.raises(ServerError, match="runs already"):
            pool.start()
    assert [server.state for server in pool.servers] == [ServerState.STOPPED] * 2
    assert threads_of_pools() == []
    pool.stop()
    assert [one.error for one in pool.status()] == [None, None]


def test_a_pool_can_be_started_again(make_pool: MakePool) -> None:
    """After stop() comes start(), and the same client works."""
    pool = make_pool()
    client = pool.client
    for _ in range(2):
        with pool:
            assert client.chat_completion(MESSAGES).choices[0].message.content
        with pytest.raises(ServerNotRunningError, match="no server of the pool runs"):
            client.chat_completion(MESSAGES)


def test_servers_start_side_by_side(
    make_pool: MakePool, config: ServerConfig, held: Path
) -> None:
    """All servers of a pool load at the same time, so it takes as long as one."""
    pool = make_pool("held", given=config.replace(alias=str(held)), gpus=[[]] * 4)

    def all_load() -> bool:
        return all(server.state is ServerState.STARTING for server in pool.servers)

    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(pool.start)
        wait_for(all_load)
        held.unlink()
        starting.result(30)
    assert pool.status().ready == 4


def test_progress_is_of_all_servers(make_pool: MakePool) -> None:
    """The progress that is told never goes beyond the whole, and has all bytes."""
    steps: list[LoadProgress] = []
    with make_pool("slow", progress=steps.append):
        pass
    assert all(0 < step.fraction <= 1 for step in steps)


def test_one_that_cannot_start_stops_the_others(
    make_pool: MakePool, config: ServerConfig, tmp_path: Path
) -> None:
    """The error is the failed server's, with its number; nothing is left running."""
    missing = config.replace(model_path=tmp_path / "missing.gguf")
    pool = make_pool(given=[config, missing])

    with pytest.raises(ModelError, match=r"missing\.gguf") as caught:
        pool.start()
    assert caught.value.__notes__ == ["this was server 1 of the pool"]
    assert not any(server.is_running() for server in pool.servers)
    assert threads_of_pools() == []


def test_one_that_ends_while_loading_says_why(make_pool: MakePool) -> None:
    """A crash at the first start is not tried again: the start raises."""
    pool = make_pool("crash")

    with pytest.raises(ServerStartError):
        pool.start()
    assert [one.restarts for one in pool.status()] == [0, 0]
    assert "server" in repr(pool.status()).splitlines()[-1]


def test_one_that_is_never_ready_ends_the_start(make_pool: MakePool) -> None:
    """The timeout is an error that carries the log, and nothing is left running."""
    pool = make_pool("mute", timeout=0.3)

    with pytest.raises(ServerTimeoutError, match="not ready in 0.3 s"):
        pool.start()
    assert not any(server.is_running() for server in pool.servers)


def test_an_interrupt_of_the_start_stops_all(make_pool: MakePool) -> None:
    """Ctrl-C while servers load leaves nothing running."""
    pool = make_pool("mute", timeout=30)

    def interrupt() -> None:
        wait_for(lambda: all(server.is_running() for server in pool.servers))
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.start()
        done.result()
    assert not any(server.is_running() for server in pool.servers)


def test_a_stop_ends_a_start_in_another_thread(make_pool: MakePool) -> None:
    """stop() does not wait for a start: that one raises, long before its timeout."""
    pool = make_pool("mute", timeout=300)
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(pool.start)
        wait_for(lambda: all(server.is_running() for server in pool.servers))
        pool.stop()

        with pytest.raises(ServerError, match="stopped while it was started"):
            starting.result(20)
    assert not any(server.is_running() for server in pool.servers)


def test_progress_may_stop_the_pool(make_pool: MakePool) -> None:
    """The callback runs in the thread that starts, and may call stop()."""
    pool = make_pool("mute", timeout=300, progress=lambda _: pool.stop())

    with pytest.raises(ServerError, match="stopped while it was started"):
        pool.start()
    assert threads_of_pools() == []


def test_what_progress_raises_ends_the_start(make_pool: MakePool) -> None:
    """It is the caller's error, and nothing is left running."""

    def fail(_: LoadProgress) -> None:
        raise ZeroDivisionError

    pool = make_pool("mute", timeout=300, progress=fail)
    with pytest.raises(ZeroDivisionError):
        pool.start()
    assert not any(server.is_running() for server in pool.servers)


def test_any_error_of_a_first_start_is_told(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is none of ours, such as the system's."""
    pool = make_pool()

    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pool.servers[1], "start_with_config", fail)
    with pytest.raises(OSError, match="Too many open files"):
        pool.start()
    assert not any(server.is_running() for server in pool.servers)


def test_an_interrupted_stop_leaves_no_server(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of stop() comes through, and all are stopped even so."""
    from llamatelemetry.pool import server_pool

    pool = make_pool()
    pool.start()
    waits = []

    def interrupted(threads: object) -> None:
        waits.append(threads)
        if len(waits) == 1:
            raise KeyboardInterrupt
        wait(threads)  # type: ignore[arg-type]

    wait = server_pool._wait_for
    monkeypatch.setattr(server_pool, "_wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.stop()
    assert not any(server.is_running() for server in pool.servers)
    assert [one.is_kept for one in pool._router.members] == [False, False]


def test_a_pool_in_a_thread_that_outlives_the_program_ends_quietly(
    config: ServerConfig,
) -> None:
    """Where the interpreter starts no more threads, servers are stopped in turn."""
    program = f"""
import sys, threading, time
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import ServerConfig
config = ServerConfig({str(config.model_path)!r}, port=0, threads=1)
engine = [sys.executable, {str(STAND_IN)!r}, "talking"]
ready = threading.Event()
def work():
    with ServerPool(config, gpus=[[], []], engine=engine) as pool:
        ready.set()
        threading.main_thread().join()
    print([server.state.value for server in pool.servers])
threading.Thread(target=work).start()
ready.wait(20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "['stopped', 'stopped']\n"


def test_a_pool_whose_servers_all_wait_can_be_started(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """start() takes over from threads that were about to start servers again."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 30.0)
    with make_pool() as pool:
        for server in pool.servers:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: all(one.error is not None for one in pool.status()))
        pool.start()

        assert pool.status().ready == 2
        assert len(threads_of_pools()) == 2


# ── death ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", ["at once", "begun", "spoken"])
def test_an_answer_nobody_has_seen_is_asked_again(
    make_pool: MakePool, tmp_path: Path, moment: str
) -> None:
    """A whole answer comes from the other server when the first one dies over it."""
    records: list[RequestRecord] = []
    with make_pool() as pool:
        client = pool.make_client(on_request=records.append)
        client.subscribe(lambda _: None, chunk_times=True)
        answer = client.chat_completion(
            MESSAGES, extra_body=asks(die=moment, once=tmp_path / "died", tokens=5)
        )

        assert answer.choices[0].message.content == "w0 w1 w2 w3 w4 "
        assert [record.error for record in records] == [None]
        assert len(records[0].chunk_times or ()) == 5  # of the second try alone
        assert records[0].server in [one.get_url() for one in pool.servers]
        assert sum(one.requests for one in pool.status()) == 2
        assert sum(one.in_flight for one in pool.status()) == 0
        wait_for(lambda: pool.status().ready == 2)
        assert sum(one.restarts for one in pool.status()) == 1


@pytest.mark.parametrize("moment", ["at once", "begun"])
def test_other_requests_are_asked_again_too(
    make_pool: MakePool, tmp_path: Path, moment: str
) -> None:
    """A request for one whole answer is repeated, whether it was cut off or refused."""
    with make_pool() as pool:
        http = pool.client._transport.http
        body = asks(die=moment, once=tmp_path / "died")
        reply = http.request("POST", "/v1/completions", json={"prompt": "x"} | body)

        assert reply.body.endswith(b"data: [DONE]\n\n")
        assert reply.server in [one.get_url() for one in pool.servers]
        with pytest.raises(ConnectionFailedError):
            http.request(
                "POST", "/v1/completions", json={"prompt": ""} | asks(end="cut")
            )
        assert sum(one.in_flight for one in pool.status()) == 0


def test_a_stream_nobody_has_read_is_asked_again(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """A stream whose server dies before its first chunk goes on elsewhere."""
    with make_pool() as pool:
        stream = pool.client.chat_completion_stream(
            MESSAGES, extra_body=asks(die="begun", once=tmp_path / "died")
        )
        texts = [chunk.choices[0].delta.content or "" for chunk in stream]

        assert "".join(texts) == "w0 w1 w2 "
        assert stream.result().choices[0].message.content == "w0 w1 w2 "


def test_a_stream_that_was_read_breaks(make_pool: MakePool, tmp_path: Path) -> None:
    """What a caller has seen is not said a second time: the stream raises."""
    with make_pool() as pool:
        stream = pool.client.chat_completion_stream(
            MESSAGES, extra_body=asks(die="spoken", once=tmp_path / "died")
        )
        with pytest.raises(StreamError) as caught:
            for _ in stream:
                pass

        assert caught.value.partial.choices[0].message.content == "w0 "
        assert sum(one.requests for one in pool.status()) == 1
        assert sum(one.in_flight for one in pool.status()) == 0


def test_a_server_alone_is_never_asked_again(
    make_pool: MakePool, config: ServerConfig, tmp_path: Path
) -> None:
    """The client of one server raises where the pool's asks another."""
    from llamatelemetry.api.client import LlamaCppClient

    with make_pool() as pool:
        client = LlamaCppClient(pool.servers[0].get_url())
        with pytest.raises(StreamError):
            client.chat_completion(MESSAGES, extra_body=asks(die="begun"))


def test_a_request_that_ends_its_server_is_given_up(make_pool: MakePool) -> None:
    """It is tried on two other servers, and then it raises: not all must die of it."""
    with make_pool(gpus=[[], [], [], []]) as pool:
        with pytest.raises(ConnectionFailedError):
            pool.client.chat_completion(MESSAGES, extra_body=asks(die="at once"))

        assert sorted(one.requests for one in pool.status()) == [0, 1, 1, 1]
        wait_for(lambda: pool.status().ready == 4)
        assert pool.client.chat_completion(MESSAGES).choices


def test_all_servers_killed_is_a_wait(make_pool: MakePool) -> None:
    """Requests wait for a server that comes back: a refused connection is no try."""
    with make_pool() as pool:
        for server in pool.servers:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
        with ThreadPoolExecutor(4) as threads:
            asked = [
                threads.submit(pool.client.chat_completion, MESSAGES) for _ in range(8)
            ]
            assert [len(one.result(30).choices) for one in asked] == [1] * 8


def test_servers_that_refuse_connections_are_no_tries(make_pool: MakePool) -> None:
    """What could not be sent anywhere is tried until its time is over."""
    with make_pool() as pool:
        for _ in pool.servers:
            pool.client.chat_completion(MESSAGES, extra_body=asks(deaf=1))
        wait_for(lambda: not any(map(takes_connections, pool.servers)))
        before = sum(one.requests for one in pool.status())

        def tried() -> int:
            return sum(one.requests for one in pool.status()) - before

        stream = pool.client.chat_completion_stream(MESSAGES)
        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(list, stream)
            wait_for(lambda: tried() > 3)  # more often than may break off over one
            stream.cancel()
            assert asking.result(30) == []
        with pytest.raises(ConnectionFailedError):
            pool.client.with_options(timeout=0.5).chat_completion(MESSAGES)
        assert [server.is_running() for server in pool.servers] == [True, True]


def test_a_second_start_that_takes_too_long_is_tried_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is not ready in time is stopped and started once more."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 0.01)
    with make_pool("slow_again", gpus=[[]]) as pool:
        server = pool.servers[0]
        restart, runs = server.restart, []

        def restart_noted() -> None:
            # Only what takes 20 s is to be too slow, whatever else the machine does.
            monkeypatch.setattr(server, "_timeout", 20 if runs else 0.5)
            runs.append(server.is_running())
            restart()

        monkeypatch.setattr(server, "restart", restart_noted)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: pool.status()[0].restarts >= 2)

        wait_for(lambda: pool.status().ready == 1)
        assert runs == [False, False]  # it held no memory while it waited


def test_an_error_of_the_system_does_not_end_the_care(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong in a restart is told, and the next one is tried."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 0.01)
    with make_pool(gpus=[[]]) as pool:
        server = pool.servers[0]
        restart, failures = server.restart, []

        def fail_once() -> None:
            if not failures:
                failures.append(pool.status()[0].error)
                raise OSError(24, "Too many open files")
            restart()

        monkeypatch.setattr(server, "restart", fail_once)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: pool.status().ready == 1 and bool(failures))
        assert pool.status()[0].restarts == 2


def test_one_started_by_its_user_is_watched_until_it_is_ready(
    make_pool: MakePool, config: ServerConfig
) -> None:
    """start_with_config() alone is enough: the pool waits for the server itself."""
    with make_pool(gpus=[[]]) as pool:
        pool.servers[0].stop()
        pool.servers[0].start_with_config(config)
        wait_for(lambda: pool.status().ready == 1)

        assert pool.client.chat_completion(MESSAGES).choices


def test_one_server_alone_is_waited_for(make_pool: MakePool, tmp_path: Path) -> None:
    """In a pool of one, a request is asked again of the server that came back."""
    with make_pool(gpus=[[]]) as pool:
        body = asks(die="at once", once=tmp_path / "died")
        answer = pool.client.chat_completion(MESSAGES, extra_body=body)

        assert answer.choices[0].message.content
        assert pool.status()[0].restarts == 1


def test_a_server_that_dies_again_and_again_waits_longer(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarts go on, each after twice the time; the others do the work meanwhile."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 0.01)
    with make_pool("talking_once") as pool:
        pid = pool.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pool.status()[0].restarts >= 3)

        status = pool.status()[0]
        assert not status.ready
        assert isinstance(status.error, ServerStartError)
        assert "server 0: " in repr(pool.status())
        assert pool.client.chat_completion(MESSAGES).choices
        assert pool.client.health() == {"status": "ok"}


def test_no_server_left_is_an_error_with_reasons(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When none comes back in the request's time, it says why."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 0.01)
    with make_pool("talking_once", gpus=[[]]) as pool:
        pid = pool.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pool.status()[0].restarts >= 1)
        client = pool.client.with_options(timeout=0.2)

        with pytest.raises(ConnectionFailedError, match=r"in time; server 0: "):
            client.chat_completion(MESSAGES)
        assert client.health() == {"status": "loading"}


def test_a_server_its_user_stopped_stays_stopped(make_pool: MakePool) -> None:
    """It gets no requests until its user starts it again."""
    with make_pool() as pool:
        pool.servers[0].stop()
        for _ in range(3):
            pool.client.chat_completion(MESSAGES)
        assert [one.requests for one in pool.status()] == [0, 3]
        assert pool.status()[0].restarts == 0

        pool.servers[1].stop()
        with pytest.raises(ServerNotRunningError):
            pool.client.chat_completion(MESSAGES)
        with pytest.raises(ConnectionFailedError, match="no server"):
            pool.client.health()

        pool.servers[0].restart()
        assert pool.client.chat_completion(MESSAGES).choices


def test_a_server_its_user_brought_back_is_taken(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that its user restarts while the pool still waits is not restarted twice."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 250.0)
    with make_pool(gpus=[[]]) as pool:
        pid = pool.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pool.status()[0].error is not None)
        pool.servers[0].restart()

        client = pool.client.with_options(timeout=60)
        assert client.chat_completion(MESSAGES).choices
        assert (pool.status()[0].restarts, pool.status()[0].error) == (0, None)


def test_a_stop_ends_a_server_that_is_coming_back(
    make_pool: MakePool,
    config: ServerConfig,
    held: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """stop() in the middle of a restart leaves nothing running."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 0.0)
    held.unlink()
    pool = make_pool("held", given=config.replace(alias=str(held)), gpus=[[], []])
    with pool:
        held.touch()
        pid = pool.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pool.servers[0].state is ServerState.STARTING)
    assert not any(server.is_running() for server in pool.servers)
    assert threads_of_pools() == []


# ── use ──────────────────────────────────────────────────────────────────────────


def test_each_request_is_answered_once(make_pool: MakePool) -> None:
    """Eight threads, 200 requests: each came to one server, once.

    None is read to its end before eight are under way: four of them at each server.
    """
    all_begun = threading.Barrier(8)
    with make_pool() as pool:

        def ask(number: int) -> int:
            message = [{"role": "user", "content": f"question {number}"}]
            stream = pool.client.chat_completion_stream(message)
            next(stream)
            all_begun.wait(30)
            assert stream.result().choices[0].message.content == "w0 w1 w2 "
            return number

        with ThreadPoolExecutor(8) as threads:
            done = list(threads.map(ask, range(200)))

        questions = [
            entry["body"]["messages"][0]["content"]
            for number in range(2)
            for entry in seen(pool, number)
        ]
        assert done == list(range(200))
        assert sorted(questions) == sorted(f"question {n}" for n in range(200))
        assert [one.requests for one in pool.status()] == [100, 100]


def test_a_conversation_stays_where_it_began(make_pool: MakePool) -> None:
    """Turns of two conversations that alternate go to a server each."""
    with make_pool() as pool:
        talks: list[list[dict[str, str]]] = [
            [{"role": "user", "content": name}] for name in ("left", "right")
        ]
        for _ in range(4):
            for talk in talks:
                answer = pool.client.chat_completion(talk)
                text = answer.choices[0].message.content or ""
                talk.append({"role": "assistant", "content": text})
                talk.append({"role": "user", "content": "go on"})

        first = [
            {entry["body"]["messages"][0]["content"] for entry in seen(pool, number)}
            for number in range(2)
        ]
        assert sorted(map(sorted, first)) == [["left"], ["right"]]


def test_streams_count_as_long_as_they_run(make_pool: MakePool) -> None:
    """An open stream keeps its server busy until it is read or closed."""
    with make_pool() as pool:
        body = asks(tokens=50, pace=0.05)
        one = pool.client.chat_completion_stream(MESSAGES, extra_body=body)
        two = pool.client.chat_completion_stream(MESSAGES, extra_body=body)
        next(one)
        next(two)
        assert [each.in_flight for each in pool.status()] == [1, 1]

        one.close()
        assert sum(each.in_flight for each in pool.status()) == 1
        del two
        wait_for(lambda: sum(each.in_flight for each in pool.status()) == 0)


def test_a_stream_can_be_called_off_while_it_waits(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cancel() from another thread ends a request that waits for a server."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 30.0)
    with make_pool(gpus=[[]]) as pool:
        pid = pool.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pool.status().ready == 0)
        stream = pool.client.chat_completion_stream(MESSAGES)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(list, stream)
            time.sleep(0.05)
            stream.cancel()

            assert waiting.result(30) == []
        assert stream.cancelled


def test_errors_of_a_server_are_not_asked_again(make_pool: MakePool) -> None:
    """A refusal is an answer: it is raised, and no other server is asked."""
    with make_pool() as pool:
        with pytest.raises(ClientError):
            pool.client.chat_completion(MESSAGES, extra_body=asks(status=404))
        with pytest.raises(StreamError, match="out of slots"):
            pool.client.chat_completion(MESSAGES, extra_body=asks(end="error"))
        with pytest.raises(RequestTimeoutError):
            pool.client.with_options(timeout=0.2).chat_completion(
                MESSAGES, extra_body=asks(before=60)
            )
        assert sum(one.requests for one in pool.status()) == 3
        assert sum(one.in_flight for one in pool.status()) == 0


def test_the_whole_time_is_limited_over_all_tries(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """total_timeout counts from the first try, waiting for servers included."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 30.0)
    with make_pool() as pool:
        client = pool.make_client(total_timeout=0.5)
        over = "longer than total_timeout=0.5 s"
        with pytest.raises(RequestTimeoutError, match=over):
            client.chat_completion(MESSAGES, extra_body=asks(before=60))
        with pytest.raises(RequestTimeoutError, match=over):
            client.chat_completion(MESSAGES, extra_body=asks(pace=0.2, tokens=300))
        for server in pool.servers:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: pool.status().ready == 0)
        with pytest.raises(RequestTimeoutError, match=over):
            client.chat_completion(MESSAGES)


def test_each_request_has_a_record_whatever_becomes_of_it(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """on_request is called once also where no server could be asked."""
    monkeypatch.setattr(_member, "_FIRST_DELAY", 30.0)
    records: list[RequestRecord] = []
    pool = make_pool()
    client = pool.make_client(on_request=records.append, timeout=3)
    with pytest.raises(ServerNotRunningError):
        client.chat_completion(MESSAGES)
    with pool, pytest.raises(ClientError):
        client.chat_completion(MESSAGES, extra_body=asks(die="begun"))
    assert [type(one.error) for one in records] == [
        ServerNotRunningError,
        ConnectionFailedError,  # both have died, and none was back in time
    ]


def test_adapters_are_set_on_every_server(make_pool: MakePool, tmp_path: Path) -> None:
    """LoRA scales go to all, and again to one that was started again."""
    with make_pool() as pool:
        pool.client.set_lora_adapters({0: 0.5})
        expected = [{"id": 0, "scale": 0.5}]
        for number in range(2):
            assert [entry["body"] for entry in seen(pool, number)] == [expected]

        body = asks(die="at once", once=tmp_path / "died")
        pool.client.chat_completion(MESSAGES, extra_body=body)
        wait_for(lambda: pool.status().ready == 2)
        anew = next(one.server for one in pool.status() if one.restarts)

        assert next(entry["body"] for entry in seen(pool, anew)) == expected


def lora_seen(pool: ServerPool) -> list[list[float]]:
    """Return the scales that each server was given, in order."""
    return [
        [
            entry["body"][0]["scale"]
            for entry in seen(pool, number)
            if entry["path"] == "/lora-adapters"
        ]
        for number in range(len(pool))
    ]


def test_adapters_reach_servers_that_are_not_served(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the start, while suspected, and after their user's restart."""
    pool = make_pool()
    pool.client.set_lora_adapters({0: 0.1})
    with pool:
        assert lora_seen(pool) == [[0.1], [0.1]]
        for member in pool._router.members:
            member.suspect()
        pool.client.set_lora_adapters({0: 0.2})
        assert lora_seen(pool) == [[0.1, 0.2], [0.1, 0.2]]

        pool.servers[0].restart()
        wait_for(lambda: pool.status().ready == 2)
        assert lora_seen(pool) == [[0.2], [0.1, 0.2]]
    with pool:
        assert lora_seen(pool) == [[0.2], [0.2]]


def test_a_dead_server_does_not_keep_adapters_from_the_others(
    make_pool: MakePool,
) -> None:
    """The dead one gets them when it is back, the others at once."""
    with make_pool() as pool:
        pid = pool.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        pool.client.set_lora_adapters({0: 0.7})
        wait_for(lambda: pool.status().ready == 2)

        assert lora_seen(pool) == [[0.7], [0.7]]


def test_a_server_that_refuses_adapters_is_named(make_pool: MakePool) -> None:
    """The error is the server's own, a note says which it was; all are asked."""
    with make_pool(environment={"STAND_IN_OBEYS": "0"}) as pool:
        with pytest.raises(ClientError) as caught:
            pool.client.set_lora_adapters({0: 0.5})
        assert "server 0" in caught.value.__notes__[0]
        assert [len(scales) for scales in lora_seen(pool)] == [1, 1]
        # Refused is refused: a server that comes back is not given them.
        pool.servers[0].restart()
        wait_for(lambda: pool.status().ready == 2)
        assert [len(scales) for scales in lora_seen(pool)] == [0, 1]


def test_a_server_that_cannot_be_given_its_adapters_is_not_served(
    make_pool: MakePool,
) -> None:
    """Its error is told, and it is looked at again."""
    with make_pool(environment={"STAND_IN_OBEYS": "0"}) as pool:
        member = pool._router.members[0]
        member._scales = {0: 0.5}
        member.suspect()
        wait_for(lambda: pool.status()[0].error is not None)
        assert not pool.status()[0].ready
        member._scales = None
        wait_for(lambda: pool.status()[0].ready)


def test_slots_belong_to_one_server(make_pool: MakePool) -> None:
    """Saving, restoring and erasing name pool.servers[i]."""
    client = make_pool().client
    for call in (
        lambda: client.save_slot(0, "a.bin"),
        lambda: client.restore_slot(0, "a.bin"),
        lambda: client.erase_slot(0),
    ):
        with pytest.raises(NotSupportedError, match=r"pool\.servers\[i\]"):
            call()


def test_a_pool_has_no_address(make_pool: MakePool) -> None:
    """The client of a pool says where the addresses are."""
    client = make_pool().client
    with pytest.raises(NotSupportedError, match=r"pool\.servers\[0\]\.get_url"):
        _ = client.base_url
    assert repr(client) == "PoolClient(2 servers)"
    assert not hasattr(client, "base_url")
    assert "chat_completion" in dict(inspect.getmembers(client))
    client.close()


def test_slots_and_metrics_are_of_all_servers(make_pool: MakePool) -> None:
    """What is asked of all servers comes from each of them that is ready."""
    with make_pool() as pool:
        client = pool.client
        assert client.list_lora_adapters()[0].path == "a.gguf"
        with pytest.raises(ClientError):
            client.metrics()  # the stand-in has none; each was asked
        pool.servers[0].stop()
        assert [number for number, _ in client._of_each(lambda one: one.health())] == [
            1
        ]


def test_the_key_opens_every_server(make_pool: MakePool, config: ServerConfig) -> None:
    """Each server's key is sent to it, and shown nowhere."""
    with make_pool(given=config.replace(api_key="sesame"), gpus=[[], []]) as pool:
        pool.client.chat_completion(MESSAGES)
        pool.client.set_lora_adapters({})
        entries = [entry for number in range(2) for entry in seen(pool, number)]

        assert {entry["headers"]["authorization"] for entry in entries} == {
            "Bearer sesame"
        }
        shown = f"{pool!r} {pool.client!r} {pool.status()!r} {pool.configs} "
        assert "sesame" not in shown + pool.get_logs()


def test_logs_say_whose_line_it_is(make_pool: MakePool) -> None:
    """Each line begins with the number of its server."""
    with make_pool() as pool:
        # A server may be ready before its last line was read.
        wait_for(lambda: pool.get_logs().count("listening on") == 2)
        lines = pool.get_logs().splitlines()

    assert {line[:4] for line in lines} == {"[0] ", "[1] "}


def test_the_status_is_a_table_and_rows(make_pool: MakePool) -> None:
    """The status shows itself in columns and gives plain values."""
    with make_pool() as pool:
        status = pool.status()
        lines = repr(status).splitlines()
        assert lines[0].split()[:3] == ["server", "state", "cards"]
        assert "none" in lines[1]
        assert len(lines) == 3
        assert json.loads(json.dumps(status.rows()))[0]["state"] == "ready"


def test_a_pool_runs_as_long_as_a_server_does_or_will(make_pool: MakePool) -> None:
    """A server that died is about to come back; after stop() none does."""
    pool = make_pool()
    assert not pool.is_running()
    with pool:
        assert pool.is_running()
        pids = [server.pid for server in pool.servers]
        for pid in pids:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        assert pool.is_running()
        wait_for(lambda: pool.status().ready == 2)
        assert pool.is_running()
    assert not pool.is_running()


def test_a_start_may_be_looked_at_and_ended(
    make_pool: MakePool, config: ServerConfig, held: Path
) -> None:
    """The tick is called in the thread that starts; what it raises stops all again."""
    told: list[threading.Thread] = []
    pool = make_pool("held", given=config.replace(alias=str(held)), gpus=[[], []])

    def look(_: LoadProgress | None) -> None:
        told.append(threading.current_thread())
        if len(told) > 1:
            held.unlink(missing_ok=True)

    pool.start(tick=look)
    pool.stop()
    assert set(told) == {threading.current_thread()}

    def tick(_: LoadProgress | None) -> None:
        raise InterruptedError

    held.touch()
    with pytest.raises(InterruptedError):
        pool.start(tick=tick)
    assert not pool.is_running()


def test_a_reply_that_nobody_reads_frees_its_server(make_pool: MakePool) -> None:
    """A reply that is let go of does not count for ever."""
    with make_pool() as pool:
        http = pool.client._transport.http
        reply = http.stream("POST", "/v1/completions", json={"prompt": "x"})
        assert list(reply) == []  # not open yet
        reply.finish()
        reply.close()
        with pytest.raises(ConnectionFailedError, match="called off"):
            reply.open()

        other = http.stream("POST", "/v1/completions", json={"prompt": "x"})
        other.open()
        assert sum(one.in_flight for one in pool.status()) == 1
        del other
        assert sum(one.in_flight for one in pool.status()) == 0


def test_a_request_called_off_while_it_is_sent_ends(make_pool: MakePool) -> None:
    """close() in the middle of open() ends it, and no other server is asked."""
    with make_pool() as pool:
        http = pool.client._transport.http
        body = {"prompt": "x"} | asks(before=60)
        reply = http.stream("POST", "/v1/completions", json=body)
        with ThreadPoolExecutor(1) as threads:
            opening = threads.submit(reply.open)
            wait_for(lambda: sum(one.in_flight for one in pool.status()) == 1)
            reply.close()
            assert isinstance(opening.exception(30), ConnectionFailedError)
        assert sum(one.requests for one in pool.status()) == 1
        assert pool.status().ready == 2  # it is not the server's fault


def test_a_request_called_off_before_it_is_sent_is_not_sent(
    make_pool: MakePool,
) -> None:
    """close() between the choice of a server and the request ends it there."""
    with make_pool() as pool:
        reply = pool.client._transport.http.stream("GET", "/props")
        question = reply._question  # type: ignore[attr-defined]

        class Closing:
            """Is called off in the moment in which the request is prepared."""

            prompt, silence_timeout, total_timeout = Prompt(), 5.0, None

            def send_to(self, *arguments: Any) -> object:
                reply.close()
                return question.send_to(*arguments)

        reply._question = Closing()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionFailedError):
            reply.open()
        assert seen(pool, 0) == seen(pool, 1) == []
        fresh = pool.client._transport.http.stream("GET", "/props").again()
        assert fresh is not None


def test_one_http_client_never_asks_again() -> None:
    """The reply of a single server has nowhere else to ask."""
    reply = HTTPClient("http://127.0.0.1:1").stream("GET", "/")

    assert reply.again() is None


def test_a_pool_before_its_start_says_so(make_pool: MakePool) -> None:
    """A client of a pool that was never started says what to do."""
    pool = make_pool()

    with pytest.raises(ServerNotRunningError, match=r"with ServerPool"):
        pool.client.chat_completion(MESSAGES)
    assert [one.url for one in pool.status()] == [None, None]


def test_an_engine_that_is_none_is_told_before_anything_starts(
    config: ServerConfig,
) -> None:
    """A wrong engine is the engine's error, once."""
    pool = ServerPool(config, gpus=[[], []], engine="no-such-program-anywhere")

    with pytest.raises(ServerError, match="no-such-program-anywhere"):
        pool.start()


def test_what_is_no_json_is_refused_at_once(make_pool: MakePool) -> None:
    """A request that cannot be written is an error before any server is looked for."""
    with pytest.raises(ConfigurationError, match="JSON"):
        make_pool().client.chat_completion_stream(
            MESSAGES, extra_body={"x": float("nan")}
        )


def test_a_bad_argument_is_refused_by_the_client(make_pool: MakePool) -> None:
    """Time limits are checked when the client is made."""
    with pytest.raises(ConfigurationError, match="timeout"):
        make_pool().make_client(timeout=-1)
