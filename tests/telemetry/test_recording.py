"""record(): what is noted of requests, servers and cards, and what is not."""

from __future__ import annotations

import gc
import re
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from client_tools import MESSAGES, StandIn
from manager_tools import STAND_IN, wait_for
from nvml_tools import MIB, StandInDriver, t4

from llamatelemetry import launch
from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    ContextLengthError,
    RequestTimeoutError,
    StreamError,
)
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import Engine, ServerConfig, ServerManager, find_engine
from llamatelemetry.server.events import (
    BadModel,
    BufferSize,
    Event,
    Exited,
    Listening,
    Loading,
    Notice,
    OutOfMemory,
    Ready,
)
from llamatelemetry.telemetry import Timeline, record
from llamatelemetry.telemetry._entries import entry_of, event_of
from llamatelemetry.telemetry._kept import Kept
from llamatelemetry.telemetry._recording import Recorder, Recorders

SECRET = "a very private question about cats"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD" * 99}}


def asked(text: str) -> list[dict[str, Any]]:
    """Return a conversation with one message."""
    return [{"role": "user", "content": text}]


@pytest.fixture
def monitor(driver: StandInDriver) -> Iterator[GPUMonitor]:
    """A monitor of two cards that reads them when it is told to, and only then."""
    driver.describe(t4(0), t4(1))
    monitor = GPUMonitor(interval=0.5)
    yield monitor
    monitor.stop()


# ── requests ─────────────────────────────────────────────────────────────────────


def test_a_request_is_recorded_with_all_that_is_known(stand_in: StandIn) -> None:
    """Counts, times of client and server, and when each chunk came; on one clock."""
    url = stand_in.url(pace=0.02)
    before = time.monotonic()
    with LlamaCppClient(url) as client, record(client) as timeline:
        client.chat_completion(MESSAGES, seed=7, top_k=5)
    (entry,) = timeline.requests
    assert (entry.id, entry.kind, entry.model) == (0, "chat", "stand-in")
    assert (entry.prompt_tokens, entry.cached_tokens) == (10, 2)
    assert (entry.completion_tokens, entry.finish_reason) == (3, "stop")
    assert (entry.prompt_seconds, entry.predicted_seconds) == (0.004, None)
    assert entry.server_tokens_per_second == 50
    assert (entry.error, entry.error_message, entry.slot) == (None, None, None)
    assert entry.server == url
    assert entry.parameters["seed"] == 7
    assert entry.parameters["top_k"] == 5
    times = entry.chunk_times
    assert times is not None
    assert len(times) == 3
    assert before < entry.start < times[0] < times[1] < times[2] < entry.end
    assert entry.end < time.monotonic()
    assert entry.first_token is not None
    assert times[0] <= entry.first_token <= times[1]
    assert entry.tokens_per_second == pytest.approx(2 / (times[2] - entry.first_token))
    assert abs(timeline.offset + time.monotonic() - time.time()) < 1
    assert timeline.began < entry.start


def test_nothing_of_the_text_is_kept_unless_asked_for(stand_in: StandIn) -> None:
    """Neither question nor answer, nor what an error quotes of it, nor a key."""
    client = LlamaCppClient(stand_in.url(end="badjson"), "sesame-key")
    with record(client) as timeline, pytest.raises(StreamError):
        client.chat_completion(asked(SECRET), stop="zebra")
    with record(client) as again, pytest.raises(ClientError):
        client.completion(SECRET)
    for one in (timeline, again):
        told = one.to_json() + repr(one.requests)
        assert SECRET not in told
        assert "zebra" not in told
        assert "w0 w1" not in told
        assert "sesame" not in told
    assert timeline.requests[0].prompt is None
    assert timeline.requests[0].answer is None
    assert timeline.requests[0].error == "StreamError"


