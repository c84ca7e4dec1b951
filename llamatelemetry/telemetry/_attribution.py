"""What a request cost: power integrated over its time, and its part of that. Pure.

Power between two samples is taken to change evenly (the trapezoid rule), also where a
request begins or ends between two. What a card draws when it is idle is not subtracted:
a request pays for the card while it runs.

Where several requests run at once, their time is cut where a sample was taken, and
where one of them began or ended. The energy of each piece is split by the tokens that
each has produced in it, and evenly in a piece in which none has produced any. That is a
convention: reading a prompt takes energy too, and another slot's tokens are cheaper
beside it. But the parts of all add up to what the cards drew while any of them ran.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Attribution", "CardSeries", "Ran", "attribute", "joules_under"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """What the cards drew and held while a request ran.

    Power is read from time to time and taken to change evenly in between, so what a
    request shorter than that took is an estimate. Idle power is not subtracted. How
    requests that run at once are told apart is a convention, see ``own_joules``.

    Attributes:
        request: The request's number in its timeline.
        seconds: How long it ran.
        tokens: Tokens it generated; None if not known.
        joules: What the cards of its server drew while it ran, all together; None
            where that is not known of each of them.
        own_joules: Its part of that. Where requests ran at once, the energy between two
            samples is split by the tokens each has produced meanwhile, and evenly where
            none has produced any.
        joules_by_card: The same as ``joules`` for each card, by its index.
        peak_memory_bytes: The most memory that was seen used on each card while it ran;
            where it was shorter than the time between two samples, the larger of both.
        samples: How often the cards were read while it ran.
        problem: Why there are no joules, in a sentence; None where there are.

    Examples:
        >>> from llamatelemetry import GPUMonitor, LlamaCppClient
        >>> from llamatelemetry.telemetry import record
        >>> with GPUMonitor(interval=0.05) as monitor, LlamaCppClient(url) as client:
        ...     with record(client, monitor=monitor) as timeline:
        ...         answer = client.completion("The KV cache", 8, temperature=0)
        >>> cost = timeline.attribute(timeline.requests[0])
        >>> cost.tokens, cost.peak_memory_bytes, cost.share
        (8, {0: 3145728, 1: 3145728}, 1.0)
        >>> abs(cost.joules - 19 * cost.seconds) < 1e-6  # two cards with 9.5 W each
        True
    """

    request: int
    seconds: float
    tokens: int | None = None
    joules: float | None = None
    own_joules: float | None = None
    joules_by_card: Mapping[int, float | None]
    peak_memory_bytes: Mapping[int, int | None]
    samples: int = 0
    problem: str | None = None

    @property
    def share(self) -> float | None:
        """Its part of the energy, from 0 to 1; None where that is not known."""
        if self.joules is None or self.own_joules is None:
            return None
        return self.own_joules / self.joules if self.joules else None

    @property
    def joules_per_token(self) -> float | None:
        """Joules of its own for each token it generated; None where not known."""
        if self.own_joules is None or not self.tokens:
            return None
        return self.own_joules / self.tokens


@dataclass(frozen=True, slots=True)
class Ran:
    """When a request ran, and when its tokens came.

    Attributes:
        start: When it was sent.
        end: When it was over.
        first: When its first token came; None if none came, or nobody knows.
        tokens: How many tokens came.
        token_times: When each came, in order; empty if nobody has noted that.
    """

    start: float
    end: float
    first: float | None = None
    tokens: int = 0
    token_times: Sequence[float] = ()

    def tokens_between(self, begin: float, end: float) -> float:
        """Return how many tokens came in a time; evenly, where nobody knows when."""
        times = self.token_times
        if times:
            seen = bisect_right(times, end) - bisect_right(times, begin)
            return seen * max(self.tokens, 1) / len(times)
        since = self.start if self.first is None else self.first
        inside = min(end, self.end) - max(begin, since)
        whole = self.end - since
        return self.tokens * inside / whole if whole > 0 and inside > 0 else 0.0


@dataclass(frozen=True, slots=True)
class CardSeries:
    """What a card has said, oldest first.

    Attributes:
        times: When it was asked.
        watts: What it drew; None where it did not tell.
        used_bytes: How much of its memory was used; likewise.
    """

    times: Sequence[float]
    watts: Sequence[float | None]
    used_bytes: Sequence[int | None]


class _UnknownError(Exception):
    """It cannot be told; says why."""


def attribute(
    number: int,
    ran: Ran,
    cards: Mapping[int, CardSeries],
    others: Mapping[int, Sequence[Ran]],
    *,
    tokens: int | None,
    longest_gap: float,
) -> Attribution:
    """Return what a request cost.

    Args:
        number: The request's.
        ran: When it ran.
        cards: What each card of its server has said, by the card's index.
        others: The other requests that used a card meanwhile, by the card's index.
        tokens: Tokens it generated, as the server counts; None if not known.
        longest_gap: Seconds between two samples, above which nothing is said.
    """
    joules: dict[int, float | None] = {}
    own, problems = 0.0, []
    for index, series in cards.items():
        try:
            curve = _curve(series, ran.start, ran.end, longest_gap)
        except _UnknownError as error:
            joules[index] = None
            problems.append(f"GPU {index}: {error}")
        else:
            joules[index] = joules_under(curve)
            own += _own_part(curve, ran, others.get(index, ()))
    if not cards:
        problems.append("no card was watched that its server uses")
    known = [each for each in joules.values() if each is not None]
    return Attribution(
        request=number,
        seconds=ran.end - ran.start,
        tokens=tokens,
        joules=None if problems else sum(known),
        own_joules=None if problems else own,
        joules_by_card=joules,
        peak_memory_bytes={
            index: _peak(series, ran.start, ran.end) for index, series in cards.items()
        },
        samples=max((_count(one.times, ran) for one in cards.values()), default=0),
        problem="; ".join(problems) or None,
    )


def joules_under(curve: Sequence[tuple[float, float]]) -> float:
    """Return the energy from a card's first sample to its last.

    Args:
        curve: Times in seconds, and watts; oldest first.
    """
    return sum(
        (one[1] + after[1]) / 2 * (after[0] - one[0]) for one, after in pairwise(curve)
    )


def _count(times: Sequence[float], ran: Ran) -> int:
    return bisect_right(times, ran.end) - bisect_left(times, ran.start)


def _curve(
    series: CardSeries, start: float, end: float, longest_gap: float
) -> list[tuple[float, float]]:
    """Return times and watts from start to end, both ends included.

    Raises:
        _UnknownError: There are no such samples, or they are too far apart.
    """
    times = series.times
    first = bisect_right(times, start) - 1
    last = bisect_left(times, end)
    while first >= 0 and series.watts[first] is None:
        first -= 1
    while last < len(times) and series.watts[last] is None:
        last += 1
    known = _known(series, max(first, 0), min(last + 1, len(times)))
    if not known:
        raise _UnknownError("what it drew is not known")
    if first < 0:
        raise _UnknownError("it was not asked before the request began")
    if last >= len(times):
        raise _UnknownError("it was not asked since the request's end")
    gap = max((after[0] - one[0] for one, after in pairwise(known)), default=0.0)
    if gap > longest_gap:
        raise _UnknownError(
            f"it told nothing for {gap:.1f} s, and more than {longest_gap:.1f} s are "
            "not bridged"
        )
    inner = [point for point in known if start < point[0] < end]
    return [(start, _watts_at(known, start)), *inner, (end, _watts_at(known, end))]


def _known(series: CardSeries, begin: int, end: int) -> list[tuple[float, float]]:
    """Return the samples that tell the power."""
    return [
        (time, watts)
        for time, watts in zip(
            series.times[begin:end], series.watts[begin:end], strict=True
        )
        if watts is not None
    ]


def _watts_at(points: Sequence[tuple[float, float]], moment: float) -> float:
    """Return the power at a moment that is not outside the points."""
    place = bisect_left(points, (moment,))
    if place < len(points) and points[place][0] == moment:
        return points[place][1]
    (before, low), (after, high) = points[place - 1], points[place]
    return low + (high - low) * (moment - before) / (after - before)


def _own_part(
    curve: Sequence[tuple[float, float]], ran: Ran, others: Sequence[Ran]
) -> float:
    """Return a request's part of the energy under a curve over its own time."""
    if not others:
        return joules_under(curve)
    edges = {edge for other in others for edge in (other.start, other.end)}
    cuts = sorted(
        {point[0] for point in curve}
        | {edge for edge in edges if ran.start < edge < ran.end}
    )
    pieces = [(cut, _watts_at(curve, cut)) for cut in cuts]
    waiting = sorted(others, key=lambda other: other.start, reverse=True)
    there: list[Ran] = []
    joules = 0.0
    for one, after in pairwise(pieces):
        while waiting and waiting[-1].start <= one[0]:
            there.append(waiting.pop())
        there = [other for other in there if other.end > one[0]]
        joules += joules_under((one, after)) * _part(one[0], after[0], ran, there)
    return joules


def _part(begin: float, end: float, ran: Ran, there: Sequence[Ran]) -> float:
    """Return a request's part of a piece, throughout which the others are there."""
    own = ran.tokens_between(begin, end)
    whole = own + sum(one.tokens_between(begin, end) for one in there)
    return own / whole if whole else 1 / (1 + len(there))


def _peak(series: CardSeries, start: float, end: float) -> int | None:
    first, last = bisect_left(series.times, start), bisect_right(series.times, end)
    if first == last:  # between two samples
        first, last = max(first - 1, 0), last + 1
    seen = [used for used in series.used_bytes[first:last] if used is not None]
    return max(seen, default=None)
