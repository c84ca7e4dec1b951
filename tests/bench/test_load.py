"""Loads on a server: closed and open loops, failures, and Ctrl-C."""

from __future__ import annotations

import statistics
import threading
import time
from itertools import pairwise

import pytest
from bench_tools import interrupted_at
from client_tools import MESSAGES, StandIn

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.bench._load import Load, arrivals
from llamatelemetry.bench._metrics import Measured
from llamatelemetry.exceptions import ClientError, ConfigurationError


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps have the mean of the rate and an exponential's spread; the last is due."""
    times = arrivals(4000, 50.0, 1.0, seed=3)
    gaps = [after - before for before, after in pairwise([0.0, *times])]

    assert times == sorted(times)
    assert times[-1] == pytest.approx(4000 / 50)
    assert statistics.mean(gaps) == pytest.approx(1 / 50)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.08)
    assert times == arrivals(4000, 50.0, 1.0, seed=3)
    assert times != arrivals(4000, 50.0, 1.0, seed=4)


def test_burstiness_spreads_them() -> None:
    """Below 1 the gaps vary more than a Poisson process's, above 1 less."""

    def spread(burstiness: float) -> float:
        times = arrivals(2000, 1.0, burstiness, seed=1)
        return statistics.pstdev(
            after - before for before, after in pairwise([0.0, *times])
        )

    assert spread(0.25) > 1.5 > spread(1.0) > 0.8 > spread(16.0)


def test_a_closed_loop_keeps_so_many_running(stand_in: StandIn) -> None:
    """At no time do more requests overlap than asked for, and all are answered."""
    with stand_in.client(tokens=3, pace=0.01) as client:
        told: list[Measured] = []
        found = Load(client, {}, told.append).keep_running([MESSAGES] * 9, 3)

    assert told == found
    assert len(found) == 9
    moments = [(one.sent, 1) for one in found] + [(one.ended, -1) for one in found]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    assert most == 3
    for one in found:
        assert len(one.chunk_times) == 3
        assert one.late is None
        assert (one.prompt_tokens, one.cached_tokens, one.output_tokens) == (10, 2, 3)
        assert one.server_prompt_time == 0.004
        assert one.server_generation_time is None
        assert one.server_tokens_per_second == 50.0


def test_the_clients_times_are_the_stand_ins(stand_in: StandIn) -> None:
    """No token is noted before its moment, and none waits for those after it."""
    with stand_in.client(before=0.05, tokens=4, pace=0.1) as client:
        found = Load(client, {}).keep_running([MESSAGES] * 4, 2)

    assert min(one.time_to_first_token for one in found) >= 0.15
    for one in found:
        for number, moment in enumerate(one.chunk_times, start=1):
            assert moment - one.sent >= 0.05 + number * 0.1
        assert one.ended >= one.chunk_times[-1]
    # A machine that stands still for a while brings pieces together, but not in all.
    assert max(one.chunk_times[-1] - one.chunk_times[0] for one in found) >= 0.15


def test_pieces_without_text_are_no_tokens(stand_in: StandIn) -> None:
    """Thinking and tool calls count; progress, the role and the end do not."""
    with stand_in.client(thoughts=2, tokens=2, progress=3) as client:
        (one,) = Load(client, {}).keep_running([MESSAGES], 1)
    assert len(one.chunk_times) == 4

    with stand_in.client(calls=1) as client:
        (one,) = Load(client, {}).keep_running([MESSAGES], 1)
    assert one.error is None
    assert len(one.chunk_times) >= 2

    with stand_in.client(tokens=0) as client:
        (one,) = Load(client, {}).keep_running([MESSAGES], 1)
    assert one.error == "EmptyAnswer"


def test_an_open_loop_waits_for_nobody(stand_in: StandIn) -> None:
    """Requests are sent at their times though none is answered yet."""
    times = [0.0, 0.02, 0.04, 0.06]
    with stand_in.client(before=1.5) as client:
        began = time.monotonic()
        found = Load(client, {}).send_at([MESSAGES] * 4, times)

    assert len(found) == 4
    ordered = sorted(one.sent for one in found)
    assert ordered[-1] < min(one.ended for one in found)
    for due, sent in zip(times, ordered, strict=True):
        assert sent - began >= due
    for one in found:
        assert one.late is not None
        assert 0 <= one.late <= one.sent - began


