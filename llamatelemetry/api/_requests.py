"""What is sent: bodies and addresses as plain values. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypedDict

from llamatelemetry.api.responses import (
    ChatCompletionResponse,
    Message,
    PromptProgress,
)
from llamatelemetry.exceptions import ClientError, ConfigurationError

__all__ = ["ChatOptions", "Messages", "MoreChatOptions", "ResponseFormat"]

ResponseFormat = Mapping[str, Any] | type[Any] | None
"""A JSON schema, a format as OpenAI writes it, or a pydantic model class."""

PING_INTERVAL = 10
"""Seconds between the pings asked for while nothing else is sent: three of them fit
into the default silence of 30 s."""

_OPENAI_FORMATS = frozenset(("text", "json_object", "json_schema"))


Messages = Sequence[Mapping[str, Any] | Message]
"""A chat: messages as OpenAI writes them, or as an earlier answer held them."""


class MoreChatOptions(TypedDict, total=False):
    """What a chat takes beyond the API reference; None leaves each to the server.

    Attributes:
        thinking: Whether a model that can do both thinks before it answers.
        response_format: What the answer must be: a JSON schema, OpenAI's dict, or a
            pydantic model class. The object is then in ``message.parsed``.
        tools: The tools the model may call, as OpenAI describes them.
        tool_choice: "auto", "none", "required", or one tool.
        parallel_tool_calls: Whether it may call several at once.
        min_p: Only tokens at least this likely, relative to the likeliest.
        presence_penalty: Above 0 makes tokens that occurred less likely.
        frequency_penalty: The same, growing with how often they occurred.
        logit_bias: Token to what is added to its logit.
        logprobs: Whether to return log probabilities.
        top_logprobs: Of how many alternatives per token.
        n: How many answers; at most the server's slots.
        grammar: A GBNF grammar that the answer must follow.
        cache_prompt: False computes the whole prompt anew, for equal results.
        id_slot: The slot to use.
        model: Only looked at by a router.
        on_progress: Called while the prompt is read, in the reading thread.
        extra_body: Put into the request as it is; wins over everything else.

    Example:
        >>> from llamatelemetry.api.client import MoreChatOptions
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> options: MoreChatOptions = {"cache_prompt": False, "n": 2}
        >>> answer = client.chat_completion(messages, temperature=0, **options)
        >>> len(answer.choices)
        2
    """

    thinking: bool | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    response_format: ResponseFormat
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Any
    logprobs: bool | None
    top_logprobs: int | None
    n: int | None
    grammar: str | None
    cache_prompt: bool | None
    id_slot: int | None
    model: str | None
    on_progress: Callable[[PromptProgress], object] | None
    extra_body: Mapping[str, Any] | None


class ChatOptions(MoreChatOptions, total=False):
    """All options of :meth:`LlamaCppClient.chat_completion` but ``stream``.

    Those of :class:`MoreChatOptions`, and these.

    Attributes:
        max_tokens: Tokens to generate at most, reasoning included.
        temperature: 0 takes the likeliest token always.
        top_p: Only the likeliest tokens that together have this probability.
        top_k: Only this many of the likeliest tokens; 0 for all.
        repeat_penalty: Above 1 makes repetition less likely.
        stop: Text at which to stop; it is left out of the answer.
        seed: Equal seeds give equal answers on one machine and build.

    Example:
        >>> from llamatelemetry.api.client import ChatOptions
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> careful: ChatOptions = {"temperature": 0, "max_tokens": 4}
        >>> client.chat_completion(messages, **careful).usage.completion_tokens
        4
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repeat_penalty: float
    stop: str | Sequence[str] | None
    seed: int | None


_SERVER_OPTIONS = MoreChatOptions.__optional_keys__ - {
    *("thinking", "response_format", "on_progress", "extra_body"),
}
"""Those that are sent under their own name."""


def server_root(base_url: str) -> str:
    """Return the server's address without the ``/v1`` that OpenAI clients want.

    Raises:
        ConfigurationError: It is no text.
    """
    if not isinstance(base_url, str):
        raise ConfigurationError(
            f"base_url takes text like 'http://127.0.0.1:8080', not {base_url!r}; "
            "for a ServerManager that is server.get_url()"
        )
    return base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def authorization(api_key: str | None) -> dict[str, str]:
    """Return the header that carries the key; none without a key.

    Raises:
        ConfigurationError: The key holds what no header can; it is not shown.
    """
    if api_key is not None and not isinstance(api_key, str):
        raise ConfigurationError(f"api_key takes text, not {type(api_key).__name__}")
    key = (api_key or "").strip()  # a key read from a file ends in a line feed
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError("api_key holds characters that no HTTP header can")
    return {"Authorization": f"Bearer {key}"}


