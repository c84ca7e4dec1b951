"""Timeline: what was recorded as rows, as JSON, as Parquet, and in words."""

from __future__ import annotations

import contextlib
import json
import math
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_tools import MESSAGES, StandIn
from nvml_tools import StandInDriver, t4

from llamatelemetry._tables import read_parquet
from llamatelemetry._units import GIB
from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.api.responses import Timings
from llamatelemetry.exceptions import (
    ConfigurationError,
    ContextLengthError,
    StreamError,
)
from llamatelemetry.gpu.monitor import GPUMonitor, GPUSample
from llamatelemetry.telemetry import Timeline, record
from llamatelemetry.telemetry._attribution import Attribution
from llamatelemetry.telemetry._entries import RequestEntry, entry_of
from llamatelemetry.telemetry._joined import Joined
from llamatelemetry.telemetry._kept import Kept
from llamatelemetry.telemetry._words import summary
from llamatelemetry.telemetry._written import COLUMNS, Kind

KINDS: tuple[Kind, ...] = ("requests", "samples", "events", "tokens")


@pytest.fixture
def timeline(stand_in: StandIn, driver: StandInDriver) -> Timeline:
    """A timeline with two requests, one mark, and three readings of two cards."""
    driver.describe(t4(0), t4(1, power=None))
    client, monitor = stand_in.client(), GPUMonitor(interval=2)
    with record(client, monitor=monitor) as timeline:
        for number in range(2):
            monitor.sample()
            client.chat_completion(MESSAGES)
            timeline.mark(f"mark {number}")
        monitor.sample()
    return timeline


def test_rows_join_requests_with_what_they_cost(timeline: Timeline) -> None:
    """Each row has the columns that are told, on both clocks."""
    first, second = timeline.rows()
    assert list(first) == list(COLUMNS["requests"])
    assert (first["id"], second["id"]) == (0, 1)
    assert first["time"] == first["start"] + timeline.offset
    assert first["duration"] == first["end"] - first["start"]
    assert first["joules"] is None
    assert "GPU 1" in first["problem"]
    assert first["peak_memory_bytes"] == 2 * 3 * 2**20
    tokens = timeline.rows("tokens")
    assert [(row["request"], row["chunk"]) for row in tokens] == [
        (number, chunk) for number in range(2) for chunk in range(3)
    ]
    assert tokens[0]["since_start"] == tokens[0]["monotonic"] - first["start"]
    assert tokens[0]["time"] == tokens[0]["monotonic"] + timeline.offset
    events = timeline.rows("events")
    assert [row["text"] for row in events] == ["mark 0", "mark 1"]
    assert first["end"] < events[0]["monotonic"] < second["start"]
    samples = timeline.rows("samples")
    assert [(row["index"], row["power_watts"]) for row in samples] == [
        (0, 9.5), (1, None),
    ] * 3  # fmt: skip
    assert samples[0]["throttle_reasons"] == "gpu_idle"
    for kind in KINDS:
        assert all(list(row) == list(COLUMNS[kind]) for row in timeline.rows(kind))
    with pytest.raises(ConfigurationError, match="'requests', 'samples'"):
        timeline.rows("x")  # type: ignore[arg-type]


def test_every_field_of_a_sample_has_a_column() -> None:
    """A field that is added to a sample is in the table too."""
    names = {item.name for item in fields(GPUSample)}
    assert set(COLUMNS["samples"]) == names | {"monotonic"}


def test_tables_hold_the_rows(timeline: Timeline, tmp_path: Path) -> None:
    """Pandas and Parquet, one file for each kind; also where there is nothing."""
    timeline.to_parquet(tmp_path / "a" / "b")
    for kind in KINDS:
        rows = timeline.rows(kind)
        frame = timeline.to_dataframe(kind)
        assert list(frame.columns) == list(COLUMNS[kind])
        assert len(frame) == len(rows)
        stored = list(read_parquet(tmp_path / "a" / "b" / f"{kind}.parquet"))
        for row in rows:
            for name in set(row) & {"parameters"}:
                row[name] = json.dumps(row[name])
        assert stored == rows
    assert timeline.to_dataframe().duration.min() > 0
    empty = Timeline.from_json(
        json.dumps(json.loads(timeline.to_json()) | {"samples": [], "requests": []})
    )
    for kind in ("requests", "samples", "tokens"):
        assert len(empty.to_dataframe(kind)) == 0  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        timeline.to_dataframe("x")  # type: ignore[arg-type]