def test_the_text_is_kept_if_asked_for(stand_in: StandIn) -> None:
    """What was asked, what was answered as far as it came; of pictures the size."""
    client = LlamaCppClient(stand_in.url(end="cut"), "sesame-key")
    parts = [{"type": "text", "text": SECRET}, PICTURE]
    with record(client, text=True) as timeline:
        with pytest.raises(StreamError):
            client.chat_completion([{"role": "user", "content": parts}])
        with pytest.raises(StreamError):
            client.completion(SECRET)
        with pytest.raises(ClientError):
            client.embeddings([SECRET, "more"])
        with pytest.raises(ClientError):
            client.tokenize(SECRET)
    chat, completion, embeddings, tokens = timeline.requests
    assert SECRET in (chat.prompt or "")
    assert "QUJDdata" not in (chat.prompt or "")
    assert "data:image/png;base64,… (" in (chat.prompt or "")
    assert chat.answer == "w0 w1 w2 "
    assert completion.prompt == SECRET
    assert embeddings.prompt == f'["{SECRET}", "more"]'
    assert (tokens.prompt, tokens.answer) == (SECRET, None)
    told = timeline.to_json()
    assert "sesame" not in told


def test_a_record_with_text_makes_an_entry_without(stand_in: StandIn) -> None:
    """Where somebody else has subscribed to the text, and hands it on."""
    records: list[Any] = []
    client = stand_in.client()
    client.subscribe(records.append, text=True)
    client.chat_completion(asked(SECRET))
    assert SECRET in str(records[0].sent)
    entry = entry_of(0, records[0], text=False)
    assert (entry.prompt, entry.answer) == (None, None)


def test_failures_are_recorded_by_type_and_message(stand_in: StandIn) -> None:
    """And what was cancelled; long quotations are left out."""
    refused = stand_in.client(status=501)
    with record(refused) as timeline, pytest.raises(ClientError):
        refused.chat_completion(MESSAGES)
    (entry,) = timeline.requests
    assert entry.error == "NotSupportedError"
    assert entry.error_message == "HTTP 501, not_supported_error"
    assert (entry.time_to_first_token, entry.tokens_per_second) == (None, None)
    assert entry.first_token is None

    silent = stand_in.client(hush=30)
    with record(silent) as timeline:
        stream = silent.chat_completion_stream(MESSAGES)
        next(stream)
        stream.cancel()
    (entry,) = timeline.requests
    assert (entry.error, entry.finish_reason) == (None, "cancelled")
    assert entry.completion_tokens is None
    assert entry.tokens_per_second is None  # from one chunk nothing can be told

    nobody = LlamaCppClient("http://127.0.0.1:9")
    with record(nobody) as timeline, pytest.raises(ConnectionFailedError):
        nobody.tokenize("x")
    assert timeline.requests[0].error == "ConnectionFailedError"
    assert "is the server running" in (timeline.requests[0].error_message or "")
    assert timeline.requests[0].server == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("no JSON: 'a piece of the answer, long'", "no JSON: '…'"),
        ("it isn't what it's said to be, which doesn't matter",) * 2,
        ('no JSON: "it\'s a piece of the answer"', 'no JSON: "…"'),
        ("no JSON: 'a \\'piece\\' of the answer'", "no JSON: '…'"),
        ("the model 'short'", "the model 'short'"),
        (
            "of another shape: {'text': 'a piece of the ans",
            "of another shape: {'text': '…'",
        ),
        ("one\nline", "one line"),
        ("broke (length b'a piece of the answer')", "broke (length '…')"),
    ],
)
def test_what_errors_quote_is_left_out(said: str, left: str) -> None:
    """Long quotations may be pieces of an answer; apostrophes are none."""
    failed = RequestRecord(
        kind="chat", path="/v1/chat/completions", error=ConnectionFailedError(said)
    )
    assert entry_of(0, failed, text=False).error_message == left
    whole = " ".join(said.split())
    assert entry_of(0, failed, text=True).error_message == whole


