"""Questions out and records in: a window of them, and each record once.

Nothing here knows Ray: it is given what takes chunks, and what gives answered ones.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._ray_actor import read_records, write_asks
from llamatelemetry.exceptions import AuthenticationError, BatchError

__all__ = ["Chunks", "Flow"]

_LOOK_SECONDS = 0.1

Work = Callable[[], Iterator[str]]


class Chunks(Protocol):
    """What takes chunks of questions; see ``_ray_actor.Questions``."""

    def put(self, place: int, text: str) -> None:
        """Add a chunk."""

    def forget(self, place: int) -> None:
        """Let go of a chunk that was answered."""

    def finish(self) -> None:
        """Say that there are no more."""

    def end(self) -> None:
        """End what works on them, whatever it does."""


class Flow:
    """Questions out, a window of them, and records in.

    Two threads: one takes questions and waits for room, the other waits for answers.

    Args:
        asks: The questions.
        chunks: What takes them.
        size: How many make a chunk.
        ahead: Chunks that may be on their way.
        called_off: Set to end it at once.
    """

    def __init__(
        self,
        asks: Iterator[Ask],
        chunks: Chunks,
        *,
        size: int,
        ahead: int,
        called_off: threading.Event,
    ) -> None:
        self._asks, self._chunks, self._size = asks, chunks, size
        self._called_off, self._over = called_off, threading.Event()
        self._room = threading.Semaphore(ahead)
        self._lock = threading.Lock()
        self._places: dict[tuple[Any, str], int] = {}  # of what is on its way
        self._left: dict[int, int] = {}  # of each chunk
        self._all_given = False
        self._came: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._chunks.end()

    def records(self, work: Work) -> Iterator[dict[str, Any]]:
        """Yield what comes, each record once.

        Args:
            work: Gives answered chunks, in any order; one may come twice.

        Raises:
            AuthenticationError: A server wants another key.
            BatchError: The work failed, or ended too soon.
        """
        for job in (self._give, lambda: self._take(work)):
            threading.Thread(target=job, name="llamatelemetry-ray", daemon=True).start()
        for text in self._arrivals():
            records, fatal = read_records(text)
            if fatal is not None:
                raise _error_of(*fatal)
            for record in records:
                if self._note(record):
                    yield record
        if self._places and not self._called_off.is_set():
            raise BatchError(
                f"Ray ended without {len(self._places)} answers that were asked for; "
                "run the same call again to ask for them"
            )

    def _arrivals(self) -> Iterator[str]:
        """Yield answered chunks, until there are no more or it is called off."""
        while not self._called_off.is_set():
            try:
                came = self._came.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if came is None:
                return
            if isinstance(came, BaseException):
                raise came
            yield came

    def _give(self) -> None:
        """Hand on questions in chunks, while there is room."""
        try:
            for place in itertools.count():
                chunk = self._next_chunk()
                if not chunk:
                    break
                with self._lock:
                    self._left[place] = len(chunk)
                    for ask in chunk:
                        self._places[ask.row.id, ask.key] = place
                self._chunks.put(place, write_asks(chunk))
        except Exception as error:  # noqa: BLE001 - raised where records are taken
            self._came.put(error)
        with self._lock:
            self._all_given = True
            done = not self._places
        if done:
            self._finish()

    def _next_chunk(self) -> list[Ask]:
        while not self._room.acquire(timeout=_LOOK_SECONDS):
            if self._over.is_set():
                return []
        return list(itertools.islice(self._asks, self._size))

    def _take(self, work: Work) -> None:
        """Wait for answers; this thread may be left behind."""
        try:
            for text in work():
                self._came.put(text)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises: told as ours
            self._came.put(_failed(error))
        self._came.put(None)

    def _note(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is new; make room once its chunk is done."""
        with self._lock:
            place = self._places.pop((record["id"], record["key"]), None)
            if place is None:
                return False
            self._left[place] -= 1
            whole = self._left[place] == 0
            if whole:
                del self._left[place]
            last = self._all_given and not self._places
        if whole:
            self._chunks.forget(place)
            self._room.release()
        if last:
            self._finish()
        return True

    def _finish(self) -> None:
        # Only now: what reads the chunks is the handle by which the work is ended.
        if not self._over.is_set():
            self._chunks.finish()


def _error_of(kind: str, message: str) -> Exception:
    """Return the error that ends the run, for one that a server's worker has told."""
    if kind == AuthenticationError.__name__:
        return AuthenticationError(message)
    return BatchError(f"a server on the Ray cluster fails: {kind}: {message}")


def _failed(error: Exception) -> BatchError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    failure = BatchError(f"Ray fails: {lines[-1]}; what was answered is kept")
    failure.__cause__ = error
    return failure
