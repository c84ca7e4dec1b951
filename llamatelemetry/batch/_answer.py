"""One row's answer: asked once, checked, repaired once, and made a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import urlsplit

from llamatelemetry.api.client import ChatCompletionResponse, ChatStream, LlamaCppClient
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._schema import Schema, SchemaMismatchError
from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ConnectionFailedError,
    ContextLengthError,
    LLCudaError,
    RequestTimeoutError,
    ServerError,
    StreamError,
)

__all__ = [
    "Asking",
    "Trouble",
    "answer",
    "answer_patiently",
    "error_record",
    "trouble_of",
    "words_of",
]

Hold = Callable[[Any], Any]

_CUT = "it was cut off by max_tokens or the context's end: give it more room"

Trouble = Literal["row", "busy", "lost", "passing"]
"""Whose trouble an error is: the row's own; the server has no room; the server is gone,
or not there yet; or something that may go well the next time."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How all rows are asked.

    Attributes:
        sampling: Options of ``chat_completion``.
        schema: What answers must be, or None.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    schema: Schema | None = None

    def options(self) -> dict[str, Any]:
        """Return the options as the client takes them."""
        options = dict(self.sampling)
        if self.schema is not None:
            # Past the client, which would raise for what is no JSON: it is repaired.
            more = options.get("extra_body") or {}
            form = {"response_format": self.schema.response_format}
            options["extra_body"] = {**more, **form}
        return options


def trouble_of(error: LLCudaError) -> Trouble:
    """Return whose trouble an error is."""
    if isinstance(error, ServerError | ConnectionFailedError):
        return "lost"
    if isinstance(error, RequestTimeoutError):
        return "passing"
    if not isinstance(error, ClientError):
        return "row"
    status = error.status
    if status is None:
        return "lost" if isinstance(error, StreamError) else "row"
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return "lost" if error.type == "unavailable_error" else "busy"  # it is loading
    failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return "passing" if failed and status != HTTPStatus.NOT_IMPLEMENTED else "row"


def words_of(error: Exception, server: str | None) -> str:
    """Return what an error says, and what to do about an address that has a path.

    The source of a web page, which says nothing to anybody, is left out.

    Args:
        error: What was raised.
        server: Where: its address, or what else it is called.
    """
    said = str(error)
    if not isinstance(error, ClientError) or error.status is None:
        return said
    said, page, _ = said.partition("check the URL: <")
    if page:
        said += f"check the URL (HTTP {error.status})"
    address = urlsplit(server or "")
    if error.status == HTTPStatus.NOT_FOUND and address.netloc and address.path:
        plain = f"{address.scheme}://{address.netloc}"
        return f"{said}; give the address without a path: to={plain!r}"
    return said


def answer(
    client: LlamaCppClient,
    ask: Ask,
    asking: Asking,
    *,
    hold: Hold | None = None,
    attempts: int = 1,
    server: str | None = None,
) -> dict[str, Any]:
    """Ask once, and once more for a repair; return the row's record.

    Args:
        client: Whom to ask.
        ask: What to ask.
        asking: How to ask.
        hold: Given each stream, so that another thread can close it.
        attempts: The tries so far, this one included.
        server: The server's name where the client does not tell.

    Raises:
        LLCudaError: It was not answered.
    """
    said = _Said(attempts, server)

    def told(messages: Any) -> str:
        return said.note(*_answered(client, messages, asking.options(), hold))

    text = told(ask.messages)
    if asking.schema is None:
        return said.record(ask, text)
    try:
        return said.record(ask, text, asking.schema.parse(text))
    except SchemaMismatchError as mismatch:
        problem = mismatch.problem
    if said.is_cut:  # the next answer would be as well
        return said.misfit(ask, text, problem)
    said.repaired = True
    try:
        text = told(asking.schema.repair(ask.messages, text, problem))
        return said.record(ask, text, asking.schema.parse(text))
    except ContextLengthError:  # the question fits, and with the repair it does not
        pass
    except SchemaMismatchError as mismatch:
        problem = mismatch.problem
    return said.misfit(ask, text, problem)


