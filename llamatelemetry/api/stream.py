"""An answer while it comes: chunk by chunk, to the end, or until it is cancelled."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from abc import abstractmethod
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from llamatelemetry.api._assembly import Assembly, ChatAssembly, CompletionAssembly
from llamatelemetry.api._errors import error_from_reply, error_parts
from llamatelemetry.api._parsing import chat_chunk, completion_chunk, parse_with
from llamatelemetry.api._record import RequestRecord
from llamatelemetry.api._sse import Event, EventDecoder
from llamatelemetry.api._transport import Transport
from llamatelemetry.api.responses import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    CompletionResponse,
    PromptProgress,
    Timings,
    Usage,
)
from llamatelemetry.exceptions import ClientError, ConnectionFailedError, StreamError

__all__ = ["ChatStream", "CompletionStream", "TokenStream"]

ChunkT = TypeVar("ChunkT", bound=ChatCompletionChunk | CompletionResponse)
ResponseT = TypeVar("ResponseT", bound=ChatCompletionResponse | CompletionResponse)

_END = b"[DONE]"
_raw_decode = json.JSONDecoder().raw_decode


class TokenStream(Generator[ChunkT, None, None], Generic[ChunkT, ResponseT]):
    """A generation that is being streamed; a generator of its chunks.

    The request is sent when the first chunk is asked for. Chunks without an answer in
    them are taken in and not handed out: the usage and timings at the end are
    attributes here, and how far the prompt is read is told to ``on_progress``.

    Leaving a ``with`` block, ``close()`` and letting go of the object end a generation
    that is not finished; the server stops at its next token and its slot is free.

    Args:
        transport: The client's way to the server.
        path: The path to send to.
        body: What to send, as JSON.
        on_progress: Called with how far the prompt is read.
        complete: Called with the whole response before it is returned.
    """

    _kind: ClassVar[str]

    def __init__(
        self,
        transport: Transport,
        path: str,
        body: Any,
        *,
        on_progress: Callable[[PromptProgress], object] | None = None,
        complete: Callable[[ResponseT], None] | None = None,
    ) -> None:
        self._transport = transport
        self._reply = transport.stream(path, body)
        self._body = body
        self._record = RequestRecord(kind=self._kind, path=path)
        self._chunk_times: array[float] | None = None  # only if somebody wants them
        self._assembly = self._new_assembly()
        self._parser = self._new_parser()
        self._on_progress = on_progress
        self._complete = complete
        self._decoder = EventDecoder()
        self._events: Iterator[Event] = iter(())
        self._ending = threading.Lock()
        self._handed_out = False
        self._cut_off = False
        self._begun_anew = False
        self._finished = False
        self._cancelled = False
        self._error: BaseException | None = None
        self._response: ResponseT | None = None

    def __repr__(self) -> str:
        state = "finished" if self._finished else "open"
        if self._cancelled:
            state = "cancelled"
        elif self._error is not None:
            state = "failed"
        return f"{type(self).__name__}({state}, {len(self.text)} characters so far)"

    @property
    def text(self) -> str:
        """The first answer's text so far, without its reasoning."""
        return self._assembly.text

    @property
    def usage(self) -> Usage | None:
        """How many tokens it took; None before the end."""
        return self._assembly.usage

    @property
    def timings(self) -> Timings | None:
        """What the server measured; None before the end."""
        return self._assembly.timings

    @property
    def progress(self) -> PromptProgress | None:
        """How far the prompt is read; None before the server says so."""
        return self._assembly.progress

    @property
    def record(self) -> RequestRecord:
        """What subscribers are told of it; not whole before the end."""
        return self._record

    @property
    def cancelled(self) -> bool:
        """Whether it was ended before its end."""
        return self._cancelled

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChunkT:
        """Return the next chunk of the answer.

        Raises:
            ClientError: The server refuses the request; the subclass says why.
            ConnectionFailedError: No connection.
            RequestTimeoutError: Silence, or the whole took too long.
            StreamError: The server told an error inside the stream, or the stream
                ended without its end; ``partial`` holds what had come.
        """
        chunk = self._advance()
        self._handed_out = True
        return chunk

    def _advance(self) -> ChunkT:
        """Return the next chunk; ask again where that is possible and costs nothing."""
        while True:
            try:
                return self._next_chunk()
            except StopIteration:
                raise
            except BaseException as error:
                self._reply.close()
                if isinstance(error, Exception) and self._ask_again():
                    continue
                if not isinstance(error, Exception):
                    self._cancelled = True  # an interrupt: what has come can be had
                self._finish(error)
                raise

    def _next_chunk(self) -> ChunkT:
        while True:
            for event in self._events:
                chunk = self._take(event)
                if chunk is not None:
                    return chunk
            self._events = iter(self._decoder.feed(self._next_block()))

    def _ask_again(self) -> bool:
        """Whether a reply that was cut off begins anew: nobody has seen any of it."""
        if not self._cut_off or self._handed_out or self._cancelled:
            return False
        reply = self._reply.again()
        if reply is None:
            return False
        self._reply = reply
        self._assembly = self._new_assembly()
        self._parser = self._new_parser()
        self._decoder = EventDecoder()
        self._events = iter(())
        self._record.time_to_first_token = None
        if self._chunk_times is not None:
            self._record.chunk_times = self._chunk_times = array("d")
        self._cut_off = False
        self._begun_anew = True
        if self._cancelled:  # in between, by another thread
            reply.close()
        return True

    def send(self, value: None) -> ChunkT:  # noqa: ARG002 -- a generator's method
        """Return the next chunk, as every generator can be asked.

        Args:
            value: None; there is nothing to tell a stream.

        Raises:
            ClientError: As asking for the next chunk.
        """
        return next(self)

    def throw(
        self, typ: Any, val: Any = None, tb: TracebackType | None = None
    ) -> ChunkT:
        """End the stream and raise the error, as every generator can be told.

        Args:
            typ: The error, or its class.
            val: The error, where ``typ`` is its class.
            tb: Its traceback.
        """
        self.close()
        return super().throw(typ, val, tb)

    def cancel(self) -> None:
        """End the generation now; may be called from any thread.

        The connection is closed, so that the server stops and its slot becomes free.
        A thread that waits for the next chunk finds the stream at its end.
        ``result()`` then returns what had come. Without effect once it is finished.
        """
        if self._finished:
            return
        self._cancelled = True
        self._reply.close()
        self._finish(None)

    def close(self) -> None:
        """End the generation if it is not finished, as :meth:`cancel` does."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def result(self) -> ResponseT:
        """Wait for the end and return the whole response, with usage and timings.

        After :meth:`cancel` it is what had come, with the finish reason "cancelled".

        Raises:
            ClientError: What went wrong, here or earlier while iterating; a whole
                answer that is not what ``response_format`` asked for.
        """
        with contextlib.suppress(StopIteration):
            while True:
                self._advance()
        if self._error is not None:
            raise self._error
        if self._response is None:
            unfinished = "cancelled" if self._cancelled else "stop"
            response = self._assembly.response(unfinished)
            if self._complete is not None:
                self._complete(response)
            self._response = response
        return self._response

    @abstractmethod
    def _new_assembly(self) -> Assembly[ChunkT, ResponseT]:
        """Return what puts this kind of chunks together."""

    @abstractmethod
    def _new_parser(self) -> Callable[[dict[str, Any]], ChunkT]:
        """Return what reads one chunk."""

    def _next_block(self) -> bytes:
        """Return the next bytes of the reply; the first time, send the request."""
        if self._finished:
            raise StopIteration
        try:
            if not self._reply.status:
                self._open()
            block = next(self._reply, None)
        except ConnectionFailedError as error:
            if self._cancelled:
                raise StopIteration from None
            if not self._reply.status:
                raise
            self._cut_off = True
            raise self._stream_error(str(error)) from error
        if block is not None:
            return block
        if self._cancelled:
            raise StopIteration
        self._cut_off = True
        raise self._stream_error(
            "the stream ended without its end: the server stopped, or something "
            "between cut it"
        )

    def _open(self) -> None:
        if not self._begun_anew:
            self._begin_record()
        reply = self._reply
        status = reply.open()
        what = f"POST {self._record.path}"
        if status != HTTPStatus.OK:
            raise error_from_reply(status, reply.headers, reply.read(), what)
        content_type = reply.headers.get("Content-Type", "text/event-stream")
        if "event-stream" not in content_type:
            start = next(reply, b"")[:80].decode(errors="replace")
            raise ClientError(
                f"{what} answers {content_type} and no event stream, so this is no "
                f"llama-server or something between changed it: {start!r}",
                status=status,
            )

    def _begin_record(self) -> None:
        """Note what is known before it is sent, if anybody wants to know."""
        record, body = self._record, self._body
        self._transport.listeners.begin(record, body)
        if record.chunk_times is not None:
            self._chunk_times = record.chunk_times = array("d")
        if isinstance(body, Mapping) and isinstance(body.get("id_slot"), int):
            record.slot = body["id_slot"] if body["id_slot"] >= 0 else None
        record.start = time.monotonic()

    def _take(self, event: Event) -> ChunkT | None:
        """Take an event in; return its chunk if it is one for the caller."""
        if self._finished:
            raise StopIteration
        name, data = event
        if data == _END:
            self._reply.finish()
            self._finish(None)
            raise StopIteration
        decoded = self._decoded(data)
        if "error" in decoded or name == "error":
            message, kind, details = error_parts(decoded) or (str(decoded), None, {})
            raise self._stream_error(message, status=details.get("code"), kind=kind)
        chunk = parse_with(self._parser, decoded, "chunk")
        assembly = self._assembly
        if self._chunk_times is not None:
            self._add_timed(chunk, self._chunk_times)
        else:
            assembly.add(chunk)
        if self._record.time_to_first_token is None and assembly.tokens_seen:
            self._record.time_to_first_token = time.monotonic() - self._record.start
        if chunk.prompt_progress is not None:
            if self._on_progress is not None:
                self._on_progress(chunk.prompt_progress)
            return None  # an empty delta, said again in the first chunk of the answer
        return chunk if chunk.choices else None

    def _add_timed(self, chunk: ChunkT, times: array[float]) -> None:
        """Take a chunk in, and note when, if there is something of the answer in it."""
        before = self._assembly.tokens_seen
        self._assembly.add(chunk)
        if self._assembly.tokens_seen > before:
            times.append(time.monotonic())

    def _decoded(self, data: bytes) -> dict[str, Any]:
        """Return an event's JSON object.

        Raises:
            StreamError: It is none.
        """
        text = data.decode(errors="replace").strip()
        try:
            # A third faster than json.loads, which looks for white space with a regex.
            decoded, end = _raw_decode(text)
        except ValueError as error:
            raise self._stream_error(
                f"an event of the stream is no JSON: {text[:80]!r}"
            ) from error
        if end != len(text) or not isinstance(decoded, dict):
            raise self._stream_error(
                f"an event of the stream is no JSON object: {text[:80]!r}"
            )
        return decoded

    def _stream_error(
        self, message: str, *, status: int | None = None, kind: str | None = None
    ) -> StreamError:
        error = StreamError(
            f"POST {self._record.path}: {message} (after {len(self.text)} characters, "
            "kept in .partial)",
            status=status,
            type=kind,
            partial=self._assembly.response("error"),
        )
        error.message = message
        return error

    def _finish(self, error: BaseException | None) -> None:
        """Note the end, once, whichever thread comes first."""
        with self._ending:
            if self._finished:
                return
            self._finished = True
        if isinstance(error, Exception):
            self._error = error
        record, assembly = self._record, self._assembly
        record.error = error
        record.model = assembly.model
        record.usage = assembly.usage
        record.timings = assembly.timings
        record.finish_reason = assembly.finish_reason or (
            "cancelled" if self._cancelled else None
        )
        record.server = self._reply.server
        if self._transport.listeners.text:
            record.answer = assembly.text
        if self._reply.opened:
            self._transport.tell(record)


class ChatStream(TokenStream[ChatCompletionChunk, ChatCompletionResponse]):
    """A chat answer that is being streamed; a generator of its chunks.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> with client.chat_completion_stream(messages, temperature=0) as stream:
        ...     for chunk in stream:
        ...         print(chunk.choices[0].delta.content or "", end="")
        GGUF is a file format ...
        >>> stream.usage.completion_tokens
        45
    """

    _kind = "chat"

    def _new_parser(self) -> Callable[[dict[str, Any]], ChatCompletionChunk]:
        return chat_chunk

    def _new_assembly(self) -> ChatAssembly:
        return ChatAssembly()


class CompletionStream(TokenStream[CompletionResponse, CompletionResponse]):
    """A text completion that is being streamed; a generator of its chunks.

    Example:
        >>> with client.completion_stream("The KV cache", 8, temperature=0) as stream:
        ...     for chunk in stream:
        ...         print(chunk.choices[0].text, end="")
         keeps the attention keys and values
    """

    _kind = "completion"

    def _new_parser(self) -> Callable[[dict[str, Any]], CompletionResponse]:
        return completion_chunk

    def _new_assembly(self) -> CompletionAssembly:
        return CompletionAssembly()
