"""Items on their way to the workers: fed by a thread of its own, a few ahead."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

__all__ = ["Supply", "Task"]

ItemT = TypeVar("ItemT")

_ALONE_AFTER = 2
"""Losses after which an item is asked alone: it may be what ends the server, and those
that ran beside it must not be taken for it."""


@dataclass(slots=True, eq=False)
class Task(Generic[ItemT]):
    """An item and what became of it so far.

    Attributes:
        item: What is worked on.
        attempts: How often it was tried.
        losses: How often its server was lost over it.
        held: What to close to call it off.
    """

    item: ItemT
    attempts: int = 0
    losses: int = 0
    held: list[Any] = field(default_factory=list)


class Waiting(Generic[ItemT]):
    """Items that were read, and that nobody works on yet, in the order they came.

    Args:
        most: So many are read ahead.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._items: list[ItemT] = []

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether no more should be read, be they as few as they are."""
        return False

    def add(self, item: ItemT) -> None:
        """Have one wait."""
        self._items.append(item)

    def take(self) -> list[ItemT]:
        """Return all, in the order in which to work on them; none waits then."""
        taken, self._items = self._items, []
        return taken


class Supply(Generic[ItemT]):
    """Hands out items to any number of threads, those that are tried again first.

    What waits is handed on as soon as somebody has nothing else to do, so a source that
    pauses holds up nothing that it gave before.

    Args:
        items: Where they come from; walked in a thread of its own.
        waiting: Where they wait.

    Attributes:
        over: Set once nothing is left to hand out and nothing runs.
        error: What the items ended with, or None.
    """

    def __init__(self, items: Iterable[ItemT], waiting: Waiting[ItemT]) -> None:
        self.over = threading.Event()
        self.error: BaseException | None = None
        self._items = items
        self._waiting = waiting
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # for those that take
        self._room = threading.Condition(self._lock)  # for the one that feeds
        self._ready: deque[Task[ItemT]] = deque()
        self._suspects: deque[Task[ItemT]] = deque()
        self._running: set[Task[ItemT]] = set()
        self._alone = False
        self._ended = False  # no more items come
        self._closed = False  # none is handed out any more
        self._dropped = False
        self._thread = threading.Thread(
            target=self._feed, name="llamatelemetry-batch-feeder", daemon=True
        )

    @property
    def running(self) -> list[Task[ItemT]]:
        """What is being worked on."""
        with self._lock:
            return list(self._running)

    @property
    def complete(self) -> bool:
        """Whether each item was handed out and came to its end."""
        with self._lock:
            return self.over.is_set() and self._ended and not self._dropped

    def start(self) -> None:
        """Begin to feed."""
        self._thread.start()

    def close(self) -> None:
        """Hand out nothing more; what runs comes to its end."""
        with self._lock:
            self._dropped |= self._has_more() or not self._ended
            self._closed = True
            self._ready.clear()
            self._waiting.take()
            self._suspects.clear()
            self._room.notify_all()
            self._settle()

    def join(self, seconds: float) -> None:
        """Wait for the feeding thread, which may be held up by what gives the items."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def take(self, seconds: float) -> Task[ItemT] | None:
        """Return what to do next; None where there is nothing for so long, or at all.

        Args:
            seconds: How long to wait at most.
        """
        with self._lock:
            if not self._may_take() and not self.over.is_set():
                self._news.wait(seconds)
            if not self._may_take():
                return None
            if self._suspects:
                task, self._alone = self._suspects.popleft(), True
            else:
                if not self._ready:
                    self._ready.extend(map(Task, self._waiting.take()))
                task = self._ready.popleft()
            self._running.add(task)
            # Not for each one: it costs.
            if len(self._ready) + len(self._waiting) <= self._waiting.most * 3 // 4:
                self._room.notify()
            return task

    def finish(self, task: Task[ItemT]) -> None:
        """Note that a task came to its end."""
        with self._lock:
            self._leave(task)
            self._settle()

    def again(self, task: Task[ItemT]) -> None:
        """Have a task tried again, by whoever is free first."""
        with self._lock:
            self._leave(task)
            if self._closed:
                self._dropped = True
            elif task.losses >= _ALONE_AFTER:
                self._suspects.append(task)
            else:
                self._ready.appendleft(task)
            self._news.notify()
            self._settle()

    def _may_take(self) -> bool:
        if self._alone:
            return False
        if self._suspects:
            return not self._running
        return self._has_more()

    def _has_more(self) -> bool:
        return bool(self._ready or self._suspects or len(self._waiting))

    def _leave(self, task: Task[ItemT]) -> None:
        self._running.discard(task)
        if self._alone or self._suspects:
            self._news.notify_all()
        self._alone = False

    def _settle(self) -> None:
        """Note the end, once there is nothing left. The caller holds the lock."""
        expected = self._has_more() or not (self._ended or self._closed)
        if not expected and not self._running:
            self.over.set()
            self._news.notify_all()

    def _feed(self) -> None:
        try:
            with contextlib.closing(_generator(self._items)) as items:
                for item in items:
                    if not self._put(item):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            self.error = error
        finally:
            with self._lock:
                self._ended = True
                self._settle()

    def _put(self, item: ItemT) -> bool:
        """Add an item once there is room; return whether more is wanted."""
        with self._lock:
            while self._is_full() and not self._closed:
                self._room.wait()
            if self._closed:
                self._dropped = True
                return False
            self._waiting.add(item)
            self._news.notify()
            return True

    def _is_full(self) -> bool:
        ahead = len(self._ready) + len(self._waiting)
        return ahead >= self._waiting.most or self._waiting.is_full


def _generator(items: Iterable[ItemT]) -> Any:
    """Return a generator over them, which can be closed whatever they are."""

    def walk() -> Iterator[ItemT]:
        yield from items

    return walk()
