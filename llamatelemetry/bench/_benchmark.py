"""benchmark(): how fast a server answers, under one load after another."""

from __future__ import annotations

import inspect
import numbers
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from llamatelemetry import __version__
from llamatelemetry.api._requests import ChatOptions, Messages
from llamatelemetry.bench import _stored
from llamatelemetry.bench._bar import LoadBar
from llamatelemetry.bench._energy import Meter
from llamatelemetry.bench._load import Load, arrivals
from llamatelemetry.bench._metrics import LoadResult, summary_of
from llamatelemetry.bench._prompts import (
    Given,
    Prompts,
    given_prompts,
    listed,
    made_prompts,
)
from llamatelemetry.bench._target import Opened, Target, opened
from llamatelemetry.bench.results import BenchmarkResult
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.gpu.monitor import GPUMonitor

__all__ = ["Bench", "Plan", "benchmark", "keep", "not_ours", "planned", "whole"]

CONCURRENCY = (1, 2, 4, 8)
_LEAST_REQUESTS, _REQUESTS_OF_RATE = 8, 32
_WARM_UP_TOKENS = 16
_MOST = 1_000_000
_LEAST_BURSTINESS = 0.05
"""With less, a gap may be too short for a number, and no time is left to stretch."""

Each = int | Sequence[int]
Rates = float | Sequence[float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How something is measured, checked."""

    concurrency: tuple[int, ...]
    rates: tuple[float, ...]
    requests: int | None
    max_tokens: int
    prompt_tokens: int
    shared_prefix: int
    warm_up: int | None
    burstiness: float
    seed: int
    ignore_eos: bool
    prompts: Sequence[Messages] | None
    timeout: float
    monitor: GPUMonitor | None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loads(self) -> list[tuple[int | None, float | None]]:
        """The loads in order: requests at once, or requests per second."""
        if self.rates:
            return [(None, rate) for rate in self.rates]
        return [(count, None) for count in self.concurrency]

    def counts(self, place: int) -> tuple[int, int]:
        """Return how many requests a load has before it, to warm up, and in it."""
        at_once, _ = self.loads[place]
        usual = _REQUESTS_OF_RATE
        if at_once is not None:
            usual = max(_LEAST_REQUESTS, 4 * at_once)
        warm_up = (at_once or 1) if self.warm_up is None else self.warm_up
        return warm_up, self.requests or usual

    def options(self, most: int) -> dict[str, Any]:
        """Return what each question is asked with, for answers of so many tokens."""
        extra = dict(self.sampling.get("extra_body") or {})
        if self.ignore_eos:
            extra = {"ignore_eos": True, **extra}
        return {
            "repeat_penalty": 1.0,  # another one costs time, and not the model's
            "seed": self.seed,
            # What was asked before, here or in an earlier run, is computed anew.
            "cache_prompt": self.shared_prefix > 0,
            **self.sampling,
            "max_tokens": most,
            "extra_body": extra,
        }


def benchmark(
    target: Target,
    prompts: Given = None,
    *,
    concurrency: Each = CONCURRENCY,
    request_rate: Rates = None,
    requests: int | None = None,
    max_tokens: int = 128,
    prompt_tokens: int = 128,
    shared_prefix: int = 0,
    warm_up: int | None = None,
    burstiness: float = 1.0,
    seed: int = 0,
    temperature: float = 0,
    ignore_eos: bool = True,
    timeout: float = 600,
    monitor: GPUMonitor | None = None,
    progress: bool = True,
    **sampling: Any,
) -> BenchmarkResult:
    """Measure how fast a server answers chats, under one load after another.

    The metrics are those of ``vllm bench serve``: time to first token, inter-token
    latency, time per output token and end to end latency, by this process's clock.
    What the server says of itself stands beside them. The two differ: the server
    counts from when a slot takes a request to when it has its last token, and knows
    nothing of the wait for a slot, of the way there and back, and of this process.

    Every prompt is computed anew (``cache_prompt=False``), whether it was asked before
    or not, and those that are made here each begin in another way. With a
    ``shared_prefix``, or ``cache_prompt=True``, the server's cache may answer a part;
    ``cached_tokens`` of a load says how much. A second run is then to have another
    ``seed``, or its prompts are all in the cache. Given prompts are asked in turn, and
    the first follows the last.

    Ctrl-C ends all requests. It, or an error that ends a later load, then passes with
    the loads that were finished: in its words, and as a result in its ``partial``.

    Args:
        target: A session, a pool, a client, or a server's URL.
        prompts: Texts, or chats as chat_completion takes them; None to make some.
        concurrency: Requests kept running at once, a load for each: a closed loop.
        request_rate: Requests sent per second, a load for each, whether those before
            are answered or not: an open loop, in place of the closed one.
        requests: Requests of each load; None: four times the concurrency and 8 at
            least, or 32 in an open loop.
        max_tokens: Tokens of an answer.
        prompt_tokens: Tokens of a made prompt; the chat template adds a few.
        shared_prefix: Tokens at their beginning that all made prompts have in common,
            like a system prompt, which the server's cache may then serve.
        warm_up: Requests before each load that are not measured, with answers of at
            most 16 tokens; None: as many as run at once.
        burstiness: Of an open loop: 1 for a Poisson process, less for bursts, more for
            even distances; 0.05 at least.
        seed: Equal seeds give equal prompts and arrivals.
        temperature: 0 takes the likeliest token always.
        ignore_eos: Whether an answer goes on to its last token though the model would
            end it, so that all are equally long.
        timeout: Seconds of silence after which a request fails. A busy server may let
            one wait for long.
        monitor: Watches the cards; None: the session's, or one of our own where the
            server is on this machine. The energy is that of all cards it watches.
        progress: Whether a bar shows how far a load is.
        **sampling: What else chat_completion takes: ``top_k``, ``thinking``, ...

    Raises:
        ConfigurationError: A value cannot work; nothing was sent.
        ClientError: The server cannot be asked, or refuses what is sent first.

    Example:
        >>> from llamatelemetry.bench import benchmark
        >>> result = benchmark(
        ...     client, concurrency=(1, 2), requests=4, max_tokens=8, progress=False
        ... )
        >>> [(load.name, load.completed, load.output_tokens) for load in result.loads]
        [('1 at once', 4, 32), ('2 at once', 4, 32)]
    """
    plan = planned(
        prompts=prompts,
        concurrency=concurrency,
        request_rate=request_rate,
        requests=requests,
        max_tokens=max_tokens,
        prompt_tokens=prompt_tokens,
        shared_prefix=shared_prefix,
        warm_up=warm_up,
        burstiness=burstiness,
        seed=seed,
        ignore_eos=ignore_eos,
        timeout=timeout,
        monitor=monitor,
        sampling={"temperature": temperature, **not_ours(benchmark, sampling)},
    )
    done: list[LoadResult] = []
    with ExitStack() as ending:
        at = ending.enter_context(opened(target, timeout))
        bench = ending.enter_context(Bench.of(at, plan, progress=progress))
        try:
            for place in range(len(plan.loads)):
                done.append(bench.measure(place))  # noqa: PERF401 - kept if interrupted
        except (KeyboardInterrupt, LLCudaError) as error:
            if done:
                keep(error, bench.result(done))
            raise
        return bench.result(done)


def keep(error: KeyboardInterrupt | LLCudaError, partial: object) -> None:
    """Put what was measured into what ended it: nothing is lost.

    Args:
        error: Gets it as ``partial``, and shows it.
        partial: The result of what was finished.
    """
    error.partial = partial  # type: ignore[union-attr]
    told = f"measured so far, and kept as this error's .partial:\n{partial}"
    if isinstance(error, KeyboardInterrupt):
        error.args = (told,)  # IPython 7, which Colab has, shows no notes
    else:
        error.add_note(told)


class Bench:
    """One target that is being measured.

    Args:
        at: The target.
        plan: How it is measured.
        prompts: What it is asked.
        meter: Measures the cards' energy.
        progress: Whether bars are shown.
    """

    def __init__(
        self, at: Opened, plan: Plan, prompts: Prompts, meter: Meter, *, progress: bool
    ) -> None:
        self._at, self._plan, self._prompts = at, plan, prompts
        self._meter, self._progress = meter, progress
        self._began = time.time()

    @classmethod
    @contextmanager
    def of(cls, at: Opened, plan: Plan, *, progress: bool) -> Iterator[Bench]:
        """Measure one target; its cards are watched inside.

        Raises:
            ConfigurationError: An option that chat_completion has not; nothing was
                generated.
        """
        options: Any = plan.options(plan.max_tokens)
        at.client.chat_completion_stream([{"role": "user", "content": "?"}], **options)
        if plan.prompts is None:
            prompts = made_prompts(
                at.client,
                tokens=plan.prompt_tokens,
                shared=plan.shared_prefix,
                seed=plan.seed,
            )
        else:
            prompts = given_prompts(plan.prompts)
        with Meter(plan.monitor or at.monitor, local=at.is_local) as meter:
            yield cls(at, plan, prompts, meter, progress=progress)

    def measure(self, place: int, name: str = "") -> LoadResult:
        """Measure one load of the plan.

        Args:
            place: Which one.
            name: What the bar says before it.
        """
        plan = self._plan
        at_once, rate = plan.loads[place]
        warm_up, count = plan.counts(place)
        before = sum(sum(plan.counts(one)) for one in range(place))
        chats = self._prompts(place, before, warm_up + count)
        self._warm_up(chats[:warm_up], at_once or 1)
        chats = chats[warm_up:]
        told = f"{rate:g} a second" if at_once is None else f"{at_once} at once"
        with LoadBar(f"{name}{told}", count, shown=self._progress) as bar:
            options = plan.options(plan.max_tokens)
            load = Load(self._at.client, options, lambda _: bar.advance())
            self._meter.begin()
            began = time.monotonic()
            if rate is None:
                requests = load.keep_running(chats, at_once or 1)
            else:
                times = arrivals(count, rate, plan.burstiness, plan.seed + place)
                requests = load.send_at(chats, times)
            duration = time.monotonic() - began
            joules = self._meter.end()
        return LoadResult(
            concurrency=at_once,
            request_rate=rate,
            joules=joules,
            **summary_of(requests, duration),
        )

    def _warm_up(self, chats: Sequence[Messages], at_once: int) -> None:
        """Have the server ready; what it refuses now it would refuse later.

        Raises:
            ClientError: A request has failed.
        """
        options = self._plan.options(min(self._plan.max_tokens, _WARM_UP_TOKENS))
        load = Load(self._at.client, options, must_work=True)
        load.keep_running(chats, at_once)

    def result(
        self, loads: Sequence[LoadResult], began: float | None = None
    ) -> BenchmarkResult:
        """Return what these loads and the target are together.

        Args:
            loads: The loads so far.
            began: When the first began, where that was not measured by this one.
        """
        at, plan = self._at, self._plan
        is_made = plan.prompts is None
        return BenchmarkResult(
            loads=tuple(loads),
            address=at.address,
            model=at.model,
            build=at.build,
            slots=at.slots,
            prompts="made" if is_made else "given",
            prompt_tokens=plan.prompt_tokens if is_made else None,
            shared_prefix=plan.shared_prefix if is_made else 0,
            max_tokens=plan.max_tokens,
            ignore_eos=plan.ignore_eos,
            sampling=_stored.plain_json(plan.sampling),
            seed=plan.seed,
            burstiness=plan.burstiness,
            cards=self._meter.cards,
            idle_watts=self._meter.idle_watts,
            version=__version__,
            time=self._began if began is None else began,
        )


def planned(
    *,
    concurrency: Each,
    request_rate: Rates,
    requests: int | None,
    max_tokens: int,
    prompt_tokens: int,
    shared_prefix: int,
    warm_up: int | None,
    burstiness: float,
    seed: int,
    ignore_eos: bool,
    timeout: float,
    prompts: Given,
    monitor: GPUMonitor | None,
    sampling: Mapping[str, Any],
) -> Plan:
    """Return how something is measured.

    Raises:
        ConfigurationError: A value cannot work.
    """
    at_once = _each("concurrency", concurrency)
    rates = () if request_rate is None else _each("request_rate", request_rate)
    if rates and at_once != CONCURRENCY:
        raise ConfigurationError(
            "concurrency is of a closed loop and request_rate of an open one: give one"
        )
    if monitor is not None and not isinstance(monitor, GPUMonitor):
        raise ConfigurationError(f"monitor is {monitor!r}, and must be a GPUMonitor")
    return Plan(
        concurrency=tuple(whole("concurrency", one) for one in at_once),
        rates=tuple(_above_0("request_rate", one) for one in rates),
        requests=None if requests is None else whole("requests", requests),
        max_tokens=whole("max_tokens", max_tokens),
        prompt_tokens=whole("prompt_tokens", prompt_tokens),
        shared_prefix=whole("shared_prefix", shared_prefix, 0, prompt_tokens - 1),
        warm_up=None if warm_up is None else whole("warm_up", warm_up, 0),
        burstiness=_above_0("burstiness", burstiness, _LEAST_BURSTINESS),
        seed=whole("seed", seed, 0, 2**32 - 1),
        ignore_eos=ignore_eos,
        timeout=_above_0("timeout", timeout),
        prompts=None if prompts is None else listed(prompts),
        monitor=monitor,
        sampling=_checked_sampling(sampling),
    )


def not_ours(
    measure: Callable[..., object], sampling: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return what was given beside our own parameters, none of them misspelt.

    Args:
        measure: What was called with it, and takes it as its last parameter.
        sampling: What was given.

    Raises:
        ConfigurationError: A name that chat_completion has not is like one of ours.
    """
    *ours, _ = inspect.signature(measure).parameters  # the last one takes all others
    for name in sampling.keys() - ChatOptions.__optional_keys__:
        begun = [known for known in ours if known.startswith(name)]
        if near := begun or get_close_matches(name, ours, n=1):
            raise ConfigurationError(
                f"{measure.__name__} has no option {name} (did you mean {near[0]}?)"
            )
    return sampling


def _checked_sampling(sampling: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what else is sent; what chat_completion does not know it says itself."""
    for name, instead in (
        ("messages", "what is asked is given as prompts"),
        ("stream", "answers are always streamed, or no first token could be timed"),
    ):
        if name in sampling:
            raise ConfigurationError(f"there is no {name} here: {instead}")
    extra = sampling.get("extra_body")
    if extra is not None and not isinstance(extra, Mapping):
        raise ConfigurationError(f"extra_body is {extra!r}, and must be a dict")
    return sampling


def _each(name: str, value: Any) -> tuple[Any, ...]:
    """Return one value or several as a tuple."""
    several = tuple(value) if isinstance(value, Sequence) else (value,)
    if not several or isinstance(value, str):
        raise ConfigurationError(
            f"{name} is {value!r}, and must be a number or some of them"
        )
    return several


def whole(name: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    """Return a whole number within bounds.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise ConfigurationError(
            f"{name} is {value!r}, and must be a whole number from {least} to {most}"
        )
    return number


def _above_0(name: str, value: Any, least: float = 0) -> float:
    known = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not known or not 0 < value <= _MOST or value < least:
        bounds = f"from {least} to" if least else "above 0, at most"
        raise ConfigurationError(
            f"{name} is {value!r}, and must be a number {bounds} {_MOST:,}"
        )
    return float(value)