def test_json_holds_everything(timeline: Timeline, tmp_path: Path) -> None:
    """What is read back is the same, costs included; as text and as a file."""
    path = tmp_path / "timeline.json"
    timeline.to_json(path)
    for source in (timeline.to_json(), path, str(path)):
        again = Timeline.from_json(source)
        assert again.requests == timeline.requests
        assert again.events == timeline.events
        assert again.samples == timeline.samples
        assert again.cards == timeline.cards
        assert again.dropped == timeline.dropped
        assert (again.began, again.offset) == (timeline.began, timeline.offset)
        assert again.rows() == timeline.rows()
        assert again.to_json() == timeline.to_json()


def test_a_sample_without_reasons_is_read_back(
    stand_in: StandIn, driver: StandInDriver
) -> None:
    """None stays None, and so do a request's times that nobody noted."""
    driver.describe(t4(0, reasons=None))
    client, monitor = stand_in.client(), GPUMonitor()
    with record(client, monitor=monitor) as timeline:
        monitor.sample()
        client.embeddings("x")
    assert timeline.rows("samples")[0]["throttle_reasons"] is None
    again = Timeline.from_json(timeline.to_json())
    assert again.samples == timeline.samples
    assert again.requests[0].chunk_times is None
    assert again.rows("tokens") == []


def test_requests_that_ended_without_a_token_are_read_back(
    stand_in: StandIn, server_url: str
) -> None:
    """One refused, one broken off, one closed early: the whole timeline comes back."""
    client = stand_in.client(tokens=3)
    with record(client) as timeline:
        client.chat_completion_stream(MESSAGES).close()
        with client.chat_completion_stream(MESSAGES) as stream:
            next(iter(stream))
    reset = stand_in.client(end="reset", tokens=0)
    with pytest.raises(StreamError), record(reset) as broken:
        reset.chat_completion(MESSAGES)
    with LlamaCppClient(server_url) as real, record(real) as refused:
        for prompt in ("long " * 9000, "KV"):
            with contextlib.suppress(ContextLengthError):
                real.completion(prompt, 4)

    assert len(refused.requests[0].chunk_times or ()) == 0
    for one in (timeline, broken, refused):
        again = Timeline.from_json(one.to_json())
        assert again.requests == one.requests
        assert again.rows("tokens") == one.rows("tokens")
        assert one.requests
        for row in json.loads(one.to_json())["requests"]:
            assert isinstance(row["chunk_times"], list | None)
    assert refused.requests[0].error == "ContextLengthError"
    assert len(refused.rows("tokens")) == 4


def test_whatever_was_sent_and_answered_is_written_and_read_back_alike() -> None:
    """Numbers of numpy stay numbers; what JSON has no word for is None or a text."""
    parameters = {
        "n": np.int64(2), "temperature": math.nan, "top_p": np.float32(0.5),
        "model": Path("a\udfff"), "seed": {1: (2, math.inf)}, "max_tokens": True,
    }  # fmt: skip
    sent = RequestRecord(
        kind="chat", path="/", parameters=parameters,
        timings=Timings(predicted_per_second=math.inf, prompt_ms=math.nan),
    )  # fmt: skip
    kept = Kept(10)
    kept.add_request(lambda number: entry_of(number, sent, text=False))
    timeline = Timeline(kept)

    (request,) = timeline.requests
    assert request.parameters == {
        "n": 2, "temperature": None, "top_p": 0.5, "model": "a?",
        "seed": {"1": [2, None]}, "max_tokens": True,
    }  # fmt: skip
    assert request.server_tokens_per_second is request.prompt_seconds is None
    assert Timeline.from_json(timeline.to_json()).requests == [request]


