"""Spans and metrics as a real OTLP receiver, or the user's own provider, gets them."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from client_tools import MESSAGES, StandIn
from nvml_tools import NOT_SUPPORTED, StandInDriver, t4
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llamatelemetry import ServerConfig, ServerPool, launch
from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.api.responses import Timings
from llamatelemetry.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailedError,
    ContextLengthError,
    SetupError,
    StreamError,
)
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.telemetry import _opentelemetry as door
from llamatelemetry.telemetry import _scrape
from llamatelemetry.telemetry._conventions import CONVENTIONS_VERSION
from llamatelemetry.telemetry._hush import Complaint, QuietExporter, hushed
from llamatelemetry.telemetry._opentelemetry import OpenTelemetryExporter
from llamatelemetry.telemetry._post import Post
from llamatelemetry.telemetry._spans import measurements_of, span_of

RECEIVER = Path(__file__).parents[1] / "tools" / "otlp_receiver.py"
TABLE = json.loads(
    (Path(__file__).parents[1] / "data" / "otel_conventions.json").read_text()
)
CLIENT_KIND = 3  # of a span, in OTLP
ERROR_STATUS = 2
TYPES = {
    "string": str,
    "int": int,
    "double": float,
    "boolean": bool,
    "string[]": list,
    "json": str,
}
SECRET = "hf_secret_of_the_stand_in"
AT = {"endpoint": "http://127.0.0.1:4318"}


class Receiver:
    """A running receiver: its address, and what it has got."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._before: dict[str, int] = {}
        self._before = {name: len(items) for name, items in self.seen().items()}

    def seen(self) -> dict[str, list[dict[str, Any]]]:
        """Return what has come since this was made."""
        with self._opener.open(f"{self.url}/seen") as reply:
            whole = json.load(reply)
        return {
            name: items[self._before.get(name, 0) :] for name, items in whole.items()
        }

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the last export of each metric by its name."""
        return {metric["name"]: metric for metric in self.seen()["metrics"]}


@pytest.fixture(scope="module")
def receiver_port() -> Iterator[int]:
    """The port of a receiver that runs as a program of its own."""
    process = subprocess.Popen(
        [sys.executable, str(RECEIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield int(process.stdout.readline())
        process.stdin.close()
        process.wait(60)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things is given time."""
    monkeypatch.setattr(door, "_LONGEST_CLOSE", 60.0)
    monkeypatch.setattr(_scrape, "LONGEST_READ", 60.0)


