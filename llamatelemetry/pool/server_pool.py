"""ServerPool: several servers of one model, side by side, behind one client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import Self

from llamatelemetry._http import CONNECT_TIMEOUT
from llamatelemetry.api._requests import authorization
from llamatelemetry.api._transport import RequestRecord
from llamatelemetry.exceptions import (
    ConfigurationError,
    ServerError,
    ServerNotRunningError,
)
from llamatelemetry.placement import Placement
from llamatelemetry.pool._groups import Groups, configs_for_groups, with_own_places
from llamatelemetry.pool._member import Member
from llamatelemetry.pool._router import Router
from llamatelemetry.pool.client import PoolClient
from llamatelemetry.pool.status import PoolStatus
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import EngineLike, find_engine
from llamatelemetry.server.events import LoadProgress
from llamatelemetry.server.manager import ServerManager

__all__ = ["ServerPool"]

_LOOK_SECONDS = 0.1


class ServerPool:
    """Runs one server per group of cards, each with its own port, behind one client.

    Without NVLink a model that fits one card answers more requests in all as one
    server per card than split over both. Each server sees its own cards only. One
    that dies is started again, after 0.5 s at first and a minute at most; meanwhile
    the others do its work. ``pool.servers`` are the managers, in order.

    Args:
        config: What every server is started with: a ServerConfig; or one for each; or
            a :class:`~llamatelemetry.placement.Placement`. CPU threads and prompt
            caches are shared out; ports count up from ``port``, or are any free ones
            with ``port=0``.
        gpus: The cards of each server: "each" for one server per card (without cards
            one on the CPU), or a list for each, ``[[0], [1]]``, by index or as
            `detect_gpus` returns them; ``[]`` is no card. Only with one ServerConfig.
        engine: The engine; None: see :func:`llamatelemetry.server.find_engine`.
        timeout: Seconds to wait until all are ready.
        environment: Environment variables for the servers, over the inherited ones.
        progress: Called while they load, with the mean of their progress, in the
            thread that starts the pool.

    Raises:
        ConfigurationError: A value cannot work, or a card is not there.

    Examples:
        >>> from llamatelemetry import ServerConfig, ServerPool
        >>> config = ServerConfig("model.gguf", port=0, n_gpu_layers=99)
        >>> with ServerPool(config, gpus=[[0], [1]]) as pool:
        ...     question = [{"role": "user", "content": "What is GGUF?"}]
        ...     answer = pool.client.chat_completion(question, temperature=0)
        >>> answer.choices[0].message.content[:21]
        'GGUF is a file format'
    """

    def __init__(
        self,
        config: ServerConfig | Sequence[ServerConfig] | Placement,
        gpus: Groups = "each",
        *,
        engine: EngineLike | None = None,
        timeout: float = 600,
        environment: Mapping[str, str] | None = None,
        progress: Callable[[LoadProgress], None] | None = None,
    ) -> None:
        self._placement = config if isinstance(config, Placement) else None
        self._engine = engine
        self._timeout = timeout
        self._progress = progress
        self._loading: dict[int, LoadProgress] = {}
        self._lifecycle = threading.RLock()  # held while starting and while stopping
        members = [
            Member(
                number,
                one,
                ServerManager(
                    one, engine=engine, timeout=timeout, environment=environment
                ),
                changed=self._tell,
                headers=authorization(one.api_key),
            )
            for number, one in enumerate(_configs(config, gpus))
        ]
        self._router = Router(members)

    @property
    def servers(self) -> tuple[ServerManager, ...]:
        """The servers' managers, in order."""
        return tuple(member.manager for member in self._router.members)

    @property
    def configs(self) -> tuple[ServerConfig, ...]:
        """What the servers are started with, in order."""
        return tuple(member.config for member in self._router.members)

    @cached_property
    def client(self) -> PoolClient:
        """A client of all servers; from any number of threads.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> with ServerPool(config, gpus=[[], []]) as pool:
            ...     pool.client.health()
            {'status': 'ok'}
        """
        return self.make_client()

    def make_client(
        self,
        *,
        timeout: float = 30,
        total_timeout: float | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        on_request: Callable[[RequestRecord], object] | None = None,
    ) -> PoolClient:
        """Return another client of all servers, with LlamaCppClient's options.

        Args:
            timeout: Seconds of silence after which a request fails; also how long it
                waits for a server where none is ready.
            total_timeout: Seconds a request may take in all; None for any time.
            connect_timeout: Seconds to open a connection.
            on_request: Called with the record of each request when it is over.

        Raises:
            ConfigurationError: An argument that cannot work.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> with ServerPool(config, gpus=[[], []]) as pool:
            ...     pool.make_client(timeout=120).health()
            {'status': 'ok'}
        """
        return PoolClient(
            self._router,
            timeout=timeout,
            total_timeout=total_timeout,
            connect_timeout=connect_timeout,
            on_request=on_request,
        )

    def start(
        self, *, tick: Callable[[LoadProgress | None], object] | None = None
    ) -> None:
        """Start all servers side by side, and wait until all are ready.

        If one cannot be started, the others are stopped again.

        Args:
            tick: Called here about ten times a second with the mean of their progress,
                None before there is any. What it raises ends the start.

        Raises:
            OutOfMemoryError: The placement is none: the model does not fit.
            ServerError: The pool runs already.
            ServerNotRunningError: stop() was called meanwhile.
            ServerTimeoutError: They were not ready in the pool's timeout.
            LLCudaError: As ServerManager, of the first server that failed.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> pool = ServerPool(config, gpus=[[], []])
            >>> pool.start()
            >>> pool.is_running(), pool.status().ready
            (True, 2)
            >>> pool.stop()
        """
        if self._placement is not None:
            self._placement.raise_if_none()
        with self._lifecycle:
            if any(server.is_running() for server in self.servers):
                raise ServerError("this pool runs already; call stop() first")
            self._stop_members()  # those that were about to come back
            find_engine(self._engine)  # once, and not by each server at the same time
            try:
                self._start_members(tick)
            except BaseException:
                self._stop_members()
                raise

    def _start_members(
        self, tick: Callable[[LoadProgress | None], object] | None
    ) -> None:
        members = self._router.members
        told: LoadProgress | None = None
        self._loading.clear()
        for member in members:
            member.start(partial(self._note, member.number), self._timeout)
        while not all(member.has_begun for member in members):
            if any(member.error or member.is_ending for member in members):
                break
            # Here, and not in their threads: it is the user's, and may do anything.
            step = self._progress_of_all()
            if self._progress is not None and step is not None and step != told:
                told = step
                self._progress(step)
            if tick is not None:
                tick(step)
            self._router.wait(_LOOK_SECONDS)
        for member in members:
            if member.error is not None:
                member.error.add_note(f"this was server {member.number} of the pool")
                raise member.error
        if any(member.is_ending for member in members):
            raise ServerNotRunningError("the pool was stopped while it was started")

    def _tell(self, member: Member) -> None:
        self._router.tell(member)

    def _note(self, number: int, step: LoadProgress) -> None:
        self._loading[number] = step
        self._router.wake()

    def _progress_of_all(self) -> LoadProgress | None:
        """Return how far loading is over all servers; None before the first step."""
        steps = list(self._loading.values())
        if not steps:
            return None
        return LoadProgress(
            fraction=sum(one.fraction for one in steps) / len(self._router.members),
            bytes_loaded=sum(one.bytes_loaded for one in steps),
            seconds=max(one.seconds for one in steps),
        )

    def stop(self) -> None:
        """Stop all servers, side by side; quiet if none runs.

        May be called from any thread, also while another one waits in start(), which
        then raises ServerNotRunningError.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> pool = ServerPool(config, gpus=[[], []])
            >>> pool.start()
            >>> pool.stop()
            >>> pool
            <ServerPool, 0 of 2 servers ready, model 'model'>
        """
        for member in self._router.members:
            member.end()
        with self._lifecycle:
            self._stop_members()

    def _stop_members(self) -> None:
        members = self._router.members
        for member in members:
            member.end()  # all first: an interrupt must not leave one that comes back
        try:
            _wait_for([_in_thread(member.stop) for member in members])
        except BaseException:
            # Interrupted in between: once more for all, which harms none.
            _wait_for([_in_thread(member.stop) for member in members])
            raise

    def status(self) -> PoolStatus:
        """Return what each server is doing; shows itself as a table.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> with ServerPool(config, gpus=[[0], [1]]) as pool:
            ...     [(one.server, one.state.value, one.slots) for one in pool.status()]
            [(0, 'ready', 1), (1, 'ready', 1)]
        """
        return PoolStatus(member.status() for member in self._router.members)

    def is_running(self) -> bool:
        """Whether a server of the pool runs, or will be started again.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> with ServerPool(config, gpus=[[], []]) as pool:
            ...     pool.is_running()
            True
            >>> pool.is_running()
            False
        """
        return any(
            member.manager.is_running() or member.is_kept
            for member in self._router.members
        )

    def get_logs(self) -> str:
        """Return the logs of the servers, one after the other.

        Each line begins with the number of its server: ``[0] ...``. They are those of
        the last start of each; ``pool.servers[0].get_logs()`` is one alone.

        Examples:
            >>> from llamatelemetry import ServerConfig, ServerPool
            >>> config = ServerConfig("model.gguf", port=0)
            >>> with ServerPool(config, gpus=[[], []]) as pool:
            ...     lines = pool.get_logs().splitlines()
            >>> sorted({line[:3] for line in lines})
            ['[0]', '[1]']
        """
        return "".join(
            f"[{number}] {line}\n"
            for number, server in enumerate(self.servers)
            for line in server.get_logs().splitlines()
        )

    def __len__(self) -> int:
        return len(self._router.members)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        status = self.status()
        names = {config.model_alias for config in self.configs if config.model_alias}
        model = f", model {names.pop()!r}" if len(names) == 1 else ""
        return f"<ServerPool, {status.ready} of {len(status)} servers ready{model}>"


