"""Requests, cards and servers as OpenTelemetry's spans and metrics.

The only import of opentelemetry, which is loaded when an exporter is started. What the
spans and metrics are called is in `_conventions`, what they hold in `_spans` and
`_card_values`; here they are handed over.
"""
# ruff: noqa: PLC0415 -- opentelemetry is loaded when an exporter is started

from __future__ import annotations

import atexit
import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.exceptions import ConfigurationError, SetupError
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.telemetry import _conventions as names
from llamatelemetry.telemetry._card_values import Value, card_values
from llamatelemetry.telemetry._conventions import Instrument
from llamatelemetry.telemetry._hush import (
    Complaint,
    QuietExporter,
    checked_endpoint,
    checked_headers,
    hushed,
)
from llamatelemetry.telemetry._post import Post
from llamatelemetry.telemetry._recording import Recorders
from llamatelemetry.telemetry._scrape import Scrape
from llamatelemetry.telemetry._spans import (
    OPERATIONS,
    Attributes,
    measurements_of,
    server_attributes,
    span_of,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["OpenTelemetryExporter"]

_SCOPE = "llamatelemetry"
_SCRAPE_SECONDS = 15.0
_METRICS_SECONDS = 15.0
_EXPORT_SECONDS = 2.0
_LONGEST_CLOSE = 3.0
_INSTALL = 'pip install "opentelemetry-sdk" "opentelemetry-exporter-otlp-proto-http"'

# A request; the span that was current; seconds to the system's clock; its server.
Ended = tuple[RequestRecord, "Context", float, str | None]


class OpenTelemetryExporter:
    """Exports a client's requests, the cards and the server to OpenTelemetry.

    Each chat, completion and embedding is a span, and is measured in histograms, by the
    GenAI conventions (``CONVENTIONS_VERSION``); what failed has the error's class as
    ``error.type``. The monitor's last sample, while it runs, is ``hw.gpu.*``,
    ``hw.power`` and ``hw.temperature`` for each card, and llama-server's own metrics
    are ``llamacpp.*``.

    A span's parent is the span that is current in the thread in which the request
    ends. Spans are made in a thread of their own: no request waits for an exporter, and
    an endpoint that is down costs one line in the log.

    Args:
        target: A client, or what has one: a session, also over its ``relaunch()``, or
            a pool.
        tracer_provider: Yours, for spans; it is not shut down. Without it, and without
            an endpoint, the one that is set for the whole program.
        meter_provider: Yours, for metrics, likewise.
        endpoint: The address of an OTLP receiver that speaks HTTP, such as
            ``http://127.0.0.1:4318``; spans go to its ``/v1/traces``, metrics to its
            ``/v1/metrics``, compressed.
        headers: Sent to the endpoint: keys and tokens. Never shown.
        monitor: Whose samples are exported; None for the target's, if it has one.
        scrape: Whether llama-server's metrics are read, at most every 15 seconds; or at
            most every so many seconds. A server without ``--metrics`` is left alone.
        text: Whether spans hold what was asked and answered, and what an error says.

    Raises:
        ConfigurationError: A value cannot work.

    Examples:
        >>> from llamatelemetry.telemetry import OpenTelemetryExporter
        >>> from opentelemetry.sdk.trace import TracerProvider
        >>> from opentelemetry.sdk.trace import export
        >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        ...     InMemorySpanExporter,
        ... )
        >>> kept, provider = InMemorySpanExporter(), TracerProvider()
        >>> provider.add_span_processor(export.SimpleSpanProcessor(kept))
        >>> with OpenTelemetryExporter(client, tracer_provider=provider):
        ...     answer = client.completion("The KV cache", max_tokens=8, temperature=0)
        >>> span = kept.get_finished_spans()[0]
        >>> span.name.split()[0], span.attributes["gen_ai.usage.output_tokens"]
        ('text_completion', 8)
    """

    def __init__(
        self,
        target: Any,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        monitor: GPUMonitor | None = None,
        scrape: bool | float = True,
        text: bool = False,
    ) -> None:
        if endpoint is None and headers is not None:
            raise ConfigurationError("headers go to an endpoint, and there is none")
        if endpoint is not None and (tracer_provider or meter_provider):
            raise ConfigurationError(
                "give an endpoint, or providers of your own that have exporters"
            )
        _client_of(target)
        self._target = target
        self._monitor = monitor or getattr(target, "monitor", None)
        self._endpoint = None if endpoint is None else checked_endpoint(endpoint)
        self._headers = checked_headers(headers or {})
        self._providers = tracer_provider, meter_provider
        self._scrape_seconds = _checked_scrape(scrape)
        self._text = text
        self._lock = threading.Lock()
        self._ending: ExitStack | None = None

    def __repr__(self) -> str:
        where = self._endpoint or "providers"
        state = "running" if self.running else "stopped"
        return f"OpenTelemetryExporter({_client_of(self._target)!r}, {where}, {state})"

    @property
    def running(self) -> bool:
        """Whether requests are exported."""
        return self._ending is not None

    def start(self) -> Self:
        """Export what ends from now on; nothing if it runs already.

        Raises:
            SetupError: opentelemetry is missing; names what to install.

        Examples:
            >>> from llamatelemetry.telemetry import OpenTelemetryExporter
            >>> exporter = OpenTelemetryExporter(client).start()
            >>> exporter.running
            True
            >>> exporter.close()
        """
        with self._lock, ExitStack() as undo:
            if self._ending is None:
                self._start(undo)
                atexit.register(self.close)
                self._ending = undo.pop_all()
        return self

    def close(self) -> None:
        """Hand over what has ended, and export no more; harmless when called again.

        Takes about 3 seconds at most, whatever an endpoint or a provider does; what is
        not exported by then is lost.

        Examples:
            >>> from llamatelemetry.telemetry import OpenTelemetryExporter
            >>> exporter = OpenTelemetryExporter(client).start()
            >>> exporter.close()
            >>> exporter
            OpenTelemetryExporter(LlamaCppClient('...'), providers, stopped)
        """
        with self._lock:
            ending, self._ending = self._ending, None
        if ending is not None:
            atexit.unregister(self.close)
            ending.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, undo: ExitStack) -> None:
        """Begin, and note in `undo` how to end, the last thing first."""
        try:
            providers = _providers(*self._providers, self._endpoint, self._headers)
        except ImportError as error:
            raise SetupError(
                f"OpenTelemetry cannot be loaded ({error}); install it with: {_INSTALL}"
            ) from error
        from opentelemetry.context import get_current

        source = _Source(self._monitor, self._scrape_seconds)
        meters = _meters_of(providers)
        undo.enter_context(meters.observing(source))
        # Ended while the source is asked still: providers collect a last time.
        undo.callback(providers.shut_down)
        quiet = self._endpoint is not None
        work = _Work(_tracer(providers), meters, text=self._text, quiet=quiet)
        post = Post(work.export, "llamatelemetry-opentelemetry")
        undo.callback(post.close, _LONGEST_CLOSE)
        subscription = _Subscription(source, post.put, get_current, text=self._text)
        undo.callback(subscription.close)
        # A session tells these when it has another client.
        followers = getattr(self._target, "_recorders", None) or Recorders()
        followers.add(subscription)
        undo.callback(followers.discard, subscription)
        subscription.follow(_client_of(self._target))