def message_list(messages: Messages) -> list[Mapping[str, Any]]:
    """Return messages as they are sent.

    Raises:
        ConfigurationError: It is no list of messages.
    """
    if isinstance(messages, str | Mapping):
        raise ConfigurationError(
            'messages takes a list: [{"role": "user", "content": "Hello!"}]'
        )
    sent = [
        _message(message) if isinstance(message, Message) else message
        for message in messages
    ]
    if not sent:  # llama-server would answer it, with anything
        raise ConfigurationError("messages is empty; there is nothing to answer")
    return sent


# As the same things are called elsewhere.
_OTHER_NAMES = {
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "repetition_penalty": "repeat_penalty",
}


def _with_hint(name: str) -> str:
    """Return an unknown option's name with the one that was probably meant."""
    near = get_close_matches(name, ChatOptions.__optional_keys__, n=1)
    meant = _OTHER_NAMES.get(name) or (near[0] if near else None)
    return f"{name} (did you mean {meant}?)" if meant else name


def _message(message: Message) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        sent["tool_calls"] = message.tool_calls
    return sent


def chat_body(
    timeout: float,
    messages: Messages,
    sampling: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the body of a chat request.

    Raises:
        ConfigurationError: An option that does not exist, or cannot work.
    """
    unknown = options.keys() - MoreChatOptions.__optional_keys__
    if unknown:
        raise ConfigurationError(
            f"chat has no option {', '.join(map(_with_hint, sorted(unknown)))}; what "
            "only the server knows goes into extra_body={...}"
        )
    body = _generation_body(timeout, {"messages": message_list(messages), **sampling})
    body.update(_present({key: options.get(key) for key in _SERVER_OPTIONS}))
    thinking = options.get("thinking")
    if thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": thinking}
    response_format = options.get("response_format")
    if response_format is not None:
        body["response_format"] = openai_format(response_format)
    return {**body, **(options.get("extra_body") or {})}


def completion_body(
    timeout: float, sampling: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of a text completion.

    Raises:
        ConfigurationError: ``stream`` was given, which has a method of its own.
    """
    if "stream" in options:
        raise ConfigurationError("completion() has no stream; use completion_stream()")
    rest = dict(options)
    extra = rest.pop("extra_body", None)
    return {**_generation_body(timeout, {**sampling, **rest}), **(extra or {})}


def _generation_body(timeout: float, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every generation sends: usage, progress and pings are asked for.

    A server that does not know one of these keys drops it.
    """
    return {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "sse_ping_interval": _ping_interval(timeout),
        **_present(options),
    }


def _ping_interval(timeout: float) -> int:
    """Return the seconds between pings that keep this silence from happening."""
    return max(1, min(PING_INTERVAL, int(timeout / 3)))


def _present(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def openai_format(response_format: Mapping[str, Any] | type[Any]) -> dict[str, Any]:
    """Return a response format as llama-server reads it.

    Raises:
        ConfigurationError: It is neither a schema, nor OpenAI's, nor a pydantic model.
    """
    if isinstance(response_format, type):
        describe = getattr(response_format, "model_json_schema", None)
        if describe is None:
            raise ConfigurationError(
                f"response_format={response_format.__name__} is no pydantic model: "
                "give one, or a JSON schema as a dict"
            )
        return _schema_format(describe(), response_format.__name__)
    if not isinstance(response_format, Mapping):
        raise ConfigurationError(
            "response_format takes a JSON schema as a dict, OpenAI's dict, or a "
            f"pydantic model class, not {type(response_format).__name__}"
        )
    if response_format.get("type") not in _OPENAI_FORMATS:
        return _schema_format(dict(response_format), "answer")
    if response_format["type"] == "json_schema" and "schema" in response_format:
        # Beside the type, where llama-server would not look: any object would do.
        return _schema_format(response_format["schema"], "answer")
    return dict(response_format)


def _schema_format(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema},
    }


def fill_parsed(
    response: ChatCompletionResponse, response_format: ResponseFormat
) -> None:
    """Set ``parsed`` of each answer to the object that its text is.

    An answer that did not come to its end is left at None.

    Raises:
        ClientError: A whole answer is not what the format asks for, which happens on
            builds that let the model write freely when they cannot read a schema.
    """
    if response_format is None:
        return
    if isinstance(response_format, Mapping) and response_format.get("type") == "text":
        return
    for choice in response.choices:
        content = choice.message.content
        if choice.finish_reason != "stop" or not content:
            continue
        try:
            if isinstance(response_format, type):
                choice.message.parsed = response_format.model_validate_json(content)
            else:
                choice.message.parsed = json.loads(content)
        except ValueError as error:
            raise ClientError(
                f"the answer is not what response_format asks for: {content[:200]!r}"
            ) from error
