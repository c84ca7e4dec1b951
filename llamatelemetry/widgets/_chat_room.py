"""How much of a conversation fits: its tokens, the room left, what to drop. Asks only.

What is counted is what the model's own template makes of the messages. Pictures cannot
be counted from outside; with them, the server decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ConnectionFailedError,
    RequestTimeoutError,
)

__all__ = ["LEAST_ROOM", "Overflow", "Room", "measure", "overflow"]

LEAST_ROOM = 32
"""Tokens that have to be left for an answer; fewer make none worth sending for."""

Messages = Sequence[Mapping[str, Any]]

# What says that there is no use in asking further.
_FATAL = (ConnectionFailedError, RequestTimeoutError, AuthenticationError)


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a slot's context a conversation takes.

    Attributes:
        context_size: Tokens that one slot holds; None if the server does not say.
        prompt_tokens: Tokens of the conversation; None if they cannot be counted.
        sees_pictures: Whether the model takes images.
    """

    context_size: int | None = None
    prompt_tokens: int | None = None
    sees_pictures: bool = False

    @property
    def left(self) -> int | None:
        """Tokens left for the answer, at least 0; None if not known."""
        if self.context_size is None or self.prompt_tokens is None:
            return None
        return max(0, self.context_size - self.prompt_tokens)


@dataclass(frozen=True, slots=True)
class Overflow:
    """A conversation that leaves no room for an answer.

    Attributes:
        sentence: By how many tokens it is too long, and what to drop.
        drop: How many questions to drop, from the oldest on; None if that is not
            enough, or not known.
    """

    sentence: str
    drop: int | None


def measure(client: LlamaCppClient, messages: Messages = ()) -> Room:
    """Ask a server how much room a conversation leaves.

    Args:
        client: The server's client.
        messages: The conversation with the new question; none for the server alone.

    Raises:
        ConnectionFailedError: No connection.
        RequestTimeoutError: The server is silent.
        AuthenticationError: It wants a key.
    """
    try:
        props = client.get_props()
    except _FATAL:
        raise
    except ClientError:
        props = {}  # its address answers something else; the chat will say what
    context_size = _part(props, "default_generation_settings").get("n_ctx")
    known = isinstance(context_size, int) and context_size > 0
    return Room(
        context_size=context_size if known else None,
        prompt_tokens=_count(client, messages) if known and messages else None,
        sees_pictures=_part(props, "modalities").get("vision") is True,
    )


def overflow(client: LlamaCppClient, messages: Messages, room: Room) -> Overflow | None:
    """Return by how much a conversation is too long; None if it fits, or who knows.

    Raises:
        ConnectionFailedError: No connection any more; and what else :func:`measure`
            raises.
    """
    left, size, tokens = room.left, room.context_size, room.prompt_tokens
    if left is None or size is None or tokens is None or left >= LEAST_ROOM:
        return None
    questions = [
        place for place, message in enumerate(messages) if message["role"] == "user"
    ]
    drop = _fewest_dropped(client, messages, questions, size)
    rest = f", of which an answer needs {LEAST_ROOM}" if tokens <= size else ""
    return Overflow(
        f"The conversation has {tokens:,} tokens and the context holds {size:,}{rest}: "
        f"{tokens + LEAST_ROOM - size:,} too many. "
        f"{_what_to_drop(drop, len(questions))}, or start the server with a larger "
        "context.",
        drop,
    )


def _what_to_drop(drop: int | None, questions: int) -> str:
    if questions <= 1:
        return "Shorten the message"
    if drop is None:
        return "Clear the conversation and shorten the message"
    oldest = "oldest question" if drop == 1 else f"{drop} oldest questions"
    return f"Drop the {oldest} with the answers"


def _fewest_dropped(
    client: LlamaCppClient, messages: Messages, questions: list[int], context_size: int
) -> int | None:
    """Return how many questions to drop from the oldest on; None if all are too few.

    Halving, since each try asks the server twice.
    """
    head = messages[: questions[0]]
    low, high, found = 1, len(questions) - 1, None
    while low <= high:
        middle = (low + high) // 2
        tokens = _count(client, [*head, *messages[questions[middle] :]])
        if tokens is None:
            return None
        if tokens + LEAST_ROOM <= context_size:
            found, high = middle, middle - 1
        else:
            low = middle + 1
    return found


def _count(client: LlamaCppClient, messages: Messages) -> int | None:
    if any(not isinstance(message["content"], str) for message in messages):
        return None
    try:
        return client.count_tokens(messages)
    except _FATAL:
        raise
    except ClientError:
        return None  # a template that refuses it, or no such address: the chat says so


def _part(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}
