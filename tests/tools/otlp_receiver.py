"""A program that receives what OpenTelemetry exports by OTLP over HTTP.

Run it as a child: it binds a free port of loopback, prints the port as its first line,
and ends when its standard input is closed. ``POST /v1/traces`` and ``/v1/metrics`` take
protobuf, plain or as gzip, which opentelemetry-proto decodes; ``GET /seen`` answers
what has come as JSON. It shares no code with the package that it tests.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SEEN: dict[str, list[Any]] = {"requests": [], "spans": [], "metrics": []}
LOCK = threading.Lock()


def value_of(value: Any) -> Any:
    """Return an attribute's value as JSON has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes_of(pairs: Iterable[Any]) -> dict[str, Any]:
    """Return attributes by their keys."""
    return {pair.key: value_of(pair.value) for pair in pairs}


def spans_of(message: Any) -> Iterator[dict[str, Any]]:
    """Yield the spans of an export."""
    for resource in message.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "name": span.name,
                    "kind": span.kind,
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "parent": span.parent_span_id.hex(),
                    "status": span.status.code,
                    "message": span.status.message,
                    "attributes": attributes_of(span.attributes),
                    "schema_url": scope.schema_url,
                    "resource": attributes_of(resource.resource.attributes),
                }


def metrics_of(message: Any) -> Iterator[dict[str, Any]]:
    """Yield the metrics of an export."""
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                yield {
                    "name": metric.name,
                    "unit": metric.unit,
                    "description": metric.description,
                    "kind": kind,
                    "monotonic": getattr(data, "is_monotonic", None),
                    "schema_url": scope.schema_url,
                    "points": [point_of(kind, point) for point in data.data_points],
                }


def point_of(kind: str, point: Any) -> dict[str, Any]:
    """Return a data point."""
    attributes = attributes_of(point.attributes)
    if kind == "histogram":
        return {
            "attributes": attributes,
            "count": point.count,
            "sum": point.sum,
            "bounds": list(point.explicit_bounds),
        }
    return {
        "attributes": attributes,
        "value": getattr(point, point.WhichOneof("value")),
    }


class Handler(BaseHTTPRequestHandler):
    """Takes exports, and tells what has come."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer what has come."""
        with LOCK:
            self.answer(json.dumps(SEEN).encode(), "application/json")

    def do_POST(self) -> None:
        """Take spans or metrics."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: Any
        if self.path == "/v1/traces":
            spans = list(spans_of(ExportTraceServiceRequest.FromString(body)))
            self.keep("spans", spans)
            answer = ExportTraceServiceResponse()
        elif self.path == "/v1/metrics":
            metrics = list(metrics_of(ExportMetricsServiceRequest.FromString(body)))
            self.keep("metrics", metrics)
            answer = ExportMetricsServiceResponse()
        else:
            self.send_error(404)
            return
        self.answer(answer.SerializeToString(), "application/x-protobuf")

    def keep(self, what: str, items: list[Any]) -> None:
        """Keep what has come, and how."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        with LOCK:
            SEEN["requests"].append({"path": self.path, "headers": headers})
            SEEN[what].extend(items)

    def answer(self, body: bytes, content_type: str) -> None:
        """Send a good answer."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until standard input is closed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)  # noqa: T201 -- how the test learns it
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
