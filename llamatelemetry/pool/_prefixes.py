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


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where the longest known beginning of a prompt was read last.

    Attributes:
        server: The server's number.
        next_turn: Whether it was a whole earlier request, so that this one is the same
            conversation's next.
    """

    server: int
    next_turn: bool


def chain_of(body: object) -> tuple[bytes, ...]:
    """Return a digest of each beginning of a request's prompt, the shortest first.

    A chat has one for each message, a plain prompt one for each 256 characters; other
    requests have none.
    """
    if not isinstance(body, Mapping):
        return ()
    pieces = _pieces(body)
    digests, digest = [], b""
    for piece in pieces:
        digest = blake2b(digest + piece.encode(), digest_size=16).digest()
        digests.append(digest)
    return tuple(digests)


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


class PrefixMemory:
    """Remembers where prompts were sent; safe to use from any thread.

    Args:
        most: Beginnings to remember; the ones used longest ago are forgotten.
    """

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._lock = threading.Lock()
        # Who was sent this beginning last, and whether it was ever a whole request.
        self._kept: OrderedDict[bytes, tuple[int, bool]] = OrderedDict()

    def note(self, chain: tuple[bytes, ...], server: int) -> None:
        """Remember that a server was sent this prompt."""
        with self._lock:
            for place, digest in enumerate(chain, start=1):
                _, was_whole = self._kept.pop(digest, (server, False))
                self._kept[digest] = server, was_whole or place == len(chain)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def last(self, chain: tuple[bytes, ...]) -> Sighting | None:
        """Return who read the longest known beginning; None if nobody did."""
        with self._lock:
            for place in range(len(chain), 0, -1):
                known = self._kept.get(chain[place - 1])
                if known is not None:
                    server, whole = known
                    return Sighting(server, whole and place < len(chain))
        return None

    def forget(self, server: int) -> None:
        """Forget what a server read: it has ended, and its cache with it."""
        with self._lock:
            gone = [key for key, (seen, _) in self._kept.items() if seen == server]
            for key in gone:
                del self._kept[key]
