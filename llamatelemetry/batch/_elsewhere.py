"""Rows that something else distributes: its records are taken as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from llamatelemetry.batch._answer import Asking
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._pace import Concurrency

__all__ = ["Elsewhere", "ElsewhereRun"]


@runtime_checkable
class Elsewhere(Protocol):
    """What takes rows and gives their records: a cluster."""

    def run_rows(
        self,
        asks: Iterator[Ask],
        asking: Asking,
        *,
        retries: int,
        concurrency: Concurrency,
        called_off: threading.Event,
    ) -> Iterator[dict[str, Any]]:
        """Yield the record of each row, in any order."""


class ElsewhereRun:
    """A run that works elsewhere, watched by a thread; see :class:`Run`.

    Args:
        to: What distributes the rows.
        asks: The rows.
        record: Told each record once.
        asking: How all rows are asked.
        retries: How often what may pass is asked again.
        concurrency: Rows at once over all servers.
    """

    def __init__(
        self,
        to: Elsewhere,
        asks: Iterator[Ask],
        record: Callable[[dict[str, Any]], object],
        *,
        asking: Asking,
        retries: int,
        concurrency: Concurrency,
    ) -> None:
        self._over = threading.Event()
        self._called_off = threading.Event()
        self._stopping = threading.Event()
        self._exhausted = False
        self._error: BaseException | None = None
        self._given = self._taken = 0
        self._asks, self._record = asks, record
        self._rows = to.run_rows(
            self._until_stopped(),
            asking,
            retries=retries,
            concurrency=concurrency,
            called_off=self._called_off,
        )
        self._thread = threading.Thread(
            target=self._follow, name="llamatelemetry-batch-elsewhere", daemon=True
        )

    @property
    def lost(self) -> list[Any]:
        """Servers that were given up: it does not tell."""
        return []

    @property
    def running(self) -> int:
        """How many rows were handed over and have not come back."""
        return self._given - self._taken

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self._over.is_set() or self._called_off.is_set()

    @property
    def complete(self) -> bool:
        """Whether each row came to its end."""
        return self._exhausted and self._over.is_set() and self.running == 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait for the end, at most this long."""
        self._over.wait(seconds)

    def wind_up(self) -> None:
        """Hand over nothing more; what runs comes to its end."""
        self._stopping.set()

    def call_off(self) -> None:
        """End all that runs; none of it is recorded."""
        self._stopping.set()
        self._called_off.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread, and raise what the run ended with.

        Raises:
            BaseException: What ended it before its time.
        """
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error

    def _until_stopped(self) -> Iterator[Ask]:
        for ask in self._asks:
            if self._stopping.is_set():
                return
            self._given += 1
            yield ask
        self._exhausted = True

    def _follow(self) -> None:
        try:
            for record in self._rows:
                if self._called_off.is_set():
                    continue  # it ends by itself, and what it holds with it
                self._taken += 1
                self._record(record)
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            self._error = error
        finally:
            self._over.set()
