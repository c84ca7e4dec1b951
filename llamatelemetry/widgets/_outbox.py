"""What a panel wants to show: sent at once, or kept until somebody comes who may."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Outbox"]

_logger = logging.getLogger(__name__)


class Outbox:
    """Takes changes of widgets from any thread.

    Direct, they are made at once. Otherwise the newest value of each trait is kept,
    until :meth:`flush` makes the changes, in the order in which they were asked for.

    A panel's handlers and threads hold their own lock while they call this, and never
    the other way round: what is given to :meth:`do` takes no lock.

    Args:
        direct: Whether any thread may change widgets.
    """

    def __init__(self, *, direct: bool) -> None:
        self._direct = direct
        self._one_at_a_time = threading.RLock()
        self._keeping = threading.Lock()
        self._kept: dict[object, tuple[Any, str, Any] | Callable[[], object]] = {}
        self._applying = threading.local()
        self._closed = False
        self._has_failed = False

    @property
    def applying(self) -> bool:
        """Whether the calling thread is making a change just now."""
        return getattr(self._applying, "depth", 0) > 0

    def set(self, widget: Any, **traits: Any) -> None:
        """Give a widget these values, in one message."""
        if self._direct:
            self._make([(widget, traits)])
            return
        with self._keeping:
            for name, value in traits.items():
                self._kept[id(widget), name] = (widget, name, value)

    def do(self, change: Callable[[], object]) -> None:
        """Have something done that makes widgets, or changes more than one."""
        if self._direct:
            self._make([change])
            return
        with self._keeping:
            self._kept[object()] = change

    def flush(self) -> None:
        """Make the changes that are kept; in a thread whose changes are shown."""
        with self._keeping:
            kept, self._kept = self._kept, {}
        changes: list[Any] = []
        together: dict[int, dict[str, Any]] = {}  # one message for each widget
        for change in kept.values():
            if not isinstance(change, tuple):
                changes.append(change)
                together.clear()
                continue
            widget, name, value = change
            if id(widget) not in together:
                together[id(widget)] = {}
                changes.append((widget, together[id(widget)]))
            together[id(widget)][name] = value
        if changes:
            self._make(changes)

    def close(self) -> None:
        """Make no change any more."""
        self._closed = True

    def _make(self, changes: list[Any]) -> None:
        with self._one_at_a_time, self._marked():
            for change in changes:
                if self._closed:
                    return
                try:
                    if isinstance(change, tuple):
                        _assign(*change)
                    else:
                        change()
                # A page that is gone, a kernel that shuts down: whatever it is, the
                # work behind the panel goes on.
                except Exception as error:  # noqa: BLE001 -- said above
                    self._complain(error)

    @contextmanager
    def _marked(self) -> Iterator[None]:
        self._applying.depth = getattr(self._applying, "depth", 0) + 1
        try:
            yield
        finally:
            self._applying.depth -= 1

    def _complain(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            _logger.error(
                "a panel could not be changed; the next times are silent",
                exc_info=error,
            )


def _assign(widget: Any, traits: dict[str, Any]) -> None:
    with widget.hold_sync():
        for name, value in traits.items():
            setattr(widget, name, value)
