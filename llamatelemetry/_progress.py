"""Progress of long work: the one door to tqdm. A bar for a file, or for a count.

Bars are tqdm.auto's: text in a terminal, a widget in a notebook. They may be moved from
any thread. ``HF_HUB_DISABLE_PROGRESS_BARS`` and ``TQDM_DISABLE`` turn them off. A
function takes the place of a bar where something else shows how far the work is.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

__all__ = [
    "CancelledError",
    "CountBar",
    "FileBar",
    "FileProgress",
    "Relay",
    "Shown",
    "turned_off",
]

_OFF_VARIABLES = ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
_TRUE = {"1", "ON", "YES", "TRUE"}
_MOST_CELLS, _FEWEST_CELLS = 10, 3  # of a bar beside words
_lock = threading.Lock()


class CancelledError(BaseException):
    """The work was called off by who waits for it. Never reaches a user.

    Like KeyboardInterrupt it is no Exception, so that no library on the way takes it
    for a failure to try again after.
    """


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far the work on one file is.

    Attributes:
        name: The file's name; an engine's is that of the manifest.
        done: Bytes that are there.
        total: Its bytes, or None if not known yet.
        words: What is being done with it now, "verifying" say; "" while it comes.
        ended: Whether the work has ended, well or not.
    """

    name: str
    done: int
    total: int | None
    words: str = ""
    ended: bool = False


Shown: TypeAlias = bool | Callable[[FileProgress], object]
"""Whether there is a bar; or what is called instead, in the thread that works."""


class Relay:
    """Notes progress in the threads that do the work; tells it in the one that waits.

    Args:
        tell: Called by :meth:`tick` for each file that is being worked on.
    """

    def __init__(self, tell: Callable[[FileProgress], object]) -> None:
        self._tell = tell
        self._latest: dict[str, FileProgress] = {}
        self._lock = threading.Lock()

    def note(self, progress: FileProgress) -> None:
        """Remember how far a file is; from any thread."""
        with self._lock:
            self._latest[progress.name] = progress

    def tick(self) -> None:
        """Tell how far each file is; one that has ended is told of once more only."""
        with self._lock:
            latest = self._latest
            self._latest = {name: one for name, one in latest.items() if not one.ended}
        for one in list(latest.values()):
            self._tell(one)


class FileBar:
    """A bar for the bytes of one file.

    Args:
        name: The file's name, as shown.
        total: Its bytes, or None if not known yet.
        cancelled: Set by who waits: the next step raises :class:`CancelledError`.
        shown: Whether there is a bar at all; a function is called instead.

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
        shown: Shown = True,
    ) -> None:
        self._name = name
        self._cancelled = cancelled or threading.Event()
        self._total = total
        self._tell = shown if callable(shown) else None
        self._words = ""
        self._shown = self._tell is None and bool(shown) and not turned_off()
        self._bar: Any = None  # made when there is something to show
        self.done = 0
        self.farthest = 0

    def __enter__(self) -> Self:
        self._report()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._report(ended=True)
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
        self._report()
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
            self._report()
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
        self._words = words
        self._report()
        if self._bar is not None:
            with _lock:
                self._bar.set_description_str(f"{self._name} {words}".strip())

    def _report(self, *, ended: bool = False) -> None:
        if self._tell is not None:
            self._tell(
                FileProgress(self._name, self.done, self._total, self._words, ended)
            )

    def _show(self) -> None:
        if self._bar is None:
            self._bar = _make_bar(self._name, self._total)


class CountBar:
    """A bar over what is counted by who shows it, with words of its own.

    Args:
        total: How many there are, or None if that is not known.
        shown: Whether there is a bar at all.
    """

    def __init__(self, total: int | None, *, shown: bool = True) -> None:
        self._total = total
        self._shown = shown and not turned_off()
        self._bar: Any = None  # made when there is something to show

    def show(
        self, done: int, words: str | Sequence[str], total: int | None = None
    ) -> None:
        """Show how many are done, and what is said of it.

        Args:
            done: How many.
            words: What stands beside the bar; if that is several, the longest one
                first, then the first that fits into the line. The bar itself makes
                room before words do.
            total: How many there are, if that is known by now.
        """
        if not self._shown:
            return
        with _lock:
            self._total = self._total if total is None else total
            if self._bar is None:
                self._bar = _make_count_bar(self._total)
            if self._total != self._bar.total:
                self._bar.reset(self._total)
            several = [words] if isinstance(words, str) else words
            self._bar.bar_format, told = _line(several, self._total, self._bar.ncols)
            self._bar.n = done
            self._bar.set_description_str(told, refresh=False)
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is shown; harmless twice."""
        if self._bar is not None:
            with _lock:
                self._bar.close()


def turned_off() -> bool:
    """Whether the environment forbids all bars."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in _OFF_VARIABLES)


def _make_bar(name: str, total: int | None) -> Any:
    return _tqdm()(
        desc=name,
        total=total,
        unit="B",
        unit_scale=True,
        mininterval=0.2,
        disable=False,  # it reads TQDM_DISABLE once, when it is imported
    )


def _line(words: Sequence[str], total: int | None, columns: Any) -> tuple[str, str]:
    """Return tqdm's format of a line, and the words that fit into it.

    What is said has the count and the rate in it: tqdm's own would be one too many.
    """
    share = "" if total is None else "{percentage:3.0f}% "
    if not isinstance(columns, int):  # a widget, which breaks lines, or a file
        return share + ("" if total is None else "|{bar}| ") + "{desc}", words[0]
    room = columns - (0 if total is None else len("100% "))
    told = next((one for one in words if len(one) <= room), words[-1])
    cells = min(_MOST_CELLS, room - len(told) - len("|| "))
    if total is None or cells < _FEWEST_CELLS:
        return share + "{desc}", told
    return f"{share}|{{bar:{cells}}}| {{desc}}", told


def _make_count_bar(total: int | None) -> Any:
    # With a delay, nothing is shown before there are words.
    return _tqdm()(total=total, delay=1e-9, disable=False)


def _tqdm() -> Any:
    with warnings.catch_warnings():
        # Without ipywidgets it warns and shows text, which is what is wanted then.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm  # noqa: PLC0415 -- slow, and not always needed

        return tqdm
