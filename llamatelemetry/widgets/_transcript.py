"""A conversation as values, and as what it is kept in: JSON, Markdown, a cell. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from pprint import pformat
from typing import Any

from llamatelemetry._units import printable
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.widgets import _markdown_file

__all__ = ["Turn", "from_json", "messages_for", "to_cell", "to_json", "to_markdown"]

_FORMAT, _VERSION = "llamatelemetry.chat", 1
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one side said.

    Attributes:
        role: "user" or "assistant".
        content: The text, without reasoning.
        reasoning: What the model thought before; it is never sent again.
        images: Parts of the message, as ``image_part()`` makes them.
        model: The model's name, or None.
        sampling: What ``chat_completion()`` was given for this answer.
        prompt_tokens: Tokens of all that was sent, or None.
        completion_tokens: Tokens of the answer, reasoning included, or None.
        context_size: Tokens that the slot holds, or None.
        seconds_to_first_token: From the request on, or None.
        tokens_per_second: While it answered, or None.
        finish_reason: Why it ended: "stop", "length", "cancelled", "error", or None.
    """

    role: str
    content: str
    reasoning: str = ""
    images: tuple[Mapping[str, Any], ...] = ()
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    context_size: int | None = None
    seconds_to_first_token: float | None = None
    tokens_per_second: float | None = None
    finish_reason: str | None = None


_TEXTS = frozenset(("role", "content", "reasoning", "model", "finish_reason"))
_NEVER_NONE = frozenset(("role", "content", "reasoning"))
_NUMBERS = frozenset(
    (
        *("prompt_tokens", "completion_tokens", "context_size"),
        *("seconds_to_first_token", "tokens_per_second"),
    )
)


def messages_for(turns: Sequence[Turn], system: str = "") -> list[dict[str, Any]]:
    """Return the messages that a conversation is continued with.

    Args:
        turns: What was said so far, the new question included.
        system: What the model is told first; nothing if it is blank.
    """
    first = [{"role": "system", "content": system}] if system.strip() else []
    return [*first, *map(_message, turns)]


def _message(turn: Turn) -> dict[str, Any]:
    if not turn.images:
        return {"role": turn.role, "content": turn.content}
    text = [{"type": "text", "text": turn.content}] if turn.content else []
    return {"role": turn.role, "content": [*text, *map(dict, turn.images)]}


def to_json(turns: Sequence[Turn], system: str = "") -> str:
    """Return a conversation as JSON that :func:`from_json` reads back."""
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "system": system,
        "turns": [_said(turn) for turn in turns],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _said(turn: Turn) -> dict[str, Any]:
    """Return what a turn says, without what it does not."""
    said = {**asdict(turn), "sampling": _plain_sampling(turn)}
    return {
        key: value
        for key, value in said.items()
        if key in {"role", "content"} or value not in (None, "", (), {})
    }