def _in_thread(stop: Callable[[], None]) -> threading.Thread | None:
    """Stop a server in a thread; here, where the interpreter ends and starts none."""
    thread = threading.Thread(target=stop, name="llamatelemetry-pool-stop", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        stop()
        return None
    return thread


def _wait_for(threads: Sequence[threading.Thread | None]) -> None:
    for thread in threads:
        if thread is not None:
            thread.join()


def _configs(
    config: ServerConfig | Sequence[ServerConfig] | Placement, gpus: Groups
) -> list[ServerConfig]:
    """Return a configuration for each server."""
    if isinstance(config, ServerConfig):
        return with_own_places(configs_for_groups(config, gpus))
    if gpus != "each":
        raise ConfigurationError(
            "gpus= goes with one ServerConfig; a Placement, or a configuration for "
            "each server, says the cards itself (visible_devices)"
        )
    given: object = config.configs if isinstance(config, Placement) else config
    configs = [
        one
        for one in (given if isinstance(given, (list, tuple)) else [given])
        if isinstance(one, ServerConfig)
    ]
    if not isinstance(given, (list, tuple)) or len(configs) < len(given):
        raise ConfigurationError(
            "ServerPool takes a ServerConfig, a list of them, or a Placement; not "
            f"{config!r}"
        )
    if not configs and not isinstance(config, Placement):
        raise ConfigurationError("ServerPool was given an empty list of servers")
    return with_own_places(configs) if configs else []
