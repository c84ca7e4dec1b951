"""The door to HTTP: connections, errors, and who may see what."""

from __future__ import annotations

import gc
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client_tools import StandIn
from manager_tools import wait_for

from llamatelemetry._http import HTTPClient, is_loopback
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    RequestTimeoutError,
)

AT_ONCE = 10
"""Seconds in which a busy machine does what takes none; what is wrong takes 30."""


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that accepts no more connections, so that opening one waits."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as more:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filling in (first, more):
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


def connections(stand_in: StandIn, url: str) -> list[int]:
    """Return the connection of each request that came to an address."""
    return [entry["connection"] for entry in stand_in.seen(url)]


def test_connections_are_used_again(stand_in: StandIn) -> None:
    """Requests after one another, streams among them, share one connection."""
    url = stand_in.url()
    client = HTTPClient(url)
    for _ in range(3):
        assert client.request("GET", "/health").json() == {"status": "ok"}
        client.request("POST", "/v1/chat/completions", json={})

    assert len(connections(stand_in, url)) == 6
    assert len(set(connections(stand_in, url))) == 1


def test_a_connection_of_a_llama_server_stream_is_not_used_again(
    stand_in: StandIn,
) -> None:
    """llama-server closes it without a word, now or in the next request's moment."""
    url = stand_in.url(server="llama.cpp")
    client = HTTPClient(url)
    for path in ("/v1/completions", "/v1/completions", "/health", "/health"):
        client.request("POST", path, json={})

    assert len(set(connections(stand_in, url))) == 3


def test_a_closed_connection_is_replaced_unnoticed(stand_in: StandIn) -> None:
    """A server that closes after each reply costs a connection and no error."""
    url = stand_in.url(close=1)
    client = HTTPClient(url)
    for _ in range(3):
        client.request("POST", "/tokenize", json={})
        (kept,) = client._idle
        select.select([kept._line.socket], [], [], 30)  # until it is closed

    assert len(set(connections(stand_in, url))) == 3


def test_an_idle_connection_is_left_before_the_server_closes_it(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time that Keep-Alive states, less a second, a new one is opened."""
    url = stand_in.url()
    client = HTTPClient(url)
    client.request("GET", "/a")
    later = time.monotonic() + 4.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    client.request("GET", "/b")

    assert len(set(connections(stand_in, url))) == 2


def test_a_get_that_was_dropped_unread_is_sent_again(stand_in: StandIn) -> None:
    """On a kept connection that ends without a byte, a GET gets a second try."""
    url = stand_in.url(drop=1)
    client = HTTPClient(url)
    client._idle.append(kept_connection(client, stand_in))

    assert client.request("GET", "/health").status == 200
    assert len(connections(stand_in, url)) == 2


def kept_connection(client: HTTPClient, stand_in: StandIn) -> Any:
    """Return an open, idle connection to the stand-in."""
    other = HTTPClient(stand_in.url())
    other.request("GET", "/health")
    return other._idle.pop()


def test_a_post_is_never_sent_twice(stand_in: StandIn) -> None:
    """What may have started a generation is not repeated, kept connection or not."""
    url = stand_in.url(drop=1)
    client = HTTPClient(url)
    client._idle.append(kept_connection(client, stand_in))
    with pytest.raises(ConnectionFailedError):
        client.request("POST", "/v1/completions", json={})

    assert len(connections(stand_in, url)) == 1


def test_a_fresh_connection_that_is_dropped_is_an_error(stand_in: StandIn) -> None:
    """A server that hangs up on a new connection is not asked again."""
    url = stand_in.url(drop=1)
    with pytest.raises(ConnectionFailedError, match="is the server running"):
        HTTPClient(url).request("GET", "/health")

    assert len(connections(stand_in, url)) == 1


def test_nobody_listening_is_told_at_once() -> None:
    """A refused connection is an error in words, and a builtin ConnectionError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="Connection refused") as caught:
        HTTPClient(f"http://127.0.0.1:{port}").request("GET", "/health")

    assert time.monotonic() - started < AT_ONCE
    assert isinstance(caught.value, ConnectionError)
    assert f"127.0.0.1:{port}" in str(caught.value)


def test_a_connection_that_does_not_open_times_out(deaf_port: int) -> None:
    """Connecting has a limit of its own."""
    client = HTTPClient(f"http://127.0.0.1:{deaf_port}")
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=r"no connection within 0\.2 s"):
        client.request("GET", "/", connect_timeout=0.2)

    assert time.monotonic() - started < AT_ONCE


def test_a_total_that_is_used_up_while_connecting_is_a_timeout(deaf_port: int) -> None:
    """The whole time counts from the first moment."""
    client = HTTPClient(f"http://127.0.0.1:{deaf_port}")
    with pytest.raises((ConnectionFailedError, RequestTimeoutError)):
        client.request("GET", "/", connect_timeout=5, total_timeout=0.2)


def test_a_reply_cut_in_half_is_an_error(stand_in: StandIn) -> None:
    """Fewer bytes than announced do not pass for the whole."""
    with pytest.raises(ConnectionFailedError, match="broke off"):
        HTTPClient(stand_in.url(end="cut")).request("GET", "/health")


