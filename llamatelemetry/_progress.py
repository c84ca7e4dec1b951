"""Progress of long work: the one door to tqdm. One bar a file, with bytes and rate.

Bars are tqdm.auto's: text in a terminal, a widget in a notebook. They may be moved from
any thread. ``HF_HUB_DISABLE_PROGRESS_BARS`` and ``TQDM_DISABLE`` turn them off.
"""

from __future__ import annotations

import os
import threading
import warnings
from types import TracebackType
from typing import Any, Self

__all__ = ["CancelledError", "FileBar"]

_OFF_VARIABLES = ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
_TRUE = {"1", "ON", "YES", "TRUE"}
_lock = threading.Lock()


class CancelledError(BaseException):
    """The work was called off by who waits for it. Never reaches a user.

    Like KeyboardInterrupt it is no Exception, so that no library on the way takes it
    for a failure to try again after.
    """


class FileBar:
    """A bar for the bytes of one file.

    Args:
        name: The file's name, as shown.
        total: Its bytes, or None if not known yet.
        cancelled: Set by who waits: the next step raises :class:`CancelledError`.
        shown: Whether there is a bar at all.

    Attributes:
        done: Bytes that are there.
        farthest: The most there ever were: what counts as getting ahead.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        *,
        cancelled: threading.Event | None = None,
        shown: bool = True,
    ) -> None:
        self._name = name
        self._cancelled = cancelled or threading.Event()
        self._total = total
        self._shown = shown and not _turned_off()
        self._bar: Any = None  # made when there is something to show
        self.done = 0
        self.farthest = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            with _lock:
                if kind is None:
                    self._bar.set_description_str(self._name, refresh=False)
                self._bar.close()

    def check(self) -> None:
        """Raise CancelledError if the work was called off."""
        if self._cancelled.is_set():
            raise CancelledError

    def advance(self, count: int) -> None:
        """Count bytes that have come; negative for bytes that were in vain."""
        self.check()
        self.done += count
        self.farthest = max(self.farthest, self.done)
        if self._shown and count:
            with _lock:
                self._show()
                if count < 0:
                    self._bar.n = max(0, self._bar.n + count)
                    self._bar.refresh()
                else:
                    self._bar.update(count)

    def move_to(self, place: int) -> None:
        """Show that this many bytes are there."""
        self.advance(place - self.done)

    def learn_total(self, total: int) -> None:
        """Show the total, which was not known before."""
        if self._total is None:
            self._total = total
            if self._bar is not None:
                self._bar.total = total

    def reporting_class(self) -> type[Any]:
        """Return a class of invisible tqdm bars that move this bar instead.

        For libraries that take a class of bars. What they begin anew is followed: a new
        bar's ``initial`` is where the work stands.
        """
        from tqdm.std import tqdm  # noqa: PLC0415 -- as below

        bar = self

        class Reporter(tqdm):  # type: ignore[type-arg]
            def __init__(self, *_: Any, **options: Any) -> None:
                super().__init__(disable=True)
                if options.get("total"):
                    bar.learn_total(options["total"])
                bar.move_to(options.get("initial") or 0)

            def update(self, n: float | None = 1) -> None:
                bar.advance(int(n or 0))

        return Reporter

    def say(self, words: str) -> None:
        """Show what is being done with the file now: "verifying", say."""
        if self._bar is not None:
            with _lock:
                self._bar.set_description_str(f"{self._name} {words}".strip())

    def _show(self) -> None:
        if self._bar is None:
            self._bar = _make_bar(self._name, self._total)


def _turned_off() -> bool:
    return any(os.environ.get(name, "").upper() in _TRUE for name in _OFF_VARIABLES)


def _make_bar(name: str, total: int | None) -> Any:
    with warnings.catch_warnings():
        # Without ipywidgets it warns and shows text, which is what is wanted then.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm  # noqa: PLC0415 -- slow, and not always needed

        return tqdm(desc=name, total=total, unit="B", unit_scale=True, mininterval=0.2)
