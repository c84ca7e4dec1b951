"""One line where an endpoint is down, in the place of a library's many."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

_TALKATIVE = (
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.sdk.metrics._internal.export",
)

_logger = logging.getLogger(__name__)


class _Filter(logging.Filter):
    """Lets nothing through that is said in a thread while it is hushed.

    The loggers belong to all exporters of the process; those of the user's own go on
    saying what they say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 -- its thread is what counts
        return not getattr(self.here, "is_hushed", False)


_filter = _Filter()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Have OpenTelemetry's exporters say nothing in this thread."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_filter)  # once, however often it is called
    before = getattr(_filter.here, "is_hushed", False)
    _filter.here.is_hushed = True
    try:
        yield
    finally:
        _filter.here.is_hushed = before


class Complaint:
    """Says once that an endpoint takes nothing.

    Args:
        where: The endpoint.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._is_made = False

    def make(self) -> None:
        """Say it, if it was not said."""
        if not self._is_made:
            self._is_made = True
            _logger.warning(
                "OpenTelemetry's endpoint %s takes nothing, so spans and metrics are "
                "lost; requests are not affected, and this is said once",
                self._where,
            )


class QuietExporter:
    """An exporter of spans or metrics that says nothing and raises nothing.

    Args:
        exporter: The real one.
        complaint: Made when it has failed.
    """

    def __init__(self, exporter: Any, complaint: Complaint) -> None:
        self._exporter = exporter
        self._complaint = complaint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export, and complain once if that fails."""
        result = None
        # Older exporters raise where newer ones answer that they have failed; whoever
        # calls this looks at neither.
        with hushed(), contextlib.suppress(Exception):
            result = self._exporter.export(*args, **kwargs)
        if result is None or result.name != "SUCCESS":
            self._complaint.make()
        return result
