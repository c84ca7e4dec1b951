"""What is made of measured requests."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest

from llamatelemetry.bench._metrics import (
    LoadResult,
    Measured,
    percentile,
    statistics_of,
    summary_of,
)


def measured(**changes: object) -> Measured:
    """Return a request of four tokens, sent at 10 s, with these fields changed."""
    fields = {
        "sent": 10.0,
        "ended": 10.9,
        "chunk_times": (10.2, 10.3, 10.5, 10.8),
        "output_tokens": 4,
        "prompt_tokens": 20,
        "cached_tokens": 5,
        "server_prompt_time": 0.15,
        "server_generation_time": 0.6,
        "server_tokens_per_second": 6.5,
    }
    return Measured(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_definitions_are_those_of_vllm() -> None:
    """Each time is what the definitions make of known moments."""
    one = measured()

    assert one.time_to_first_token == pytest.approx(0.2)
    assert one.end_to_end_latency == pytest.approx(0.9)
    assert one.time_per_output_token == pytest.approx((0.9 - 0.2) / 3)

    summary = summary_of([one], 2.0)
    gaps = summary["inter_token_latency"]
    assert gaps.count == 3
    assert gaps.mean == pytest.approx(0.2)
    assert gaps.median == pytest.approx(0.2)
    load = LoadResult(concurrency=1, **summary)
    assert load.requests_per_second == 0.5
    assert load.output_tokens_per_second == 2
    assert load.prompt_tokens_per_second == 10
    assert load.total_tokens_per_second == 12


def test_failures_are_counted_by_type_and_in_no_statistics() -> None:
    """A request that failed adds to the errors and to nothing else."""
    failed = measured(error="StreamError", chunk_times=(99.0,), output_tokens=1000)
    empty = measured(error="EmptyAnswer", chunk_times=())

    summary = summary_of([measured(), failed, empty, failed], 1.0)
    load = LoadResult(concurrency=2, **summary)

    assert load.errors == {"StreamError": 2, "EmptyAnswer": 1}
    assert (load.requests, load.completed, load.output_tokens) == (4, 1, 4)
    assert load.time_to_first_token is not None
    assert load.time_to_first_token.count == 1
    assert load.prompt_tokens == 20
    assert load.cached_tokens == 5


def test_one_token_has_no_time_per_output_token() -> None:
    """Nothing is divided by 0 tokens; the request counts otherwise."""
    summary = summary_of([measured(chunk_times=(10.2,), output_tokens=1)], 1.0)

    assert summary["time_per_output_token"] is None
    assert summary["inter_token_latency"] is None
    assert summary["time_to_first_token"].count == 1


def test_pieces_are_counted_where_the_server_does_not_count() -> None:
    """Without usage, each piece of the answer is a token."""
    one = measured(output_tokens=None, prompt_tokens=None, cached_tokens=None)

    assert one.tokens == 4


def test_what_nobody_told_of_prompts_is_none() -> None:
    """One answer without usage, and the sum of the prompts' tokens is not known."""
    silent = measured(output_tokens=None, prompt_tokens=None, cached_tokens=None)

    for requests in ([silent], [measured(), silent]):
        load = LoadResult(concurrency=1, **summary_of(requests, 1.0))
        assert (load.prompt_tokens, load.cached_tokens) == (None, None)
        assert load.prompt_tokens_per_second is None
        assert load.total_tokens_per_second is None
        assert load.output_tokens == 4 * len(requests)
    assert summary_of([], 1.0)["prompt_tokens"] == 0


def test_server_values_stand_beside_the_clients() -> None:
    """What the server says is kept as it is, and lateness where a request was due."""
    summary = summary_of([measured(late=0.25), measured(late=0.75)], 1.0)

    assert summary["server_prompt_time"].median == 0.15
    assert summary["server_generation_time"].median == 0.6
    assert summary["server_tokens_per_second"].median == 6.5
    assert summary["lateness"].mean == 0.5
    assert summary_of([measured()], 1.0)["lateness"] is None


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_statistics_are_numpys(count: int) -> None:
    """Mean, percentiles and standard deviation are what NumPy makes of the values."""
    chance = random.Random(count)
    values = [chance.expovariate(3) for _ in range(count)]
    found = statistics_of([None, *values])

    assert found is not None
    assert found.count == count
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values))
    assert found.median == pytest.approx(statistics.median(values))
    for percent, value in ((90, found.p90), (99, found.p99)):
        assert value == pytest.approx(np.percentile(values, percent))
    assert percentile(sorted(values), 100) == max(values)


def test_nothing_has_no_statistics() -> None:
    """No value, or None alone, is None and not 0."""
    assert statistics_of([]) is None
    assert statistics_of([None, None]) is None


def test_loads_have_names_and_energy_per_token() -> None:
    """A load says what it was, and divides its joules by its tokens and seconds."""
    summary = summary_of([measured()], 2.0)
    closed = LoadResult(concurrency=4, joules=10.0, **summary)
    opened = LoadResult(request_rate=2.5, **summary)

    assert (closed.name, opened.name) == ("4 at once", "2.5 a second")
    assert (closed.joules_per_output_token, closed.watts) == (2.5, 5.0)
    assert (opened.joules_per_output_token, opened.watts) == (None, None)
    nothing = LoadResult(concurrency=1, joules=3.0, **summary_of([], 2.0))
    assert nothing.joules_per_output_token is None