def test_what_the_server_says_is_left_out(client: LlamaCppClient) -> None:
    """It repeats what it was asked; its status and its name for the error do not."""
    odd: list[dict[str, Any]] = [
        {"messages": [{"content": SECRET}]},
        {"messages": asked("x"), "extra_body": {"tool_choice": SECRET}},
        {"messages": asked("x"), "extra_body": {"reasoning_format": SECRET}},
    ]
    with record(client) as timeline, record(client, text=True) as whole:
        for options in odd:
            with pytest.raises(ClientError):
                client.chat_completion(max_tokens=1, **options)
    said = [entry.error_message or "" for entry in timeline.requests]
    assert all(re.fullmatch(r"HTTP [45]00, [a-z_]+", one) for one in said)
    assert SECRET not in timeline.to_json()
    assert any(SECRET in (entry.error_message or "") for entry in whole.requests)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (ClientError(SECRET), None),
        (ClientError(SECRET, status=400), "HTTP 400"),
        (ClientError(SECRET, status=400, type=SECRET), "HTTP 400"),
        (StreamError(SECRET, status=SECRET, type="server_error"), "server_error"),  # type: ignore[arg-type] # as a strange server says
        (ContextLengthError(SECRET, type="too_long"), "too_long"),
        (ValueError(SECRET), None),
        (RequestTimeoutError("after 5 s"), "after 5 s"),
    ],
)
def test_only_our_own_words_are_kept(error: Exception, left: str | None) -> None:
    """Of other errors their class, their status and the server's name for them."""
    failed = RequestRecord(kind="chat", path="/v1/chat/completions", error=error)
    entry = entry_of(0, failed, text=False)
    assert (entry.error, entry.error_message) == (type(error).__name__, left)
    assert entry_of(0, failed, text=True).error_message == str(error)


def test_what_only_looks_is_left_out(stand_in: StandIn) -> None:
    """A panel asks for health and slots all the time; tokens are asked for by users."""
    client = stand_in.client()
    with record(client) as timeline:
        client.health()
        client.get_props()
        client.embeddings("x")
    assert [entry.kind for entry in timeline.requests] == ["embeddings"]


def test_it_ends_with_the_block(stand_in: StandIn) -> None:
    """Before and after it nothing is recorded, also when the block is left by an error.

    Copies with other limits are recorded too, and two timelines know nothing of each
    other.
    """
    client = stand_in.client()
    client.chat_completion(MESSAGES)
    with pytest.raises(ZeroDivisionError), record(client) as timeline:
        client.with_options(timeout=5).chat_completion(MESSAGES)
        with record(client) as inner:
            client.chat_completion(MESSAGES)
        raise ZeroDivisionError
    client.chat_completion(MESSAGES)
    assert [entry.id for entry in timeline.requests] == [0, 1]
    assert len(inner.requests) == 1
    records: list[Any] = []
    client.subscribe(records.append)
    client.chat_completion(MESSAGES)
    assert records[0].chunk_times is None  # nobody wants them any more


def test_requests_of_many_threads_are_all_there(stand_in: StandIn) -> None:
    """Each once, with a number of its own, in the order in which they ended."""
    client = stand_in.client()
    with record(client) as timeline:
        threads = [
            threading.Thread(
                target=lambda: [client.chat_completion(MESSAGES) for _ in range(5)]
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [entry.id for entry in timeline.requests] == list(range(30))
    assert all(len(entry.chunk_times or ()) == 3 for entry in timeline.requests)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 5}, "takes a session, a client or a pool"),
        ({"target": ServerManager()}, "server=server"),
        ({"server": "x"}, "ServerManager or a ServerPool"),
        ({"monitor": "x"}, "GPUMonitor"),
        ({"most": 0}, "at least 1"),
        ({"most": True}, "at least 1"),
        ({"most": 2.5}, "at least 1"),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_once(
    stand_in: StandIn, options: dict[str, Any], words: str
) -> None:
    """Before the block begins."""
    with pytest.raises(ConfigurationError, match=words):
        record(**({"target": stand_in.client()} | options))


def test_a_closed_session_is_refused(tiny_model: Path) -> None:
    """There is nothing left to record of it."""
    engine = find_engine([sys.executable, str(STAND_IN), "talking"])
    with launch(tiny_model, engine=engine, progress=False) as session:
        pass
    with pytest.raises(ConfigurationError, match="the session is closed"):
        record(session)