def test_a_missing_folder_is_named(timeline: Timeline, tmp_path: Path) -> None:
    """The error has the user's words and no name of ours."""
    with pytest.raises(FileNotFoundError, match="no such folder") as caught:
        timeline.to_json(tmp_path / "missing" / "x.json")
    assert caught.value.filename == str(tmp_path / "missing")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"format": "other", "version": 1}',
        '{"format": "llamatelemetry timeline", "version": 2}',
        '{"format": "llamatelemetry timeline", "version": 1}',
        '{"format": "llamatelemetry timeline", "version": 1, "requests": [{}]}',
    ],
)
def test_what_is_no_timeline_is_refused(text: str) -> None:
    """With a sentence that says so, once."""
    with pytest.raises(ConfigurationError, match=r"no timeline|can be read") as error:
        Timeline.from_json(text)
    assert "ConfigurationError" not in str(error.value)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """Whatever stands in it; one that is not there is the system's error."""
    path = tmp_path / "x.json"
    for content in (b"[]", b"\xff\xfe\x00", b"\x89PNG\r\n", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="no timeline"):
            Timeline.from_json(path)
    with pytest.raises(FileNotFoundError):
        Timeline.from_json(tmp_path / "nothing.json")


def test_the_repr_counts(timeline: Timeline) -> None:
    """Requests, events, samples and cards."""
    assert repr(timeline) == "<Timeline: 2 requests, 2 events, 6 samples of 2 cards>"


def test_a_mark_is_a_text(timeline: Timeline) -> None:
    """One line of it; anything else is refused."""
    assert timeline.mark("a\nb").text == "a\ufffdb"
    with pytest.raises(ConfigurationError, match="must be a text"):
        timeline.mark(5)  # type: ignore[arg-type]


def test_rows_of_many_are_quick_to_join(timeline: Timeline) -> None:
    """What ran at the same time is found without looking at all requests.

    Two thousand, of which eight run at any time: each looks at its neighbours.
    """
    whole = json.loads(timeline.to_json())
    one, first = whole["requests"][0], whole["samples"][0]
    one["chunk_times"] = None
    whole["requests"] = [
        one | {"id": number, "start": number / 8, "end": number / 8 + 1.0}
        for number in range(2000)
    ]
    whole["samples"] = [
        first | {"monotonic": float(second)} for second in range(-1, 253)
    ]
    rows = Timeline.from_json(json.dumps(whole)).rows()
    busy = 1999 / 8 + 1
    assert math.fsum(row["own_joules"] for row in rows) == pytest.approx(9.5 * busy)
    assert math.fsum(row["joules"] for row in rows) == pytest.approx(9.5 * 2000)


@pytest.mark.parametrize("seed", range(5))
def test_what_ran_meanwhile_is_found(seed: int) -> None:
    """All of it, and nothing else, as when each is compared with each."""
    chance = random.Random(seed)
    kept = Kept(100)
    requests = []
    for number in range(60):
        start = float(chance.randrange(40))
        end = start + chance.choice([0.0, 1.0, 2.0, 30.0])
        requests.append(RequestEntry(id=number, kind="chat", start=start, end=end))
    kept.fill(requests, [], [])
    joined = Joined(kept)
    for one in requests:
        found = {other.id for other in joined._meanwhile(one)}
        assert found == {
            other.id
            for other in requests
            if other is not one and other.start < one.end and other.end > one.start
        }


def test_one_long_request_does_not_make_all_look_at_all() -> None:
    """Beside one that runs all the time, each looks at its neighbours still."""

    class Counted(list[RequestEntry]):
        times = 0

        def __getitem__(self, place: Any) -> Any:
            self.times += 1
            return super().__getitem__(place)

    kept = Kept(2000)
    requests = [
        RequestEntry(id=n, kind="chat", start=n / 8, end=n / 8 + 1) for n in range(2000)
    ]
    requests[0] = replace(requests[0], end=300.0)
    kept.fill(requests, [], [])
    joined = Joined(kept)
    looks = joined._entries = Counted(joined._entries)
    assert len(joined.attribute(requests[1000]).joules_by_card) == 0
    assert looks.times < 30


