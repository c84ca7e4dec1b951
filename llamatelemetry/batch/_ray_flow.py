"""Questions out and records in: a window of them, and each record once.

Nothing here knows Ray: it is given what takes chunks, what gives answered ones, and
what says whether there is room for them.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, Self

from llamatelemetry._deadline import Deadline
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._ray_actor import read_records, write_asks
from llamatelemetry.exceptions import AuthenticationError, BatchError

__all__ = ["ROUNDING", "Chunks", "Flow", "held", "wait_for_room"]

_LOOK_SECONDS = 0.1
_ROOM_SECONDS = 30.0  # what a run before this one had is free a moment later
_SILENT_SECONDS = 60.0  # an answer may take its time: then it is looked after
_END_SECONDS = 20.0  # what is cut off ends in one or two

ROUNDING = 1e-6
"""Three servers of 0.1 CPUs fit into 0.3."""

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
        check: Called after a while without answers; raises if none can come.
    """

    def __init__(
        self,
        asks: Iterator[Ask],
        chunks: Chunks,
        *,
        size: int,
        ahead: int,
        called_off: threading.Event,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._check = check
        self._asks, self._chunks, self._size = asks, chunks, size
        self._called_off, self._over = called_off, threading.Event()
        self._room = threading.Semaphore(ahead)
        self._lock = threading.Lock()
        self._places: dict[tuple[Any, str], int] = {}  # of what is on its way
        self._left: dict[int, int] = {}  # of each chunk
        self._all_given = False
        self._taker: threading.Thread | None = None
        self._came: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._chunks.end()
        if self._taker is not None:  # what it works with may be ended behind it
            self._taker.join(_END_SECONDS)

    def records(self, work: Work) -> Iterator[dict[str, Any]]:
        """Yield what comes, each record once.

        Args:
            work: Gives answered chunks, in any order; one may come twice.

        Raises:
            AuthenticationError: A server wants another key.
            BatchError: The work failed, or ended too soon.
        """
        name = "llamatelemetry-ray"
        threading.Thread(target=self._give, name=name, daemon=True).start()
        self._taker = threading.Thread(
            target=self._take, args=(work,), name=name, daemon=True
        )
        self._taker.start()
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
        silence = Deadline.after(_SILENT_SECONDS)
        while not self._called_off.is_set():
            try:
                came = self._came.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if silence.expired:
                    self._check()
                    silence = Deadline.after(_SILENT_SECONDS)
                continue
            silence = Deadline.after(_SILENT_SECONDS)
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


def wait_for_room(
    free: Callable[[], Mapping[str, float]],
    needs: Mapping[str, float],
    called_off: threading.Event,
) -> None:
    """Wait until there is room for a server, which others may have.

    Ray would wait for ever, and say nothing.

    Args:
        free: Says how many CPUs and cards are free.
        needs: How many a server needs.
        called_off: Set to end the wait.

    Raises:
        BatchError: There is none.
    """
    deadline = Deadline.after(_ROOM_SECONDS)
    while not called_off.is_set():
        have = free()
        if all(have.get(name, 0) + ROUNDING >= need for name, need in needs.items()):
            return
        if deadline.expired:
            raise BatchError(
                f"others use the Ray cluster: {have.get('CPU', 0):g} CPUs and "
                f"{have.get('GPU', 0):g} cards are free, and a server needs "
                f"{needs['CPU']:g} and {needs['GPU']:g}; `ray status` says more"
            )
        time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def held(cluster: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Hold a cluster in a thread of its own.

    Ray's processes end with the thread that has started them, and a batch may end
    before others that use its cluster.

    Args:
        cluster: Begins a cluster, and ends it.
    """
    began: Future[None] = Future()
    over = threading.Event()

    def hold() -> None:
        try:
            with cluster:
                began.set_result(None)
                over.wait()
        except BaseException as error:  # noqa: BLE001 - raised by who waits for it
            if not began.done():
                began.set_exception(error)

    thread = threading.Thread(target=hold, name="llamatelemetry-ray", daemon=True)
    thread.start()
    try:
        began.result()
        yield
    finally:
        over.set()
        thread.join()