def test_what_no_function_is_cannot_be_told_of_events() -> None:
    """It is refused when it subscribes, not at each event."""
    with pytest.raises(ConfigurationError, match="callback is None"):
        ServerManager().subscribe(None)  # type: ignore[arg-type]


def test_a_recorder_keeps_no_client_alive(stand_in: StandIn) -> None:
    """The timeline stays when the client is gone."""
    client = stand_in.client()
    with record(client) as timeline:
        client.chat_completion(MESSAGES)
    gone = weakref.ref(client)
    client.close()
    del client
    gc.collect()
    assert gone() is None
    assert len(timeline.requests) == 1


# ── bounds ───────────────────────────────────────────────────────────────────────


def test_the_oldest_go_and_are_counted(stand_in: StandIn, monitor: GPUMonitor) -> None:
    """Of requests, events and readings; the numbers go on."""
    client = stand_in.client()
    with record(client, monitor=monitor, most=3) as timeline:
        for number in range(5):
            client.chat_completion(MESSAGES)
            timeline.mark(f"mark {number}")
            monitor.sample()
    assert [entry.id for entry in timeline.requests] == [2, 3, 4]
    assert [event.text for event in timeline.events] == ["mark 2", "mark 3", "mark 4"]
    assert len(timeline.samples) == 6
    assert timeline.dropped == {"requests": 2, "events": 2, "samples": 4}
    assert "dropped 2 requests, 2 events, 4 samples" in repr(timeline)
    assert timeline.attribute(2).request == 2
    for gone in (1, 5, -1, "x"):
        with pytest.raises(ConfigurationError, match="no request"):
            timeline.attribute(gone)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="it has 0"):
        Timeline(Kept(1)).attribute(0)


def test_times_of_tokens_have_a_bound_of_their_own(stand_in: StandIn) -> None:
    """The oldest requests lose theirs first, and nothing else."""
    records: list[Any] = []
    client = stand_in.client()
    client.subscribe(records.append, chunk_times=True)
    client.chat_completion(MESSAGES)
    kept = Kept(4, most_chunk_times=7)
    for _ in range(6):
        kept.add_request(lambda number: entry_of(number, records[0], text=False))
    assert [len(entry.chunk_times or ()) for entry in kept.requests] == [0, 0, 3, 3]
    assert kept.requests[0].completion_tokens == 3
    assert kept.dropped == {"requests": 2, "tokens": 12}
    assert "12 times of tokens" in repr(Timeline(kept))
    one = Kept(4, most_chunk_times=2)
    one.add_request(lambda number: entry_of(number, records[0], text=False))
    silent = replace(records[0], chunk_times=None)
    one.add_request(lambda number: entry_of(number, silent, text=False))
    assert [entry.chunk_times for entry in one.requests] == [None, None]
    one.add_request(lambda number: entry_of(number, records[0], text=False))
    assert one.dropped == {"tokens": 6}
    one.set_slots({0: 3, 1: 4})
    assert [entry.slot for entry in one.requests] == [3, 4, None]
    kept.set_slots({0: 3})  # it was dropped meanwhile
    assert [entry.slot for entry in kept.requests] == [None] * 4


def test_times_are_kept_in_eight_bytes_each(stand_in: StandIn) -> None:
    """Without the room that growing has left."""
    records: list[Any] = []
    client = stand_in.client(tokens=1000)
    client.subscribe(records.append, chunk_times=True)
    client.chat_completion(MESSAGES)
    entry = entry_of(0, records[0], text=False)
    assert isinstance(entry.chunk_times, array)
    assert sys.getsizeof(entry.chunk_times) < 8 * 1000 + 200


# ── cards ────────────────────────────────────────────────────────────────────────


