"""Streams: to their end, to a bad end, and cancelled."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from client_tools import MESSAGES, StandIn
from manager_tools import wait_for

from llamatelemetry.api.client import (
    ChatStream,
    CompletionStream,
    LlamaCppClient,
    PromptProgress,
    RequestRecord,
)
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    RequestTimeoutError,
    StreamError,
)

AT_ONCE = 10
"""Seconds in which a busy machine does what takes none; what is wrong takes 30."""


def wait_for_hang_up(stand_in: StandIn, url: str) -> None:
    """Wait until the stand-in has seen its client hang up, long before the end."""
    wait_for(lambda: stand_in.seen(url)[-1]["hung_up_after"] is not None, AT_ONCE)


def test_a_stream_hands_out_its_chunks(stand_in: StandIn) -> None:
    """Chunks come typed and in order, each with an answer in it."""
    stream = stand_in.client(progress=2).chat_completion_stream(MESSAGES)
    chunks = list(stream)

    assert isinstance(stream, ChatStream)
    assert isinstance(stream, Generator)
    assert [chunk.choices[0].delta.content for chunk in chunks] == [
        *(None, "w0 ", "w1 ", "w2 ", None)
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert stream.text == "w0 w1 w2 "


def test_the_result_of_a_stream_is_the_whole_response(stand_in: StandIn) -> None:
    """Whether iterated, half iterated or not at all, `result()` is the same."""
    client = stand_in.client(thoughts=2)
    whole = client.chat_completion(MESSAGES)
    iterated = client.chat_completion_stream(MESSAGES)
    half = client.chat_completion_stream(MESSAGES)
    for _ in iterated:
        pass
    next(half)

    assert whole == iterated.result() == half.result() == half.result()
    assert whole.choices[0].message.content == "w0 w1 w2 "
    assert whole.choices[0].message.reasoning_content == "t0 t1 "
    assert whole.usage.total_tokens == 13
    assert whole.timings is not None
    assert whole.timings.predicted_per_second == 50.0
    assert (iterated.usage, iterated.timings) == (whole.usage, whole.timings)
    assert whole.extra == {"tomorrow": 1}


def test_stream_true_gives_the_stream(stand_in: StandIn) -> None:
    """`chat_completion(stream=True)` is `chat_completion_stream`."""
    stream = stand_in.client().chat_completion(MESSAGES, stream=True)

    assert isinstance(stream, ChatStream)
    assert stream.result().choices[0].finish_reason == "stop"


def test_nothing_is_sent_before_the_first_chunk_is_asked_for(
    stand_in: StandIn,
) -> None:
    """Making a stream, and dropping or cancelling it, sends nothing."""
    url = stand_in.url()
    records: list[RequestRecord] = []
    client = LlamaCppClient(url, on_request=records.append)
    stream = client.chat_completion_stream(MESSAGES)
    stream.cancel()

    assert list(stream) == []
    assert stream.result().choices[0].finish_reason == "cancelled"
    assert stand_in.seen(url) == []
    assert records == []


def test_progress_is_told_and_kept(stand_in: StandIn) -> None:
    """Progress goes to the callback and the attribute, not into the chunks."""
    told: list[PromptProgress] = []
    client = stand_in.client(progress=3)
    stream = client.chat_completion_stream(MESSAGES, on_progress=told.append)
    chunks = list(stream)

    assert [progress.processed for progress in told] == [2, 3, 4]
    assert stream.progress == told[-1]
    assert all(chunk.prompt_progress is None for chunk in chunks)


def test_several_answers_are_kept_apart(stand_in: StandIn) -> None:
    """With `n` answers each choice gets its own text."""
    response = stand_in.client(choices=2).chat_completion(MESSAGES, n=2)

    assert [choice.message.content for choice in response.choices] == [
        "w0 w1 w2 ",
        "w0 w1 w2 ",
    ]
    assert [choice.index for choice in response.choices] == [0, 1]


def test_streamed_tool_calls_become_whole(stand_in: StandIn) -> None:
    """Calls are put together and the content is None."""
    client = stand_in.client(calls=2, finish="tool_calls")
    choice = client.chat_completion(MESSAGES).choices[0]

    assert choice.message.content is None
    assert choice.message.tool_calls == [
        {
            "id": f"c{call}",
            "type": "function",
            "function": {"name": "look_up", "arguments": '{"a":1}'},
        }
        for call in range(2)
    ]


@pytest.mark.parametrize("write", [0, 1, 7])
@pytest.mark.parametrize("line", ["lf", "cr", "crlf"])
@pytest.mark.parametrize("chunked", [0, 1])
def test_the_way_of_travelling_makes_no_difference(
    stand_in: StandIn, chunked: int, line: str, write: int
) -> None:
    """Chunked or not, with any line end, cut anywhere: the answer is the same."""
    client = stand_in.client(chunked=chunked, line=line, write=write)

    assert client.chat_completion(MESSAGES).choices[0].message.content == "w0 w1 w2 "


def test_text_completions_stream_too(stand_in: StandIn) -> None:
    """`completion` returns texts, and its stream hands them out in pieces."""
    client = stand_in.client(progress=1)
    stream = client.completion_stream("Once")
    texts = [chunk.choices[0].text for chunk in stream]
    response = client.completion("Once")

    assert isinstance(stream, CompletionStream)
    assert "".join(texts) == response.choices[0].text == stream.text == "w0 w1 w2 "
    assert response.choices[0].finish_reason == "stop"
    assert response.usage is not None
    assert response.usage.completion_tokens == 3
    assert response.prompt_progress is not None


# How a stream goes wrong.


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("chunked", [0, 1])
@pytest.mark.parametrize("end", ["cut", "reset", "none"])
def test_a_stream_without_its_end_is_an_error(
    stand_in: StandIn, end: str, chunked: int, kind: str
) -> None:
    """Cut off in any way, a stream raises StreamError with what had come."""
    client = stand_in.client(end=end, chunked=chunked, pace=0.01)
    with pytest.raises(StreamError) as caught:
        if kind == "chat":
            client.chat_completion(MESSAGES)
        else:
            client.completion("x")

    choice = caught.value.partial.choices[0]
    text = choice.message.content if kind == "chat" else choice.text
    assert text == "w0 w1 w2 "
    assert choice.finish_reason == "error"
    assert caught.value.partial.usage.estimated
    assert caught.value.partial.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("end", "words", "status"),
    [("error", "out of slots", 500), ("olderror", "old words", None)],
)
def test_an_error_inside_a_stream_is_raised(
    stand_in: StandIn, end: str, words: str, status: int | None
) -> None:
    """What the server says inside a stream is an error and never a chunk."""
    stream = stand_in.client(end=end).chat_completion_stream(MESSAGES)
    texts = []
    with pytest.raises(StreamError, match=words) as caught:
        texts.extend(chunk.choices[0].delta.content for chunk in stream)

    assert texts == [None, "w0 ", "w1 ", "w2 "]
    assert caught.value.status == status
    assert caught.value.partial.choices[0].message.content == "w0 w1 w2 "
    assert "failed" in repr(stream)
    with pytest.raises(StreamError) as again:
        stream.result()
    assert again.value is caught.value


@pytest.mark.parametrize("end", ["badjson", "twojson", "notobject", "wrongshape"])
def test_an_event_that_is_no_chunk_is_an_error(stand_in: StandIn, end: str) -> None:
    """Nonsense inside a stream is a ClientError that shows it."""
    with pytest.raises(ClientError, match=r"no JSON|another shape"):
        stand_in.client(end=end).chat_completion(MESSAGES)


@pytest.mark.parametrize("answer", ["html", "list", "garbage"])
def test_a_reply_that_is_no_stream_is_an_error(stand_in: StandIn, answer: str) -> None:
    """A 200 of something else than a stream is told with its first bytes."""
    with pytest.raises(ClientError, match="no event stream"):
        stand_in.client(answer=answer).chat_completion(MESSAGES)


def test_a_server_that_hangs_after_the_end_costs_little(stand_in: StandIn) -> None:
    """After [DONE] the response is there within half a second, whatever follows."""
    started = time.monotonic()
    response = stand_in.client(end="hang").chat_completion(MESSAGES)

    assert response.choices[0].finish_reason == "stop"
    assert time.monotonic() - started < AT_ONCE


# Time.


def test_a_long_answer_does_not_time_out(stand_in: StandIn) -> None:
    """Silence is what times out: an answer may take longer than the timeout."""
    client = LlamaCppClient(stand_in.url(tokens=27, pace=0.2), timeout=5)
    started = time.monotonic()

    assert client.chat_completion(MESSAGES).usage.completion_tokens == 3
    assert time.monotonic() - started > 5


@pytest.mark.parametrize("chunked", [0, 1])
def test_chunks_are_handed_out_as_they_come(stand_in: StandIn, chunked: int) -> None:
    """No chunk waits for the next one, whether the reply is chunked or not."""
    client = stand_in.client(tokens=4, steps=1, chunked=chunked)
    stream = client.chat_completion_stream(MESSAGES)
    next(stream)  # who speaks

    for number in range(4):
        client.health()  # without it the server sends nothing more
        assert next(stream).choices[0].delta.content == f"w{number} "
    assert next(stream).choices[0].finish_reason == "stop"


def test_pings_keep_a_silent_server_alive(stand_in: StandIn) -> None:
    """A server that thinks with pings for longer than the timeout is waited for."""
    client = LlamaCppClient(stand_in.url(hush=5.4, ping=0.2), timeout=5)

    assert client.chat_completion(MESSAGES).choices[0].finish_reason == "stop"


def test_silence_times_out(stand_in: StandIn) -> None:
    """Without pings the same is an error, which is also a builtin TimeoutError."""
    client = LlamaCppClient(stand_in.url(hush=30), timeout=3)
    stream = client.chat_completion_stream(MESSAGES)
    with pytest.raises(RequestTimeoutError, match="more of the reply") as caught:
        list(stream)

    assert isinstance(caught.value, TimeoutError)
    assert stream.text == "w0 "


def test_silence_before_the_reply_times_out(stand_in: StandIn) -> None:
    """A server that never begins is left after the timeout, with a likely cause."""
    client = LlamaCppClient(stand_in.url(before=30), timeout=0.3)
    with pytest.raises(RequestTimeoutError, match="every slot busy"):
        client.chat_completion(MESSAGES)


def test_the_total_time_is_apart(stand_in: StandIn) -> None:
    """`total_timeout` ends an answer that is not silent."""
    url = stand_in.url(tokens=1000, pace=0.1)
    client = LlamaCppClient(url, timeout=30, total_timeout=0.5)
    started = time.monotonic()
    with pytest.raises(RequestTimeoutError, match=r"total_timeout=0\.5"):
        client.chat_completion(MESSAGES)

    assert 0.4 < time.monotonic() - started < AT_ONCE
    wait_for_hang_up(stand_in, url)


@pytest.mark.slow
def test_forty_five_seconds_fit_into_a_timeout_of_thirty(stand_in: StandIn) -> None:
    """With the default timeout, 45 s of slow text or of pings do not fail."""
    clients = [
        stand_in.client(tokens=45, pace=1),
        stand_in.client(hush=45, ping=10),
    ]
    started = time.monotonic()
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda one: one.chat_completion(MESSAGES), clients))

    assert time.monotonic() - started > 44
    assert [answer.choices[0].finish_reason for answer in answers] == ["stop"] * 2


# Ending it early.


def test_cancel_ends_a_waiting_reader_and_hangs_up(stand_in: StandIn) -> None:
    """Cancelled in mid-silence, the loop ends and the server sees its client gone."""
    url = stand_in.url(hush=30)
    stream = LlamaCppClient(url).chat_completion_stream(MESSAGES)
    texts: list[str | None] = []

    def read() -> None:
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content)  # noqa: PERF401 -- one by one

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: texts == [None, "w0 "], AT_ONCE)
    time.sleep(0.05)
    stream.cancel()
    reader.join(AT_ONCE)

    assert not reader.is_alive()
    assert texts == [None, "w0 "]
    wait_for_hang_up(stand_in, url)
    response = stream.result()
    assert response.choices[0].message.content == "w0 "
    assert response.choices[0].finish_reason == "cancelled"
    assert response.usage.estimated
    assert stream.cancelled
    assert "cancelled" in repr(stream)


@pytest.mark.parametrize("options", [{"before": 30}, {"before": 30, "chunked": 0}])
def test_cancel_ends_the_wait_for_the_reply(
    stand_in: StandIn, options: dict[str, Any]
) -> None:
    """Cancelled before anything came, the wait ends at once and nothing is raised."""
    url = stand_in.url(**options)
    stream = LlamaCppClient(url).chat_completion_stream(MESSAGES)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    while not stand_in.seen(url):
        time.sleep(0.01)
    stream.cancel()
    reader.join(AT_ONCE)

    assert not reader.is_alive()
    assert stream.result().choices[0].finish_reason == "cancelled"


def test_cancel_while_connecting_sends_nothing(stand_in: StandIn) -> None:
    """A stream cancelled between its start and its connection ends quietly."""
    url = stand_in.url()
    stream = LlamaCppClient(url).chat_completion_stream(MESSAGES)
    stream._reply.close()

    with pytest.raises(ConnectionFailedError, match="closed before it started"):
        next(stream)
    assert stand_in.seen(url) == []


def test_no_chunk_follows_a_cancel(stand_in: StandIn) -> None:
    """Events that are there already are not handed out after `cancel()`."""
    stream = stand_in.client(chunked=0).chat_completion_stream(MESSAGES)
    next(stream)
    time.sleep(0.05)
    next(stream)
    stream.cancel()
    stream.cancel()

    assert list(stream) == []
    assert stream.text == "w0 "


def test_cancel_after_the_end_changes_nothing(stand_in: StandIn) -> None:
    """A finished stream stays finished."""
    stream = stand_in.client().chat_completion_stream(MESSAGES)
    stream.result()
    stream.cancel()

    assert not stream.cancelled
    assert stream.result().choices[0].finish_reason == "stop"


def test_leaving_the_block_ends_the_generation(stand_in: StandIn) -> None:
    """`with` hangs up when the loop is left early."""
    url = stand_in.url(tokens=1000, pace=0.05)
    with LlamaCppClient(url).chat_completion_stream(MESSAGES) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break

    wait_for_hang_up(stand_in, url)
    assert stream.result().choices[0].message.content == "w0 "


def test_letting_go_of_a_stream_ends_the_generation(stand_in: StandIn) -> None:
    """A loop broken out of, its stream in no variable, frees the server at once."""
    url = stand_in.url(tokens=1000, pace=0.05)
    client = LlamaCppClient(url)
    gc.disable()
    try:
        for chunk in client.chat_completion_stream(MESSAGES):
            if chunk.choices[0].delta.content:
                break
        wait_for_hang_up(stand_in, url)
    finally:
        gc.enable()


def test_a_stream_is_a_generator_in_its_rarer_methods_too(stand_in: StandIn) -> None:
    """`send`, `throw` and `close` do what a generator's do."""
    url = stand_in.url(tokens=1000, pace=0.05)
    stream = LlamaCppClient(url).chat_completion_stream(MESSAGES)

    assert stream.send(None).choices[0].delta.role == "assistant"
    with pytest.raises(KeyError, match="mine"):
        stream.throw(KeyError("mine"))
    stream.close()
    assert list(stream) == []
    wait_for_hang_up(stand_in, url)


