"""What is measured: a session, a pool, a client or an address, and what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from llamatelemetry._connection import is_loopback
from llamatelemetry._units import printable, without_secrets
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    RequestTimeoutError,
)
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.pool.client import PoolClient
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.session import Session

__all__ = ["Opened", "Target", "checked_target", "opened"]

Target: TypeAlias = Session | ServerPool | LlamaCppClient | str


@dataclass(frozen=True, slots=True)
class Opened:
    """What leads to the servers, and what they say of themselves.

    Attributes:
        client: Asks them; waits as long as it was told to.
        address: Where they are, in words.
        is_local: Whether they are on this machine.
        monitor: What watches their cards already, or None.
        model: The model's name, or None.
        build: The engine's, or None.
        slots: Requests they serve at once, or None.
    """

    client: LlamaCppClient
    address: str
    is_local: bool
    monitor: GPUMonitor | None
    model: str | None
    build: str | None
    slots: int | None


def checked_target(target: Any) -> None:
    """Say at once what cannot be measured.

    Args:
        target: What is to be measured.

    Raises:
        ConfigurationError: It is none of the things that can, or a text that is no
            address, such as a model's name.
    """
    if isinstance(target, Session | ServerPool | LlamaCppClient):
        return
    if not isinstance(target, str):
        raise ConfigurationError(
            f"this measures a Session, a ServerPool, a LlamaCppClient or a URL, "
            f"not {target!r}; for a ServerManager that is server.get_url()"
        )
    if "://" not in target:
        raise ConfigurationError(
            f"{target!r} is no address like 'http://127.0.0.1:8080'; for a model: "
            f"with launch({target!r}) as session: ..., and give the session"
        )


@contextlib.contextmanager
def opened(target: Target, timeout: float) -> Iterator[Opened]:
    """Open what is to be measured; a client that was made for it is closed again.

    Args:
        target: What it is.
        timeout: Seconds of silence after which a request fails.

    Raises:
        ConfigurationError: It is something else.
        ConnectionFailedError: Nobody answers there.
    """
    checked_target(target)
    with contextlib.ExitStack() as ending:
        monitor = None
        if isinstance(target, Session):
            client, monitor = target.client, target.monitor
        elif isinstance(target, ServerPool):
            client = target.client
        elif isinstance(target, LlamaCppClient):
            client = target
        else:
            client = ending.enter_context(LlamaCppClient(target))
        yield _looked_at(client.with_options(timeout=timeout), monitor)


def _looked_at(client: LlamaCppClient, monitor: GPUMonitor | None) -> Opened:
    props = _props(client)
    is_pool = isinstance(client, PoolClient)
    slots = _number(props.get("total_slots"))
    if is_pool:
        # The properties are those of one server of several.
        with contextlib.suppress(ClientError):
            slots = len(client.get_slots())
    return Opened(
        client=client,
        address=repr(client) if is_pool else without_secrets(client.base_url),
        is_local=is_pool or is_loopback(client.base_url),
        monitor=monitor,
        model=_text(props.get("model_alias")) or _file_name(props.get("model_path")),
        build=_text(props.get("build_info")),
        slots=slots,
    )


def _props(client: LlamaCppClient) -> dict[str, Any]:
    """Return what the server says of itself; nothing if it is another kind of server.

    Raises:
        ClientError: It cannot be asked at all.
    """
    try:
        return client.get_props()
    except (AuthenticationError, ConnectionFailedError, RequestTimeoutError):
        raise
    except ClientError:
        return {}


def _text(value: object) -> str | None:
    return printable(value) if isinstance(value, str) and value else None


def _file_name(path: object) -> str | None:
    text = _text(path)
    return None if text is None else text.replace("\\", "/").rpartition("/")[2]


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