def from_json(text: str) -> tuple[list[Turn], str]:
    """Return the turns of a conversation that :func:`to_json` wrote, and its system.

    Raises:
        ConfigurationError: It is not what that writes.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise ConfigurationError(
                f"this is no {_FORMAT} of version {_VERSION} but "
                f"{document['format']!r:.60} of version {document['version']!r:.60}"
            )
        system, turns = document["system"], document["turns"]
        if not isinstance(system, str) or not isinstance(turns, list):
            raise ConfigurationError("the transcript's system or turns are of no use")
        return [_turn(number, turn) for number, turn in enumerate(turns, 1)], system
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            f"this is no transcript of a chat: {type(error).__name__}, {error}"
        ) from None


def _refuse_constant(name: str) -> float:
    raise ConfigurationError(f"the transcript holds {name}, which is no number")


def _turn(number: int, said: object) -> Turn:
    if not isinstance(said, dict):
        raise ConfigurationError(f"turn {number} of the transcript is no object")
    # A later version may say more.
    known = {item.name: said[item.name] for item in fields(Turn) if item.name in said}
    known["images"] = tuple(known.get("images", ()))
    for name, value in known.items():
        if not _fits(name, value):
            raise ConfigurationError(
                f"turn {number} of the transcript has a {name} that cannot be: "
                f"{value!r:.60}"
            )
    return Turn(**known)


def _fits(name: str, value: object) -> bool:
    if name == "role":
        return value in _ROLES
    if name == "images":
        assert isinstance(value, tuple)  # noqa: S101 -- made one just before
        return all(isinstance(part, dict) for part in value)
    if name == "sampling":
        return isinstance(value, dict)
    if value is None:
        return name not in _NEVER_NONE
    if name in _TEXTS:
        return isinstance(value, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value not in {math.inf, -math.inf}  # as JSON reads 1e999


def to_markdown(turns: Sequence[Turn], system: str = "") -> str:
    """Return a conversation as a Markdown file to read.

    Nothing that was said in it reaches beyond its own place, becomes HTML, or has a
    viewer load an image. Reasoning is quoted. Images are only counted.
    """
    parts = ["# Conversation"]
    if system.strip():
        parts += ["## System", _markdown_file.contained(system)]
    for turn in turns:
        parts.append("## You" if turn.role == "user" else "## Model")
        if turn.reasoning:
            parts.append(_markdown_file.quoted(f"Reasoning:\n\n{turn.reasoning}"))
        parts.append(_markdown_file.contained(turn.content))
        notes = _notes(turn)
        if notes:
            parts.append(f"*{notes}*")
    return "\n\n".join(part for part in parts if part) + "\n"


def _notes(turn: Turn) -> str:
    """Return in a line what is known of a turn."""
    notes = []
    if turn.images:
        notes.append(f"images: {len(turn.images)}, kept in the JSON transcript")
    if turn.model:
        notes.append(_as_code(turn.model))
    if turn.completion_tokens is not None:
        notes.append(f"{turn.completion_tokens} tokens")
    if turn.tokens_per_second is not None:
        notes.append(f"{turn.tokens_per_second:.1f} tokens/s")
    if turn.seconds_to_first_token is not None:
        notes.append(f"first token after {turn.seconds_to_first_token:.2f} s")
    if turn.finish_reason not in {None, "stop"}:
        notes.append(f"ended by {_as_code(str(turn.finish_reason))}")
    return ", ".join(notes)


def _as_code(text: str) -> str:
    """Return what a server said as Markdown in which it stays a word."""
    return f"`{printable(text).replace('`', '′')}`"  # noqa: RUF001 -- no code's end


def to_cell(
    turns: Sequence[Turn], system: str = "", *, url: str = "http://127.0.0.1:8080"
) -> str:
    """Return the source of a cell that asks the same questions again.

    Each question is asked with what its answer was made with, its seed included, and
    with the new answers before it. What was said stands in it as literals alone.

    Args:
        turns: The conversation.
        system: What the model was told first.
        url: The server's address.
    """
    questions = []
    for turn, following in zip_longest(turns, turns[1:]):
        if turn.role == "user":
            sampling = _plain_sampling(following) if following is not None else {}
            questions.append((_message(turn), sampling))
    return (
        "from llamatelemetry import LlamaCppClient\n\n"
        f"client = LlamaCppClient({url!r})\n"
        f"messages = {_literal(messages_for((), system))}\n"
        f"questions = {_literal(questions)}\n"
        "for question, sampling in questions:\n"
        "    messages.append(question)\n"
        "    answer = client.chat_completion(messages, **sampling)\n"
        "    messages.append(answer.choices[0].message)\n"
        "    print(answer.choices[0].message.content)\n"
    )


def _literal(value: object) -> str:
    """Return a value of plain types as Python; escapes what is not printable."""
    return pformat(value, width=88, sort_dicts=False)


def _plain_sampling(turn: Turn) -> dict[str, Any]:
    """Return the sampling that is plain values; a function or class cannot be kept."""
    return {key: value for key, value in turn.sampling.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(value[key]) for key in value)
    return value is None or type(value) in {str, int, bool}
