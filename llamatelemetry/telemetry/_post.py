"""A thread that works off what others hand it, so that they never wait."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

_MOST = 10_000
_logger = logging.getLogger(__name__)


class Post(Generic[ItemT]):
    """Hands items to a function in a daemon thread, in order.

    Args:
        handle: Called with each item. What it raises is logged, the first time.
        name: The thread's name.
        most: Items that may wait; further ones are dropped.
    """

    def __init__(
        self, handle: Callable[[ItemT], object], name: str, most: int = _MOST
    ) -> None:
        self._handle = handle
        # SimpleQueue, whose put may come out of a finalizer in the middle of a get.
        self._items: queue.SimpleQueue[ItemT | None] = queue.SimpleQueue()
        self._most = most
        self._said: set[str] = set()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, item: ItemT) -> None:
        """Hand an item over, at once; nothing in a fork, which has no thread."""
        if self._process != os.getpid():
            return
        if self._items.qsize() < self._most:
            self._items.put(item)
        elif self._is_first("full"):
            _logger.warning(
                "%s cannot keep up: %d requests wait for it already, and some of the "
                "next are left out; this is said once",
                self._thread.name,
                self._most,
            )

    def close(self, longest: float) -> bool:
        """Work off what is there and end; whether that took no longer than allowed.

        Args:
            longest: Seconds to wait for it.
        """
        self._items.put(None)
        if self._process == os.getpid():
            self._thread.join(longest)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._handle(item)
            except Exception:
                # The user's own processors run in there, which may raise anything.
                if self._is_first("failed"):
                    _logger.exception(
                        "%s has failed; it goes on, and its next failures are not told",
                        self._thread.name,
                    )

    def _is_first(self, what: str) -> bool:
        is_first = what not in self._said
        self._said.add(what)
        return is_first
