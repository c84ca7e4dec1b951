"""The client of a pool: a LlamaCppClient whose requests go to the least busy server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from llamatelemetry._http import CONNECT_TIMEOUT
from llamatelemetry.api._transport import RequestRecord, Transport
from llamatelemetry.api.client import LlamaCppClient, client_over
from llamatelemetry.api.responses import SlotAction
from llamatelemetry.exceptions import (
    ClientError,
    ConnectionFailedError,
    NotSupportedError,
)
from llamatelemetry.pool._replies import PoolRequests
from llamatelemetry.pool._router import Router

__all__ = ["PoolClient"]

Answer = TypeVar("Answer")

# What is no sum over servers: of these, one takes the largest or the mean.
_LARGEST = ("llamacpp:n_tokens_max",)
_MEANS = ("llamacpp:n_busy_slots_per_decode",)


class PoolClient(LlamaCppClient):
    """Talks to all servers of a pool as if they were one, from any number of threads.

    A request goes to the least busy server; a conversation's next turn goes where the
    last one went, whose cache still has it, unless it would have to wait there. When
    a server dies, requests of which nobody has seen an answer yet are asked again of
    another; a stream that has handed out chunks raises StreamError.

    Made by :class:`~llamatelemetry.pool.ServerPool`: ``pool.client``.

    Args:
        router: The pool's, which chooses a server for each request.
        timeout: Seconds of silence after which a request fails; also how long it waits
            for a server where none is ready.
        total_timeout: Seconds a request may take in all; None for any time.
        connect_timeout: Seconds to open a connection.
        on_request: Called with the record of each request when it is over.

    Raises:
        ConfigurationError: An argument that cannot work.

    Examples:
        >>> from llamatelemetry import ServerConfig, ServerPool
        >>> config = ServerConfig("model.gguf", port=0)
        >>> with ServerPool(config, gpus=[[], []]) as pool:
        ...     pool.client, len(pool.client.get_slots())
        (PoolClient(2 servers), 2)
    """

    def __init__(
        self,
        router: Router,
        *,
        timeout: float = 30,
        total_timeout: float | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        on_request: Callable[[RequestRecord], object] | None = None,
    ) -> None:
        self._router = router
        http = PoolRequests(router)
        self._use(Transport(http, timeout, connect_timeout, total_timeout, on_request))

    def __repr__(self) -> str:
        return f"PoolClient({len(self._router.members)} servers)"

    def health(self) -> dict[str, Any]:
        """Return ``{"status": "ok"}`` if a server is ready, "loading" if one will be.

        Raises:
            ConnectionFailedError: None is, and none will be.
        """
        if any(member.is_ready for member in self._router.members):
            return {"status": "ok"}
        if any(member.is_kept for member in self._router.members):
            return {"status": "loading"}
        raise ConnectionFailedError("no server of the pool runs")

    def get_slots(self) -> list[dict[str, Any]]:
        """Return what each slot of each ready server does; ``server`` says whose.

        Raises:
            NotSupportedError: The servers were started with ``--no-slots``.
        """
        return [
            {"server": number, **slot}
            for number, slots in self._of_each(LlamaCppClient.get_slots)
            for slot in slots
        ]

    def metrics(self) -> dict[str, float]:
        """Return the Prometheus metrics of the ready servers, summed up.

        ``n_tokens_max`` is the largest, ``n_busy_slots_per_decode`` the mean.

        Raises:
            NotSupportedError: The servers were started without ``--metrics``.
        """
        each = [values for _, values in self._of_each(LlamaCppClient.metrics)]
        total: dict[str, float] = {}
        for name in dict.fromkeys(name for one in each for name in one):
            values = [one[name] for one in each if name in one]
            total[name] = max(values) if name in _LARGEST else sum(values)
            if name in _MEANS:
                total[name] /= len(values)
        return total

    def set_lora_adapters(self, scales: Mapping[int, float]) -> None:
        """Set how strongly LoRA adapters are applied, on every server.

        A server that is not running now, or is started again, gets them before it is
        sent anything. One that refuses them keeps what it had.

        Args:
            scales: The strength of each adapter by its number; 0 switches one off.

        Raises:
            ClientError: A server has refused them; a note says which, the first of
                them. All others have been asked too.
        """
        errors = []
        for member in self._router.members:
            try:
                member.set_lora_scales(scales)
            except ClientError as error:
                error.add_note(f"this was server {member.number} of the pool")
                errors.append(error)
        if errors:
            raise errors[0]

    def save_slot(self, slot_id: int, filename: str) -> SlotAction:
        """Raise: a slot belongs to one server.

        Args:
            slot_id: The slot's number.
            filename: The file's name.

        Raises:
            NotSupportedError: Always; says how to ask one server.
        """
        _refuse_slots(f"save_slot({slot_id}, {filename!r})")

    def restore_slot(self, slot_id: int, filename: str) -> SlotAction:
        """Raise: a slot belongs to one server.

        Args:
            slot_id: The slot's number.
            filename: The file's name.

        Raises:
            NotSupportedError: Always; says how to ask one server.
        """
        _refuse_slots(f"restore_slot({slot_id}, {filename!r})")

    def erase_slot(self, slot_id: int) -> SlotAction:
        """Raise: a slot belongs to one server.

        Args:
            slot_id: The slot's number.

        Raises:
            NotSupportedError: Always; says how to ask one server.
        """
        _refuse_slots(f"erase_slot({slot_id})")

    def close(self) -> None:
        """Do nothing: the connections are the pool's, which closes them at its end."""

    def _of_each(
        self, ask: Callable[[LlamaCppClient], Answer]
    ) -> list[tuple[int, Answer]]:
        """Ask each ready server, and return its number with what it answers.

        One that dies meanwhile is left out.
        """
        answers = []
        for member in self._router.members:
            if member.is_ready:
                client = client_over(replace(self._transport, http=member.http))
                with contextlib.suppress(ConnectionFailedError):
                    answers.append((member.number, ask(client)))
        return answers


def _refuse_slots(call: str) -> NoReturn:
    raise NotSupportedError(
        "slots are saved, restored and erased on one server, and a pool has several; "
        f"ask one: LlamaCppClient(pool.servers[i].get_url()).{call}, with i from 0"
    )
