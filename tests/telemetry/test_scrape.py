"""llama-server's own metrics, read for OpenTelemetry."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from client_tools import StandIn
from manager_tools import wait_for
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.telemetry import _scrape
from llamatelemetry.telemetry._conventions import SERVER_INSTRUMENTS
from llamatelemetry.telemetry._opentelemetry import OpenTelemetryExporter
from llamatelemetry.telemetry._scrape import Scrape


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def readings(client: LlamaCppClient) -> list[RequestRecord]:
    """Return the list that will hold each reading of the client's server."""
    seen: list[RequestRecord] = []
    client.subscribe(lambda one: seen.append(one) if one.kind == "metrics" else None)
    return seen


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things is given time."""
    monkeypatch.setattr(_scrape, "LONGEST_READ", 60.0)


def test_server_tells_what_it_counts(client: LlamaCppClient) -> None:
    """Every metric of the real engine is exported, with its value, kind and unit."""
    # What another test has cancelled may go on for a moment, and be counted.
    wait_for(lambda: client.metrics()["llamacpp:requests_processing"] == 0, 30)
    client.completion("The KV cache", max_tokens=8, temperature=0)
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)

    with OpenTelemetryExporter(
        client, tracer_provider=TracerProvider(), meter_provider=meters
    ):
        data: Any = reader.get_metrics_data()
        told = client.metrics()

    found = {
        metric.name: metric
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
    }
    assert told.keys() <= SERVER_INSTRUMENTS.keys(), "the engine has new metrics"
    assert len(found) == len(told) > 10
    port = int(client.base_url.rpartition(":")[2])
    for key, value in told.items():
        instrument = SERVER_INSTRUMENTS[key]
        metric = found[instrument.name]
        (point,) = metric.data.data_points
        if not key.endswith("_tokens_seconds"):  # since the last reading, whose ever
            assert point.value == value
        assert metric.unit == instrument.unit
        assert getattr(metric.data, "is_monotonic", False) == (
            instrument.kind == "counter"
        )
        assert point.attributes == {"server.address": "127.0.0.1", "server.port": port}
    assert found["llamacpp.predicted_tokens_per_second"].data.data_points[0].value > 0
    assert found["llamacpp.tokens_predicted"].data.data_points[0].value >= 8


def test_one_reading_serves_a_collection(client: LlamaCppClient) -> None:
    """It is good for so many seconds, whoever asks, and is read anew after that."""
    clock, seen = Clock(), readings(client)
    scrape = Scrape(client, 15, clock)

    first = scrape.values()
    assert first["llamacpp:requests_processing"] >= 0
    clock.now = 14.9
    assert scrape.values() is first
    assert len(seen) == 1
    clock.now = 15.0
    assert scrape.values() is not first
    assert len(seen) == 2


def test_server_without_metrics_is_left_alone(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, said once and quietly, and never asked again."""
    caplog.set_level(logging.INFO, "llamatelemetry")
    client, clock = stand_in.client(status=501), Clock()
    seen = readings(client)
    scrape = Scrape(client, 1, clock)

    for clock.now in (0.0, 10.0, 20.0):
        assert scrape.values() == {}

    assert scrape.is_off
    assert len(seen) == 1
    assert [one.levelno for one in caplog.records] == [logging.INFO]


def test_server_that_is_gone_is_asked_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It tells nothing, raises nothing, and not every instrument waits for it."""
    client, clock = LlamaCppClient("http://127.0.0.1:9"), Clock()
    seen = readings(client)
    scrape = Scrape(client, 15, clock)

    assert scrape.values() == {}
    assert scrape.values() == {}
    assert len(seen) == 1
    clock.now = 15.0
    assert scrape.values() == {}
    assert len(seen) == 2
    assert not scrape.is_off
    assert not [one for one in caplog.records if one.levelno > logging.DEBUG]
