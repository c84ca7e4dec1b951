"""ServerManager: start a llama-server, wait until it is ready, read it, stop it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

from llamatelemetry._deadline import Deadline
from llamatelemetry._http import HTTPClient
from llamatelemetry.exceptions import (
    ConfigurationError,
    LLCudaError,
    PortInUseError,
    ServerError,
    ServerNotRunningError,
    ServerTimeoutError,
)
from llamatelemetry.server import _at_exit, _process
from llamatelemetry.server._launch import explain_no_start, write_command
from llamatelemetry.server._preflight import (
    check_files,
    decide,
    resolve_port,
    with_absolute_paths,
)
from llamatelemetry.server._run import EventListeners, Run
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import (
    EngineLike,
    build_environment,
    find_engine,
)
from llamatelemetry.server.events import Event, Exited, LoadProgress, Notice
from llamatelemetry.server.failures import explain_end
from llamatelemetry.server.logs import LogPosition
from llamatelemetry.server.parsing import parse_arguments
from llamatelemetry.server.state import ALIVE, NEXT, ServerState
from llamatelemetry.server.status import ServerStatus

_POLL_SECONDS = 0.01
_PROGRESS_SECONDS = 0.1
_FREE_PORT_STARTS = 3


class ServerManager:
    """Runs one llama-server at a time.

    The server never outlives this Python process, however that ends: the kernel kills
    it then, and a guard process kills what it had started itself. Any thread may call
    any method; starts and stops wait for each other.

    Args:
        config: What ``with`` and :meth:`restart` start. Others may be given to
            :meth:`start_with_config` later.
        engine: The engine, or a path to its program. None: see
            :func:`llamatelemetry.server.find_engine`.
        timeout: Seconds ``with`` and :meth:`restart` wait until it is ready.
        environment: Environment variables for the server, over the inherited ones.
        progress: Called with each step of loading by ``with`` and :meth:`restart`.

    Raises:
        ConfigurationError: ``config`` is no ServerConfig.

    Examples:
        >>> from llamatelemetry import ServerConfig, ServerManager
        >>> with ServerManager(ServerConfig("model.gguf", port=0)) as server:
        ...     print(server.get_url())
        http://127.0.0.1:...
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        engine: EngineLike | None = None,
        timeout: float = 600,
        environment: Mapping[str, str] | None = None,
        progress: Callable[[LoadProgress], None] | None = None,
    ) -> None:
        if config is not None and not isinstance(config, ServerConfig):
            raise ConfigurationError(
                f"ServerManager takes a ServerConfig, not {type(config).__name__}: "
                "ServerManager(ServerConfig('model.gguf'))"
            )
        self._requested = config
        self._engine = engine
        self._timeout = timeout
        self._environment = dict(environment or {})
        self._progress = progress
        self._listeners = EventListeners()
        self._state = ServerState.NEW
        self._error: LLCudaError | None = None
        self._run: Run | None = None
        self._port_tries = 0
        self._lock = threading.RLock()  # guards the values above
        self._lifecycle = threading.RLock()  # held while starting and while stopping

    # ── start ────────────────────────────────────────────────────────────────────

    def start_with_config(self, config: ServerConfig) -> bool:
        """Start the server; return True once the process runs.

        It still has to load the model: see :meth:`wait_until_ready`.

        Args:
            config: What to start the server with; :meth:`restart` takes it again.

        Raises:
            ConfigurationError: A value cannot work with this engine or machine.
            ModelError: The model is missing, empty or not GGUF.
            PortInUseError: Something else listens on the port.
            EngineNotFoundError: No engine was found.
            ServerError: This manager's server is running already.

        Example:
            >>> from llamatelemetry import ServerConfig, ServerManager
            >>> manager = ServerManager()
            >>> manager.start_with_config(ServerConfig("model.gguf", port=0))
            True
            >>> manager.wait_until_ready()
            True
            >>> manager.stop()
        """
        if not isinstance(config, ServerConfig):
            raise ConfigurationError(
                f"start_with_config takes a ServerConfig, not {type(config).__name__}; "
                "for arguments in a string there is start(args)"
            )
        with self._lifecycle:
            self._refuse_if_running()
            self._requested, self._port_tries = config, 0
            self._start(config)
        return True

    def start(self, args: str, *, api_key: str | None = None) -> bool:
        """Start the server with llama-server's own arguments in one string.

        Old and new spellings are understood. What ServerConfig has no field for is
        passed on as it is; what is left out has ServerConfig's default.

        Args:
            args: Like ``"-m model.gguf -ngl 99 -c 4096"``, quoted as in a shell.
            api_key: The key clients must send. An ``--api-key`` in ``args`` works
                too and is moved to the environment.

        Raises:
            ConfigurationError: An argument cannot be understood.
            LLCudaError: As :meth:`start_with_config`.

        Example:
            >>> from llamatelemetry import ServerManager
            >>> manager = ServerManager()
            >>> manager.start("-m model.gguf -c 512 --port 0")
            True
            >>> manager.stop()
        """
        config = parse_arguments(args)
        if api_key is not None:
            config = config.replace(api_key=api_key)
        return self.start_with_config(config)

    def _refuse_if_running(self) -> None:
        if self.is_running():
            raise ServerError(
                f"this server is running already at {self.get_url()}; "
                "call stop() or restart() first, or use another ServerManager"
            )

    def _start(self, config: ServerConfig) -> None:
        """Start the engine; the caller holds the lifecycle lock."""
        engine = find_engine(self._engine)
        config = with_absolute_paths(config)
        check_files(config)
        decisions = decide(config)
        config = resolve_port(config)
        command = write_command(engine, config, decisions)
        environment = build_environment(
            engine,
            api_key=config.api_key,
            environment=self._environment,
            visible_devices=config.visible_devices,
        )

        def note(process: _process.ServerProcess) -> None:
            run = Run(
                config,
                command,
                process,
                engine_name=str(engine),
                on_end=self._settle,
                on_event=self._listeners.tell,
            )
            for text in (*config.notes, *decisions.notices):
                run.add(Notice(text))
            with self._lock:
                self._run, self._error = run, None
                self._transition(ServerState.STARTING)
            _at_exit.add(self)
            run.begin()

        try:
            _process.start(command, environment=environment, note=note)
        except OSError as error:
            raise explain_no_start(str(engine), error) from error
        except BaseException:  # interrupted when it ran already, perhaps
            self.stop()
            raise

    # ── wait ─────────────────────────────────────────────────────────────────────

    def wait_until_ready(
        self,
        timeout: float = 60,
        *,
        progress: Callable[[LoadProgress], None] | None = None,
    ) -> bool:
        """Wait until the server takes requests.

        Args:
            timeout: Seconds to wait at most. When they are over the server goes on
                loading, and this may be called again.
            progress: Called with each step of loading.

        Returns:
            True when it is ready; False when the time is over or when it has ended:
            then ``state`` is FAILED and ``error`` says why.

        Raises:
            ServerNotRunningError: Nothing was started.

        Example:
            >>> from llamatelemetry import ServerManager
            >>> manager = ServerManager()
            >>> started = manager.start("-m model.gguf --port 0")
            >>> manager.wait_until_ready(timeout=60)
            True
            >>> manager.stop()
        """
        if self._run is None:
            raise ServerNotRunningError(
                "nothing was started; call start_with_config(config) first"
            )
        deadline = Deadline.after(timeout)
        while True:
            run = self._run
            if self._wait(run, deadline, progress):
                return True
            if deadline.expired or not self._try_another_port(run):
                return False

    def _wait(
        self,
        run: Run,
        deadline: Deadline,
        progress: Callable[[LoadProgress], None] | None,
    ) -> bool:
        next_report = 0.0
        with contextlib.closing(HTTPClient(run.config.url)) as connection:
            while self._is_alive(run):
                if self._state is ServerState.READY:
                    return True
                if run.listens() and run.answers_ready(connection, deadline):
                    return self._become_ready(run)
                if time.monotonic() >= next_report:
                    next_report = time.monotonic() + _PROGRESS_SECONDS
                    step = run.note_progress()
                    if step is not None and progress is not None:
                        progress(step)
                if deadline.expired:
                    return False
                run.wait_for_event(min(_POLL_SECONDS, deadline.remaining))
        return False

    def _try_another_port(self, run: Run) -> bool:
        """Start again if another program took the free port before this run could.

        Returns whether there is a new run to wait for.
        """
        with self._lifecycle:
            if run is not self._run:
                return self.is_running()  # another thread did it
            lost = isinstance(self.error, PortInUseError)
            self._port_tries += 1
            if not lost or self._port_tries >= _FREE_PORT_STARTS:
                return False
            if self._requested_config().port != 0:
                return False
            try:
                self._start(self._requested_config())
            except LLCudaError as error:
                with self._lock:
                    self._error = error
                return False
            return True

    def _become_ready(self, run: Run) -> bool:
        with self._lock:
            if run is self._run and self._state is ServerState.STARTING:
                run.become_ready()
                self._transition(ServerState.READY)
            return self._state is ServerState.READY

    # ── look ─────────────────────────────────────────────────────────────────────

    def is_running(self) -> bool:
        """Whether the server process runs, ready or still loading.

        Example:
            >>> server.is_running()
            True
        """
        run = self._run
        return run is not None and self._is_alive(run)

    @property
    def state(self) -> ServerState:
        """Where the server is in its life, asked for now."""
        if self._run is not None:
            self._settle(self._run)
        return self._state

    @property
    def error(self) -> LLCudaError | None:
        """Why the server ended by itself, ready to be raised; None if it did not."""
        return self._error if self.state is ServerState.FAILED else None

    def raise_if_failed(self) -> None:
        """Raise the error that says why the server ended by itself, if it did.

        Raises:
            LLCudaError: Why it ended, as a ServerStartError or OutOfMemoryError, say.

        Example:
            >>> server.raise_if_failed()  # it runs, so nothing is raised
        """
        error = self.error
        if error is not None:
            raise error

    def status(self) -> ServerStatus:
        """Return what the server is doing, as a value.

        Example:
            >>> status = server.status()
            >>> status.state.value, status.ready, status.slots
            ('ready', True, 2)
        """
        state, config = self.state, self.config or ServerConfig(None, port=0)
        return ServerStatus(
            server=0,
            state=state,
            ready=state is ServerState.READY,
            url=config.url if config.port else None,
            pid=self.pid,
            cards=config.visible_devices,
            slots=config.parallel,
            error=self.error,
        )

    @property
    def config(self) -> ServerConfig | None:
        """What the server was started with, with its real port; else what was given."""
        return self._run.config if self._run is not None else self._requested

    @property
    def pid(self) -> int | None:
        """The server's process id, or None while it does not run."""
        return self._run.process.pid if self._run and self.is_running() else None

    @property
    def command(self) -> tuple[str, ...]:
        """The program and arguments of the last start; never holds a key."""
        return self._run.command if self._run is not None else ()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened since the last start, as typed values, oldest first."""
        return self._run.events if self._run is not None else ()

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Have a function called with each event as it happens, over all starts.

        It is called in whichever thread notes the event, and has to be quick; what it
        raises is logged.

        Args:
            callback: Called with an event, as in ``events``.

        Returns:
            What ends it; harmless when called again.

        Raises:
            ConfigurationError: It is no function.

        Example:
            >>> from llamatelemetry import ServerConfig, ServerManager
            >>> manager = ServerManager(ServerConfig("model.gguf", port=0))
            >>> seen = []
            >>> end = manager.subscribe(lambda event: seen.append(type(event).__name__))
            >>> with manager:
            ...     end()
            >>> "Ready" in seen, "Exited" in seen
            (True, False)
        """
        return self._listeners.subscribe(callback)

    def get_url(self) -> str:
        """Return the server's base URL, like ``http://127.0.0.1:8080``.

        Raises:
            ServerNotRunningError: Nothing was started and the port is not known yet.

        Example:
            >>> server.get_url()
            'http://127.0.0.1:...'
        """
        config = self.config
        if config is None or config.port == 0:
            raise ServerNotRunningError(
                "nothing was started, so there is no URL yet; call start_with_config"
            )
        return config.url

    def get_logs(self) -> str:
        """Return the log of the last start, stdout and stderr together.

        The oldest lines are dropped beyond about 4 MiB. Works after the end too.

        Example:
            >>> "listening on http://127.0.0.1" in server.get_logs()
            True
        """
        return self._run.log.text() if self._run is not None else ""

    def read_logs(
        self, position: LogPosition | None = None
    ) -> tuple[LogPosition | None, list[str]]:
        """Return the log's lines since a position, and the position after them.

        For those who look again and again: costs nothing where nothing is new.

        Args:
            position: What an earlier call gave; None for the beginning. That of an
                earlier start counts as the beginning too.

        Example:
            >>> position, lines = server.read_logs()
            >>> position, new_lines = server.read_logs(position)
            >>> len(lines) > len(new_lines)
            True
        """
        return self._run.log.since(position) if self._run is not None else (None, [])

    def follow_logs(self) -> Iterator[str]:
        """Yield the log's lines from the beginning, then each as it comes.

        Ends when the server ends.

        Example:
            >>> for line in server.follow_logs():
            ...     print(line)
            ...     break
            0.00...
        """
        return self._run.log.follow() if self._run is not None else iter(())

    # ── end ──────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """Stop the server; quiet when none runs.

        It is asked to end, asked again after 2 seconds, and killed a second later,
        with everything it started. Streams that are still open break.

        Example:
            >>> from llamatelemetry import ServerConfig, ServerManager
            >>> manager = ServerManager(ServerConfig("model.gguf", port=0))
            >>> manager.restart()
            >>> manager.stop()
            >>> manager.state.value
            'stopped'
        """
        with self._lifecycle:
            run = self._run
            if run is None:
                return
            self._settle(run)
            with self._lock:
                if self._state in ALIVE:
                    self._transition(ServerState.STOPPING)
                if self._state is not ServerState.STOPPING:
                    return
            # From here an interrupt leaves STOPPING, and stop() may be called again.
            code = run.process.stop()
            run.finish()
            run.add(Exited(code))
            with self._lock:
                self._transition(ServerState.STOPPED)
            _at_exit.discard(self)

    def restart(self) -> None:
        """Stop the server, start it again, and wait until it is ready.

        The port stays the same, also a free one that was taken, if it is still free.

        Raises:
            ServerTimeoutError: It was not ready in the manager's timeout.
            LLCudaError: As :meth:`start_with_config`, or why it ended.

        Example:
            >>> from llamatelemetry import ServerConfig, ServerManager
            >>> with ServerManager(ServerConfig("model.gguf", port=0)) as manager:
            ...     before = manager.get_url()
            ...     manager.restart()
            ...     print(manager.get_url() == before)
            True
        """
        with self._lifecycle:
            requested = self._requested_config()
            config = self._run.config if self._run is not None else requested
            self.stop()
            self._port_tries = 0
            try:
                self._start(config)
            except PortInUseError:
                if requested.port != 0:
                    raise
                self._start(requested)
        self._require_ready()

    def __enter__(self) -> Self:
        config = self._requested_config()
        self._refuse_if_running()
        try:
            self.start_with_config(config)
            self._require_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        parts = [self.state.value]
        if self._run is not None:
            config = self._run.config
            parts += [config.url, f"model {config.model_alias!r}"]
            if self.pid is not None:
                parts.append(f"pid {self.pid}")
        return f"<ServerManager {', '.join(parts)}>"

    # ── inside ───────────────────────────────────────────────────────────────────

    def _requested_config(self) -> ServerConfig:
        if self._requested is None:
            raise ConfigurationError(
                "no configuration: use ServerManager(config) or start_with_config"
            )
        return self._requested

    def _require_ready(self) -> None:
        if self.wait_until_ready(self._timeout, progress=self._progress):
            return
        self.raise_if_failed()
        run = self._run
        if self._state not in ALIVE:
            raise ServerNotRunningError("the server was stopped while it was awaited")
        raise ServerTimeoutError(
            f"the server was not ready in {self._timeout:g} s; a large model may need "
            "more: ServerManager(config, timeout=...)",
            log_tail=run.log.tail() if run is not None else "",
        )

    def _is_alive(self, run: Run) -> bool:
        self._settle(run)
        return run is self._run and self._state in ALIVE

    def _settle(self, run: Run) -> None:
        """If the process has ended by itself, become FAILED and say why."""
        code = run.process.poll()
        if code is None or self._state not in ALIVE:
            return
        run.finish()
        with self._lock:
            if run is not self._run or self._state not in ALIVE:
                return
            self._error = explain_end(
                run.config,
                run.latest_events,
                engine_name=run.engine_name,
                command=run.command,
                exit_code=code,
                log_tail=run.log.tail(),
                was_ready=run.was_ready,
            )
            run.add(Exited(code))
            self._transition(ServerState.FAILED)
        _at_exit.discard(self)

    def _transition(self, state: ServerState) -> None:
        if state not in NEXT[self._state]:
            raise ServerError(
                f"a {self._state.value} server cannot become {state.value}"
            )
        self._state = state