def test_readings_stand_on_the_same_clock(
    stand_in: StandIn, monitor: GPUMonitor
) -> None:
    """A reading is between the request before and the one after it."""
    client = stand_in.client()
    monitor.sample()
    with record(client, monitor=monitor) as timeline:
        client.chat_completion(MESSAGES)
        monitor.sample()
        client.chat_completion(MESSAGES)
    first, second = timeline.requests
    moments = sorted({when for when, _ in timeline.samples})
    assert len(moments) == 2
    assert moments[0] <= first.start  # what was seen last before it began
    assert first.end < moments[1] < second.start
    assert timeline.cards == {0: "Tesla T4", 1: "Tesla T4"}
    when, sample = timeline.samples[-1]
    assert when + timeline.offset == pytest.approx(sample.time, abs=0.05)


def test_the_energy_of_a_request_is_that_of_the_curve(
    stand_in: StandIn, driver: StandInDriver, monitor: GPUMonitor
) -> None:
    """Against the stand-in driver, whose power changes while requests run."""
    client = stand_in.client(pace=0.03)
    with record(client, monitor=monitor) as timeline:
        for watts in (20, 50, 30):
            driver.describe(
                t4(0, power=watts * 1000, free=(15_000 - watts) * MIB),
                t4(1, power=7_000),
            )
            monitor.sample()
            client.chat_completion(MESSAGES)
        monitor.sample()
    moments = sorted({when for when, _ in timeline.samples})
    curve = dict(zip(moments, (20, 50, 30, 30), strict=True))
    for entry, (begin, end) in zip(timeline.requests, pairwise(moments), strict=True):
        low, high = curve[begin], curve[end]
        slope = (high - low) / (end - begin)
        middle = (entry.start + entry.end) / 2
        watts = low + slope * (middle - begin)
        found = timeline.attribute(entry)
        assert found.joules_by_card[0] == pytest.approx(watts * entry.duration)
        assert found.joules_by_card[1] == pytest.approx(7 * entry.duration)
        assert found.joules == pytest.approx((watts + 7) * entry.duration)
        assert found.joules_per_token == pytest.approx((found.own_joules or 0) / 3)
    # The reserved part is not counted as used.
    peaks = [
        timeline.attribute(entry).peak_memory_bytes[0] for entry in timeline.requests
    ]
    assert peaks[0] == peaks[1] == (15_360 - 261 - 14_950) * MIB
    assert peaks[2] == (15_360 - 261 - 14_970) * MIB


def test_a_running_monitor_covers_the_last_request(
    stand_in: StandIn, driver: StandInDriver
) -> None:
    """The cards are read once more at the end of the block."""
    driver.describe(t4(0, power=20_000))
    client = stand_in.client(pace=0.01)
    with (
        GPUMonitor(interval=60) as monitor,
        record(client, monitor=monitor) as timeline,
    ):
        wait_for(lambda: bool(monitor.latest()))
        client.chat_completion(MESSAGES)
    found = timeline.attribute(timeline.requests[0])
    assert found.joules == pytest.approx(20 * found.seconds)
    assert found.peak_memory_bytes == {0: 3 * MIB}


def test_a_card_without_power_has_memory_alone(
    stand_in: StandIn, driver: StandInDriver
) -> None:
    """Joules that cannot be told are None, never 0; the sentence says which card."""
    driver.describe(t4(0, power=None))
    client, monitor = stand_in.client(), GPUMonitor()
    with record(client, monitor=monitor) as timeline:
        monitor.sample()
        client.chat_completion(MESSAGES)
        monitor.sample()
    found = timeline.attribute(0)
    assert found.joules is None
    assert found.problem == "GPU 0: what it drew is not known"
    assert found.peak_memory_bytes == {0: 3 * MIB}


def test_setting_the_clock_moves_nothing(
    stand_in: StandIn, monitor: GPUMonitor
) -> None:
    """A reading whose time cannot be is put where it was told."""
    recorder = Recorder()
    recorder.follow(stand_in.client(), None, monitor)
    sample = monitor.sample()[0]
    for shift in (-3600.0, 3600.0):
        before = time.monotonic()
        recorder._on_samples((replace(sample, time=sample.time + shift),))
        (when, _) = recorder.timeline.samples[-1]
        assert before <= when <= time.monotonic()
    recorder.close()