@dataclass(frozen=True, slots=True)
class _Providers:
    """Where spans and metrics go, and what of that is ours to end."""

    tracers: TracerProvider
    meters: MeterProvider
    ours: tuple[Callable[[], object], ...] = ()

    def shut_down(self) -> None:
        """End what is ours, side by side, and wait for that, but not for long."""
        threads = [
            threading.Thread(
                target=_hushed,
                args=(end,),
                name="llamatelemetry-opentelemetry-end",
                daemon=True,
            )
            for end in self.ours
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _LONGEST_CLOSE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _hushed(function: Callable[[], object]) -> None:
    with hushed():
        function()


def _providers(
    tracers: TracerProvider | None,
    meters: MeterProvider | None,
    endpoint: str | None,
    headers: Mapping[str, str],
) -> _Providers:
    """Return the user's providers, our own for an endpoint, or the program's."""
    from opentelemetry import metrics, trace

    if endpoint is not None:
        return _own_providers(endpoint, headers)
    return _Providers(
        tracers or trace.get_tracer_provider(), meters or metrics.get_meter_provider()
    )


def _own_providers(endpoint: str, headers: Mapping[str, str]) -> _Providers:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
        OTLPMetricExporter,
    )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: _SCOPE}))
    sending: dict[str, Any] = {
        "headers": dict(headers),
        "timeout": _EXPORT_SECONDS,
        "compression": Compression.Gzip,
    }
    complaint = Complaint(endpoint)
    spans: Any = QuietExporter(
        OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", **sending), complaint
    )
    values: Any = QuietExporter(
        OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics", **sending), complaint
    )
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(spans))
    reader = PeriodicExportingMetricReader(values, _METRICS_SECONDS * 1000)
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    return _Providers(tracers, meters, (tracers.shutdown, meters.shutdown))


