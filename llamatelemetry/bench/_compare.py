"""compare(): two servers, or two ways to run one, measured in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.bench import _stored
from llamatelemetry.bench._benchmark import (
    CONCURRENCY,
    Bench,
    Plan,
    keep,
    not_ours,
    planned,
    whole,
)
from llamatelemetry.bench._metrics import LoadResult
from llamatelemetry.bench._prompts import Given
from llamatelemetry.bench._ratios import checked_metrics
from llamatelemetry.bench._target import Target, checked_target, opened
from llamatelemetry.bench.comparison import Comparison
from llamatelemetry.bench.results import BenchmarkResult
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.server._preflight import check_files
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import EngineLike, find_engine
from llamatelemetry.server.manager import ServerManager

__all__ = ["Compared", "compare"]

Compared: TypeAlias = Target | ServerConfig
Opening: TypeAlias = Callable[[], AbstractContextManager[Bench]]

_METRICS = ("output_tokens_per_second", "time_to_first_token", "time_per_output_token")
_MOST_ROUNDS = 1000


def compare(
    a: Compared,
    b: Compared,
    prompts: Given = None,
    *,
    rounds: int = 6,
    metrics: str | Sequence[str] = _METRICS,
    names: tuple[str, str] = ("a", "b"),
    side_by_side: bool = False,
    engine: EngineLike | None = None,
    concurrency: int = 1,
    request_rate: float | None = None,
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
) -> Comparison:
    """Measure two things in turn, a b b a, and say whether they differ.

    Both are asked the same in each round, and something else in the next. What slows
    the machine down for a while slows both, and the order wears off. A ratio is that of
    one round; of their median there is a spread, and where it has 1 in it no
    difference can be told. Six rounds are the fewest that can tell one.

    A ServerConfig's server is started and stopped for each of its turns, since two
    may not fit a card; ``side_by_side=True`` has both loaded all the time, which spares
    the loading. Either gets a free port.

    Where more requests of one failed, or its answers are longer in the mean by more
    than 1 %, the two did not do the same work, and there is no verdict. Each verdict is
    at least 95 % sure by itself; of several, one is more likely to be chance.

    As in :func:`benchmark` prompts are computed anew each time, so that a server can be
    compared with itself; with a ``shared_prefix`` they are not. And what ends it early
    has the whole rounds that were finished, as a comparison in its ``partial``.

    Args:
        a: A session, a pool, a client, a URL, or the ServerConfig of a server to start.
        b: What it is compared with, likewise.
        prompts: As for :func:`benchmark`.
        rounds: How many ratios there are.
        metrics: What they are compared by: names of numbers and times of a
            :class:`LoadResult`; of times, the median of a round.
        names: What they are called where they are shown.
        side_by_side: Whether servers of configurations run all the time.
        engine: What configurations are started with; None: see
            :func:`llamatelemetry.server.find_engine`.
        concurrency: Requests kept running at once.
        request_rate: Requests sent per second, in place of that.
        requests: Requests of each round, as for :func:`benchmark`.
        max_tokens: Tokens of an answer.
        prompt_tokens: Tokens of a made prompt.
        shared_prefix: Tokens at the beginning that all made prompts have in common.
        warm_up: Requests before each turn that are not measured, as for
            :func:`benchmark`.
        burstiness: How requests of an open loop are spread.
        seed: Equal seeds give equal prompts and arrivals.
        temperature: 0 takes the likeliest token always.
        ignore_eos: Whether an answer goes on to its last token.
        timeout: Seconds of silence after which a request fails.
        monitor: Watches the cards.
        progress: Whether bars are shown.
        **sampling: What else chat_completion takes.

    Raises:
        ConfigurationError: A value cannot work; nothing was sent or started.
        LLCudaError: A server cannot be started or asked.

    Example:
        >>> from llamatelemetry import ServerConfig
        >>> from llamatelemetry.bench import compare
        >>> one = ServerConfig("model.gguf", context_size=512, threads=1)
        >>> other = one.replace(cache_type_k="q8_0")
        >>> comparison = compare(
        ...     one, other, rounds=1, requests=2, max_tokens=8, side_by_side=True,
        ...     progress=False,
        ... )
        >>> comparison.ratios[0].verdict
        'too few rounds to tell a difference: six are needed'
    """
    chosen = checked_metrics(metrics)
    first, second = _checked_names(names)
    plan = planned(
        prompts=prompts,
        **_repeated(concurrency, request_rate, rounds),
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
        sampling={"temperature": temperature, **not_ours(compare, sampling)},
    )
    engine = _checked_engine((a, b), engine)
    sides = [
        _Side(name, _opening(one, plan, engine, progress=progress))
        for name, one in ((first, a), (second, b))
    ]

    def compared(count: int) -> Comparison:
        one, other = (side.result(count) for side in sides)
        return Comparison(one, other, (first, second), chosen, _differences(a, b))

    try:
        with ExitStack() as ending:
            for side, one in zip(sides, (a, b), strict=True):
                if side_by_side or not isinstance(one, ServerConfig):
                    side.keep_open(ending)
            for number in range(rounds):
                # In turn, and the other one first the next time.
                for side in sides if number % 2 == 0 else reversed(sides):
                    side.take_turn(number)
    except (KeyboardInterrupt, LLCudaError) as error:
        if done := min(side.rounds for side in sides):
            keep(error, compared(done))
        raise
    return compared(rounds)


class _Side:
    """One of the two, with what it has brought so far.

    Args:
        name: What it is called.
        opening: Opens it to be measured.
    """

    def __init__(self, name: str, opening: Opening) -> None:
        self._name, self._opening = name, opening
        self._kept: Bench | None = None
        self._loads: list[LoadResult] = []
        self._result: BenchmarkResult | None = None

    @property
    def rounds(self) -> int:
        """How many turns it has had."""
        return 0 if self._result is None else len(self._loads)

    def result(self, rounds: int) -> BenchmarkResult:
        """Return what it has brought in its first rounds, after a turn at least."""
        assert self._result is not None  # noqa: S101 - for the type checker
        return replace(self._result, loads=tuple(self._loads[:rounds]))

    def keep_open(self, ending: ExitStack) -> None:
        """Open it now, until all has ended."""
        self._kept = ending.enter_context(self._opening())

    def take_turn(self, number: int) -> None:
        """Measure one round."""
        with ExitStack() as ending:
            bench = self._kept or ending.enter_context(self._opening())
            told = f"round {number + 1}, {self._name}, "
            self._loads.append(bench.measure(number, told))
            began = self._result.time if self._result is not None else None
            self._result = bench.result(self._loads, began)


def _checked_engine(
    both: tuple[Compared, Compared], engine: EngineLike | None
) -> EngineLike | None:
    """Return what servers are started with, if there are any.

    What cannot start is said before the other one has worked for nothing.

    Raises:
        LLCudaError: There is no such engine, no such model, or nothing to be asked.
    """
    for one in both:
        if isinstance(one, ServerConfig):
            engine = find_engine(engine)
            check_files(one)
        else:
            checked_target(one)
    return engine


def _differences(a: Compared, b: Compared) -> dict[str, Any]:
    """Return what the second configuration has otherwise than the first; never a key.

    Neither gets the port that it names, and why something was chosen changes nothing.
    """
    if not (isinstance(a, ServerConfig) and isinstance(b, ServerConfig)):
        return {}
    one, other = (_stored.plain_json(each.to_dict()) for each in (a, b))
    return {
        name: value
        for name, value in other.items()
        if name not in ("port", "notes") and value != one[name]
    }


def _opening(
    what: Compared,
    plan: Plan,
    engine: EngineLike | None,
    *,
    progress: bool,
) -> Opening:
    """Return what opens one of the two; nothing is started before that."""

    @contextmanager
    def opening() -> Iterator[Bench]:
        with ExitStack() as ending:
            target = what
            if isinstance(target, ServerConfig):
                # Both may name the same port, and both may run.
                config = target.replace(port=0)
                server = ending.enter_context(ServerManager(config, engine=engine))
                target = ending.enter_context(
                    LlamaCppClient(server.get_url(), config.api_key)
                )
            at = ending.enter_context(opened(target, plan.timeout))
            yield ending.enter_context(Bench.of(at, plan, progress=progress))

    return opening


def _repeated(
    concurrency: Any, request_rate: float | None, rounds: int
) -> dict[str, Any]:
    """Return the same load again and again, a round each.

    Raises:
        ConfigurationError: A value cannot work.
    """
    rounds = whole("rounds", rounds, 1, _MOST_ROUNDS)
    if request_rate is None:
        return {"concurrency": [concurrency] * rounds, "request_rate": None}
    if concurrency != 1:
        raise ConfigurationError(
            "concurrency is of a closed loop and request_rate of an open one: give one"
        )
    return {"concurrency": CONCURRENCY, "request_rate": [request_rate] * rounds}


def _checked_names(names: tuple[str, str]) -> tuple[str, str]:
    """Return what the two are called.

    Raises:
        ConfigurationError: They are not two different texts.
    """
    match names:
        case [str() as one, str() as other] if one != other:
            return one, other
    raise ConfigurationError(
        f"names is {names!r}, and must be two different texts: ('before', 'after')"
    )
