"""Requests, tokens, servers and cards on one clock; and out to OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

if TYPE_CHECKING:
    from llamatelemetry.telemetry._attribution import Attribution
    from llamatelemetry.telemetry._conventions import CONVENTIONS_VERSION
    from llamatelemetry.telemetry._entries import RequestEntry, ServerEvent
    from llamatelemetry.telemetry._opentelemetry import OpenTelemetryExporter
    from llamatelemetry.telemetry._recording import record
    from llamatelemetry.telemetry.timeline import Timeline

__all__ = [
    "CONVENTIONS_VERSION",
    "Attribution",
    "OpenTelemetryExporter",
    "RequestEntry",
    "ServerEvent",
    "Timeline",
    "record",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "CONVENTIONS_VERSION": "_conventions",
        "Attribution": "_attribution",
        "OpenTelemetryExporter": "_opentelemetry",
        "RequestEntry": "_entries",
        "ServerEvent": "_entries",
        "Timeline": "timeline",
        "record": "_recording",
    },
)
