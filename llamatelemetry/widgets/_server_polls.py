"""Asking servers how busy they are, beside the client that the user has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import NotSupportedError
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.session import Session
from llamatelemetry.widgets._server_state import Activity, SpeedMeter, is_busy

__all__ = ["ServerPolls"]

_SECONDS = 5.0
"""A server that computes a long prompt answers when a batch of it is done."""

Answer = TypeVar("Answer")


class ServerPolls:
    """Asks a session's servers with a client of its own, which marks no requests.

    Used by one thread; `forget` and `close` may be called by any.
    """

    def __init__(self) -> None:
        self._meter = SpeedMeter()
        self._client: LlamaCppClient | None = None
        self._of: object = None

    def forget(self) -> None:
        """Begin anew: the server was started or stopped."""
        self._meter.forget()

    def ask(self, session: Session) -> Activity:
        """Return how busy the servers are.

        Raises:
            ClientError: They cannot be asked.
        """
        client = self._client_of(session)
        # Each answer of an idle server costs a line of its log. Where a request may be
        # at work, its end must not come between: it would be counted twice.
        metrics = _if_told(client.metrics) if self._meter.was_busy else None
        slots = _if_told(client.get_slots)
        if metrics is None and (slots is None or is_busy(slots)):
            metrics = _if_told(client.metrics)
        return self._meter.measure(slots, metrics)

    def close(self) -> None:
        """Let go of the connection."""
        client, self._client, self._of = self._client, None, None
        if client is not None:
            client.close()

    def _client_of(self, session: Session) -> LlamaCppClient:
        server = session.server
        of = server if isinstance(server, ServerPool) else (server, session.url)
        if self._client is None or of != self._of:
            self.close()
            self._meter.forget()
            if isinstance(server, ServerPool):
                self._client = server.make_client(timeout=_SECONDS)
            else:
                key = session.plan.configs[0].api_key
                self._client = LlamaCppClient(session.url, key, timeout=_SECONDS)
            self._of = of
        return self._client


def _if_told(ask: Callable[[], Answer]) -> Answer | None:
    try:
        return ask()
    except NotSupportedError:
        return None
