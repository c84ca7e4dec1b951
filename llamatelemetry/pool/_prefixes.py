"""Which server last read the beginning of a prompt, and so still has it in its cache.

A server keeps what it computed for a prompt, and skips that much of the next one that
begins alike. So a conversation's next turn costs little where its last one went, and
all of it anywhere else.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

_MOST_KEPT = 8192
"""Beginnings that are remembered: those of some hundred conversations."""

_BLOCK = 256  # characters of a plain prompt that are looked at together

# What a chat template puts before the messages.
_BEFORE_MESSAGES = ("tools", "chat_template_kwargs", "model")

# Whom a model answers. A request that ends with another's words warms a cache up.
_ANSWERED = ("user", "tool")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What tells prompts apart, and which of them begin alike.

    Attributes:
        digests: One for each beginning, the shortest first: for each message of a
            chat, for each 256 characters of a plain prompt, none for other requests.
        is_turn: Whether it is a turn of a conversation, which may go on.
    """

    digests: tuple[bytes, ...] = ()
    is_turn: bool = False

    @classmethod
    def of(cls, body: object) -> Prompt:
        """Return the prompt of a request."""
        if not isinstance(body, Mapping):
            return cls()
        digests, digest = [], b""
        for piece in _pieces(body):
            # A text may hold half a character, which JSON can say and UTF-8 cannot.
            data = piece.encode(errors="surrogatepass")
            digest = blake2b(digest + data, digest_size=16).digest()
            digests.append(digest)
        return cls(tuple(digests), _is_turn(body))


def _pieces(body: Mapping[str, Any]) -> list[str]:
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list) and messages:
        before = json.dumps([body.get(name) for name in _BEFORE_MESSAGES])
        first, *others = (json.dumps(message) for message in messages)
        return [before + first, *others]
    if isinstance(prompt, str):
        whole = len(prompt) // _BLOCK
        return [prompt[at * _BLOCK : (at + 1) * _BLOCK] for at in range(whole)]
    return []


def _is_turn(body: Mapping[str, Any]) -> bool:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return False
    last = messages[-1]
    return isinstance(last, Mapping) and last.get("role") in _ANSWERED


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where the longest known beginning of a prompt was read last.

    Attributes:
        server: The server's number.
        next_turn: Whether it was a whole turn before, so that this is the same
            conversation's next one.
    """

    server: int
    next_turn: bool


class PrefixMemory:
    """Remembers where prompts were sent; safe to use from any thread.

    Args:
        most: Beginnings to remember; the ones used longest ago are forgotten.
    """

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._lock = threading.Lock()
        # Who was sent this beginning last, and whether it was ever a whole turn.
        self._kept: OrderedDict[bytes, tuple[int, bool]] = OrderedDict()

    def note(self, prompt: Prompt, server: int) -> None:
        """Remember that a server was sent this prompt."""
        with self._lock:
            for place, digest in enumerate(prompt.digests, start=1):
                _, was_turn = self._kept.pop(digest, (server, False))
                is_turn = prompt.is_turn and place == len(prompt.digests)
                self._kept[digest] = server, was_turn or is_turn
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def last(self, prompt: Prompt) -> Sighting | None:
        """Return who read the longest known beginning; None if nobody did."""
        digests = prompt.digests
        with self._lock:
            for place in range(len(digests), 0, -1):
                known = self._kept.get(digests[place - 1])
                if known is not None:
                    server, was_turn = known
                    return Sighting(server, was_turn and place < len(digests))
        return None

    def forget(self, server: int) -> None:
        """Forget what a server read: it has ended, and its cache with it."""
        with self._lock:
            gone = [key for key, (seen, _) in self._kept.items() if seen == server]
            for key in gone:
                del self._kept[key]
