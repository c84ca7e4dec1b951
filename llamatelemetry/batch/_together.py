"""Whether a server gives texts that it works on at once the vectors they have alone.

llama.cpp may cut texts of unequal lengths into parts where each slot has a cache of its
own, and then pools the last part only: the vector is another one, and nothing tells.
https://github.com/ggml-org/llama.cpp/issues/26282 was closed, not mended. So it is
tried, once for each server, with texts of unequal lengths.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.batch._answer import trouble_of
from llamatelemetry.exceptions import ClientError

__all__ = ["PROBES", "Togetherness"]

_ALIKE = 0.99  # of the cosine; arithmetic in another order leaves 0.9999
_SENTENCE = "The quick brown fox jumps over the lazy dog. "

PROBES = ("One.", *(_SENTENCE * count for count in (1, 3, 6)), "Two words.")
"""Texts of unequal lengths, none longer than a batch."""


class Togetherness:
    """Which servers may be sent several texts at once; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}
        self._faulty: dict[str, bool] = {}

    @property
    def faulty(self) -> list[str]:
        """The servers that may not."""
        return [server for server, faulty in list(self._faulty.items()) if faulty]

    def turn(self, server: str) -> threading.Lock:
        """Return the lock to hold while a server that may not is asked."""
        with self._lock:
            return self._turns.setdefault(server, threading.Lock())

    def is_faulty(self, client: LlamaCppClient, server: str) -> bool:
        """Whether a server has to be asked for one text after the other.

        Raises:
            LLCudaError: The server could not be asked.
        """
        with self.turn(server):
            if server not in self._faulty:
                self._faulty[server] = _gives_others(client)
            return self._faulty[server]


def _gives_others(client: LlamaCppClient) -> bool:
    """Try it; a server that refuses these texts will tell of others itself."""
    try:
        alone = [_vectors(client, [text])[0] for text in PROBES]
        together = _vectors(client, PROBES)
    except ClientError as error:
        if trouble_of(error) == "row" or "too large" in str(error):
            return False
        raise
    return any(
        _cosine(one, other) < _ALIKE for one, other in zip(alone, together, strict=True)
    )


def _vectors(client: LlamaCppClient, texts: Sequence[str]) -> list[list[float]]:
    answered = sorted(client.embeddings(texts).data, key=lambda item: item.index)
    return [item.embedding for item in answered]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    product = math.fsum(mine * yours for mine, yours in zip(one, other, strict=True))
    return product / lengths if lengths else 1.0
