"""Several servers of one model, one per card or group of cards, behind one client."""

from __future__ import annotations

from llamatelemetry.pool.client import PoolClient
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.pool.status import PoolStatus, ServerStatus

__all__ = ["PoolClient", "PoolStatus", "ServerPool", "ServerStatus"]
