"""Where a batch goes: what can be named, and how each kind is looked after."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_tools import StandIn
from manager_tools import STAND_IN, wait_for

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.batch._targets import Lane, open_lanes
from llamatelemetry.exceptions import (
    AuthenticationError,
    BatchError,
    ConfigurationError,
    ConnectionFailedError,
    ServerNotRunningError,
)
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import ServerConfig, ServerManager, ServerState
from llamatelemetry.session import Session, launch


def engine(mode: str = "talking") -> list[str]:
    """Return the stand-in engine's command."""
    return [sys.executable, str(STAND_IN), mode]


@pytest.fixture
def manager(tiny_model: Path) -> Iterator[ServerManager]:
    """A running stand-in, with two slots."""
    config = ServerConfig(tiny_model, port=0, parallel=2, threads=1)
    with ServerManager(config, engine=engine(), timeout=20) as server:
        yield server


def only(lanes: list[Lane]) -> Lane:
    """Return the one lane there is."""
    (lane,) = lanes
    return lane


def kill(server: ServerManager) -> None:
    """Kill a server, and wait until that is known."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server.state is ServerState.FAILED)


@pytest.mark.parametrize("to", [7, None, {"url": 1}, b"http://127.0.0.1", []])
def test_what_is_no_target_is_refused(to: Any) -> None:
    """It is said what there is instead."""
    with pytest.raises(ConfigurationError, match="to="):
        open_lanes(to)


def test_a_models_name_is_no_address() -> None:
    """Who names a model is told how it is started."""
    with pytest.raises(
        ConfigurationError, match=r"^to='qwen3-4b' is no address.*launch\('qwen3-4b'\)"
    ):
        open_lanes("qwen3-4b")


def test_one_address_twice_is_refused() -> None:
    """Two lanes to one server would each fill it."""
    with pytest.raises(ConfigurationError, match="twice"):
        open_lanes(["http://127.0.0.1:9", LlamaCppClient("http://127.0.0.1:9/v1")])


def test_a_list_is_a_lane_for_each(stand_in: StandIn) -> None:
    """URLs and clients may be mixed; only what was opened here is closed."""
    mine = stand_in.client()
    lanes = open_lanes([stand_in.url(), mine, (stand_in.url(),)])
    assert len({lane.name for lane in lanes}) == 3
    for lane in lanes:
        lane.close()
    assert mine.health() == {"status": "ok"}
    with pytest.raises(ConnectionFailedError, match="closed"):
        lanes[0].client.health()


def test_a_client_waits_long_for_a_free_slot(stand_in: StandIn) -> None:
    """Ten minutes of silence, or what its user has set if that is more."""
    lane = only(open_lanes(stand_in.client()))
    assert lane.client._transport.timeout == 600
    assert lane.client is lane.client
    patient = LlamaCppClient(stand_in.url(), timeout=5000)
    assert only(open_lanes(patient)).client._transport.timeout == 5000


def test_slots_are_asked_for_where_they_are_told(
    stand_in: StandIn, server_url: str
) -> None:
    """llama-server tells them; whoever does not is no reason to fail."""
    assert only(open_lanes(server_url)).slots() == 2
    assert only(open_lanes(stand_in.url())).slots() is None
    assert only(open_lanes(stand_in.url(status=404))).slots() is None
    with pytest.raises(AuthenticationError):
        only(open_lanes(stand_in.url(status=401))).slots()
    with pytest.raises(ConnectionFailedError):
        only(open_lanes("http://127.0.0.1:9")).slots()


def test_an_address_is_looked_at(stand_in: StandIn) -> None:
    """Whatever answers is there, but for an error of the server; loading is a sign."""
    looks = {
        "silent": "http://127.0.0.1:9",
        "coming": stand_in.url(status=503),
        "ready": stand_in.url(),
    }
    for sign, url in looks.items():
        assert only(open_lanes(url)).look() == sign
    assert only(open_lanes(stand_in.url(status=500))).look() == "coming"
    assert only(open_lanes(stand_in.url(status=404))).look() == "ready"
    assert only(open_lanes(stand_in.url(answer="empty"))).look() == "ready"


def test_a_server_of_ours_is_started_again_when_it_has_died(
    manager: ServerManager,
) -> None:
    """A manager is restarted, and answers at its address."""
    lane = only(open_lanes(manager))
    assert lane.look() == "ready"
    assert lane.slots() is None or lane.slots() == 2
    kill(manager)
    assert lane.look() == "ready"
    assert manager.state is ServerState.READY
    lane.close()


def test_a_server_that_was_stopped_is_left_alone(manager: ServerManager) -> None:
    """Its user wants it so: the batch ends, and says how to go on."""
    lane = only(open_lanes(manager))
    manager.stop()
    with pytest.raises(BatchError, match="was stopped; server.restart()"):
        lane.look()
    with pytest.raises(ServerNotRunningError, match="restart"):
        open_lanes(manager)


def test_a_server_that_cannot_be_started_again_is_given_up(
    manager: ServerManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three tries, with the reason."""
    lane = only(open_lanes(manager))
    kill(manager)
    monkeypatch.setattr(manager, "_engine", "/there/is/none")
    assert lane.look() == "coming"
    assert lane.look() == "coming"
    with pytest.raises(BatchError, match="3 tries.*/there/is/none"):
        lane.look()