# ── servers ──────────────────────────────────────────────────────────────────────


def test_slots_and_events_come_from_the_server(
    engine: Engine, demo_model: Path
) -> None:
    """Each answer has the slot that gave it; starts and ends are events."""
    manager = ServerManager(
        ServerConfig(demo_model, port=0, context_size=1024, parallel=2, threads=1),
        engine=engine,
    )
    with manager, LlamaCppClient(manager.get_url()) as client:
        client.chat_completion(MESSAGES, max_tokens=4)
        wait_for(lambda: any(isinstance(one, Listening) for one in manager.events), 60)
        with record(client, server=manager) as timeline:
            for slot in (1, 0, 1):
                client.chat_completion(
                    MESSAGES, max_tokens=8, extra_body={"id_slot": slot}
                )
            named = [entry.slot for entry in timeline.requests]
            client.completion("The KV", max_tokens=8)
            client.completion("The KV", max_tokens=8)
            wait_for(lambda: timeline.requests[-1].slot is not None, 60)
            manager.restart()
        client.completion("The KV", max_tokens=8)
    assert named == [1, 0, 1]
    found = timeline.requests
    assert len(found) == 5
    assert {found[3].slot, found[4].slot} <= {0, 1}
    assert found[4].slot == found[3].slot  # whose cache has it
    kinds = [event.kind for event in timeline.events]
    assert kinds[0] == "Exited"
    assert kinds.count("Ready") == 1  # a line of the log may be read after it
    assert "Loading" in kinds
    assert "LoadProgress" not in kinds
    assert timeline.events[-1].server == manager.get_url()


def test_a_pool_is_recorded_over_all_servers(
    engine: Engine, demo_model: Path, driver: StandInDriver
) -> None:
    """Each request names its server, and costs what that server's card draws."""
    driver.describe(t4(0, power=10_000), t4(1, power=30_000))
    config = ServerConfig(demo_model, port=0, context_size=512, threads=1)
    uuids = [str(t4(number)["uuid"]) for number in range(2)]
    with GPUMonitor(interval=60) as monitor, ServerPool(config, gpus=[[], []]) as pool:
        with record(pool, monitor=monitor) as timeline:
            for number in range(4):
                pool.client.completion(f"{number} The KV", max_tokens=8)
            wait_for(lambda: all(e.slot == 0 for e in timeline.requests))
        urls = [one.get_url() for one in pool.servers]
    assert {entry.server for entry in timeline.requests} == set(urls)
    assert timeline._kept.servers == dict.fromkeys(urls, ())  # they run on the CPU
    assert timeline.attribute(0).problem == "no card was watched that its server uses"
    # What it would be with a card for each server.
    timeline._kept.servers.update({urls[0]: (0,), urls[1]: (1,)})
    timeline._kept.changes += 1
    for entry in timeline.requests:
        found = timeline.attribute(entry)
        card = urls.index(entry.server or "")
        assert list(found.joules_by_card) == [card]
        assert found.joules == pytest.approx((10, 30)[card] * found.seconds)
    assert uuids[0] != uuids[1]


def test_the_cards_of_a_server_are_those_it_may_see(
    driver: StandInDriver, stand_in: StandIn, tiny_model: Path
) -> None:
    """By their UUIDs; all, where nothing was said or one of them is not known."""
    driver.describe(t4(0), t4(1))
    monitor = GPUMonitor()
    monitor.sample()
    for visible, used in (
        (str(t4(1)["uuid"]), (1,)),
        ("0,1", (0, 1)),
        ("", ()),
        (None, None),
        ("GPU-elsewhere", None),
    ):
        config = ServerConfig(tiny_model, port=1234, visible_devices=visible)
        manager = ServerManager(config)
        with record(stand_in.client(), server=manager, monitor=monitor) as timeline:
            pass
        assert timeline._kept.servers.get("http://127.0.0.1:1234") == used
    unknown = ServerManager()
    with record(stand_in.client(), server=unknown, monitor=monitor) as timeline:
        pass
    assert timeline._kept.servers == {}


