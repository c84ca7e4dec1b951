"""Where a batch goes: a session, a pool, a server, a client, a URL, or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Literal

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    BatchError,
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    LLCudaError,
    RequestTimeoutError,
    ServerNotRunningError,
)
from llamatelemetry.pool.client import PoolClient
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.server.state import ALIVE, ServerState
from llamatelemetry.session import Session

__all__ = ["Lane", "Sign", "open_lanes"]

Sign = Literal["ready", "coming", "silent"]

_SILENCE = 600.0
"""Seconds a row may wait for a slot, which llama-server spends in silence."""

_LOOK_SECONDS = 5.0
_MOST_RESTARTS = 3
"""Restarts that may fail one after the other."""


class Lane(ABC):
    """One server, or one pool of them, that rows are sent to.

    Attributes:
        name: What it is called in records and messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._patient: tuple[LlamaCppClient, LlamaCppClient] | None = None

    @property
    def client(self) -> LlamaCppClient:
        """A client of it that waits for a free slot; another after a restart."""
        plain = self._plain_client()
        if self._patient is None or self._patient[0] is not plain:
            silence = max(_SILENCE, plain._transport.timeout)  # noqa: SLF001 - the package's own; what its user has set is not shortened
            self._patient = (plain, plain.with_options(timeout=silence))
        return self._patient[1]

    @abstractmethod
    def _plain_client(self) -> LlamaCppClient:
        """Return the client as it was given or made."""

    def look(self) -> Sign:
        """Return whether it takes requests; start it again where that is possible.

        Raises:
            BatchError: It will not come back.
        """
        return _health(self._plain_client())

    def slots(self) -> int | None:
        """Return how many requests it works on at once; None if it does not tell.

        Raises:
            ConnectionFailedError: It is not there.
            AuthenticationError: It wants a key, or another one.
        """
        try:
            props = self._looking().get_props()
        except (ConnectionFailedError, RequestTimeoutError):
            raise
        except ClientError as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                raise
            return None  # no llama-server: it has no such path
        slots = props.get("total_slots")
        return slots if isinstance(slots, int) and slots > 0 else None

    def close(self) -> None:  # noqa: B027 - most have nothing of their own to close
        """Close what was opened for it, and nothing else."""

    def _looking(self) -> LlamaCppClient:
        return self._plain_client().with_options(timeout=_LOOK_SECONDS)


class _ClientLane(Lane):
    """A server somewhere, by its client or URL: it can only be waited for."""

    def __init__(self, client: LlamaCppClient, *, owned: bool) -> None:
        super().__init__(client.base_url)
        self._given, self._owned = client, owned

    def _plain_client(self) -> LlamaCppClient:
        return self._given

    def close(self) -> None:
        if self._owned:
            self._given.close()


class _ManagedLane(Lane):
    """A server that this process has started, and can start again."""

    def __init__(
        self,
        server: ServerManager,
        restart: Callable[[], object],
        client: Callable[[], LlamaCppClient],
        *,
        how: str,
        owned: LlamaCppClient | None = None,
    ) -> None:
        super().__init__(server.get_url())
        self._server, self._restart, self._client = server, restart, client
        self._how, self._owned = how, owned
        self._failures = 0

    def _plain_client(self) -> LlamaCppClient:
        return self._client()

    def look(self) -> Sign:
        state = self._server.state
        if state is ServerState.FAILED:
            return self._start_again()
        if state not in ALIVE:
            raise BatchError(
                f"the server at {self.name} was stopped; {self._how} and call this "
                "again, which goes on from here"
            )
        return super().look()

    def _start_again(self) -> Sign:
        try:
            self._restart()
        except LLCudaError as error:
            self._failures += 1
            if self._failures >= _MOST_RESTARTS:
                raise BatchError(
                    f"the server at {self.name} ended and could not be started again "
                    f"in {self._failures} tries: {error}"
                ) from error
            return "coming"
        self._failures = 0
        return super().look()

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()


