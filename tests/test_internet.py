"""Whether there is internet: real sockets that answer, refuse, or say nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from llamatelemetry import _internet
from llamatelemetry._internet import start_probe


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy is given time to answer; its settings are not known."""
    monkeypatch.setattr(_internet, "_MOST_SECONDS", 60.0)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that can be connected to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes no connection and refuses none: its queue is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # the kernel drops what comes to a full queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"


def address(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def connections(listening: socket.socket) -> int:
    """Count the connections that have come so far, which are ended."""
    listening.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.setblocking(True)
                assert connection.recv(1) == b""  # nothing is sent
            count += 1
    return count


def join_probes() -> None:
    for thread in threading.enumerate():
        if thread.name == "llamatelemetry-internet":
            thread.join(30)


def test_what_can_be_connected_to_is_reachable(listener: socket.socket) -> None:
    """A connection comes about, nothing is sent, and it is closed."""
    found = start_probe(address(listener), variables={}).result()

    assert found.available is True
    assert found.reason == "127.0.0.1 can be reached"
    assert found.seconds >= 0
    assert connections(listener) == 1


def test_an_address_that_refuses_is_not_reachable() -> None:
    """Where nothing listens there is no internet; says so in the system's words."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        found = start_probe(address(unused), variables={}).result()

    assert found.available is False
    assert found.reason == "no connection to 127.0.0.1: Connection refused"


@pytest.mark.parametrize("name", ["no such host", "fe80::1%nosuchcard"])
def test_a_name_that_cannot_be_resolved_says_so(name: str) -> None:
    """What is no host's name, or is not known to the name service, is told."""
    shown = f"[{name}]" if ":" in name else name
    found = start_probe(f"http://{shown}:80", variables={}).result()

    assert found.available is False
    assert found.reason == f"the name {name} cannot be resolved"


@pytest.mark.parametrize("name", ["hub..example", "a" * 64 + ".example"])
def test_a_name_that_can_be_none_says_so_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that cannot even be asked for is told like one that is not known."""
    probe = start_probe(f"http://{name}", variables={})
    join_probes()
    monkeypatch.setattr(_internet, "_MOST_SECONDS", 0.0)  # all is known by now
    found = probe.result()

    assert found.available is False
    assert "cannot be resolved" in found.reason


def test_an_address_that_never_answers_is_not_waited_for(
    black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where packets vanish, nobody knows, and nobody waits longer than the limit."""
    monkeypatch.setattr(_internet, "_MOST_SECONDS", 0.3)

    found = start_probe(black_hole, variables={}).result()

    assert not found.available
    assert "no answer" in found.reason


def test_no_answer_in_time_stays_unknown(
    black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not known at the limit does not turn into a no by being asked again."""
    monkeypatch.setattr(_internet, "_MOST_SECONDS", 0.2)
    probe = start_probe(black_hole, variables={})

    first = probe.result().available
    join_probes()

    assert [first, probe.result().available] == [None, None]


def test_a_result_is_there_at_once_the_second_time(listener: socket.socket) -> None:
    """The first answer is kept: after the listener has gone it is still the same."""
    probe = start_probe(address(listener), variables={})
    first = probe.result()
    listener.close()

    assert probe.result() is first


def test_one_probe_for_each_place(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often and from wherever it is asked, one connection is made."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("HF_ENDPOINT", address(listener))
        probes = [start_probe() for _ in range(3)]
        probes.append(start_probe(f"{address(listener)}/a/path", variables={}))
        another = start_probe(address(other), variables={})

        assert {probe.result().available for probe in probes} == {True}
        assert all(probe is probes[0] for probe in probes)
        assert another is not probes[0]
        assert another.result().available is True
        assert connections(listener) == 1
        assert connections(other) == 1


def test_many_threads_share_a_probe(listener: socket.socket) -> None:
    """Threads that begin at the same time make one connection together."""
    start = threading.Barrier(8)
    found: list[object] = []

    def ask() -> None:
        start.wait()
        found.append(start_probe(address(listener), variables={}).result())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert all(each is found[0] for each in found)
    assert connections(listener) == 1


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "Yes", "ON"])
def test_offline_asks_nobody(listener: socket.socket, name: str, value: str) -> None:
    """With the variables of offline work set nothing is asked, and nobody knows."""
    found = start_probe(address(listener), variables={name: value}).result()

    assert found.available is None
    assert found.reason == f"{name} is set, so nothing is asked"
    assert found.seconds == 0
    assert connections(listener) == 0


def test_offline_turned_off_asks(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE=0 is no wish to be offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    assert start_probe(address(listener)).result().available is True


@pytest.mark.parametrize(
    ("variable", "form"),
    [
        ("http_proxy", "http://127.0.0.1:{port}"),
        ("HTTP_PROXY", "http://user:password@127.0.0.1:{port}/"),
        ("all_proxy", "socks5://127.0.0.1:{port}"),
        ("ALL_PROXY", "127.0.0.1:{port}"),
    ],
)
def test_the_proxy_is_asked_where_there_is_one(
    listener: socket.socket, variable: str, form: str
) -> None:
    """With a proxy set, its address is what must be reachable, not the Hub's."""
    proxy = form.format(port=listener.getsockname()[1])
    known = {variable: proxy, "HF_ENDPOINT": "http://hub.invalid"}

    found = start_probe(variables=known).result()

    assert found.available is True
    assert found.reason == "127.0.0.1 can be reached"
    assert connections(listener) == 1


def test_a_proxy_for_another_scheme_is_not_asked(listener: socket.socket) -> None:
    """A proxy for https says nothing of an endpoint of http."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        known = {"https_proxy": address(proxy)}

        assert start_probe(address(listener), variables=known).result().available
        assert connections(proxy) == 0


def test_ports_are_those_of_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a port, or with one that is none, the scheme's is asked."""
    # Nothing listens there on loopback, or something does: both are an answer.
    for text in ("https://127.0.0.1", "http://127.0.0.1:99999", "http://127.0.0.1"):
        start_probe(text, variables={}).result()

    assert set(_internet._probes) == {("127.0.0.1", 443), ("127.0.0.1", 80)}


def test_without_an_endpoint_it_is_the_hubs(listener: socket.socket) -> None:
    """Nothing set, the Hub itself is meant, which is reached by https."""
    known = {"https_proxy": address(listener)}

    assert start_probe(variables=known).result().available is True
    assert connections(listener) == 1