@pytest.mark.parametrize("wanted", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_of_the_caller_ends_the_generation(
    stand_in: StandIn, wanted: type[BaseException]
) -> None:
    """What `on_progress` raises, or an interrupt, comes out and hangs up."""

    def fail(progress: PromptProgress) -> None:
        raise wanted

    url = stand_in.url(progress=1, tokens=1000, pace=0.05)
    client = LlamaCppClient(url)
    stream = client.chat_completion_stream(MESSAGES, on_progress=fail)
    with pytest.raises(wanted):
        next(stream)

    wait_for_hang_up(stand_in, url)
    if wanted is KeyboardInterrupt:
        assert stream.result().choices[0].finish_reason == "cancelled"
    else:
        with pytest.raises(wanted):
            stream.result()


# What is told about it.


def test_each_request_is_told_once(stand_in: StandIn) -> None:
    """A record has kind, times, counts and the reason of its end."""
    records: list[RequestRecord] = []
    url = stand_in.url(pace=0.05)
    client = LlamaCppClient(url, on_request=records.append)
    stream = client.chat_completion_stream(MESSAGES)
    before = time.monotonic()
    list(stream)
    stream.result()

    (record,) = records
    assert (record.kind, record.path) == ("chat", "/v1/chat/completions")
    assert record.time_to_first_token is not None
    assert 0.04 < record.time_to_first_token < record.duration
    assert record.duration == record.end - record.start
    assert before <= record.start < record.end <= time.monotonic()
    assert (record.usage, record.timings) == (stream.usage, stream.timings)
    assert (record.finish_reason, record.model) == ("stop", "stand-in")
    assert record.error is None


def test_failures_and_cancels_are_told(stand_in: StandIn) -> None:
    """A record names the error, or that it was cancelled."""
    records: list[RequestRecord] = []
    for options in ({"end": "error"}, {"status": 501}, {"hush": 30}):
        url = stand_in.url(**options)
        client = LlamaCppClient(url, on_request=records.append)
        stream = client.chat_completion_stream(MESSAGES)
        if "hush" in options:
            next(stream)
            stream.cancel()
        else:
            with pytest.raises(ClientError):
                list(stream)

    assert isinstance(records[0].error, StreamError)
    assert isinstance(records[1].error, ClientError)
    assert records[1].time_to_first_token is None
    assert (records[2].error, records[2].finish_reason) == (None, "cancelled")
    assert len(records) == 3


def test_a_listener_that_fails_breaks_nothing(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """What `on_request` raises is logged and the answer comes."""

    def fail(record: RequestRecord) -> None:
        raise ZeroDivisionError

    client = LlamaCppClient(stand_in.url(), on_request=fail)

    assert client.chat_completion(MESSAGES).usage.total_tokens == 13
    assert "on_request failed" in caplog.text


def test_subscribers_get_what_they_asked_for(stand_in: StandIn) -> None:
    """Each its own: times of chunks or none, text or none; `on_request` has no text."""
    plain: list[RequestRecord] = []
    timed: list[RequestRecord] = []
    told: list[RequestRecord] = []
    url = stand_in.url(pace=0.02, thoughts=1)
    client = LlamaCppClient(url, on_request=told.append)
    client.subscribe(plain.append)
    end = client.subscribe(timed.append, chunk_times=True, text=True)
    stream = client.with_options(timeout=9).chat_completion_stream(MESSAGES, seed=4)
    taken = [time.monotonic() for _ in stream]  # the first one says who speaks
    end()
    end()
    client.chat_completion(MESSAGES)

    assert (len(plain), len(timed), len(told)) == (2, 1, 2)
    (record,) = timed
    assert record.answer == "w0 w1 w2 "
    assert record.sent is not None
    assert record.sent["messages"] == MESSAGES
    assert "Hello" not in repr(record)
    assert record.parameters == {
        "max_tokens": 256, "temperature": 0.8, "top_p": 0.95, "top_k": 40,
        "repeat_penalty": 1.1, "seed": 4,
    }  # fmt: skip
    assert record.server == url
    assert record.slot is None
    times = record.chunk_times
    assert times is not None
    assert len(times) == 4
    for before, when, after in zip(taken[:4], times, taken[1:5], strict=True):
        assert before <= when <= after
    assert record.time_to_first_token is not None
    assert times[0] <= record.start + record.time_to_first_token <= times[1]
    for other in (plain[0], told[0]):
        assert (other.sent, other.answer) == (None, None)
        assert other.chunk_times == times
        assert other.parameters == record.parameters
    assert plain[1].chunk_times is None
    assert stream.record is record
    with pytest.raises(ConfigurationError, match="function of a RequestRecord"):
        client.subscribe(5)  # type: ignore[arg-type]


def test_with_nobody_subscribed_nothing_more_is_noted(stand_in: StandIn) -> None:
    """A record of `on_request` is what it was before."""
    records: list[RequestRecord] = []
    client = LlamaCppClient(stand_in.url(), on_request=records.append)
    client.chat_completion(MESSAGES)

    (record,) = records
    assert (record.chunk_times, record.parameters, record.sent) == (None, None, None)
    assert record.answer is None


def test_the_slot_that_was_asked_for_is_noted(stand_in: StandIn) -> None:
    """A request that names its slot is answered by that; -1 names none."""
    records: list[RequestRecord] = []
    client = LlamaCppClient(stand_in.url(), on_request=records.append)
    client.chat_completion(MESSAGES, id_slot=3)
    client.chat_completion(MESSAGES, id_slot=-1)
    client.completion("x", id_slot=1)

    assert [record.slot for record in records] == [3, None, 1]


def test_a_request_in_one_piece_has_no_times_of_chunks(stand_in: StandIn) -> None:
    """Its body is told to who asked for text; what failed names its server too."""
    records: list[RequestRecord] = []
    url = stand_in.url()
    client = LlamaCppClient(url)
    client.subscribe(records.append, chunk_times=True, text=True)
    client.embeddings("a text")
    client.get_slots()
    nobody = LlamaCppClient("http://127.0.0.1:9")
    nobody.subscribe(records.append)
    with pytest.raises(ConnectionFailedError):
        nobody.embeddings("a text")

    embedded, looked, failed = records
    assert embedded.sent == {"input": "a text"}
    assert (embedded.chunk_times, embedded.answer) == (None, None)
    assert (looked.sent, looked.parameters) == (None, None)
    assert embedded.server == looked.server == url
    assert (failed.server, failed.sent) == ("http://127.0.0.1:9", None)


def test_a_subscriber_that_fails_stops_no_other(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, the answer comes, and others are told."""
    records: list[RequestRecord] = []
    client = stand_in.client()
    client.subscribe(lambda _: 1 / 0)
    client.subscribe(records.append)

    assert client.chat_completion(MESSAGES).usage.total_tokens == 13
    assert len(records) == 1
    assert "a subscriber failed" in caplog.text


def test_an_answer_lost_in_its_reasoning_warns_once(stand_in: StandIn) -> None:
    """The first such answer of a client warns with both remedies, later ones do not."""
    client = stand_in.client(thoughts=3, tokens=0, finish="length")
    with pytest.warns(UserWarning, match=r"larger max_tokens, or thinking=False"):
        response = client.chat_completion(MESSAGES)

    assert "cut off inside its reasoning" in repr(response)
    assert client.chat_completion(MESSAGES).choices[0].message.content == ""