def _tracer(providers: _Providers) -> Tracer:
    return providers.tracers.get_tracer(_SCOPE, schema_url=names.GEN_AI_SCHEMA_URL)


class _Source:
    """What instruments observe for one exporter."""

    def __init__(self, monitor: GPUMonitor | None, seconds: float | None) -> None:
        self._monitor = monitor
        self._seconds = seconds  # for which a server's values are good; None for none
        self._server: tuple[Scrape, Attributes] | None = None

    def follow(self, client: LlamaCppClient, base_url: str | None) -> None:
        """Ask this client's server from now on."""
        if self._seconds is not None:
            scrape = Scrape(client, self._seconds)
            self._server = scrape, server_attributes(base_url)

    def card_values(self, instrument: Instrument) -> list[Value]:
        """Return the cards' values; none of a monitor that stands still."""
        monitor = self._monitor
        if monitor is None or not monitor.running:
            return []
        return card_values(instrument, monitor.latest(), monitor.gpus)

    def server_values(self, key: str) -> list[Value]:
        """Return the server's value by llama-server's name, if it tells it."""
        if self._server is None:
            return []
        scrape, attributes = self._server
        values = scrape.values()
        return [(values[key], attributes)] if key in values else []


class _Subscription:
    """Takes a client's requests, and those of the next one that its session has.

    Args:
        source: Told of each client.
        put: Takes what has ended.
        get_context: Returns the context in which a request ends.
        text: Whether with what was asked and answered.
    """

    def __init__(
        self,
        source: _Source,
        put: Callable[[Ended], None],
        get_context: Callable[[], Context],
        *,
        text: bool,
    ) -> None:
        self._source, self._put, self._get_context = source, put, get_context
        self._text = text
        self._client: LlamaCppClient | None = None
        self._end: Callable[[], None] = lambda: None

    def follow(self, client: LlamaCppClient | None, *_: object) -> None:
        """Take the requests of this client from now on, and of no other."""
        if client is None or client is self._client:
            return
        self._end()
        self._client = client
        base_url = getattr(client, "base_url", None)
        self._source.follow(client, base_url)

        def take(record: RequestRecord) -> None:
            if record.kind in OPERATIONS:
                # One subtraction here: the system's clock may be set meanwhile.
                offset = time.time() - time.monotonic()
                self._put((record, self._get_context(), offset, base_url))

        self._end = client.subscribe(take, chunk_times=True, text=self._text)

    def close(self) -> None:
        """Take no more."""
        self._end()


