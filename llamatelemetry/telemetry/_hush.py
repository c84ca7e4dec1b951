"""An endpoint: what can be one, and one line where it is down, not a library's many."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from llamatelemetry._units import printable
from llamatelemetry.exceptions import ConfigurationError

_TALKATIVE = (
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.common._internal",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.sdk.metrics._internal.export",
)

_LONGEST_CAUSE = 500
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"([!-~]([ -~]*[!-~])?)?")

_logger = logging.getLogger(__name__)


class _Filter(logging.Filter):
    """Lets nothing through that is said in a thread while it is hushed.

    The loggers belong to all exporters of the process; those of the user's own go on
    saying what they say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        said: list[str] | None = getattr(self.here, "said", None)
        if said is None:
            return True
        if not said and record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False


_filter = _Filter()


@contextlib.contextmanager
def hushed() -> Iterator[list[str]]:
    """Have OpenTelemetry's exporters say nothing in this thread.

    Yields:
        The first complaint that was not said, once there is one.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_filter)  # once, however often it is called
    before = getattr(_filter.here, "said", None)
    said: list[str] = []
    _filter.here.said = said
    try:
        yield said
    finally:
        _filter.here.said = before


class Complaint:
    """Says once that an endpoint takes nothing.

    Args:
        where: The endpoint.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._is_made = False

    def make(self, cause: str) -> None:
        """Say it, if it was not said.

        Args:
            cause: Why, as far as it is known.
        """
        if not self._is_made:
            self._is_made = True
            _logger.warning(
                "OpenTelemetry's endpoint %s takes nothing, so spans and metrics are "
                "lost; requests are not affected, and this is said once: %s",
                self._where,
                printable(cause, _LONGEST_CAUSE) or "nobody says why",
            )


class QuietExporter:
    """An exporter of spans or metrics that says nothing and raises nothing.

    In a fork, and once it was shut down, it does nothing: OpenTelemetry wakes all that
    ever were after a fork, and what they hold is the other process's.

    Args:
        exporter: The real one.
        complaint: Made when it has failed.
    """

    def __init__(self, exporter: Any, complaint: Complaint) -> None:
        self._exporter = exporter
        self._complaint = complaint
        self._process = os.getpid()
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export, and complain once if that fails."""
        if self._is_over or self._process != os.getpid():
            return None
        result = None
        # Older exporters raise where newer ones answer that they have failed; whoever
        # calls this looks at neither.
        with hushed() as said:
            try:
                result = self._exporter.export(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 -- whatever they raise
                said.append(f"{type(error).__name__}: {error}")
        if result is None or result.name != "SUCCESS":
            self._complaint.make("".join(said[:1]))
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """Shut the real one down."""
        self._is_over = True
        return self._exporter.shutdown(*args, **kwargs)


def checked_endpoint(endpoint: str) -> str:
    """Return an endpoint without a path of its own for spans or metrics.

    Raises:
        ConfigurationError: It is no address of HTTP, or holds a password.
    """
    try:
        parts = urlsplit(endpoint.strip())
        works = parts.scheme in ("http", "https") and bool(parts.hostname)
        works = works and (parts.port is None or parts.port > 0)
    except (AttributeError, ValueError):  # no text; a port that is no number
        works = False
    if not works:
        raise ConfigurationError(
            "endpoint must be an address such as 'http://127.0.0.1:4318'"
        )
    if parts.username is not None or parts.query:
        raise ConfigurationError(
            "endpoint holds a user's name or a query; give secrets as headers"
        )
    path = parts.path.rstrip("/")
    for signal in ("/v1/traces", "/v1/metrics"):
        path = path.removesuffix(signal)
    return f"{parts.scheme}://{parts.netloc}{path}"


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers that can be sent.

    Raises:
        ConfigurationError: They cannot; no value is shown.
    """
    if not isinstance(headers, Mapping):
        raise ConfigurationError("headers must be a dict, from names to texts")
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is no name of a header")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"the header {name!r} must be a text of one line, in ASCII, without "
                "spaces around it"
            )
    return dict(headers)