def _answered(
    client: LlamaCppClient, messages: Any, options: dict[str, Any], hold: Hold | None
) -> tuple[ChatCompletionResponse, ChatStream]:
    stream = client.chat_completion_stream(messages, **options)
    if hold is not None:
        hold(stream)
    with stream:
        return stream.result(), stream


@dataclass(slots=True)
class _Said:
    """What is known of one row's answers, summed up over the repair."""

    attempts: int
    server: str | None
    repaired: bool = False
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    counts: dict[str, int | None] = field(default_factory=dict)
    last: ChatCompletionResponse | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the last answer ended for want of room."""
        return self.last is not None and self.last.choices[0].finish_reason == "length"

    def note(self, response: ChatCompletionResponse, stream: ChatStream) -> str:
        """Take in an answer, and return its text."""
        record = stream.record
        if not self.counts:
            self.first = record.time_to_first_token
        self.server = record.server or self.server
        usage = response.usage
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
            count = getattr(usage, name)
            before = self.counts.get(name)
            self.counts[name] = count if before is None else before + (count or 0)
        self.last = response
        return response.choices[0].message.content or ""

    def misfit(self, ask: Ask, text: str, problem: str) -> dict[str, Any]:
        """Return the line of an answer that is not what the schema asks for."""
        message = f"{problem}; {_CUT}" if self.is_cut else problem
        error = {"type": "SchemaError", "message": message}
        return self.record(ask, text, error=error)

    def record(
        self,
        ask: Ask,
        text: str,
        value: Any = None,
        error: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the line that is kept."""
        response = self.last
        assert response is not None  # noqa: S101 - an answer was noted before
        choice = response.choices[0]
        record = {
            "id": ask.row.id,
            "key": ask.key,
            "position": ask.row.position,
            "answer": text,
            "value": value,
            "error": error,
            "finish_reason": choice.finish_reason,
            "model": response.model,
            **self.counts,
            "seconds": round(time.monotonic() - self.began, 6),
            "time_to_first_token": None if self.first is None else round(self.first, 6),
            "attempts": self.attempts,
            "repaired": self.repaired,
            "server": self.server,
            "time": round(time.time(), 3),
        }
        if choice.message.tool_calls:
            record["tool_calls"] = choice.message.tool_calls
        return record


def error_record(
    row: Any,
    key: str,
    error: Exception,
    *,
    attempts: int = 0,
    seconds: float | None = None,
    server: str | None = None,
) -> dict[str, Any]:
    """Return the record of a row that was not answered.

    Args:
        row: Has ``id`` and ``position``.
        key: What was asked, as a digest.
        error: Why; one with a ``type`` of its own that is no server's is named by it.
        attempts: How often it was tried.
        seconds: How long the last try took.
        server: Where.
    """
    named = None if isinstance(error, LLCudaError) else getattr(error, "type", None)
    return {
        "id": row.id,
        "key": key,
        "position": row.position,
        "answer": None,
        "error": {
            "type": named or type(error).__name__,
            "message": words_of(error, server),
        },
        "seconds": None if seconds is None else round(seconds, 6),
        "attempts": attempts,
        "server": server,
        "time": round(time.time(), 3),
    }


def answer_patiently(
    client: LlamaCppClient,
    ask: Ask,
    asking: Asking,
    *,
    retries: int = 2,
    wait: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Ask until there is a record: an answer, or the error after all tries.

    For other processes, which have nobody to wait for servers but themselves.

    Args:
        client: Whom to ask.
        ask: What to ask.
        asking: How to ask.
        retries: How often what may pass is asked again.
        wait: Called before each of them; returns once it may be asked again.

    Raises:
        AuthenticationError: The server wants a key, or another one.
    """
    attempts = 0
    while True:
        attempts += 1
        began = time.monotonic()
        try:
            return answer(client, ask, asking, attempts=attempts)
        except AuthenticationError:
            raise
        except LLCudaError as error:
            if trouble_of(error) == "row" or attempts > retries:
                seconds = time.monotonic() - began
                return error_record(
                    ask.row, ask.key, error, attempts=attempts, seconds=seconds
                )
        if wait is not None:
            wait()
