"""One server's workers: how many there are, and how they wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llamatelemetry.batch._pace import Concurrency, Pace
from llamatelemetry.batch._targets import Lane, Sign
from llamatelemetry.exceptions import (
    BatchError,
    ConnectionFailedError,
    LLCudaError,
    RequestTimeoutError,
)

__all__ = ["Post"]

PATIENCE = 600.0
"""Seconds without any sign of a server that was there before."""

PATIENCE_AT_FIRST = 60.0
"""The same for one that never was: most often its address is wrong."""

PATIENCE_WHILE_LOADING = 3600.0

_WHY_SECONDS = 1.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_MOST_LOSSES = 10
"""Times in a row that a server is lost without one answer in between."""


class Post:
    """What the workers at one server share.

    Args:
        lane: The server.
        concurrency: How many items at once, or "auto".
        is_over: Whether nobody needs to wait any more.
        say: Told in words what is waited for.

    Attributes:
        lost: Why the server was given up, or None.
    """

    def __init__(
        self,
        lane: Lane,
        concurrency: Concurrency,
        is_over: Callable[[], bool],
        say: Callable[[str], object],
    ) -> None:
        self.lane = lane
        self.lost: BatchError | None = None
        self._concurrency, self._is_over, self._say = concurrency, is_over, say
        self._news = threading.Condition()  # guards all below
        self._looking = threading.Lock()  # held by the one that looks after the server
        self._pace = Pace(None, concurrency=1)  # until it has told its slots
        self._known = False
        self._hired, self._busy = 1, 0
        self._silent = False
        self._why = ""
        self._doubted = True
        self._doubted_at = self._ready_since = float("-inf")
        self._losses = 0
        self._busy_until = 0.0
        self._busy_pause = _FIRST_PAUSE

    # ── how many ─────────────────────────────────────────────────────────────────

    def begin(self) -> int | None:
        """Note that a worker has work; return the number of another that is wanted.

        None where one is there already for what comes next, or all are: a few rows at
        once need few threads, however many there may be.
        """
        with self._news:
            self._busy += 1
            if self._busy < self._hired or self._hired >= self._pace.limit:
                return None
            self._hired += 1
            return self._hired - 1

    def end(self) -> None:
        """Note that a worker has done its work."""
        with self._news:
            self._busy -= 1

    def may_work(self, number: int) -> bool:
        """Whether this worker is one of those that may work now."""
        with self._news:
            busy = time.monotonic() < self._busy_until
            return number < self._pace.limit and not busy

    def rest(self, seconds: float) -> None:
        """Wait for news, at most this long."""
        with self._news:
            left = self._busy_until - time.monotonic()
            self._news.wait(min(seconds, left) if left > 0 else seconds)

    def wake(self) -> None:
        """Have those that rest look again."""
        with self._news:
            self._news.notify_all()

    def answered(self) -> None:
        """Take note of an answer."""
        with self._news:
            self._losses, self._busy_pause = 0, _FIRST_PAUSE
            before = self._pace.limit
            self._pace.answered(time.monotonic())
            if self._pace.limit > before:
                self._news.notify_all()

    def refused(self, *, busy: bool) -> None:
        """Take note that it had no room, or failed; rest before the next request."""
        with self._news:
            now = time.monotonic()
            self._pace.refused(now)
            if busy and now >= self._busy_until:
                self._busy_until = now + self._busy_pause
                self._busy_pause = min(2 * self._busy_pause, _LONGEST_PAUSE)

    # ── whether it is there ──────────────────────────────────────────────────────

    def absence(self) -> BatchError | None:
        """Return in words that it gave no sign when it was looked at last, if so."""
        if not (self._doubted and self._silent):
            return None
        if self._known:
            return BatchError(f"{self.lane.name} gave no sign at the end{self._why}")
        return BatchError(
            f"{self.lane.name} did not answer{self._why}; is it the right address?"
        )

    @property
    def is_doubted(self) -> bool:
        """Whether it has to be looked at before it is asked again."""
        return self._doubted

    def doubt(self, began: float, error: Exception | None) -> bool:
        """Have the server looked at before it is asked again.

        Args:
            began: When the request began that failed: one from before the last look
                says nothing new.
            error: Why it is taken for gone; None where it only failed.

        Returns:
            Whether the request was under way when that happened; one that was sent to
            a server already known to be gone has not even been asked.
        """
        with self._news:
            if self._doubted:
                return began <= self._doubted_at
            if began < self._ready_since:
                return True
            self._doubted, self._doubted_at = True, time.monotonic()
            self._losses += error is not None
            if self._losses < _MOST_LOSSES:
                return True
            self.lost = BatchError(
                f"{self.lane.name} was lost {_MOST_LOSSES} times in a row without one "
                f"answer in between; the last time: {error}"
            )
            self.lost.__cause__ = error
            return True

    def wait_until_ready(self) -> bool:
        """Wait until the server takes requests; False where nobody needs it any more.

        Raises:
            BatchError: It was given up.
            AuthenticationError: It wants a key, or another one.
        """
        if not self._doubted:
            return True
        while not self._looking.acquire(timeout=_LONGEST_PAUSE / 10):
            if self._is_over():
                return False
        try:
            if self.lost is not None:
                raise self.lost
            return not self._doubted or self._look_until_ready()
        finally:
            self._looking.release()

    def _look_until_ready(self) -> bool:
        began = seen = time.monotonic()
        pause = _FIRST_PAUSE
        while not self._is_over():
            sign = self.lane.look()
            now = time.monotonic()
            self._silent = sign == "silent"
            if sign == "ready" and self._learn():
                self._be_ready(said=pause > _FIRST_PAUSE)
                return True
            if sign != "silent":
                seen, self._why = now, ""
            elif not self._why:
                self._why = _why(self.lane)
            self._refuse_to_wait(sign, now - began, now - seen)
            self._say(f"waiting for {self.lane.name}{self._why}")
            with self._news:
                self._news.wait(pause)
            pause = min(1.6 * pause, _LONGEST_PAUSE)
        return False

    def _learn(self) -> bool:
        """Learn how many it takes at once; return whether it was there to be asked."""
        if self._known:
            return True
        slots = None
        if self._concurrency == "auto":
            try:
                slots = self.lane.slots()
            except (ConnectionFailedError, RequestTimeoutError):
                return False
        self._pace = Pace(slots, self._concurrency)
        self._known = True
        return True

    def _be_ready(self, *, said: bool) -> None:
        with self._news:
            self._doubted, self._ready_since = False, time.monotonic()
            self._news.notify_all()
        if said:
            self._say("")

    def _refuse_to_wait(self, sign: Sign, waited: float, silent: float) -> None:
        """Give up where it was waited for long enough.

        Raises:
            BatchError: It was.
        """
        at_first = not self._known
        patience = PATIENCE_AT_FIRST if at_first else PATIENCE
        if sign == "silent" and silent < patience:
            return
        if sign != "silent" and waited < PATIENCE_WHILE_LOADING:
            return
        if sign != "silent":
            what = f"said for {waited:.0f} s that it is not ready yet"
        elif at_first:
            what = (
                f"did not answer in {silent:.0f} s{self._why}; is it the right address?"
            )
        else:
            what = f"gave no sign for {silent:.0f} s{self._why}"
        raise BatchError(f"{self.lane.name} {what}")


def _why(lane: Lane) -> str:
    """Return in words, after a space, why a server cannot be reached; "" if unknown."""
    client = lane.client.with_options(timeout=_WHY_SECONDS, total_timeout=_WHY_SECONDS)
    try:
        client.health()
    except LLCudaError as error:
        cause = error.__cause__
        said = str(cause) if isinstance(cause, OSError) else ""
        return f" ({said})" if said else ""
    return ""