def test_a_pool_counts_all_its_slots(tiny_model: Path) -> None:
    """Its slots and servers are summed up; one that was stopped ends the batch."""
    config = ServerConfig(tiny_model, port=0, parallel=2, threads=1)
    pool = ServerPool(config, [[], []], engine=engine(), timeout=20)
    with pytest.raises(ServerNotRunningError, match="does not run"):
        open_lanes(pool)
    with pool:
        for to in (pool, pool.client):
            lane = only(open_lanes(to))
            assert (lane.name, lane.slots()) == ("pool of 2 servers", 4)
            assert lane.look() == "ready"
    with pytest.raises(BatchError, match="the pool was stopped"):
        only([*open_lanes_of_stopped(pool)]).look()


def open_lanes_of_stopped(pool: ServerPool) -> list[Lane]:
    """Return the lane of a pool that is stopped meanwhile."""
    pool.start()
    lanes = open_lanes(pool)
    pool.stop()
    return lanes


@pytest.fixture
def session(tiny_model: Path) -> Iterator[Session]:
    """A session of the stand-in engine."""
    options = {"engine": engine(), "gpus": [], "context_size": 256}
    with launch(tiny_model, progress=False, parallel=2, **options) as session:  # type: ignore[arg-type]
        yield session


def test_a_session_is_started_again_when_its_server_has_died(session: Session) -> None:
    """It is restarted as its user would; a stopped or closed one is refused."""
    lane = only(open_lanes(session))
    server = session.server
    assert isinstance(server, ServerManager)
    kill(server)
    assert lane.look() == "ready"
    assert lane.client.base_url == session.url
    lane.close()
    assert lane.look() == "ready"  # its client is the session's
    session.stop()
    with pytest.raises(ServerNotRunningError, match="session.start()"):
        open_lanes(session)
    session.close()
    with pytest.raises(ServerNotRunningError, match="closed"):
        open_lanes(session)


def test_a_session_of_several_servers_is_its_pool(tiny_model: Path) -> None:
    """A session whose servers are a pool is one lane of them all."""
    config = ServerConfig(tiny_model, port=0, parallel=1, threads=1)
    with ServerPool(config, [[], []], engine=engine(), timeout=20) as pool:
        session = session_over(pool)
        assert only(open_lanes(session)).name == "pool of 2 servers"
    with pytest.raises(ServerNotRunningError, match="session.start()"):
        open_lanes(session)


def session_over(pool: ServerPool) -> Session:
    """Return a session whose server is this pool, as on a machine with two cards."""
    session = Session.__new__(Session)
    session._closed, session._server, session._client = False, pool, pool.client
    return session
