"""llama-server's own ``/metrics``, read when somebody collects them.

There is no thread for it: OpenTelemetry asks each instrument whenever it collects, one
after the other. The first question reads the server, the others are answered from what
it said; so one collection costs one request, and meters that nobody collects cost
nothing. A server that does not answer is not asked by each instrument anew either.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import LLCudaError, NotSupportedError

__all__ = ["Scrape"]

LONGEST_READ = 2.0
"""Seconds a server may take to tell its metrics; a collection waits for it."""

_NOTHING: Mapping[str, float] = {}
_logger = logging.getLogger(__name__)


class Scrape:
    """Reads one client's server, not more often than asked. Any thread may call it.

    Args:
        client: Asks the server, or the servers of a pool.
        seconds: How long what was read is good for.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        client: LlamaCppClient,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client.with_options(
            timeout=LONGEST_READ, total_timeout=LONGEST_READ
        )
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._values = _NOTHING
        self._is_off = False

    @property
    def is_off(self) -> bool:
        """Whether the server has no metrics to tell, so that it is not asked again."""
        return self._is_off

    def values(self) -> Mapping[str, float]:
        """Return the metrics by llama-server's names; {} where they cannot be had."""
        with self._lock:
            now = self._clock()
            due = self._read_at is None or now - self._read_at >= self._seconds
            if due and not self._is_off:
                self._values = self._read()
                # What a slow server takes is not part of the wait for the next one.
                self._read_at = self._clock()
            return self._values

    def _read(self) -> Mapping[str, float]:
        try:
            return self._client.metrics()
        except NotSupportedError as error:
            self._is_off = True
            _logger.info("llama-server's metrics are left out: %s", error)
        except LLCudaError as error:
            _logger.debug("llama-server's metrics could not be read: %s", error)
        return _NOTHING