def test_lateness_is_from_when_a_request_was_due(stand_in: StandIn) -> None:
    """What was due half a minute ago is that late, and what was due now is not."""
    with stand_in.client() as client:
        found = Load(client, {}).send_at([MESSAGES] * 2, [-30.0, 0.0])

    due, overdue = sorted(one.late for one in found if one.late is not None)
    assert 0 <= due < 30 <= overdue


def test_answers_come_in_while_later_requests_wait(stand_in: StandIn) -> None:
    """An open loop tells of an answer before its last request is sent."""
    url = stand_in.url()

    def tell(_: Measured) -> None:
        raise ZeroDivisionError

    with LlamaCppClient(url) as client, pytest.raises(ZeroDivisionError):
        Load(client, {}, tell).send_at([MESSAGES] * 2, [0.0, 60.0])

    assert len(stand_in.seen(url)) == 1


def test_failures_are_measured_as_such(stand_in: StandIn) -> None:
    """Each kind of failure has its name, and the load goes on."""
    with stand_in.client(end="error") as client:
        found = Load(client, {}).keep_running([MESSAGES] * 3, 2)
    assert [one.error for one in found] == ["StreamError"] * 3

    with stand_in.client(status=400, error="exceed_context_size_error") as client:
        (one,) = Load(client, {}).keep_running([MESSAGES], 1)
    assert one.error == "ContextLengthError"

    with LlamaCppClient("http://127.0.0.1:9") as client:
        (one,) = Load(client, {}).send_at([MESSAGES], [0.0])
    assert one.error == "ConnectionFailedError"


def test_what_must_work_ends_with_its_error(stand_in: StandIn) -> None:
    """A warm-up that fails raises what the server says."""
    with (
        stand_in.client(status=400) as client,
        pytest.raises(ClientError, match="no"),
    ):
        Load(client, {}, must_work=True).keep_running([MESSAGES] * 4, 2)


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_what_is_no_failure_of_a_server_is_raised(stand_in: StandIn, loop: str) -> None:
    """An option that does not exist is an error of the caller, not of a request."""
    with stand_in.client() as client:
        load = Load(client, {"no_such_option": 1})
        with pytest.raises(ConfigurationError, match="no_such_option"):
            if loop == "closed":
                load.keep_running([MESSAGES] * 3, 2)
            else:
                load.send_at([MESSAGES] * 3, [0.0, 5.0, 60.0])


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_ctrl_c_ends_everything(stand_in: StandIn, loop: str) -> None:
    """The interrupt passes, every stream is ended, and no thread is left."""
    url = stand_in.url(tokens=100, pace=0.1)
    count = 4 if loop == "closed" else 2
    with (
        LlamaCppClient(url) as client,
        pytest.raises(KeyboardInterrupt),
        interrupted_at(stand_in, url, count),
    ):
        load = Load(client, {})
        if loop == "closed":
            load.keep_running([MESSAGES] * 20, 4)
        else:
            load.send_at([MESSAGES] * 3, [0.0, 0.0, 60.0])

    names = [thread.name for thread in threading.enumerate()]
    assert "llamatelemetry-bench" not in names
    deadline = time.monotonic() + 5
    while any(one["hung_up_after"] is None for one in stand_in.seen(url)):
        assert time.monotonic() < deadline
    assert len(stand_in.seen(url)) == count


def test_a_stream_that_begins_too_late_is_ended(stand_in: StandIn) -> None:
    """A thread that comes to its request after the interrupt sends nothing."""
    url = stand_in.url()
    with LlamaCppClient(url) as client:
        load = Load(client, {})
        load._end()
        one = load._ask(MESSAGES)

    assert one.error == "EmptyAnswer"
    assert stand_in.seen(url) == []
