"""What a panel wants to show: sent at once, or kept until somebody comes who may."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Outbox"]

_logger = logging.getLogger(__name__)

_Change = tuple[Any, dict[str, Any]]  # a widget and the values it gets


class Outbox:
    """Takes changes of widgets from any thread.

    Direct, they are made at once. Otherwise they are kept until :meth:`flush` makes
    them, in the order in which they were asked for; of the values that a trait is given
    between two functions, the newest.

    A panel's handlers and threads hold their own lock while they call this, and never
    the other way round: what is given to :meth:`do` takes no lock.

    Args:
        direct: Whether any thread may change widgets.
    """

    def __init__(self, *, direct: bool) -> None:
        self._direct = direct
        self._one_at_a_time = threading.RLock()
        self._keeping = threading.Lock()
        self._kept: list[Callable[[], object] | dict[Any, _Change]] = []
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
            if not self._kept or not isinstance(self._kept[-1], dict):
                self._kept.append({})
            values = self._kept[-1]
            assert isinstance(values, dict)  # noqa: S101 -- said above
            values.setdefault(id(widget), (widget, {}))[1].update(traits)

    def do(self, change: Callable[[], object]) -> None:
        """Have something done that makes widgets, or changes more than one."""
        if self._direct:
            self._make([change])
            return
        with self._keeping:
            self._kept.append(change)

    def flush(self) -> None:
        """Make the changes that are kept; in a thread whose changes are shown."""
        with self._one_at_a_time:  # from here on: who comes later has newer ones
            with self._keeping:
                kept, self._kept = self._kept, []
            for change in kept:
                self._make(change.values() if isinstance(change, dict) else [change])

    def close(self) -> None:
        """Make no change any more."""
        self._closed = True

    def _make(self, changes: Iterable[_Change | Callable[[], object]]) -> None:
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
