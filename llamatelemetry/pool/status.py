"""What a pool's servers are doing, as values and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from llamatelemetry.server.status import ServerStatus

__all__ = ["PoolStatus", "ServerStatus"]


_COLUMNS = ("server", "state", "cards", "url", "pid", "busy", "requests", "restarts")


class PoolStatus(tuple[ServerStatus, ...]):  # noqa: SLOT001 - it has no attributes
    """What each server of a pool is doing; a tuple that shows itself as a table.

    It holds one :class:`ServerStatus` for each server, in order.

    Examples:
        >>> from llamatelemetry import ServerConfig, ServerPool
        >>> config = ServerConfig("model.gguf", port=0)
        >>> with ServerPool(config, gpus=[[], []]) as pool:
        ...     status = pool.status()
        >>> status.ready, len(status), status[1].server
        (2, 2, 1)
    """

    @property
    def ready(self) -> int:
        """How many servers are sent requests."""
        return sum(one.ready for one in self)

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per server, of plain values.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> rows = ServerPool(config, gpus=[[], []]).status().rows()
            >>> [(row["server"], row["state"]) for row in rows]
            [(0, 'new'), (1, 'new')]
        """
        return [
            {item.name: getattr(one, item.name) for item in fields(one)}
            | {"state": one.state.value, "error": one.error and str(one.error)}
            for one in self
        ]

    def __repr__(self) -> str:
        lines = _aligned([_COLUMNS, *map(_cells, self)])
        errors = [
            f"server {one.server}: {str(one.error).splitlines()[0]}"
            for one in self
            if one.error is not None
        ]
        return "\n".join([*lines, *errors])


def _cells(one: ServerStatus) -> tuple[str, ...]:
    cards = "all" if one.cards is None else one.cards or "none"
    return (
        str(one.server),
        one.state.value,
        # UUIDs are 40 characters; their beginnings tell them apart.
        ",".join(name[:12] for name in cards.split(",")),
        one.url or "",
        str(one.pid or ""),
        f"{'-' if one.in_flight is None else one.in_flight} of {one.slots}",
        "-" if one.requests is None else str(one.requests),
        str(one.restarts),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