def test_events_of_a_server_are_told_as_they_happen(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over all starts, until that is ended; who fails breaks nothing."""
    engine = find_engine([sys.executable, str(STAND_IN), "good"])
    manager = ServerManager(ServerConfig(tiny_model, port=0), engine=engine)
    seen: list[Event] = []

    def fail(event: Event) -> None:
        raise ZeroDivisionError

    manager.subscribe(fail)
    end = manager.subscribe(seen.append)
    twice = manager.subscribe(seen.append)
    twice()
    manager.restart()
    manager.stop()
    manager.restart()
    end()
    end()
    manager.stop()
    assert sum(isinstance(event, Ready) for event in seen) == 2
    assert sum(isinstance(event, Exited) for event in seen) == 1
    assert "subscriber to a server's events has failed" in caplog.text


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Ready(1.26), "ready after 1.3 s"),
        (Exited(-9), "ended with exit code -9"),
        (Loading("/a/b/model.gguf"), "loads model.gguf"),
        (Listening("http://x"), "listens on http://x"),
        (BufferSize("CUDA0", "KV", 2**30), "CUDA0: 1.0 GiB for the KV buffer"),
        (Notice("context: 5"), "context: 5"),
        (OutOfMemory("CUDA0", 2**30), "CUDA0 had no room for 1.0 GiB"),
        (BadModel("it\nis"), "it\ufffdis"),
    ],
)
def test_events_are_told_in_words(event: Event, words: str) -> None:
    """One line each."""
    told = event_of(event, 5.0, "http://y")
    assert (told.time, told.text, told.server) == (5.0, words, "http://y")
    assert told.kind == type(event).__name__


def test_recorders_follow_what_a_session_has(stand_in: StandIn) -> None:
    """The own one while it is wanted, others until they end; old clients are left."""
    old, new = stand_in.client(), stand_in.client()
    recorders, other = Recorders(), Recorder()
    recorders.add(other)
    recorders.follow(old, None, None, own=False)
    assert recorders.timeline is None
    old.chat_completion(MESSAGES)
    recorders.follow(new, None, None, own=True)
    timeline = recorders.timeline
    assert timeline is not None
    recorders.follow(new, None, None, own=True)
    new.chat_completion(MESSAGES)
    old.chat_completion(MESSAGES)
    assert len(other.timeline.requests) == 2
    assert len(timeline.requests) == 1
    recorders.follow(new, None, None, own=False)
    assert recorders.timeline is None
    recorders.discard(other)
    new.chat_completion(MESSAGES)
    assert len(timeline.requests) == 1
    assert len(other.timeline.requests) == 3
    other.follow(None, None, None)
    new.chat_completion(MESSAGES)
    assert len(other.timeline.requests) == 3
    recorders.follow(new, None, None, own=True)
    recorders.close()
    new.chat_completion(MESSAGES)
    assert recorders.timeline is not None
    assert recorders.timeline.requests == []


def test_another_monitor_takes_the_place_of_the_first(
    stand_in: StandIn, monitor: GPUMonitor
) -> None:
    """What the first one sees is not recorded any more; none is none."""
    recorder, other = Recorder(), GPUMonitor(interval=3)
    client = stand_in.client()
    for one, seen in ((monitor, 2), (other, 6), (None, 6)):
        recorder.follow(client, None, one)
        monitor.sample()
        other.sample()
        assert len(recorder.timeline.samples) == seen
    recorder.close()


def test_a_log_that_does_not_tell_holds_nobody_up(client: LlamaCppClient) -> None:
    """The slot stays unknown; after a moment nobody waits for it any more."""
    with record(client, server=ServerManager()) as timeline:
        client.completion("The KV cache", 4)
    assert timeline.requests[0].predicted_seconds is not None
    assert timeline.requests[0].slot is None
