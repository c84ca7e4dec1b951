"""How many requests at once one server is given. Pure: the time is handed in."""

from __future__ import annotations

from typing import Any, Literal

from llamatelemetry.exceptions import ConfigurationError

__all__ = ["Concurrency", "Pace", "check_options"]

Concurrency = int | Literal["auto"]

_FIRST = 4
"""Requests at once at a server that does not tell its slots: it climbs from here."""

_EACH = 2
"""Requests for each slot: answers of one length end together, and each slot that is
free then finds the next one there (``benchmarks/batch.py``)."""

_MOST = 64
_WORTH = 1.10
"""More requests at once are kept where rows per second grow by more than this."""

_REST = 1.0
"""Seconds in which refusals count as one: all that ran have met the same full queue."""


def check_options(concurrency: Any, retries: Any, progress: Any) -> None:
    """Refuse values of a call that cannot work.

    Args:
        concurrency: Requests at once over all servers.
        retries: How often a row is asked again.
        progress: Whether there is a bar, or a function instead.

    Raises:
        ConfigurationError: It cannot.
    """
    number = isinstance(concurrency, int) and not isinstance(concurrency, bool)
    if concurrency != "auto" and not (number and concurrency > 0):
        raise ConfigurationError(
            f'concurrency={concurrency!r} has to be 1 or more, or "auto"'
        )
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise ConfigurationError(f"retries={retries!r} has to be 0 or more")
    if not isinstance(progress, bool) and not callable(progress):
        raise ConfigurationError(
            f"progress={progress!r} has to be True, False or a function"
        )


class Pace:
    """Decides from answers and refusals how many requests run at once.

    Not for several threads: whoever has it locks.

    Args:
        slots: The slots of the server, or of all behind one address; None: not known.
        concurrency: A number that takes the place of all that, or "auto".

    Attributes:
        limit: Requests that may run at once now.
    """

    def __init__(self, slots: int | None, concurrency: Concurrency = "auto") -> None:
        self._climbs = False
        if concurrency != "auto":
            self.limit = concurrency
        elif slots is not None:
            self.limit = _EACH * max(slots, 1)
        else:
            self.limit, self._climbs = _FIRST, True
        self._ceiling = _MOST if self._climbs else self.limit
        self._before = (self.limit, 0.0)  # the limit before, and its rows per second
        self._begun: float | None = None  # None: what an earlier limit began is left
        self._answers = 0
        self._refused = float("-inf")

    def answered(self, now: float) -> None:
        """Take note of an answer at this moment."""
        self._answers += 1
        if not self._climbs:
            if self.limit < self._ceiling and self._answers >= 2 * self.limit:
                self._set(self.limit + 1)
            return
        if self._begun is None:
            if self._answers >= self.limit:
                self._begun, self._answers = now, 0
            return
        if self._answers >= max(8, 2 * self.limit) and now > self._begun:
            self._judge(self._answers / (now - self._begun))

    def _judge(self, rate: float) -> None:
        """Go on climbing, or back to where it was as fast."""
        limit, before = self._before
        if rate > _WORTH * before and self.limit < self._ceiling:
            self._before = (self.limit, rate)
            self._set(min(self._ceiling, self.limit + max(1, self.limit // 2)))
            return
        self._climbs = False
        self._ceiling = self.limit if rate > _WORTH * before else limit
        self._set(self._ceiling)

    def refused(self, now: float) -> None:
        """Take note that the server had no room, or did not answer in time."""
        if now - self._refused < _REST:
            return
        if self._climbs:
            self._climbs, self._ceiling = False, self.limit
        self._refused = now
        self._set(max(1, self.limit * 3 // 4))

    def _set(self, limit: int) -> None:
        self.limit, self._begun, self._answers = limit, None, 0