def test_a_request_of_another_timeline_is_refused(timeline: Timeline) -> None:
    """Its number means another one here; what was read back is the same."""
    again = Timeline.from_json(timeline.to_json())
    assert again.attribute(timeline.requests[1]).request == 1
    other = replace(timeline.requests[1], start=timeline.requests[0].start)
    with pytest.raises(ConfigurationError, match="of this timeline is another one"):
        timeline.attribute(other)


def test_half_of_a_character_is_written_as_a_question_mark(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """JSON and Parquet files hold a text that no file can hold."""
    client = stand_in.client()
    with record(client, text=True) as timeline:
        client.chat_completion(
            [{"role": "user", "content": "a\ud800b"}],
            extra_body={"model": "c\udfff"},
        )
    timeline.to_json(tmp_path / "x.json")
    timeline.to_parquet(tmp_path)
    (row,) = read_parquet(tmp_path / "requests.parquet")
    assert "a?b" in str(row["prompt"])
    assert row["prompt"] == timeline.to_dataframe().prompt[0]
    assert Timeline.from_json(tmp_path / "x.json").requests == timeline.requests
    assert timeline.requests[0].parameters["model"] == "c?"


def test_servers_with_cards_of_their_own_share_nothing() -> None:
    """Whoever runs elsewhere at the same time pays there; on one card they share."""
    kept = Kept(10)
    watts = (10.0, 30.0)
    ticks = [
        (float(second), tuple(GPUSample(n, 0.0, power_watts=watts[n]) for n in (0, 1)))
        for second in range(12)
    ]
    requests = [
        RequestEntry(id=n, kind="chat", start=1, end=9, server=f"http://{n}")
        for n in (0, 1)
    ]
    kept.fill(requests, [], ticks)
    kept.servers = {"http://0": (0,), "http://1": (1,)}
    timeline = Timeline(kept)
    assert [row["own_joules"] for row in timeline.rows()] == [80, 240]
    kept.servers = {"http://0": (0,)}  # the other may use both
    kept.changes += 1
    assert [row["own_joules"] for row in timeline.rows()] == [40, 280]


# ── words ────────────────────────────────────────────────────────────────────────


def entry(**changes: Any) -> RequestEntry:
    """Return a request."""
    return RequestEntry(id=0, kind="chat", start=0, end=2, **changes)


def test_a_request_in_words() -> None:
    """Where it ran, what it cost; its part where it had not all for itself."""
    cost = Attribution(
        request=0, seconds=2, tokens=40, joules=61.25, own_joules=61.25,
        joules_by_card={0: 61.25}, peak_memory_bytes={0: int(5.06 * GIB), 1: None},
    )  # fmt: skip
    assert summary(entry()) == ""
    assert summary(entry(slot=0)) == "slot 0"
    assert (
        summary(entry(slot=2), cost) == "slot 2 · 61.2 J · 1.53 J/token · peak 5.1 GiB"
    )
    shared = replace(cost, joules=1234.5, tokens=None, peak_memory_bytes={})
    assert summary(entry(), shared) == "61.2 J of 1,234 J"
    unknown = replace(cost, own_joules=None, joules=None, peak_memory_bytes={0: None})
    assert summary(entry(slot=1), unknown) == "slot 1"


def test_a_request_that_has_just_ended_is_described(
    stand_in: StandIn, driver: StandInDriver
) -> None:
    """By what the client tells of it; the cards are read for its last moments."""
    driver.describe(t4(0, power=20_000))
    client = stand_in.client(pace=0.02)
    records: list[RequestRecord] = []
    client.subscribe(records.append)
    with (
        GPUMonitor(interval=60) as monitor,
        record(client, monitor=monitor) as timeline,
    ):
        monitor.sample()
        client.chat_completion(MESSAGES)
        silent = timeline.describe(records[0], cost=False)
        words = timeline.describe(records[0])
        again = timeline.describe(timeline.requests[0])
        client.get_props()
        nothing = timeline.describe(records[1])
    assert silent == ""
    joules = 20 * timeline.requests[0].duration
    assert words == again
    assert words.startswith(f"{joules:.3g} J · {joules / 3:.3g} J/token · peak ")
    assert nothing == ""