@pytest.fixture
def receiver(receiver_port: int, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """That receiver, as if it had got nothing yet."""
    monkeypatch.setattr(door, "_EXPORT_SECONDS", 60.0)
    return Receiver(receiver_port)


class Mine:
    """A user's own providers, which keep everything in memory."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(processor or SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def export(self, target: Any, **options: Any) -> OpenTelemetryExporter:
        """Return an exporter to these."""
        return OpenTelemetryExporter(
            target,
            tracer_provider=self.tracers,
            meter_provider=self.meters,
            **{"scrape": False} | options,
        )

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The spans so far."""
        return self.exporter.get_finished_spans()

    def points(self) -> dict[str, list[Any]]:
        """Collect, and return each metric's points by its name."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def mine() -> Mine:
    """A user's own providers."""
    return Mine()


def ask_everything(client: LlamaCppClient) -> None:
    """Send requests of all kinds that the conventions have a word for, and others."""
    client.chat_completion(
        MESSAGES, 8, temperature=0, top_k=3, seed=7, frequency_penalty=0.5, stop=["§"]
    )
    with client.chat_completion_stream(MESSAGES, max_tokens=4) as stream:
        list(stream)
    client.completion("The KV cache", max_tokens=8, temperature=0)
    client.embeddings(["What is GGUF?", "GGUF"])
    client.tokenize("What is GGUF?")
    with pytest.raises(ContextLengthError):
        client.completion("long " * 4000, max_tokens=1)


def assert_keeps_convention(span: dict[str, Any]) -> None:
    """A span has the name, kind and attributes of its convention, of their types."""
    attributes = span["attributes"]
    operation = attributes["gen_ai.operation.name"]
    table = TABLE["spans"]["embeddings" if operation == "embeddings" else "inference"]
    levels = ("required", "conditionally_required", "recommended", "opt_in")
    allowed = {key: kind for level in levels for key, kind in table[level].items()}
    ours = {key for key in attributes if key.startswith("llamacpp.")}

    assert operation in TABLE["operations"]
    assert span["kind"] == CLIENT_KIND
    assert span["schema_url"] == TABLE["schema_url"]
    model = attributes.get("gen_ai.request.model")
    assert span["name"] == (f"{operation} {model}" if model else operation)
    assert attributes.keys() >= table["required"].keys()
    assert attributes.keys() - ours <= allowed.keys()
    for key in attributes.keys() - ours:
        assert type(attributes[key]) is TYPES[allowed[key]], key


def assert_metric_keeps_convention(
    metric: dict[str, Any], table: dict[str, Any], schema_url: str
) -> None:
    """A metric has the unit, kind, buckets and attributes of its convention."""
    assert metric["unit"] == table["unit"]
    assert metric["description"] == table["description"]
    assert metric["kind"] == table["kind"]
    assert metric["schema_url"] == schema_url
    assert metric["points"]
    for point in metric["points"]:
        keys = point["attributes"].keys()
        assert keys >= set(table["required"])
        assert keys <= {*table["required"], *table["others"]}
        assert point.get("bounds") == table["buckets"]


def test_version_is_that_of_the_table() -> None:
    """The version that is told is the one whose names the table holds."""
    assert TABLE["version"] == CONVENTIONS_VERSION


def test_every_request_arrives_as_a_span(
    client: LlamaCppClient, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Each generation and embedding is one span by the conventions, failed ones too."""
    records: list[RequestRecord] = []
    end = client.subscribe(records.append)
    before = time.time_ns()

    with OpenTelemetryExporter(client, endpoint=receiver.url):
        ask_everything(client)
    end()

    spans = receiver.seen()["spans"]
    wanted = [
        one for one in records if one.kind in ("chat", "completion", "embeddings")
    ]
    port = int(client.base_url.rpartition(":")[2])
    assert len(spans) == len(wanted) == 5
    for span, record in zip(spans, wanted, strict=True):
        attributes = span["attributes"]
        assert_keeps_convention(span)
        assert before < span["start"] < span["end"] < time.time_ns()
        took = (span["end"] - span["start"]) / 1e9
        assert took == pytest.approx(record.duration, abs=1e-5)
        assert attributes["server.address"] == "127.0.0.1"
        assert attributes["server.port"] == port
        if record.error is None:
            assert attributes["gen_ai.response.model"] == record.model
            assert record.usage is not None
            tokens = attributes["gen_ai.usage.input_tokens"]
            assert tokens == record.usage.prompt_tokens
    assert spans[0]["attributes"]["gen_ai.usage.output_tokens"] == 8
    assert spans[0]["attributes"]["gen_ai.response.finish_reasons"] == ["length"]
    assert spans[0]["attributes"]["gen_ai.request.stream"] is True
    assert 0 < spans[0]["attributes"]["gen_ai.response.time_to_first_chunk"] < 60
    assert spans[0]["attributes"]["gen_ai.usage.cache_read.input_tokens"] >= 0
    assert spans[0]["attributes"]["llamacpp.predicted_ms"] > 0
    assert spans[3]["attributes"]["gen_ai.operation.name"] == "embeddings"
    assert "gen_ai.request.stream" not in spans[3]["attributes"]
    assert [span["status"] for span in spans] == [0, 0, 0, 0, ERROR_STATUS]
    assert spans[4]["attributes"]["error.type"] == "ContextLengthError"
    assert spans[4]["name"] == "text_completion"
    assert spans[0]["resource"]["service.name"] == "llamatelemetry"
    assert not caplog.records


def test_every_measurement_arrives(client: LlamaCppClient, receiver: Receiver) -> None:
    """All histograms come in with units, buckets and attributes of the conventions."""
    records: list[RequestRecord] = []
    end = client.subscribe(records.append, chunk_times=True)

    with OpenTelemetryExporter(client, endpoint=receiver.url, scrape=False):
        ask_everything(client)
    end()

    found = receiver.metrics()
    assert found.keys() == TABLE["metrics"].keys()
    for name, metric in found.items():
        table = TABLE["metrics"][name]
        assert_metric_keeps_convention(metric, table, TABLE["schema_url"])
    wanted = [
        one for one in records if one.kind in ("chat", "completion", "embeddings")
    ]
    count = {
        name: sum(point["count"] for point in metric["points"])
        for name, metric in found.items()
    }
    total = {
        name: sum(point["sum"] for point in metric["points"])
        for name, metric in found.items()
    }
    usages = [one.usage for one in wanted if one.usage and one.error is None]
    chunks = [one.chunk_times for one in wanted if one.chunk_times]
    assert len(usages) == 4
    assert len(chunks) == 3
    assert count["gen_ai.client.operation.duration"] == 5
    assert total["gen_ai.client.token.usage"] == sum(one.total_tokens for one in usages)
    assert count["gen_ai.client.operation.time_to_first_chunk"] == 3
    per_chunk = "gen_ai.client.operation.time_per_output_chunk"
    assert count[per_chunk] == sum(len(times) - 1 for times in chunks)
    assert total[per_chunk] == pytest.approx(sum(one[-1] - one[0] for one in chunks))
    timings = [one.timings for one in wanted if one.timings and one.error is None]
    assert count["gen_ai.server.time_per_output_token"] == len(timings) == 3
    assert total["gen_ai.server.time_per_output_token"] == pytest.approx(
        sum(
            (one.predicted_ms or 0) / 1000 / ((one.predicted_n or 0) - 1)
            for one in timings
        )
    )
    failed = [
        point["attributes"].get("error.type")
        for point in found["gen_ai.client.operation.duration"]["points"]
    ]
    assert sorted(filter(None, failed)) == ["ContextLengthError"]


@pytest.mark.parametrize("text", [False, True])
def test_what_the_request_asked_for_is_in_its_span(
    text: bool, client: LlamaCppClient, mine: Mine
) -> None:
    """Sampling options have the conventions' names; what is text only if asked for."""
    with mine.export(client, text=text):
        client.chat_completion(
            MESSAGES,
            8,
            temperature=0,
            top_k=3,
            seed=7,
            stop=["§"],
            n=1,
            frequency_penalty=0.5,
            extra_body={"response_format": {"type": "json_object"}},
        )
        client.completion("The KV cache", 4, stop="§")
        client.embeddings("GGUF")

    chat, completion, embedding = (dict(span.attributes or {}) for span in mine.spans)
    assert chat["gen_ai.request.max_tokens"] == 8
    assert chat["gen_ai.request.temperature"] == 0.0
    assert chat["gen_ai.request.top_k"] == 3
    assert chat["gen_ai.request.seed"] == 7
    assert chat["gen_ai.request.frequency_penalty"] == 0.5
    stop = ("§",) if text else None
    assert chat.get("gen_ai.request.stop_sequences") == stop
    assert chat.get("gen_ai.output.type") == ("json" if text else None)
    assert "gen_ai.request.choice.count" not in chat
    assert completion.get("gen_ai.request.stop_sequences") == stop
    assert "gen_ai.request.seed" not in completion
    assert not any(key.startswith("gen_ai.request.top") for key in embedding)


def test_text_is_exported_when_asked_for(client: LlamaCppClient, mine: Mine) -> None:
    """Prompts and answers then stand in the conventions' attributes, in their shape."""
    with mine.export(client, text=True):
        answer = client.chat_completion(
            [{"role": "system", "content": "Be brief."}, *MESSAGES], 8, temperature=0
        )
        client.completion("The KV cache", max_tokens=4, temperature=0)

    chat, completion = (dict(span.attributes or {}) for span in mine.spans)
    asked = json.loads(str(chat["gen_ai.input.messages"]))
    said = json.loads(str(chat["gen_ai.output.messages"]))
    jsonschema.validate(asked, TABLE["input_messages"])
    jsonschema.validate(said, TABLE["output_messages"])
    assert [message["role"] for message in asked] == ["system", "user"]
    assert asked[0]["parts"] == [{"type": "text", "content": "Be brief."}]
    assert said[0]["parts"][0]["content"] == answer.choices[0].message.content
    assert said[0]["finish_reason"] == "length"
    prompt = json.loads(str(completion["gen_ai.input.messages"]))
    assert prompt[0]["parts"] == [{"type": "text", "content": "The KV cache"}]


def test_no_text_leaves_unasked(client: LlamaCppClient, receiver: Receiver) -> None:
    """Without text=True nothing of prompt, answer or error is in what is exported."""
    with OpenTelemetryExporter(client, endpoint=receiver.url):
        answer = client.completion("Zanzibar KV cache", 4, temperature=0, stop="qqq")
        with pytest.raises(ContextLengthError) as error:
            client.chat_completion([{"role": "user", "content": "Zanzibar " * 4000}])

    told = json.dumps(receiver.seen())
    assert "text_completion" in told
    for text in ("Zanzibar", "qqq", str(error.value)[:40], answer.choices[0].text):
        assert text.strip() not in told


def test_messages_of_all_kinds_keep_their_schema(stand_in: StandIn, mine: Mine) -> None:
    """Pictures, tools and thoughts are parts by the schema; a picture's data is not."""
    call = {"id": "c1", "type": "function"}
    call["function"] = {"name": "add", "arguments": '{"a":1}'}  # type: ignore[assignment] # JSON
    picture = {"url": "data:image/png;base64,QUJD"}
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look."},
                {"type": "image_url", "image_url": picture},
                {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}},
                {"type": "input_audio", "input_audio": {"data": "QUJD"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]}
        | {"reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]

    client = stand_in.client(finish="tool_calls")
    with mine.export(client, text=True):
        client.chat_completion(messages)

    attributes = dict(mine.spans[0].attributes or {})
    asked = json.loads(str(attributes["gen_ai.input.messages"]))
    said = json.loads(str(attributes["gen_ai.output.messages"]))
    jsonschema.validate(asked, TABLE["input_messages"])
    jsonschema.validate(said, TABLE["output_messages"])
    kinds = [[part["type"] for part in message["parts"]] for message in asked]
    assert kinds == [
        ["text", "blob", "uri", "input_audio"],
        ["reasoning", "tool_call"],
        ["tool_call_response"],
    ]
    assert asked[0]["parts"][1]["mime_type"] == "image/png"
    assert "QUJD" not in json.dumps(asked)
    assert said[0]["finish_reason"] == "tool_call"


def test_parent_is_the_current_span(stand_in: StandIn, mine: Mine) -> None:
    """A request inside the user's own span is its child; the next one is nobody's."""
    tracer = mine.tracers.get_tracer("mine")
    client = stand_in.client()

    with mine.export(client):
        with tracer.start_as_current_span("outer") as outer:
            client.chat_completion(MESSAGES)
        client.chat_completion(MESSAGES)

    spans = [span for span in mine.spans if span.name != "outer"]
    assert [span.parent and span.parent.span_id for span in spans] == [
        outer.get_span_context().span_id,
        None,
    ]


def test_requests_do_not_wait_for_an_exporter(stand_in: StandIn) -> None:
    """While an exporter hangs, requests go on and end; it gets all of them later."""
    may_go, hangs = threading.Event(), threading.Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            hangs.set()
            may_go.wait(30)
            return super().export(spans)

    kept = Hanging()
    mine = Mine(SimpleSpanProcessor(kept))
    client = stand_in.client()
    with mine.export(client):
        client.chat_completion(MESSAGES)
        assert hangs.wait(10)
        for _ in range(3):
            client.chat_completion(MESSAGES)  # would never come back
        assert not kept.get_finished_spans()
        may_go.set()

    assert len(kept.get_finished_spans()) == 4


def test_close_does_not_wait_for_ever(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that never comes back is left alone."""
    monkeypatch.setattr(door, "_LONGEST_CLOSE", 0.05)
    never = threading.Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            never.wait(30)
            return super().export(spans)

    kept = Hanging()
    client = stand_in.client()
    with Mine(SimpleSpanProcessor(kept)).export(client) as exporter:
        client.chat_completion(MESSAGES)

    assert not exporter.running
    assert not kept.get_finished_spans()
    never.set()


@pytest.mark.parametrize(("answers", "cause"), [(False, "refused"), (None, "timeout")])
def test_endpoint_that_is_down_costs_one_line(
    answers: bool | None,
    cause: str,
    stand_in: StandIn,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Requests are answered, nothing is raised, and one line of the log says why."""
    caplog.set_level(logging.DEBUG, "llamatelemetry")
    client = stand_in.client()
    listener = socket.create_server(("127.0.0.1", 0))  # takes connections, is silent
    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    if answers is False:
        listener.close()

    with OpenTelemetryExporter(client, endpoint=endpoint) as exporter:
        for _ in range(3):
            assert client.chat_completion(MESSAGES).choices
    listener.close()

    assert not exporter.running
    warned = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one.name.partition(".")[0] for one in warned] == ["llamatelemetry"]
    assert endpoint in warned[0].getMessage()
    assert cause in warned[0].getMessage()


def test_refusing_endpoint_is_told_by_its_status(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has the wrong key reads that, and not only that nothing arrives."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        client = stand_in.client()
        url = f"http://127.0.0.1:{server.server_port}"
        with OpenTelemetryExporter(client, endpoint=url, scrape=False):
            client.chat_completion(MESSAGES)
        server.shutdown()

    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "401" in caplog.text


def test_others_exporters_may_still_complain(caplog: pytest.LogCaptureFixture) -> None:
    """What the user's own exporters say is not kept from the log."""
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    with hushed():
        logging.getLogger(name).error("of ours")
    logging.getLogger(name).error("of the user's")

    assert [one.getMessage() for one in caplog.records] == ["of the user's"]


def test_exporter_that_raises_is_complained_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As older exporters do where nothing listens; nobody is to see that."""

    class Raising:
        def export(self, _: object) -> None:
            raise OSError("nobody there")

    quiet = QuietExporter(Raising(), Complaint("http://127.0.0.1:4318"))

    assert quiet.export([]) is None
    assert quiet.export([]) is None
    assert len(caplog.records) == 1
    assert "OSError: nobody there" in caplog.text


@pytest.mark.parametrize(
    ("said", "shown"),
    [((), "nobody says why"), (("code: 401\n", "again"), "code: 401\ufffd")],
)
def test_complaint_has_the_first_thing_that_was_said(
    said: tuple[str, ...], shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of warnings and errors; on one line, and if there is any."""
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")

    class Failing:
        def export(self, _: object) -> SpanExportResult:
            logger.info("no trouble")
            for each in said:
                logger.error("%s", each)
            return SpanExportResult.FAILURE

    caplog.set_level(logging.INFO)
    QuietExporter(Failing(), Complaint("http://127.0.0.1:4318")).export([])

    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith(f"said once: {shown}")


def test_exporter_of_another_process_does_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor one that was shut down: OpenTelemetry wakes both in a fork."""
    kept = InMemorySpanExporter()
    forked, ended = (QuietExporter(kept, Complaint("http://x")) for _ in range(2))
    forked._process = -1
    ended.shutdown()

    assert forked.export([]) is None
    assert ended.export([]) is None
    assert not caplog.records


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "running"])
def test_fork_says_and_sends_nothing(
    closes: bool, stand_in: StandIn, receiver: Receiver
) -> None:
    """What is exported before and after it comes once, from the program itself."""
    program = f"""
import os, urllib.request, warnings
from llamatelemetry import LlamaCppClient
from llamatelemetry.telemetry import OpenTelemetryExporter, _opentelemetry
warnings.simplefilter("ignore")
_opentelemetry._LONGEST_CLOSE = _opentelemetry._EXPORT_SECONDS = 60.0
client = LlamaCppClient({stand_in.url()!r})
exporter = OpenTelemetryExporter(client, endpoint={receiver.url!r}, scrape=False)
exporter.start()
client.chat_completion([{{"role": "user", "content": "Hello!"}}])
if {closes}:
    exporter.close()
else:  # until the request is measured, too
    os.environ["no_proxy"] = "*"
    while b"fork {closes}" not in urllib.request.urlopen("{receiver.url}/seen").read():
        pass
child = os.fork()
if child:
    os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
        env=os.environ
        | {"OTEL_SERVICE_NAME": f"fork {closes}", "OTEL_BSP_SCHEDULE_DELAY": "20"},
    )

    assert not done.stderr
    assert [span["name"] for span in receiver.seen()["spans"]] == ["chat stand-in"]
    paths = [one["path"] for one in receiver.seen()["requests"]]
    assert sorted(paths) == ["/v1/metrics", "/v1/traces"]


def test_headers_are_sent_and_never_shown(
    stand_in: StandIn, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The endpoint gets them with spans and metrics; no repr has them."""
    client = stand_in.client()
    headers = {"Authorization": f"Bearer {SECRET}"}

    with OpenTelemetryExporter(client, endpoint=receiver.url, headers=headers) as one:
        client.chat_completion(MESSAGES)
        assert SECRET not in repr(one)
        assert receiver.url in repr(one)

    came = receiver.seen()["requests"]
    assert {one["path"] for one in came} == {"/v1/traces", "/v1/metrics"}
    assert all(one["headers"]["authorization"].endswith(SECRET) for one in came)
    assert all(one["headers"]["content-encoding"] == "gzip" for one in came)
    assert SECRET not in caplog.text


def test_relaunched_session_is_followed(mine: Mine) -> None:
    """Its next client's requests come too, once each, and its next server is read."""
    session = launch("demo", engine="embedded", gpus=[], progress=False)
    ports, read, clients = [], [], []
    with session, mine.export(session, scrape=60) as exporter:
        for context_size in (512, 256):
            session.relaunch(context_size=context_size, progress=False)
            ports.append(int(session.url.rpartition(":")[2]))
            clients.append(session.client)
            session.client.chat_completion(MESSAGES, 4)
            (point,) = mine.points()["llamacpp.tokens_predicted"]
            read.append(point.attributes["server.port"])
        assert repr(session.client) in repr(exporter)
        exporter.close()
        session.relaunch(context_size=512, progress=False)
        session.client.chat_completion(MESSAGES, 4)
        clients.append(session.client)
        assert not any(client._transport.listeners for client in clients)

    told = [(span.attributes or {})["server.port"] for span in mine.spans]
    assert told == read == ports


def test_users_providers_live_on(stand_in: StandIn, mine: Mine) -> None:
    """They are not shut down, nor made the program's, and a next exporter works."""
    set_before = trace.get_tracer_provider(), metrics.get_meter_provider()
    client = stand_in.client()

    for _ in range(2):
        with mine.export(client) as exporter:
            assert exporter.start() is exporter
            client.chat_completion(MESSAGES)
        exporter.close()
        client.chat_completion(MESSAGES)
    with mine.tracers.get_tracer("mine").start_as_current_span("still there"):
        pass

    assert [span.name for span in mine.spans] == [
        "chat stand-in",
        "chat stand-in",
        "still there",
    ]
    duration = mine.points()["gen_ai.client.operation.duration"]
    assert [point.count for point in duration] == [2]
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == set_before


def test_nothing_of_an_endpoint_is_left(stand_in: StandIn, receiver: Receiver) -> None:
    """Our own providers are not remembered, and only our close() waits for the end."""
    exporter = OpenTelemetryExporter(stand_in.client(), endpoint=receiver.url)
    exporter.start().close()  # what is loaded for it may wait for the end, too
    known, waiting = len(door._known), atexit._ncallbacks()

    with exporter:
        assert len(door._known) == known
        assert atexit._ncallbacks() == waiting + 1


def test_programs_own_providers_are_taken(
    stand_in: StandIn, mine: Mine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without providers or an endpoint it goes where the whole program sends."""
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: mine.tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: mine.meters)
    client = stand_in.client()

    with OpenTelemetryExporter(client, scrape=False):
        client.chat_completion(MESSAGES)

    assert len(mine.spans) == 1


def test_cards_are_gauges(
    stand_in: StandIn, receiver: Receiver, driver: StandInDriver
) -> None:
    """Each card's last sample arrives by the hardware conventions."""
    driver.describe(t4(0, utilization="40 0"), t4(1))

    with (
        GPUMonitor(interval=60) as monitor,
        OpenTelemetryExporter(
            stand_in.client(), endpoint=receiver.url, monitor=monitor, scrape=False
        ),
    ):
        monitor.sample()

    found = receiver.metrics()
    assert found.keys() >= TABLE["hardware"].keys()
    values = {}
    for name, table in TABLE["hardware"].items():
        points = found[name]["points"]
        values[name] = [point["value"] for point in points]
        # The convention of temperatures knows no type; it is told all the same.
        wider = table | {"others": [*table["others"], "hw.type"]}
        url = "https://opentelemetry.io/schemas/1.44.0"
        assert_metric_keeps_convention(found[name], wider, url)
        assert [point["attributes"]["hw.type"] for point in points] == ["gpu", "gpu"]
        assert points[0]["attributes"]["hw.id"] == t4(0)["uuid"]
        assert points[1]["attributes"]["hw.name"] == "GPU 1: Tesla T4"
    limit = found["hw.gpu.memory.limit"]["points"][0]["attributes"]
    assert limit["hw.model"] == "Tesla T4"
    assert limit["hw.driver_version"] == "570.172.08"
    assert values["hw.gpu.memory.limit"] == [15_360 * 2**20] * 2
    assert values["hw.gpu.memory.usage"] == [3 * 2**20] * 2
    assert values["hw.gpu.utilization"] == [0.4, 0.0]
    assert values["hw.power"] == [9.5, 9.5]
    assert values["hw.temperature"] == [38, 38]
    assert found["hw.gpu.memory.usage"]["monotonic"] is False


def test_what_a_card_cannot_tell_is_left_out(
    stand_in: StandIn, mine: Mine, driver: StandInDriver
) -> None:
    """No power is no point, and not 0; a monitor that stands still tells nothing."""
    driver.describe(t4(0, **{"error.nvmlDeviceGetPowerUsage": NOT_SUPPORTED}), t4(1))
    monitor = GPUMonitor(interval=60)

    for _ in range(2):  # the second exporter finds the first one's instruments
        with mine.export(stand_in.client(), monitor=monitor):
            assert "hw.power" not in mine.points()
            with monitor:
                monitor.sample()
                points = mine.points()
                assert [point.value for point in points["hw.power"]] == [9.5]
                assert len(points["hw.temperature"]) == 2
            assert "hw.power" not in mine.points()
        with monitor:
            assert "hw.temperature" not in mine.points()


def test_cards_that_are_not_known_have_their_number(
    driver: StandInDriver, mine: Mine, stand_in: StandIn
) -> None:
    """A card without UUID and driver is told by its number, and no more is made up."""
    driver.describe(t4(0, uuid=None))

    with (
        GPUMonitor(interval=60) as monitor,
        mine.export(stand_in.client(), monitor=monitor),
    ):
        monitor.sample()
        known = mine.points()["hw.temperature"][0].attributes
        monitor._gpus = ()
        unknown = mine.points()["hw.temperature"][0].attributes

    assert known["hw.id"] == "0"
    assert unknown == {"hw.id": "0", "hw.type": "gpu", "hw.name": "GPU 0"}


def test_broken_answers_have_no_counts(stand_in: StandIn, mine: Mine) -> None:
    """Of an answer that breaks off nobody has told how many tokens it took."""
    client = stand_in.client(end="cut", tokens=3)
    stream = client.chat_completion_stream(MESSAGES)
    with mine.export(client), pytest.raises(StreamError):
        list(stream)

    attributes = dict(mine.spans[0].attributes or {})
    assert attributes["error.type"] == "StreamError"
    assert "gen_ai.usage.input_tokens" not in attributes
    points = mine.points()
    assert "gen_ai.client.token.usage" not in points
    assert "gen_ai.server.time_per_output_token" not in points
    assert "gen_ai.client.operation.time_to_first_chunk" in points


def test_refused_and_unreachable_requests_have_spans(
    stand_in: StandIn, mine: Mine
) -> None:
    """An error of the server and a connection that fails are told by their class."""
    refused, gone = stand_in.client(status=401), LlamaCppClient("http://127.0.0.1:9")
    with mine.export(refused), pytest.raises(AuthenticationError):
        refused.embeddings("a")
    with mine.export(gone, text=True), pytest.raises(ConnectionFailedError):
        gone.chat_completion(MESSAGES)

    first, second = mine.spans
    assert (first.attributes or {})["error.type"] == "AuthenticationError"
    assert first.status.description is None
    assert (second.attributes or {})["error.type"] == "ConnectionFailedError"
    assert "127.0.0.1:9" in str(second.status.description)


def test_pool_members_are_told_apart(tiny_model: Path, mine: Mine) -> None:
    """Requests of a pool carry the address of the server that answered."""
    config = ServerConfig(tiny_model, port=0, context_size=256, threads=1)
    with (
        ServerPool(config, engine="embedded", gpus=[[], []]) as pool,
        mine.export(pool, scrape=60),
    ):
        pool.client.completion("a", max_tokens=1)
        points = mine.points()
        ports = {int(server.get_url().rpartition(":")[2]) for server in pool.servers}

    assert (mine.spans[0].attributes or {})["server.port"] in ports
    assert points["llamacpp.tokens_predicted"][0].attributes == {}


def test_records_of_any_fullness_become_spans() -> None:
    """A choice count, formats and a default port are told where they are there."""
    record = RequestRecord(kind="embeddings", path="/v1/embeddings", start=1.0, end=2.0)
    record.sent = {"encoding_format": "base64", "n": 2, "model": "asked", "stop": "a"}
    record.sent |= {"prompt": "a", "seed": True}
    record.answer = "a"
    record.server = "https://llama.example/v1"
    record.slot = 3

    plan = span_of(record, None, 10.0, text=False)

    assert (plan.name, plan.start, plan.end) == (
        "embeddings asked",
        11_000_000_000,
        12_000_000_000,
    )
    assert plan.attributes["server.port"] == 443
    assert plan.more["gen_ai.request.encoding_formats"] == ["base64"]
    assert plan.more["gen_ai.request.choice.count"] == 2
    assert plan.more["llamacpp.slot"] == 3
    assert plan.more.keys() == {
        "gen_ai.request.choice.count",
        "gen_ai.request.encoding_formats",
        "llamacpp.slot",
    }
    assert [one.name for one, _, _ in measurements_of(record, None)] == [
        "gen_ai.client.operation.duration"
    ]


ODD: list[Any] = [
    None, True, -5, 1.5, math.nan, math.inf, "x", "a\ud800", [], [None], ["x", 5],
    [["x"]], {}, {"a": 1}, {5: None}, [{}], [{"role": 5, "content": {"s": "x"}}],
    [{"content": [5, "x", {"type": "image_url"}, {"type": "text", "text": None}]}],
    [{"content": [{"type": "image_url", "image_url": [5]}], "tool_calls": 5}],
    [{"tool_calls": [5, {"function": "x"}, {}]}, {"role": "tool", "content": {5: 6}}],
]  # fmt: skip


@pytest.mark.parametrize("kind", ["chat", "completion", "embeddings"])
def test_odd_bodies_are_spans_and_measurements_too(kind: str) -> None:
    """What a server would refuse loses neither; attributes are of their types."""
    keys = ["messages", "prompt", "model", "n", "stop", "response_format", "seed"]
    for key in [*keys, "top_k", "temperature", "max_tokens", "encoding_format"]:
        for odd in ODD:
            record = RequestRecord(
                kind=kind, path="/", sent={key: odd}, answer="\ud8ff"
            )
            plan = span_of(record, None, 0.0, text=True)
            told = plan.attributes | plan.more
            for _, _, attributes in measurements_of(record, None):
                told |= attributes
            for value in [plan.name, *told.values()]:
                assert isinstance(value, str | bool | int | float | list)
                json.dumps(value, ensure_ascii=False).encode()
                if isinstance(value, list):
                    assert all(isinstance(each, str) for each in value)


def test_odd_request_arrives(
    stand_in: StandIn, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Its span and its measurements come in, and nothing is said of it."""
    client = stand_in.client()
    with OpenTelemetryExporter(
        client, endpoint=receiver.url, text=True, scrape=False
    ) as exporter:
        client.chat_completion(
            [{"role": "user", "content": "a\ud800b"}],
            extra_body={"response_format": "json", "stop": ["\udfff"]}
            | {"seed": 2**70},  # more than OTLP has room for
        )

    (span,) = receiver.seen()["spans"]
    assert "a?b" in span["attributes"]["gen_ai.input.messages"]
    assert span["attributes"]["gen_ai.request.stop_sequences"] == ["?"]
    assert receiver.metrics()["gen_ai.client.operation.duration"]["points"]
    assert not exporter.running
    assert not caplog.records


def test_measurements_do_not_wait_for_a_span(stand_in: StandIn) -> None:
    """A request whose span cannot be made is measured all the same."""

    class Raising(SpanProcessor):
        def on_start(self, *_: object, **__: object) -> None:
            raise ValueError("no span of mine")

    client, mine = stand_in.client(), Mine(Raising())
    with mine.export(client):
        client.chat_completion(MESSAGES)

    assert mine.points()["gen_ai.client.operation.duration"][0].count == 1


def test_failed_and_short_answers_have_no_time_per_token() -> None:
    """It is of answers that succeeded, and of the tokens after the first."""
    timings = Timings(predicted_n=5, predicted_ms=40.0)
    good = RequestRecord(kind="chat", path="/", timings=timings)
    failed = RequestRecord(kind="chat", path="/", timings=timings, error=OSError())
    short = Timings(predicted_n=1, predicted_ms=1.0)
    one_token = RequestRecord(kind="chat", path="/", timings=short)
    name = "gen_ai.server.time_per_output_token"

    found = [
        {one.name: value for one, value, _ in measurements_of(record, None)}
        for record in (good, failed, one_token)
    ]

    assert found[0][name] == 0.01
    assert name not in found[1]
    assert name not in found[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoint": "127.0.0.1:4318"}, "must be an address"),
        ({"endpoint": "http://"}, "must be an address"),
        ({"endpoint": "http://a:b"}, "must be an address"),
        ({"endpoint": 4318}, "must be an address"),
        ({"endpoint": "http://me:word@127.0.0.1"}, "secrets as headers"),
        ({"endpoint": "http://127.0.0.1/?key=word"}, "secrets as headers"),
        ({"headers": {"a": "b"}}, "there is none"),
        ({"headers": {"x-key": 5}} | AT, "the header 'x-key' must be a text"),
        ({"headers": {"x-key": "word\r\nb: c"}} | AT, "'x-key' must be a text of one"),
        ({"headers": {"x-key": "wörd"}} | AT, "'x-key' must be a text of one line"),
        ({"headers": {"x-key": " word"}} | AT, "'x-key' must be a text of one line"),
        ({"headers": {"x key": "word"}} | AT, "'x key' is no name"),
        ({"headers": {5: "word"}} | AT, "5 is no name"),
        ({"headers": ["x-key: word"]} | AT, "headers must be a dict"),
        ({"scrape": 0}, "scrape is 0"),
        ({"scrape": math.nan}, "scrape is nan"),
        ({"scrape": "often"}, "scrape is 'often'"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], said: str, stand_in: StandIn
) -> None:
    """Before anything is loaded or sent, and without showing a password."""
    with pytest.raises(ConfigurationError, match=re.escape(said)) as error:
        OpenTelemetryExporter(stand_in.client(), **options)

    assert "word" not in str(error.value).replace("password", "")


def test_targets_and_places_are_checked(stand_in: StandIn, mine: Mine) -> None:
    """What has no client is refused, and an endpoint beside providers."""
    with pytest.raises(ConfigurationError, match="no client"):
        OpenTelemetryExporter(GPUMonitor())
    with pytest.raises(ConfigurationError, match="providers of your own"):
        mine.export(stand_in.client(), endpoint="http://127.0.0.1:4318")


def test_endpoint_may_name_a_signal(stand_in: StandIn) -> None:
    """An address that ends in a signal's path is taken without it."""
    for endpoint in ("http://h:1/otlp/v1/traces", "http://h:1/otlp/"):
        exporter = OpenTelemetryExporter(stand_in.client(), endpoint=endpoint)
        assert "http://h:1/otlp, stopped" in repr(exporter)


def test_missing_library_is_named(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install, and nothing is left running."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    exporter = OpenTelemetryExporter(
        stand_in.client(), endpoint="http://127.0.0.1:4318"
    )

    with pytest.raises(SetupError, match='pip install "opentelemetry-sdk"'):
        exporter.start()

    assert not exporter.running


def test_service_name_is_the_users(
    stand_in: StandIn, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_SERVICE_NAME, which the SDK reads, goes before our own name."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-notebook")
    client = stand_in.client()

    with OpenTelemetryExporter(client, endpoint=receiver.url, scrape=False):
        client.chat_completion(MESSAGES)

    assert receiver.seen()["spans"][0]["resource"]["service.name"] == "my-notebook"


def test_program_that_forgets_to_close_loses_nothing(
    stand_in: StandIn, receiver: Receiver
) -> None:
    """What has ended by then is exported at the program's end."""
    program = f"""
from llamatelemetry import LlamaCppClient
from llamatelemetry.telemetry import OpenTelemetryExporter, _opentelemetry
_opentelemetry._LONGEST_CLOSE = _opentelemetry._EXPORT_SECONDS = 60.0
client = LlamaCppClient({stand_in.url()!r})
OpenTelemetryExporter(client, endpoint={receiver.url!r}, scrape=False).start()
client.chat_completion([{{"role": "user", "content": "Hello!"}}])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    assert [span["name"] for span in receiver.seen()["spans"]] == ["chat stand-in"]


def test_post_drops_what_is_too_much_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its queue has an end; what does not fit is left out, and one line says it."""
    may_go, begun, done = threading.Event(), threading.Event(), []

    def handle(item: int) -> None:
        begun.set()
        may_go.wait(30)
        done.append(item)

    post = Post(handle, "a post", most=2)
    post.put(0)
    assert begun.wait(10)
    for item in range(1, 6):
        post.put(item)
    may_go.set()

    assert post.close(10)
    assert done == [0, 1, 2]
    assert len(caplog.records) == 1
    assert "a post cannot keep up" in caplog.text


def test_post_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """What a handler raises is logged the first time, and the next item is handled."""
    done = []

    def handle(item: int) -> None:
        if item < 2:
            raise ValueError(item)
        done.append(item)

    post = Post(handle, "a post")
    for item in range(3):
        post.put(item)

    assert post.close(10)
    assert done == [2]
    assert len(caplog.records) == 1


def test_post_in_a_fork_takes_nothing() -> None:
    """A fork has no such thread, so it neither queues nor waits."""
    done: list[int] = []
    post = Post(done.append, "a post")
    process, post._process = post._process, -1
    post.put(1)
    post.close(10)  # of a thread that only the other process could wait for
    post._process = process

    assert post.close(10)
    assert not done