class _Meters:
    """The instruments of one meter provider, which all exporters to it share.

    A provider keeps an instrument for good, and the first one of a name wins: its
    callbacks ask all exporters that run.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._sources: list[_Source] = []
        meter = provider.get_meter(_SCOPE, schema_url=names.GEN_AI_SCHEMA_URL)
        self.histograms = {
            one.name: meter.create_histogram(
                one.name,
                unit=one.unit,
                description=one.description,
                explicit_bucket_boundaries_advisory=one.buckets,
            )
            for one in names.REQUEST_INSTRUMENTS
        }
        hardware = provider.get_meter(
            f"{_SCOPE}.gpu", schema_url=names.HARDWARE_SCHEMA_URL
        )
        for card in names.CARD_INSTRUMENTS:
            self._observe(hardware, card, _Source.card_values, card)
        server = provider.get_meter(f"{_SCOPE}.llama_server")
        for key, instrument in names.SERVER_INSTRUMENTS.items():
            self._observe(server, instrument, _Source.server_values, key)

    @contextlib.contextmanager
    def observing(self, source: _Source) -> Iterator[None]:
        """Have a source asked, too."""
        self._sources = [*self._sources, source]
        try:
            yield
        finally:
            self._sources = [one for one in self._sources if one is not source]

    def _observe(
        self,
        meter: Meter,
        instrument: Instrument,
        ask: Callable[[_Source, Any], list[Value]],
        what: Instrument | str,
    ) -> None:
        from opentelemetry.metrics import Observation

        def callback(_: CallbackOptions) -> list[Observation]:
            return [
                Observation(value, attributes)
                for source in self._sources
                for value, attributes in ask(source, what)
            ]

        create = {
            "counter": meter.create_observable_counter,
            "gauge": meter.create_observable_gauge,
            "up_down_counter": meter.create_observable_up_down_counter,
        }[instrument.kind]
        create(instrument.name, [callback], instrument.unit, instrument.description)


_known: weakref.WeakKeyDictionary[MeterProvider, _Meters] = weakref.WeakKeyDictionary()
_knowing = threading.Lock()


def _meters_of(providers: _Providers) -> _Meters:
    with _knowing:
        found = _known.get(providers.meters)
        if found is None:
            found = _Meters(providers.meters)
            if not providers.ours:
                _known[providers.meters] = found
    return found


@dataclass(frozen=True, slots=True)
class _Work:
    """Makes the span and the measurements of a request that is over."""

    tracer: Tracer
    meters: _Meters
    text: bool
    quiet: bool

    def export(self, ended: Ended) -> None:
        """Hand one request over."""
        record, _, _, base_url = ended
        with hushed() if self.quiet else contextlib.nullcontext():
            for instrument, value, attributes in measurements_of(record, base_url):
                self.meters.histograms[instrument.name].record(value, attributes)
            self._make_span(ended)

    def _make_span(self, ended: Ended) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        record, parent, offset, base_url = ended
        plan = span_of(record, base_url, offset, text=self.text)
        span = self.tracer.start_span(
            plan.name,
            parent,
            kind=SpanKind.CLIENT,
            attributes=plan.attributes,
            start_time=plan.start,
        )
        span.set_attributes(plan.more)
        if plan.error:
            span.set_status(Status(StatusCode.ERROR, plan.problem))
        span.end(plan.end)


def _client_of(target: Any) -> LlamaCppClient:
    client = target if isinstance(target, LlamaCppClient) else None
    found = client or getattr(target, "client", None)
    if not isinstance(found, LlamaCppClient):
        raise ConfigurationError(
            f"{target!r} is no client, and has none; give a LlamaCppClient, a session "
            "or a pool"
        )
    return found


def _checked_scrape(scrape: bool | float) -> float | None:
    """Return how many seconds what was read is good for; None for no reading."""
    if scrape is True:
        return _SCRAPE_SECONDS
    if scrape is False:
        return None
    if not isinstance(scrape, int | float) or not 0 < scrape < math.inf:
        raise ConfigurationError(
            f"scrape is {scrape!r}; it must be True, False or a number of seconds "
            "above 0"
        )
    return float(scrape)
