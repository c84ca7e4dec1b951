"""The client: talk to a running llama-server, in typed Python."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from llamatelemetry._http import CONNECT_TIMEOUT, HTTPClient
from llamatelemetry.api import _requests
from llamatelemetry.api._administration import Administration
from llamatelemetry.api._record import RequestRecord
from llamatelemetry.api._requests import (
    ChatOptions,
    Messages,
    MoreChatOptions,
    ResponseFormat,
)
from llamatelemetry.api._text import TextTools
from llamatelemetry.api._transport import Transport
from llamatelemetry.api.responses import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    Choice,
    ChunkChoice,
    CompletionChoice,
    CompletionResponse,
    Delta,
    DetokenizeResponse,
    Embedding,
    EmbeddingResponse,
    EmbeddingUsage,
    LoraAdapter,
    Message,
    Model,
    ModelList,
    PromptProgress,
    RerankResponse,
    RerankResult,
    SlotAction,
    Timings,
    TokenizeResponse,
    Usage,
)
from llamatelemetry.api.stream import ChatStream, CompletionStream

__all__ = [
    "ChatCompletionChunk",
    "ChatCompletionResponse",
    "ChatOptions",
    "ChatStream",
    "Choice",
    "ChunkChoice",
    "CompletionChoice",
    "CompletionResponse",
    "CompletionStream",
    "Delta",
    "DetokenizeResponse",
    "Embedding",
    "EmbeddingResponse",
    "EmbeddingUsage",
    "LlamaCppClient",
    "LoraAdapter",
    "Message",
    "Model",
    "ModelList",
    "MoreChatOptions",
    "PromptProgress",
    "RequestRecord",
    "RerankResponse",
    "RerankResult",
    "SlotAction",
    "Timings",
    "TokenizeResponse",
    "Usage",
]


class LlamaCppClient(TextTools, Administration):
    """Talks to one llama-server, from any number of threads.

    Connections are kept and used again. On loopback, proxies and .netrc are ignored.
    Nothing is sent before the first method is called.

    Args:
        base_url: The server's address; a ``/v1`` or slash at its end does no harm.
        api_key: The key the server was started with. Never shown.
        timeout: Seconds of **silence** after which a request fails. Generations are
            streamed, and llama-server sends a sign of life every 10 s: an answer may
            take any time. Embeddings of many texts come in one piece and may need
            more, as may a wait for a free slot: :meth:`with_options`.
        total_timeout: Seconds a request may take in all; None for any time.
        connect_timeout: Seconds to open a connection.
        on_request: Called with a :class:`RequestRecord` when a request is over, in the
            thread that ended it.

    Raises:
        ConfigurationError: An argument that cannot work.

    Example:
        >>> from llamatelemetry import LlamaCppClient
        >>> with LlamaCppClient(url) as client:
        ...     print(client.health())
        {'status': 'ok'}
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        api_key: str | None = None,
        timeout: float = 30,
        *,
        total_timeout: float | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        on_request: Callable[[RequestRecord], object] | None = None,
    ) -> None:
        http = HTTPClient(
            _requests.server_root(base_url), headers=_requests.authorization(api_key)
        )
        self._use(Transport(http, timeout, connect_timeout, total_timeout, on_request))

    def _use(self, transport: Transport) -> None:
        self._transport = transport
        self._warned = threading.Event()

    def __repr__(self) -> str:
        return f"LlamaCppClient({self.base_url!r})"

    @property
    def base_url(self) -> str:
        """The server's address, without ``/v1``."""
        return self._transport.http.base_url

    @overload
    def chat_completion(
        self,
        messages: Messages,
        max_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        repeat_penalty: float = ...,
        stop: str | Sequence[str] | None = ...,
        seed: int | None = ...,
        stream: Literal[False] = ...,
        **options: Unpack[MoreChatOptions],
    ) -> ChatCompletionResponse: ...

    @overload
    def chat_completion(
        self,
        messages: Messages,
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> ChatStream: ...

    def chat_completion(  # noqa: PLR0917 -- the API reference's order
        self,
        messages: Messages,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 40,
        repeat_penalty: float = 1.1,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        stream: bool = False,
        **options: Unpack[MoreChatOptions],
    ) -> ChatCompletionResponse | ChatStream:
        """Return the model's answer to a chat.

        The answer travels as a stream in any case, so that ``timeout`` counts silence
        and not the length of the answer.

        Args:
            messages: ``{"role": ..., "content": ...}`` each; a :class:`Message` of an
                earlier answer will do too.
            max_tokens: Tokens to generate at most, reasoning included.
            temperature: 0 takes the likeliest token always.
            top_p: Only the likeliest tokens that together have this probability.
            top_k: Only this many of the likeliest tokens; 0 for all.
            repeat_penalty: Above 1 makes repetition less likely.
            stop: Text at which to stop; it is left out of the answer.
            seed: Equal seeds give equal answers on one machine and build.
            stream: Return a :class:`ChatStream` instead of the whole answer.
            **options: ``tools``, ``tool_choice``, ``response_format``, ``thinking``,
                ``extra_body`` and others: ``llamatelemetry.api.client.MoreChatOptions``
                lists them all.

        Raises:
            ConfigurationError: An option that cannot work.
            ConnectionFailedError: No connection.
            RequestTimeoutError: Silence, or the whole took too long.
            ContextLengthError: The prompt does not fit into a slot.
            StreamError: The answer broke off; ``partial`` holds what had come.
            ClientError: The server refuses; the message says why.

        Example:
            >>> messages = [{"role": "user", "content": "What is GGUF?"}]
            >>> answer = client.chat_completion(messages, temperature=0)
            >>> print(answer.choices[0].message.content)
            GGUF is a file format ...
        """
        sampling = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repeat_penalty": repeat_penalty,
            "stop": stop,
            "seed": seed,
        }
        body = _requests.chat_body(self._transport.timeout, messages, sampling, options)
        result = ChatStream(
            self._transport,
            "/v1/chat/completions",
            body,
            on_progress=options.get("on_progress"),
            complete=partial(self._complete, options.get("response_format")),
        )
        if stream:
            return result
        with result:
            return result.result()

    def chat_completion_stream(
        self, messages: Messages, **kwargs: Unpack[ChatOptions]
    ) -> ChatStream:
        """Return the model's answer to a chat while it comes.

        The same as :meth:`chat_completion` with ``stream=True``. The request is sent
        when the first chunk is asked for.

        Args:
            messages: As :meth:`chat_completion`.
            **kwargs: Its other options, under their names.

        Raises:
            ConfigurationError: An option that cannot work.

        Example:
            >>> messages = [{"role": "user", "content": "What is GGUF?"}]
            >>> with client.chat_completion_stream(messages, temperature=0) as stream:
            ...     for chunk in stream:
            ...         print(chunk.choices[0].delta.content or "", end="")
            GGUF is a file format ...
        """
        return self.chat_completion(messages, stream=True, **kwargs)

    def completion(
        self,
        prompt: str,
        max_tokens: int = 256,
        temperature: float = 0.8,
        stop: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> CompletionResponse:
        """Return how the model continues a text.

        Args:
            prompt: The text.
            max_tokens: Tokens to generate at most.
            temperature: 0 takes the likeliest token always.
            stop: Text at which to stop; it is left out of the answer.
            **kwargs: What else llama-server takes, under its names (``top_p``,
                ``top_k``, ``repeat_penalty``, ``seed``, ``grammar``, ``json_schema``,
                ``n``, ``logprobs``, ``cache_prompt``, ``model``, ...); and
                ``on_progress`` and ``extra_body`` as in chat. None leaves one out.

        Raises:
            ConfigurationError: An option that cannot work.
            ClientError: As :meth:`chat_completion`.

        Example:
            >>> answer = client.completion("The KV cache", max_tokens=8, temperature=0)
            >>> answer.choices[0].text
            ' keeps the attention keys and values'
        """
        stream = self.completion_stream(prompt, max_tokens, temperature, stop, **kwargs)
        with stream:
            return stream.result()

    def completion_stream(
        self,
        prompt: str,
        max_tokens: int = 256,
        temperature: float = 0.8,
        stop: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> CompletionStream:
        """Return how the model continues a text, while it comes.

        Args:
            prompt: The text.
            max_tokens: Tokens to generate at most.
            temperature: 0 takes the likeliest token always.
            stop: Text at which to stop; it is left out of the answer.
            **kwargs: As :meth:`completion`.

        Raises:
            ConfigurationError: An option that cannot work.

        Example:
            >>> stream = client.completion_stream("The KV cache", 8, temperature=0)
            >>> "".join(chunk.choices[0].text for chunk in stream)
            ' keeps the attention keys and values'
        """
        sampling = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stop": stop,
        }
        on_progress = kwargs.pop("on_progress", None)
        body = _requests.completion_body(self._transport.timeout, sampling, kwargs)
        return CompletionStream(
            self._transport, "/v1/completions", body, on_progress=on_progress
        )

    def with_options(
        self, *, timeout: float | None = None, total_timeout: float | None = None
    ) -> Self:
        """Return a client with other time limits that shares this one's connections.

        Args:
            timeout: Seconds of silence; None for this client's.
            total_timeout: Seconds a request may take in all; None for this client's.

        Raises:
            ConfigurationError: A limit that is not above 0 seconds.

        Example:
            >>> patient = client.with_options(timeout=600)
            >>> len(patient.embeddings(["one", "two"]).data)
            2
        """
        other = copy.copy(self)
        other._transport = self._transport.with_limits(timeout, total_timeout)  # noqa: SLF001
        return other

    def subscribe(
        self,
        callback: Callable[[RequestRecord], object],
        *,
        chunk_times: bool = False,
        text: bool = False,
    ) -> Callable[[], None]:
        """Have a function called with the record of each request when it is over.

        It is called in the thread that ended the request, also for the requests of
        copies that :meth:`with_options` made. What it raises is logged. Requests that
        were sent before may lack what was asked for here.

        Args:
            callback: Called with a :class:`RequestRecord`.
            chunk_times: Whether to note when each chunk of an answer came.
            text: Whether the records hold what was sent and what was answered.

        Returns:
            What ends it; harmless when called again.

        Raises:
            ConfigurationError: It is no function.

        Example:
            >>> records = []
            >>> end = client.subscribe(records.append, chunk_times=True)
            >>> answer = client.completion("The KV cache", 8, temperature=0)
            >>> end()
            >>> records[0].usage.completion_tokens, len(records[0].chunk_times)
            (8, 8)
        """
        return self._transport.listeners.subscribe(
            callback, chunk_times=chunk_times, text=text
        )

    def close(self) -> None:
        """Close the kept connections; the client cannot be used afterwards.

        Example:
            >>> client.close()  # or `with LlamaCppClient(url) as client:`
        """
        self._transport.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _complete(
        self, response_format: ResponseFormat, response: ChatCompletionResponse
    ) -> None:
        """Add to a whole answer what the server does not: parsed objects, advice."""
        _requests.fill_parsed(response, response_format)
        if response_format is not None and any(
            choice.finish_reason == "length" and choice.message.parsed is None
            for choice in response.choices
        ):
            warnings.warn(
                "max_tokens ended the answer before its JSON was whole, so there is no "
                "parsed object: give a larger max_tokens",
                stacklevel=4,
            )
        cut_off = any(choice.cut_off_in_reasoning for choice in response.choices)
        if cut_off and not self._warned.is_set():
            self._warned.set()
            warnings.warn(
                "max_tokens ended the answer inside the model's reasoning, so its "
                "content is empty: give a larger max_tokens, or thinking=False",
                stacklevel=4,
            )


def client_over(transport: Transport) -> LlamaCppClient:
    """Return a client that sends through this; for a server among several."""
    client = LlamaCppClient.__new__(LlamaCppClient)
    client._use(transport)  # noqa: SLF001 -- its own constructor takes an address
    return client
