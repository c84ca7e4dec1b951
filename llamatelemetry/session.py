"""launch(): one call from nothing to a running model; Session: what it has started."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from llamatelemetry import _session_view as view
from llamatelemetry._launch_options import Cards, LaunchModel, LaunchOptions
from llamatelemetry._launch_server import Plans, Server, make_server, start_server
from llamatelemetry._launch_setup import Equipment, set_up
from llamatelemetry._launch_steps import (
    Show,
    Step,
    StepRecord,
    Steps,
    TerminalDisplay,
)
from llamatelemetry._progress import turned_off
from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.exceptions import (
    ServerError,
    ServerNotRunningError,
)
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.placement import Goal, Placement
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.server.engine import Engine, EngineLike
from llamatelemetry.server.events import LoadProgress
from llamatelemetry.setup._fetch import LocalModel
from llamatelemetry.setup.engines import warn
from llamatelemetry.telemetry._recording import Recorders
from llamatelemetry.telemetry.timeline import Timeline

if TYPE_CHECKING:
    from llamatelemetry.widgets.dashboard import Dashboard

__all__ = ["LaunchOptions", "Session", "Step", "Steps", "current_session", "launch"]

_STEPS = ("engine", "model", "plan", "server", "client", "monitor")
_ANSWERS = frozenset({"chat", "completion"})

Progress = bool | Callable[[Steps], object]


def launch(
    model: LaunchModel = None,
    *,
    context_size: int | None = None,
    gpus: Cards = None,
    goal: Goal = "latency",
    parallel: int | None = None,
    engine: EngineLike | None = None,
    port: int = 0,
    telemetry: bool = False,
    replace: bool = False,
    progress: Progress = True,
    **config: Any,
) -> Session:
    """Get an engine and a model, decide where it runs, and start it.

    Steps: engine and model, side by side; plan; server, or a server on each card;
    client; monitor. What fails names its step, and what was begun is undone. There is
    one session at a time: a second launch of the same thing returns the one that runs.

    Args:
        model: A name of the catalog, "owner/repo:Q4_K_M" on the Hub, the path of a
            file, or of a folder with one model or a capsule; a Placement; "demo". None:
            the largest chat model of the catalog that fits the cards and has 10 GB at
            most; the demo model where there is no card, or no connection to fetch one.
        context_size: Tokens of context for each request; 0 for the model's own. None:
            4096, or what the model was made for if that is less.
        gpus: The cards: text like "2x15", a list of indices, or cards as
            ``detect_gpus`` returns them; [] for the CPU. None: those of this machine,
            if the engine sees them. What is named is planned for in any case.
        goal: "latency" for the fastest answer to one, "throughput" for the most tokens
            to many; see ``plan_placement``.
        parallel: Requests at once, over all servers. None: what fits the goal.
        engine: See :func:`ensure_engine`. None: the one that fits.
        port: The port, the first server's if there are several; 0 for any free one.
        telemetry: Whether each request is recorded, without its text, beside what the
            cards and the servers do: in ``session.timeline``. A session that runs
            already begins to record then.
        replace: Close the session that runs, once engine and model of the new one are
            here and its options are checked.
        progress: Whether it is shown how far this is; or a function that is called with
            the :class:`Steps`, at most five times a second and whenever one begins or
            ends. What it raises ends the launch.
        config: Other fields of :class:`ServerConfig`: ``cache_type_k``, ``api_key``, …

    Returns:
        The session: engine, model, server or servers, client and monitor.

    Raises:
        ConfigurationError: A value cannot work; nothing was fetched or stopped.
        ServerError: A session of another thing runs, and replace is not set.
        OutOfMemoryError: The model fits nowhere; names the nearest that does.
        LLCudaError: See :func:`prepare` and :class:`ServerManager`.

    Examples:
        >>> from llamatelemetry import launch
        >>> with launch("qwen3-4b", progress=False) as session:
        ...     question = [{"role": "user", "content": "What is GGUF?"}]
        ...     answer = session.client.chat_completion(question, temperature=0)
        >>> answer.choices[0].message.content[:21]  # the demo model's words
        'GGUF is a file format'
    """
    options = LaunchOptions(
        model,
        context_size=context_size,
        gpus=gpus,  # type: ignore[arg-type] # made a tuple there
        goal=goal,
        parallel=parallel,
        engine=engine,
        port=port,
        telemetry=telemetry,
        config=config,
    )
    show = _display(progress)
    with _launching():
        before = current_session()
        running = before is not None and before.server.is_running()
        if before is not None and running and not replace:
            return _same(before, options, show)
        silent = _is_silent(progress)
        return _launched(options, before, running=running, show=show, silent=silent)


def current_session() -> Session | None:
    """Return the session that launch() has started last, if it was not closed.

    Examples:
        >>> from llamatelemetry.session import current_session, launch
        >>> with launch("qwen3-4b", progress=False) as session:
        ...     current_session() is session
        True
        >>> current_session() is None
        True
    """
    session = _Current.session
    return None if session is None or session.closed else session


class _Current:
    """What launch() remembers."""

    session: Session | None = None
    thread: int | None = None
    lock = threading.Lock()


@contextlib.contextmanager
def _launching() -> Iterator[None]:
    """Let one thread at a time launch; others wait."""
    if _Current.thread == threading.get_ident():
        raise ServerError("launch() was called by what launch() itself has called")
    with _Current.lock:
        _Current.thread = threading.get_ident()
        try:
            yield
        finally:
            _Current.thread = None


def _same(running: Session, options: LaunchOptions, show: Show) -> Session:
    if running.options.key != options.key:
        raise ServerError(
            f"a session runs already: {running.model.name} at {running.url}. "
            "launch(..., replace=True) takes its place; session.relaunch(...) gives it "
            "another model or other options; session.close() ends it"
        )
    if options.telemetry:
        running._options = replace(running.options, telemetry=True)  # noqa: SLF001 - the same module
        running._record()  # noqa: SLF001 - as above
    said = f"{running.model.name} runs already at {running.url}; this is that session"
    show(Steps([Step("session", "done", said)]))
    return running


def _launched(
    options: LaunchOptions,
    before: Session | None,
    *,
    running: bool,
    show: Show,
    silent: bool,
) -> Session:
    began = time.monotonic()
    record = StepRecord(_STEPS, show)
    found = set_up(options, record)
    if silent:
        warn(found.warnings, stacklevel=4)
    with contextlib.ExitStack() as undo:
        with record.failing("plan"):
            plans = Plans(options, found)
            if running:
                plans.check()
            if before is not None:
                undo.push(partial(_tell_closed, before, ran=running))
                before.close()
            placement = plans.decide()
            session = Session(options, found, placement)
            record.end("plan", placement.reason)
        undo.callback(session.close)
        session._begin(record)  # noqa: SLF001 - the same module
        session._steps, session._seconds = record.steps, time.monotonic() - began  # noqa: SLF001 - as above
        _Current.session = session
        undo.pop_all()
    return session


def _tell_closed(
    before: Session, _kind: object, error: BaseException | None, _: object, *, ran: bool
) -> None:
    """Say of what fails late that the session which ran is gone."""
    if error is not None and ran:
        error.add_note(
            f"the session before, of {before.model.name}, is closed; launch it again"
        )


class Session:
    """A running model: engine, server, client and monitor; made by :func:`launch`.

    Any thread may call any method. Its repr, as text and in a notebook, tells all.

    Attributes:
        monitor: Watches the cards; runs until the session is closed.

    Args:
        options: What :func:`launch` was asked for.
        found: The engine and the model.
        placement: On which cards the model runs.

    Examples:
        >>> from llamatelemetry import launch
        >>> with launch("qwen3-4b", progress=False) as session:
        ...     session.plan.kind, session.server.is_running(), session.steps.done
        ('single', True, True)
        >>> session.closed
        True
    """

    def __init__(
        self, options: LaunchOptions, found: Equipment, placement: Placement
    ) -> None:
        self.monitor = GPUMonitor()
        self._options, self._found, self._placement = options, found, placement
        self._server = make_server(placement, found.engine)
        self._client: LlamaCppClient | None = None
        self._connected: Server | None = None  # what the client is of
        self._steps, self._seconds = Steps(), 0.0
        self._closed = False
        self._recorders = Recorders()
        self._changing = threading.RLock()  # held while servers are started
        self._halted = threading.Event()  # ends what holds it

    # ── look ─────────────────────────────────────────────────────────────────────

    @property
    def client(self) -> LlamaCppClient:
        """A client of the server, or of all of several. Another after relaunch().

        Each request that it ends is marked on the monitor.

        Raises:
            ServerNotRunningError: The server was never ready.
        """
        if self._client is None:
            raise ServerNotRunningError("the server of this session was never ready")
        return self._client

    @property
    def server(self) -> Server:
        """What runs the model: a ServerManager, or a ServerPool for several servers."""
        return self._server

    @property
    def plan(self) -> Placement:
        """Where the model runs, and why there; ``plan.plans`` has the memory plans."""
        return self._placement

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._found.engine

    @property
    def model(self) -> LocalModel:
        """The model on this machine."""
        return self._found.model

    @property
    def options(self) -> LaunchOptions:
        """What it was launched with."""
        return self._options

    @property
    def notes(self) -> tuple[str, ...]:
        """Why it is this model, and what else one should know, in sentences."""
        return tuple(filter(None, [self._found.why, *self._found.notices]))

    @property
    def steps(self) -> Steps:
        """The steps of the last launch or relaunch."""
        return self._steps

    @property
    def seconds(self) -> float:
        """Seconds that the last launch or relaunch took."""
        return self._seconds

    @property
    def url(self) -> str:
        """Where the server answers; of several, the first.

        Raises:
            ServerNotRunningError: It was never started, and has no port yet.
        """
        server = self._server
        if isinstance(server, ServerPool):
            server = server.servers[0]
        return server.get_url()

    @property
    def timeline(self) -> Timeline | None:
        """What is recorded since ``launch(telemetry=True)``; None without that.

        It stays when the session is closed, and goes on over :meth:`relaunch`.
        """
        return self._recorders.timeline

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    # ── change ───────────────────────────────────────────────────────────────────

    def start(self, *, progress: Progress = False) -> None:
        """Start the server again, with the same options; nothing if it runs.

        The port stays the same if it is still free; then the client stays valid.

        Args:
            progress: As for :func:`launch`.

        Raises:
            ServerError: The session is closed.
            ServerNotRunningError: stop() was called meanwhile.
            LLCudaError: See :class:`ServerManager`.

        Examples:
            >>> from llamatelemetry import launch
            >>> with launch("qwen3-4b", progress=False) as session:
            ...     session.stop()
            ...     session.start()
            ...     session.client.health()
            {'status': 'ok'}
        """
        with self._changes():
            if not self._server.is_running():
                self._start(StepRecord(("server", "client"), self._shown(progress)))

    def stop(self) -> None:
        """Stop the server, or what starts one; the session stays open.

        Examples:
            >>> from llamatelemetry import launch
            >>> with launch("qwen3-4b", progress=False) as session:
            ...     session.stop()
            ...     session.server.is_running(), session.closed
            (False, False)
        """
        self._halted.set()
        ran = self._server.is_running()
        self._server.stop()
        if ran:
            self.monitor.mark("server stopped")

    def restart(self, *, progress: Progress = False) -> None:
        """Stop the server if it runs, and start it again with the same options.

        Args:
            progress: As for :func:`launch`.

        Raises:
            LLCudaError: As :meth:`start`.

        Examples:
            >>> from llamatelemetry import launch
            >>> with launch("qwen3-4b", progress=False) as session:
            ...     session.restart()
            ...     session.client.health()
            {'status': 'ok'}
        """
        with self._changes():
            self._server.stop()
            self._start(StepRecord(("server", "client"), self._shown(progress)))

    def relaunch(
        self, model: LaunchModel = None, *, progress: Progress = True, **options: Any
    ) -> None:
        """Run another model, or the same with other options, in this session.

        What is not named stays as it was. The server is stopped once engine and model
        are here and all is checked that can be. If the new one cannot be started then,
        the session has no server; :meth:`restart` starts the one before.

        Args:
            model: The model, as for :func:`launch`; None for the same.
            progress: As for :func:`launch`.
            options: Further options of :func:`launch`.

        Raises:
            LLCudaError: As :func:`launch`.

        Examples:
            >>> from llamatelemetry import launch
            >>> with launch("qwen3-4b", progress=False) as session:
            ...     session.relaunch(context_size=8192, progress=False)
            ...     session.plan.configs[0].context_size
            8192
        """
        changed = self._options.changed(model, options, self.model)
        with self._changes():
            began = time.monotonic()
            record = StepRecord(_STEPS[:-1], self._shown(progress))
            found = set_up(changed, record)
            if _is_silent(progress):
                warn(found.warnings)
            try:
                placement = self._replace_plan(changed, found, record)
                with self._kept_if_failed():
                    self._options, self._found = changed, found
                    self._placement = placement
                    self._server = make_server(placement, found.engine)
                    self._start(record)
            except BaseException as error:
                if not self._closed and not self._server.is_running():
                    error.add_note(
                        "the session has no server now; session.restart() starts the "
                        "one before again"
                    )
                raise
            self._steps, self._seconds = record.steps, time.monotonic() - began

    def close(self) -> None:
        """Stop the server and the monitor, and end the session; once is enough.

        Examples:
            >>> from llamatelemetry import launch
            >>> session = launch("qwen3-4b", progress=False)
            >>> session.close()
            >>> session.closed, session.monitor.running
            (True, False)
        """
        self._closed = True
        try:
            self.stop()
            with self._changing:  # what was starting has noticed by now
                self._server.stop()
        except BaseException:  # interrupted, perhaps before anything was stopped
            self._server.stop()
            raise
        finally:
            if self._client is not None:
                self._client.close()
            self.monitor.stop()
            self._recorders.close()
            if _Current.session is self:
                _Current.session = None

    def dashboard(self, **options: Any) -> Dashboard:
        """Return panels for this session: server, chat and memory of the cards.

        Args:
            options: See :class:`llamatelemetry.widgets.Dashboard`.

        Raises:
            ConfigurationError: There is no such mode.

        Examples:
            >>> from llamatelemetry import launch
            >>> with launch("qwen3-4b", progress=False) as session:
            ...     dashboard = session.dashboard()
            ...     dashboard.chat.messages
            ...     dashboard.close()
            []
        """
        from llamatelemetry.widgets.dashboard import Dashboard  # noqa: PLC0415 - the one way up

        return Dashboard(self, **options)

    def on_request(self, record: RequestRecord) -> None:
        """Mark a finished request on the monitor: for ``on_request`` of a client.

        Args:
            record: What the client tells of the request.

        Examples:
            >>> from llamatelemetry import LlamaCppClient, launch
            >>> with launch("qwen3-4b", progress=False) as session:
            ...     client = LlamaCppClient(session.url, on_request=session.on_request)
            ...     answer = client.completion("The KV", max_tokens=8, temperature=0)
            ...     client.close()
            ...     session.monitor.marks[-1].text
            'request: 8 tokens'
        """
        if record.kind in _ANSWERS:
            self.monitor.mark(f"request: {view.outcome(record, self.timeline)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return view.text(self)

    def _repr_html_(self) -> str:
        return view.html(self)

    # ── inside ───────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _changes(self) -> Iterator[None]:
        """Let one thread at a time start servers, as long as the session is open."""
        with self._changing:
            if self._closed:
                raise ServerError("this session is closed; launch(...) makes another")
            self._halted.clear()
            yield

    def _shown(self, progress: Progress) -> Show:
        """Return what shows steps, and ends the work if stop() was called."""
        show = _display(progress)

        def checked(steps: Steps) -> None:
            show(steps)
            self._check_halted()

        return checked

    def _check_halted(self) -> None:
        if self._halted.is_set() or self._closed:
            raise ServerNotRunningError("the session was stopped while it was started")

    def _replace_plan(
        self, options: LaunchOptions, found: Equipment, record: StepRecord
    ) -> Placement:
        """Decide where it runs, with the memory that the old server leaves."""
        with record.failing("plan"):
            plans = Plans(options, found)
            plans.check()
            self._check_halted()
            self._server.stop()
            placement = plans.decide()
            record.end("plan", placement.reason)
        return placement

    def _begin(self, record: StepRecord) -> None:
        """Start monitor and server for the first time; the monitor sees it load."""
        with record.failing("monitor"):
            self.monitor.start()
        self._start(record)
        with record.failing("monitor"):
            record.end("monitor", view.watched(self.monitor))

    def _start(self, record: StepRecord) -> None:
        """Start the server and connect to it; stop it if that does not end well."""

        def tick(step: LoadProgress | None) -> None:
            self._check_halted()
            if step is None:
                record.tick()
                return
            doing = f"loading {self.model.name}"
            record.note("server", doing, step.bytes_loaded, self.model.size)

        self._record()  # it sees the server load
        try:
            with record.failing("server"):
                start_server(self._server, self._placement, tick)
                self.monitor.mark("model loaded")
                record.end("server", view.server_state(self._server))
            with record.failing("client"):
                self._connect()
                self._record()
                record.end("client", f"{self._client!r}")
        except BaseException:
            self._server.stop()
            raise

    def _record(self) -> None:
        """Have those that record follow the server and the client there are now."""
        self._recorders.follow(
            self._client, self._server, self.monitor, own=self._options.telemetry
        )

    @contextlib.contextmanager
    def _kept_if_failed(self) -> Iterator[None]:
        """Have what the session was before again if what follows does not end well."""
        kept = (self._options, self._found, self._placement, self._server)
        client, connected = self._client, self._connected
        try:
            yield
        except BaseException:
            self._options, self._found, self._placement, self._server = kept
            self._client, self._connected = client, connected
            raise
        if client is not None:
            client.close()

    def _connect(self) -> None:
        """Make a client, unless the one there is leads to the same server."""
        server, old = self._server, self._client
        if old is not None and self._connected is server:
            # A pool's client finds its servers wherever they are.
            leads_there = isinstance(server, ServerPool) or old.base_url == self.url
            if leads_there:
                return
        if isinstance(server, ServerPool):
            self._client = server.make_client(on_request=self.on_request)
        else:
            key = self._placement.configs[0].api_key
            self._client = LlamaCppClient(self.url, key, on_request=self.on_request)
        if old is not None and self._connected is server:
            old.close()  # in a relaunch the old one may be needed again
        self._connected = server


# ── show ─────────────────────────────────────────────────────────────────────────


def _is_silent(progress: Progress) -> bool:
    """Whether no steps are shown, which would tell what a warning has to tell then."""
    return not callable(progress) and (not progress or turned_off())


def _display(progress: Progress) -> Show:
    """Return what shows steps: a function, a notebook's output, lines, or nothing."""
    if callable(progress):
        return progress
    if _is_silent(progress):
        return lambda _: None
    from llamatelemetry.widgets import _toolkit  # noqa: PLC0415 - the one way up

    if _toolkit.kernel() is None:
        return TerminalDisplay()
    name, shown = f"llamatelemetry-{uuid.uuid4()}", False

    def show(steps: Steps) -> None:
        nonlocal shown
        data = {"text/plain": repr(steps), "text/html": steps._repr_html_()}
        _toolkit.display(data, name=name, update=shown)
        shown = True

    return show