def test_a_limited_reply_whose_server_closes_is_read_to_its_end(
    stand_in: StandIn,
) -> None:
    """The last byte closes the socket, and a total time has nothing to shorten then."""
    client = HTTPClient(stand_in.url(close=2))
    reply = client.stream("GET", "/health", total_timeout=20)
    reply.open()

    assert b"".join(reply) == b'{"status": "ok"}'
    assert client.request("GET", "/health").status == 200


def test_tls_with_a_server_that_has_none_is_an_error(stand_in: StandIn) -> None:
    """The wrong scheme ends in one of this package's errors."""
    client = HTTPClient(stand_in.url().replace("http:", "https:"))
    with pytest.raises(ConnectionFailedError, match="SSL"):
        client.request("GET", "/health")


def test_what_is_no_json_is_told(stand_in: StandIn) -> None:
    """A body that cannot be read as JSON is shown in the error."""
    with pytest.raises(ClientError, match="<html>proxy"):
        HTTPClient(stand_in.url(answer="html")).request("GET", "/props").json()


def test_a_redirect_is_not_followed(stand_in: StandIn) -> None:
    """The reply itself is returned: a followed POST would become a GET."""
    reply = HTTPClient(stand_in.url(status=302)).request("POST", "/x", json={})

    assert reply.status == 302
    assert reply.headers["location"] == "http://elsewhere.invalid/"


def test_a_client_shows_its_address_and_no_header() -> None:
    """The key is in no repr."""
    client = HTTPClient("http://127.0.0.1:1/", headers={"Authorization": "secret"})

    assert repr(client) == "HTTPClient('http://127.0.0.1:1')"
    assert "secret" not in repr(client.stream("GET", "/x"))


def test_query_headers_and_empty_bodies_are_sent(stand_in: StandIn) -> None:
    """Parameters are escaped, headers of one request join those of all."""
    url = stand_in.url()
    client = HTTPClient(url, headers={"X-All": "1"})
    parameters = {"a": "b c", "n": 1}
    client.request("POST", "/x", parameters=parameters, headers={"X-One": "2"})

    entry = stand_in.seen(url)[0]
    assert entry["path"] == "/x?a=b+c&n=1"
    assert (entry["headers"]["x-all"], entry["headers"]["x-one"]) == ("1", "2")
    assert entry["headers"]["content-length"] == "0"
    assert entry["body"] is None


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:1", "http://localhost", "http://[::1]:80/v1"),
        *("http://a.localhost", "http://127.8.8.8", "http://0.0.0.0:8080"),
    ],
)
def test_this_machine_is_recognised(url: str) -> None:
    """Every way of writing loopback counts as loopback."""
    assert is_loopback(url)


@pytest.mark.parametrize("url", ["http://10.0.0.1", "http://example.com", "x", ""])
def test_other_machines_are_not_this_one(url: str) -> None:
    """Private networks and names are not loopback."""
    assert not is_loopback(url)


