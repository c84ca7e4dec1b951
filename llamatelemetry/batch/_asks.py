"""What is asked for a row: a template, messages or a function, and the digest of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any

from llamatelemetry.api._requests import (
    ChatOptions,
    MoreChatOptions,
    chat_body,
    message_list,
)
from llamatelemetry.batch._rows import Row
from llamatelemetry.batch._schema import Schema
from llamatelemetry.batch._templates import (
    MissingFieldError,
    Template,
    TemplateError,
    without_fields,
)
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["NO_KEY", "Ask", "Asker", "RowError", "function_failure"]

NO_KEY = "0" * 32
"""What stands for the digest of what could not be asked."""

_NOT_ASKED = frozenset(("id_slot", "cache_prompt", "on_progress"))
"""Options that say how, not what: they leave the key as it is."""

_OWN_OPTIONS = (
    *("rows", "prompt", "to", "id", "schema", "system", "concurrency", "out"),
    *("resume", "budget", "retries", "progress"),
)
"""The arguments of ``map_prompts`` itself."""

_NO_OPTIONS = {
    "stream": "each answer is taken when it is whole",
    "timeout": "a client has it: to=LlamaCppClient(url, timeout=600); when the whole "
    "call ends is said by budget",
}
"""What a chat has elsewhere, and why not here."""

_TEXT_PARTS = frozenset(("text", "image_url", "url"))
"""What is a template in the parts of a message."""

_TWO_SYSTEMS = (
    "the messages begin with one of the system, and system= gives another; leave one"
)

_Maker = Callable[[Any], list[dict[str, Any]]]


class RowError(Exception):
    """A row for which nothing can be asked; the others go on.

    Attributes:
        type: The error's name in the row's result.
        key: What stands for the digest of what was asked.
    """

    def __init__(self, message: str, type: str) -> None:  # noqa: A002 -- the record's own word
        super().__init__(message)
        self.type = type
        self.key = NO_KEY


@dataclass(frozen=True, slots=True)
class Ask:
    """One question.

    Attributes:
        row: The row it is about.
        messages: What the server is sent.
        key: 32 hex digits that stand for all that is asked.
    """

    row: Row
    messages: list[dict[str, Any]]
    key: str


class Asker:
    """Makes each row's question.

    Args:
        prompt: A template, messages whose texts are templates, or a function of the
            row's value that returns a text or messages.
        system: The system's message, as it is.
        schema: What each answer must be.
        sampling: What else a chat is given.
        names: The rows' columns, as far as they are known.

    Raises:
        ConfigurationError: One of them cannot work.
    """

    def __init__(
        self,
        prompt: Any,
        *,
        system: str | None = None,
        schema: Schema | None = None,
        sampling: Mapping[str, Any] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self._make = _maker(prompt, names)
        self._names = names
        self._system = _system_messages(system, names)
        self._refuse_two_systems(prompt)
        options = _checked_sampling(sampling or {}, schema)
        self._digest = _begun_digest(options, schema)

    def _refuse_two_systems(self, prompt: Any) -> None:
        if self._system and isinstance(prompt, list | tuple):
            first = message_list(prompt)[0]
            if first.get("role") == "system":
                raise ConfigurationError(_TWO_SYSTEMS)

    def ask(self, row: Row) -> Ask:
        """Return what is asked for a row.

        Raises:
            RowError: Nothing can be asked for this one.
            ConfigurationError: It is the first of rows whose columns were not known,
                and lacks what the prompt needs, or the system's message has one.
        """
        first = row.position == 0 and not self._names
        if first and self._system and isinstance(row.value, Mapping):
            _refuse_fields(self._system[0]["content"], list(map(str, row.value)))
        own = self._messages(row)
        if not any(map(_has_content, own)):
            raise RowError("the prompt is empty", "EmptyPromptError")
        if self._system and own[0].get("role") == "system":
            raise RowError(_TWO_SYSTEMS, "ConfigurationError")
        messages = [*self._system, *own]
        try:
            asked = _canonical(messages)
        except (TypeError, ValueError) as error:
            raise RowError(
                f"the messages cannot be sent as JSON: {error}", type(error).__name__
            ) from error
        digest = self._digest.copy()
        digest.update(asked)
        return Ask(row, messages, digest.hexdigest())

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        try:
            return self._make(row.value)
        except MissingFieldError as error:
            if row.position == 0 and not self._names:
                raise ConfigurationError(str(error)) from error
            raise RowError(str(error), "TemplateError") from error
        except TemplateError as error:
            raise RowError(str(error), "TemplateError") from error
        except Exception as error:  # the user's function may raise anything
            raise function_failure("prompt", error, row) from error


def function_failure(
    argument: str, error: Exception, row: Row
) -> RowError | ConfigurationError:
    """Return what a function's failure means that a user gave.

    Args:
        argument: What it was given as.
        error: What it raised.
        row: What it was called for.

    Returns:
        The row's own error; or the call's, where the first row's columns were taken
        for attributes: so will the others' be.
    """
    if isinstance(error, ConfigurationError):  # from the check of what it returned
        return RowError(str(error), "ConfigurationError")
    told = f"the function for {argument} failed ({type(error).__name__}: {error})"
    columns = isinstance(row.value, Mapping)
    if isinstance(error, AttributeError) and columns and error.obj is row.value:
        told += f"; a row is a dict: row[{error.name!r}]"
        if row.position == 0:
            return ConfigurationError(told)
    return RowError(told, type(error).__name__)


def _maker(prompt: Any, names: Sequence[str]) -> _Maker:
    """Return the function that makes a row's messages.

    Raises:
        ConfigurationError: The prompt is nothing of what it can be.
    """
    if isinstance(prompt, str):
        template = Template(prompt, names)
        if not template.fields:
            raise without_fields([prompt], names)
        return lambda value: [_user(template.fill(value))]
    if callable(prompt):
        return lambda value: _from_function(prompt(value))
    if isinstance(prompt, Sequence) and prompt and not isinstance(prompt, bytes):
        messages = [_checked_message(message) for message in message_list(prompt)]
        texts = [text for one in messages for text in _texts_in(one.get("content"))]
        if not any(Template(text, names).fields for text in texts):
            raise without_fields(texts, names)
        makers = [_message_maker(message, names) for message in messages]
        return lambda value: [make(value) for make in makers]
    raise ConfigurationError(
        "prompt takes a template like 'Summarise: {text}', a list of messages, or a "
        f"function of a row, not {prompt!r:.80}"
    )


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _from_function(made: Any) -> list[dict[str, Any]]:
    if isinstance(made, str):
        return [_user(made)]
    if made is None or isinstance(made, bytes | Mapping):
        raise TemplateError(
            f"the function for the prompt returned {type(made).__name__}; it has to "
            "return a text or a list of messages"
        )
    return [_checked_message(message) for message in message_list(made)]


def _checked_message(message: Any) -> dict[str, Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if (
        not isinstance(message, Mapping)
        or not isinstance(message.get("role"), str)
        or not isinstance(content, str | list | tuple | Mapping | None)
        or (content is None and not message.get("tool_calls"))
    ):
        raise ConfigurationError(
            'a message is a dict like {"role": "user", "content": "Hello!"}, whose '
            f"content is a text or a list of parts, not {message!r:.80}"
        )
    return dict(message)


def _message_maker(
    message: dict[str, Any], names: Sequence[str]
) -> Callable[[Any], dict[str, Any]]:
    fill = _content_maker(message.get("content"), names)
    return lambda value: {**message, "content": fill(value)}


def _texts_in(content: Any) -> Iterator[str]:
    """Yield the texts of a message's content that are templates."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for name, part in content.items():
            yield from _texts_in(part if name in _TEXT_PARTS else None)
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _texts_in(part)