class _PoolLane(Lane):
    """Several servers behind one client, which restart by themselves."""

    def __init__(self, client: PoolClient, pool: ServerPool | None) -> None:
        count = len(client._router.members)  # noqa: SLF001 - the package's own; a pool's client does not tell otherwise
        super().__init__(f"pool of {count} server{'s' if count > 1 else ''}")
        self._members = client._router.members  # noqa: SLF001 - as above
        self._given, self._pool = client, pool

    def _plain_client(self) -> LlamaCppClient:
        return self._given

    def look(self) -> Sign:
        if self._pool is not None and not self._pool.is_running():
            raise BatchError(
                "the pool was stopped; start it and call this again, which goes on "
                "from here"
            )
        return super().look()

    def slots(self) -> int | None:
        return sum(member.slots for member in self._members)


def open_lanes(to: Any) -> list[Lane]:
    """Return the lanes for what rows are sent to; nothing is sent yet.

    Args:
        to: A Session, ServerPool, ServerManager, client or URL; or a list of those.

    Raises:
        ConfigurationError: It is none of these.
        ServerNotRunningError: It was not started.
    """
    if isinstance(to, str | LlamaCppClient | ServerManager | ServerPool | Session):
        return [_lane(to)]
    if not isinstance(to, list | tuple):
        raise ConfigurationError(
            "to= takes a session, a ServerPool, a ServerManager, a client, a URL like "
            f"'http://127.0.0.1:8080', or a list of those; not {type(to).__name__}"
        )
    lanes = [lane for one in to for lane in open_lanes(one)]
    if not lanes:
        raise ConfigurationError("to= is an empty list; name a server at least")
    names = [lane.name for lane in lanes if not isinstance(lane, _PoolLane)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"to= names {twice} twice; once is enough")
    return lanes


def _lane(to: str | LlamaCppClient | ServerManager | ServerPool | Session) -> Lane:
    if isinstance(to, Session):
        return _session_lane(to)
    if isinstance(to, ServerManager):
        return _manager_lane(to)
    if isinstance(to, ServerPool):
        if not to.is_running():
            raise ServerNotRunningError("the pool does not run; start it first")
        return _PoolLane(to.client, to)
    if isinstance(to, PoolClient):
        return _PoolLane(to, None)
    if isinstance(to, str):
        if "://" not in to:
            raise ConfigurationError(
                f"to={to!r} is no address like 'http://127.0.0.1:8080'; for a model: "
                f"with launch({to!r}) as session: ... to=session"
            )
        return _ClientLane(LlamaCppClient(to), owned=True)
    return _ClientLane(to, owned=False)


def _session_lane(session: Session) -> Lane:
    server = session.server
    if session.closed:
        raise ServerNotRunningError("this session is closed; launch(...) makes another")
    if isinstance(server, ServerPool):
        client = session.client
        if not server.is_running() or not isinstance(client, PoolClient):
            raise ServerNotRunningError(
                "the session's servers do not run; session.start() starts them"
            )
        return _PoolLane(client, server)
    _require_started(server, "session.start()")
    return _ManagedLane(
        server, session.restart, lambda: session.client, how="session.start()"
    )


def _manager_lane(server: ServerManager) -> Lane:
    _require_started(server, "server.restart()")
    key = server.config.api_key if server.config is not None else None
    client = LlamaCppClient(server.get_url(), key)
    return _ManagedLane(
        server, server.restart, lambda: client, how="server.restart()", owned=client
    )


def _require_started(server: ServerManager, how: str) -> None:
    if server.state not in (*ALIVE, ServerState.FAILED):
        raise ServerNotRunningError(f"the server does not run; {how} starts it")


def _health(client: LlamaCppClient) -> Sign:
    """Return what a server says of itself."""
    looking = client.with_options(timeout=_LOOK_SECONDS, total_timeout=_LOOK_SECONDS)
    try:
        status = looking.health().get("status")
    except (ConnectionFailedError, RequestTimeoutError):
        return "silent"
    except ClientError as error:
        # One that is no llama-server may have no such path, and answers all the same.
        failed = (error.status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR
        return "coming" if failed else "ready"
    return "coming" if status == "loading" else "ready"
