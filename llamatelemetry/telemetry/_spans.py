"""What a finished request is as a span and as measurements of the conventions. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from llamatelemetry.api._record import RequestRecord
from llamatelemetry.api.responses import Usage
from llamatelemetry.telemetry import _conventions as names
from llamatelemetry.telemetry._conventions import Instrument
from llamatelemetry.telemetry._span_messages import (
    encodable,
    input_messages,
    output_messages,
)

Attributes = dict[str, Any]
Measurement = tuple[Instrument, float, Attributes]

OPERATIONS = {
    "chat": "chat",
    "completion": "text_completion",
    "embeddings": "embeddings",
}
"""The conventions' word for each kind of request; others have no span."""

_PORTS = {"http": 80, "https": 443}
_PARAMETERS: Mapping[str, tuple[str, type]] = {
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", int),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
}


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """A span that is yet to be made.

    Attributes:
        name: Its name.
        start: When it starts, in nanoseconds since 1970.
        end: When it ends, likewise.
        attributes: Those that a sampler may want.
        more: The other attributes.
        error: Whether the request failed.
        problem: What went wrong, where it may be told.
    """

    name: str
    start: int
    end: int
    attributes: Attributes
    more: Attributes
    error: bool
    problem: str | None


def server_attributes(base_url: str | None) -> Attributes:
    """Return the attributes of a server's address; none without one."""
    parts = urlsplit(base_url or "")
    if not parts.hostname:
        return {}
    port = parts.port or _PORTS.get(parts.scheme)
    attributes: Attributes = {"server.address": parts.hostname}
    return attributes if port is None else attributes | {"server.port": port}


def common_attributes(record: RequestRecord, base_url: str | None) -> Attributes:
    """Return what the span and all measurements of a request share."""
    attributes: Attributes = {
        "gen_ai.operation.name": OPERATIONS[record.kind],
        "gen_ai.provider.name": names.PROVIDER,
    }
    requested = _asked(record).get("model") or record.model
    if isinstance(requested, str):
        attributes["gen_ai.request.model"] = encodable(requested)
    attributes |= server_attributes(record.server or base_url)
    return attributes


def span_of(
    record: RequestRecord, base_url: str | None, offset: float, *, text: bool
) -> SpanPlan:
    """Return the span of a request.

    Args:
        record: The request, of a kind in `OPERATIONS`.
        base_url: Its server, where the record does not say.
        offset: Seconds from the monotonic clock to the time since 1970.
        text: Whether it may hold what was asked and answered.
    """
    common = common_attributes(record, base_url)
    operation = common["gen_ai.operation.name"]
    model = common.get("gen_ai.request.model")
    more = dict(_request_attributes(record, text=text))
    more |= dict(_response_attributes(record))
    if text:
        more |= dict(_text_attributes(record))
    failed = record.error is not None
    return SpanPlan(
        name=f"{operation} {model}" if model else operation,
        start=_nanoseconds(record.start + offset),
        end=_nanoseconds(record.end + offset),
        attributes=common,
        more={key: encodable(value) for key, value in more.items()} | _error(record),
        error=failed,
        problem=encodable(str(record.error)) if failed and text else None,
    )


def measurements_of(
    record: RequestRecord, base_url: str | None
) -> Iterator[Measurement]:
    """Yield what is measured of a request.

    Args:
        record: The request, of a kind in `OPERATIONS`.
        base_url: Its server, where the record does not say.
    """
    shared = common_attributes(record, base_url)
    if record.model:
        shared["gen_ai.response.model"] = encodable(record.model)
    yield names.OPERATION_DURATION, record.duration, shared | _error(record)
    for direction, tokens in _tokens(record).items():
        yield names.TOKEN_USAGE, tokens, shared | {"gen_ai.token.type": direction}
    first = _first_chunk(record)
    if first is not None:
        yield names.TIME_TO_FIRST_CHUNK, first, shared
    for earlier, later in pairwise(record.chunk_times or ()):
        yield names.TIME_PER_OUTPUT_CHUNK, later - earlier, shared
    per_token = _time_per_token(record)
    if per_token is not None:
        yield names.TIME_PER_OUTPUT_TOKEN, per_token, shared


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _asked(record: RequestRecord) -> Mapping[str, Any]:
    """Return what of a request's body is known: all of it, or no text."""
    return record.sent or record.parameters or {}


def _error(record: RequestRecord) -> Attributes:
    """Return an error's type: the name of its class, as `exceptions` lists them."""
    if record.error is None:
        return {}
    return {"error.type": type(record.error).__qualname__}


def _tokens(record: RequestRecord) -> dict[str, int]:
    """Return the tokens of each direction; none of an answer that broke off."""
    usage = record.usage
    if usage is None:
        return {}
    if not isinstance(usage, Usage):
        return {"input": usage.prompt_tokens}
    return {"input": usage.prompt_tokens, "output": usage.completion_tokens}


def _first_chunk(record: RequestRecord) -> float | None:
    times = record.chunk_times
    return times[0] - record.start if times else record.time_to_first_token


def _time_per_token(record: RequestRecord) -> float | None:
    """Return seconds for each token after the first, as the server measured them.

    llama-server's clock of a generation starts when the first token is there.
    """
    timings = record.timings
    if timings is None or record.error is not None or timings.predicted_ms is None:
        return None
    after_first = (timings.predicted_n or 0) - 1
    return timings.predicted_ms / 1000 / after_first if after_first > 0 else None


def _is_number(value: Any) -> bool:
    """Whether it is one; a body may hold anything, which the server then refuses."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _request_attributes(
    record: RequestRecord, *, text: bool
) -> Iterator[tuple[str, Any]]:
    asked = _asked(record)
    for key, (name, kind) in _PARAMETERS.items():
        value = asked.get(key)
        if _is_number(value):
            yield name, kind(value)
    choices = asked.get("n", 1)
    if choices != 1 and _is_number(choices):
        yield "gen_ai.request.choice.count", int(choices)
    stop = asked.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if text and stops and isinstance(stops, list | tuple):
        yield "gen_ai.request.stop_sequences", [str(each) for each in stops]
    wanted = asked.get("response_format")
    if wanted and isinstance(wanted, Mapping):
        kind_of_answer = wanted.get("type")
        yield "gen_ai.output.type", "text" if kind_of_answer == "text" else "json"
    if record.kind == "embeddings":
        if asked.get("encoding_format"):
            formats = [str(asked["encoding_format"])]
            yield "gen_ai.request.encoding_formats", formats
    else:
        # All generations travel as a stream, whole answers too.
        yield "gen_ai.request.stream", True


def _response_attributes(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    if record.model:
        yield "gen_ai.response.model", record.model
    if record.finish_reason:
        yield "gen_ai.response.finish_reasons", [record.finish_reason]
    first = _first_chunk(record)
    if first is not None:
        yield "gen_ai.response.time_to_first_chunk", first
    for direction, tokens in _tokens(record).items():
        yield f"gen_ai.usage.{direction}_tokens", tokens
    cached = getattr(record.usage, "cached_tokens", None)
    if cached is not None:
        yield "gen_ai.usage.cache_read.input_tokens", cached
    if record.slot is not None:
        yield "llamacpp.slot", record.slot
    if record.timings is not None:
        for key in ("prompt_ms", "predicted_ms"):
            value = getattr(record.timings, key)
            if value is not None:
                yield f"llamacpp.{key}", value


def _text_attributes(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    messages = input_messages(record.sent or {})
    if messages is not None:
        yield "gen_ai.input.messages", messages
    if record.answer is not None:
        said = output_messages(record.answer, record.finish_reason)
        yield "gen_ai.output.messages", said