def _content_maker(content: Any, names: Sequence[str]) -> Callable[[Any], Any]:
    """Return what fills the texts of a message's content, and an image's address."""
    if isinstance(content, str):
        return Template(content, names).fill
    if isinstance(content, Mapping):
        makers = {
            name: _content_maker(part, names) if name in _TEXT_PARTS else _same(part)
            for name, part in content.items()
        }
        return lambda value: {name: make(value) for name, make in makers.items()}
    if isinstance(content, list | tuple):
        several = [_content_maker(part, names) for part in content]
        return lambda value: [make(value) for make in several]
    return _same(content)


def _same(part: Any) -> Callable[[Any], Any]:
    return lambda _: part


def _has_content(message: Mapping[str, Any]) -> bool:
    """Whether a message asks something; what the system says is no question."""
    if message.get("role") == "system":
        return False
    content = message.get("content")
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, list | tuple):
        return any(
            not isinstance(part, Mapping)
            or part.get("type") != "text"
            or bool(str(part.get("text") or "").strip())
            for part in content
        )
    return content is not None


def _system_messages(system: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    if system is None:
        return []
    if not isinstance(system, str):
        raise ConfigurationError(f"system takes text, not {type(system).__name__}")
    _refuse_fields(system, names)
    return [{"role": "system", "content": system}]


def _refuse_fields(system: str, names: Sequence[str]) -> None:
    for name in names:
        if f"{{{name}}}" in system:
            raise ConfigurationError(
                f"system has {{{name}}}, but is the same for all rows, so that the "
                "server reads it once; put fields into prompt"
            )


def _checked_sampling(
    sampling: Mapping[str, Any], schema: Schema | None
) -> dict[str, Any]:
    """Return the options that are part of what is asked.

    Raises:
        ConfigurationError: A chat has no such option, or a batch has none.
    """
    common = ChatOptions.__optional_keys__ - MoreChatOptions.__optional_keys__
    more = {name: value for name, value in sampling.items() if name not in common}
    for name in sorted(more.keys() - MoreChatOptions.__optional_keys__):
        _refuse_option(name)
    chat_body(30.0, [_user("")], {}, more)
    given = {name: value for name, value in sampling.items() if value is not None}
    sent = {**given, **given.get("extra_body", {})}
    if "response_format" in sent:
        raise ConfigurationError("the answer's form is given as schema=, not otherwise")
    if sent.get("n", 1) != 1:
        raise ConfigurationError("n has to be 1: each row has one answer")
    if sent.get("logprobs") or sent.get("top_logprobs"):
        raise ConfigurationError(
            "logprobs are not kept by a batch; ask for them with chat_completion"
        )
    if schema is not None and ("grammar" in sent or "json_schema" in sent):
        raise ConfigurationError("grammar and schema exclude each other")
    return {
        name: _whole(value)
        for name, value in given.items()
        if name not in _NOT_ASKED and name != "n"  # which is 1 without it too
    }


def _refuse_option(name: str) -> None:
    """Refuse what is nearly an argument of ``map_prompts``; a chat refuses the rest."""
    if name in _NO_OPTIONS:
        raise ConfigurationError(
            f"map_prompts has no option {name}: {_NO_OPTIONS[name]}"
        )
    near = get_close_matches(name, [*_OWN_OPTIONS, *ChatOptions.__optional_keys__], 1)
    if near and near[0] in _OWN_OPTIONS:
        raise ConfigurationError(
            f"map_prompts has no option {name} (did you mean {near[0]}?)"
        )


def _whole(value: Any) -> Any:
    """Return an option with 1 for 1.0, which asks for the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    return value


def _begun_digest(options: Mapping[str, Any], schema: Schema | None) -> Any:
    """Return the digest of what is the same for all rows."""
    fingerprint = None if schema is None else schema.fingerprint
    try:
        same = _canonical({"schema": fingerprint, "sampling": dict(options)})
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"an option for the answers cannot be sent as JSON: {error}"
        ) from error
    digest = blake2b(same, digest_size=16)
    digest.update(b"\n")
    return digest


def _canonical(value: Any) -> bytes:
    """Return JSON that is the same for what is the same."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()
