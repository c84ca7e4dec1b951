"""What is measured, and what is made of it. Pure.

The metrics are those of ``vllm bench serve`` (vllm/benchmarks/serve.py, read at commit
def9ce85ba10 of vllm-project/vllm), from the client's clock:

- time to first token (TTFT): from sending a request to its first piece;
- inter-token latency (ITL): from each piece of an answer to the next, those of all
  answers together;
- end to end latency (E2EL): from sending a request to the end of its answer;
- time per output token (TPOT): (E2EL - TTFT) / (output tokens - 1), for each answer of
  more than one token;
- requests, output tokens and all tokens per second: what was answered, divided by the
  time from the load's beginning to the end of its last request.

Percentiles lie between two values as NumPy's do, and the standard deviation divides by
the number of values. Two things differ. A piece counts only if it has text, thinking or
a tool call in it: llama-server sends one before the first token that has none, and one
after the last. And an answer without any such piece is an error, for chats too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

__all__ = ["LoadResult", "Measured", "Statistics", "statistics_of", "summary_of"]

EMPTY_ANSWER = "EmptyAnswer"
"""What an answer without text is counted as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One request that is over, in seconds of ``time.monotonic()``.

    Attributes:
        sent: When it was sent.
        ended: When its answer was whole, or it failed.
        chunk_times: When each piece of its answer came.
        prompt_tokens: Tokens of its prompt, cached ones included; None if not told.
        cached_tokens: Those of them that were in the cache, or None.
        output_tokens: Tokens of its answer; None where the server does not count.
        server_prompt_time: Seconds the server took for the prompt, or None.
        server_generation_time: Seconds it took for the answer, or None.
        server_tokens_per_second: Tokens per second as the server says, or None.
        late: Seconds from when it was due to when it was sent; None in a closed loop.
        error: The name of what it failed with; None if it did not.
    """

    sent: float
    ended: float
    chunk_times: Sequence[float] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    server_prompt_time: float | None = None
    server_generation_time: float | None = None
    server_tokens_per_second: float | None = None
    late: float | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer; its pieces, where the server does not count."""
        counted = self.output_tokens
        return len(self.chunk_times) if counted is None else counted

    @property
    def time_to_first_token(self) -> float:
        """Seconds from sending to the first piece."""
        return self.chunk_times[0] - self.sent

    @property
    def end_to_end_latency(self) -> float:
        """Seconds from sending to the end."""
        return self.ended - self.sent

    @property
    def time_per_output_token(self) -> float | None:
        """Seconds for each token after the first; None where there is but one."""
        if self.tokens <= 1:
            return None
        rest = self.end_to_end_latency - self.time_to_first_token
        return rest / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Statistics:
    """How values are spread; times are in seconds.

    Attributes:
        mean: Their mean.
        median: Half of them are below it.
        p90: Nine of ten are below it.
        p99: 99 of 100 are below it.
        std: Their standard deviation.
        count: How many there are.

    Example:
        >>> from llamatelemetry.bench import benchmark
        >>> result = benchmark(
        ...     client, concurrency=1, requests=2, max_tokens=8, progress=False
        ... )
        >>> latency = result.loads[0].inter_token_latency
        >>> latency.count, 0 < latency.median <= latency.p99
        (14, True)
    """

    mean: float
    median: float
    p90: float
    p99: float
    std: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What one load has brought; times are in seconds, None is what nobody told.

    The statistics are over the requests that were answered.

    Attributes:
        concurrency: Requests kept running at once; None in an open loop.
        request_rate: Requests sent per second; None in a closed loop.
        requests: How many were sent.
        errors: How many failed, by the name of the error.
        duration: Seconds from the beginning to the end of the last request.
        prompt_tokens: Tokens of all prompts, cached ones included.
        cached_tokens: Those of them that the server still had.
        output_tokens: Tokens of all answers; their pieces, where the server does not
            count.
        time_to_first_token: From sending to the first piece.
        inter_token_latency: From each piece to the next; a piece of several tokens, as
            with a draft model, counts as one.
        time_per_output_token: For each answer, its seconds after the first piece
            divided by its tokens after the first.
        end_to_end_latency: From sending to the end.
        server_prompt_time: What the server says it took for the prompt.
        server_generation_time: What it says it took for the answer.
        server_tokens_per_second: What it says of each answer.
        lateness: How late requests were sent, by this process's own fault; None in a
            closed loop.
        joules: Energy that the cards took meanwhile.

    Example:
        >>> from llamatelemetry.bench import benchmark
        >>> result = benchmark(
        ...     client, concurrency=2, requests=4, max_tokens=8, progress=False
        ... )
        >>> load = result.loads[0]
        >>> load.completed, load.output_tokens, load.errors
        (4, 32, {})
        >>> load.server_prompt_time.median < load.time_to_first_token.median
        True
    """

    concurrency: int | None = None
    request_rate: float | None = None
    requests: int
    errors: Mapping[str, int] = field(default_factory=dict)
    duration: float
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int
    time_to_first_token: Statistics | None = None
    inter_token_latency: Statistics | None = None
    time_per_output_token: Statistics | None = None
    end_to_end_latency: Statistics | None = None
    server_prompt_time: Statistics | None = None
    server_generation_time: Statistics | None = None
    server_tokens_per_second: Statistics | None = None
    lateness: Statistics | None = None
    joules: float | None = None

    @property
    def name(self) -> str:
        """The load in words: "4 at once", "2.5 a second"."""
        if self.concurrency is not None:
            return f"{self.concurrency} at once"
        return f"{self.request_rate:g} a second"

    @property
    def completed(self) -> int:
        """How many requests were answered."""
        return self.requests - sum(self.errors.values())

    @property
    def requests_per_second(self) -> float:
        """Answered requests per second."""
        return self.completed / self.duration

    @property
    def output_tokens_per_second(self) -> float:
        """Tokens of answers per second, over all requests."""
        return self.output_tokens / self.duration

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """Tokens of prompts per second, cached ones included; None if not told."""
        return (
            None if self.prompt_tokens is None else self.prompt_tokens / self.duration
        )

    @property
    def total_tokens_per_second(self) -> float | None:
        """Tokens of prompts and answers per second; None if not told."""
        prompts = self.prompt_tokens_per_second
        return None if prompts is None else prompts + self.output_tokens_per_second

    @property
    def joules_per_output_token(self) -> float | None:
        """Joules for each token of the answers; None where nobody told power."""
        if self.joules is None or not self.output_tokens:
            return None
        return self.joules / self.output_tokens

    @property
    def watts(self) -> float | None:
        """What the cards drew in the mean; None where nobody told power."""
        return None if self.joules is None else self.joules / self.duration


CLIENT_TIMES = (
    "time_to_first_token",
    "inter_token_latency",
    "time_per_output_token",
    "end_to_end_latency",
)
SERVER_VALUES = (
    "server_prompt_time",
    "server_generation_time",
    "server_tokens_per_second",
)
SPREADS = (*CLIENT_TIMES, *SERVER_VALUES, "lateness")
"""The fields of a load that are :class:`Statistics`."""


def statistics_of(values: Iterable[float | None]) -> Statistics | None:
    """Return how values are spread, None left out; None if there are none."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    variance = math.fsum((value - mean) ** 2 for value in known) / len(known)
    return Statistics(
        mean=mean,
        median=percentile(known, 50),
        p90=percentile(known, 90),
        p99=percentile(known, 99),
        std=math.sqrt(variance),
        count=len(known),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of values in order, between two of them where it lies so."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _sum(values: Iterable[int | None]) -> int | None:
    """Return a sum; None where a part is not known, which would be taken for 0."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return sum(numbers) if len(numbers) == len(known) else None


def summary_of(requests: Sequence[Measured], duration: float) -> dict[str, Any]:
    """Return the fields of a :class:`LoadResult` that follow from its requests.

    Args:
        requests: All that were sent.
        duration: Seconds from the beginning to the end of the last one.
    """
    good = [one for one in requests if one.error is None]
    gaps = (
        after - before for one in good for before, after in pairwise(one.chunk_times)
    )
    plain = (
        "time_to_first_token",
        "time_per_output_token",
        "end_to_end_latency",
        *SERVER_VALUES,
        "lateness",
    )
    sources = {"lateness": "late"}
    spreads = {
        name: statistics_of(getattr(one, sources.get(name, name)) for one in good)
        for name in plain
    }
    return {
        "requests": len(requests),
        "errors": dict(Counter(one.error for one in requests if one.error is not None)),
        "duration": duration,
        "prompt_tokens": _sum(one.prompt_tokens for one in good),
        "cached_tokens": _sum(one.cached_tokens for one in good),
        "output_tokens": sum(one.tokens for one in good),
        "inter_token_latency": statistics_of(gaps),
        **spreads,
    }