@pytest.mark.parametrize(
    "url", ["x", "", "http://", "ftp://a", "http://h:99999999", "127.0.0.1:8080", "//h"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The error shows the address and how to write one."""
    with pytest.raises(ConfigurationError, match=r"http://127\.0\.0\.1:8080"):
        HTTPClient(url)


def test_a_password_in_the_address_is_refused_unseen() -> None:
    """It would end up in logs; the error does not repeat it."""
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        HTTPClient("http://user:secret@127.0.0.1:1")

    assert "secret" not in str(caught.value)


def test_loopback_ignores_proxies_and_netrc(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With HTTP_PROXY and a .netrc set, requests go straight and keep their key."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    url = stand_in.url()
    client = HTTPClient(url, headers={"Authorization": "Bearer key"})

    assert client.request("GET", "/health").status == 200
    assert stand_in.seen(url)[0]["headers"]["authorization"] == "Bearer key"


def test_other_machines_are_reached_through_the_proxy(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beyond loopback the proxy is used, and a .netrc still replaces no key."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine llama.invalid login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{stand_in.port}")
    client = HTTPClient("http://llama.invalid", headers={"Authorization": "Bearer key"})
    client.request("GET", "/health")

    (entry,) = stand_in.seen("http://x/llama.invalid")
    assert entry["target"] == "http://llama.invalid/health"
    assert entry["headers"]["authorization"] == "Bearer key"


def test_threads_share_a_client(stand_in: StandIn) -> None:
    """Two hundred requests on ten threads are all answered, on few connections."""
    url = stand_in.url()
    client = HTTPClient(url)

    def ask(number: int) -> int:
        return client.request("POST", "/tokenize", json={"number": number}).status

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(ask, range(200))) == {200}

    seen = stand_in.seen(url)
    assert sorted(entry["body"]["number"] for entry in seen) == list(range(200))
    assert len({entry["connection"] for entry in seen}) <= 10


def test_no_more_connections_are_kept_than_is_useful(stand_in: StandIn) -> None:
    """Forty streams at a time leave thirty-two connections."""
    client = HTTPClient(stand_in.url())
    replies = [client.stream("GET", "/health") for _ in range(40)]
    for reply in replies:
        reply.open()
    for reply in replies:
        assert reply.read() == b'{"status": "ok"}'

    assert len(client._idle) == 32
    client.close()
    assert len(client._idle) == 0


def test_a_closed_client_says_so(stand_in: StandIn) -> None:
    """After `close()`, a request is refused and one in flight ends by itself."""
    client = HTTPClient(stand_in.url())
    reply = client.stream("GET", "/health")
    reply.open()
    client.close()

    assert reply.read() == b'{"status": "ok"}'
    assert len(client._idle) == 0
    with pytest.raises(ConnectionFailedError, match="is closed"):
        client.request("GET", "/health")


def test_closing_ends_the_reader_of_another_thread(stand_in: StandIn) -> None:
    """A thread that waits for the next block finds the end, and no error."""
    client = HTTPClient(stand_in.url(hush=30))
    reply = client.stream("POST", "/v1/chat/completions", json={})
    reply.open()
    blocks: list[bytes] = []

    def read() -> None:
        for block in reply:
            blocks.append(block)  # noqa: PERF402 -- one by one

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: len(blocks) == 2, AT_ONCE)
    time.sleep(0.05)
    reply.close()
    reader.join(AT_ONCE)

    assert not reader.is_alive()
    assert len(blocks) == 2
    assert list(reply) == []


def test_closing_while_a_block_arrives_ends_the_reply(stand_in: StandIn) -> None:
    """A block that comes in the moment of closing is not handed out."""
    reply = HTTPClient(stand_in.url(hush=30)).stream("POST", "/v1/completions", json={})
    reply.open()
    blocks = reply._blocks

    def arriving() -> Iterator[bytes]:
        block = next(blocks)
        reply.close()  # as from another thread: the reader holds its lock
        yield block

    reply._blocks = arriving()

    assert list(reply) == []
    assert reply._released


def test_closing_while_the_reply_begins_ends_it(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that comes in the moment of closing is not handed out either."""
    client = HTTPClient(stand_in.url(hush=30))
    reply = client.stream("POST", "/v1/completions", json={})
    connection = client.take_connection()
    send = connection.send

    def send_and_close(*arguments: Any, **options: Any) -> Any:
        raw = send(*arguments, **options)
        reply.close()
        return raw

    monkeypatch.setattr(connection, "send", send_and_close)
    monkeypatch.setattr(client, "take_connection", lambda: connection)
    with pytest.raises(ConnectionFailedError, match="closed while it started"):
        reply.open()

    assert reply._released


def test_an_interrupt_leaves_no_connection_behind(stand_in: StandIn) -> None:
    """Ctrl-C in the middle of a reply closes its connection and is raised as it is."""
    client = HTTPClient(stand_in.url(hush=30))
    reply = client.stream("POST", "/v1/completions", json={})
    reply.open()

    def interrupted() -> Iterator[bytes]:
        raise KeyboardInterrupt
        yield b""

    reply._blocks = interrupted()
    with pytest.raises(KeyboardInterrupt):
        next(reply)

    assert reply._released
    assert len(client._idle) == 0


def test_a_reply_closed_before_it_is_opened_is_not_sent(stand_in: StandIn) -> None:
    """`open` after `close` raises, and nothing reaches the server."""
    url = stand_in.url()
    reply = HTTPClient(url).stream("GET", "/health")
    reply.close()
    with pytest.raises(ConnectionFailedError, match="closed before it started"):
        reply.open()

    assert stand_in.seen(url) == []


def test_a_connection_ended_while_it_opens_is_ended_when_open(
    stand_in: StandIn,
) -> None:
    """Closing in the moment of connecting breaks the connection that comes of it."""
    client = HTTPClient(stand_in.url())
    reply = client.stream("GET", "/health")
    connection = client.take_connection()
    connection.end()
    client._idle.append(connection)
    connection.fresh_until = time.monotonic() + 60
    with pytest.raises(ConnectionFailedError):
        reply.open()


def test_abandoned_replies_and_clients_leave_no_socket(stand_in: StandIn) -> None:
    """What nobody closes is closed when it is let go, without a ResourceWarning."""
    gc.collect()  # what earlier tests let go
    before = open_sockets()
    client = HTTPClient(stand_in.url(hush=30))
    reply = client.stream("POST", "/v1/chat/completions", json={})
    reply.open()
    next(reply)
    idle = HTTPClient(stand_in.url())
    idle.request("GET", "/health")
    assert open_sockets() == before + 2
    del reply, client, idle
    gc.collect()

    assert open_sockets() == before


def open_sockets() -> int:
    """Return how many sockets this process has open."""
    links = (entry for entry in Path("/proc/self/fd").iterdir())
    return sum(name.startswith("socket:") for name in map(read_link, links))


def read_link(path: Path) -> str:
    """Return where a link leads; nothing if it is gone."""
    try:
        return str(path.readlink())
    except OSError:
        return ""
