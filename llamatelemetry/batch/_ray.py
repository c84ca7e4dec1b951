"""RayCluster: a batch over several machines. The only import of Ray.

Ray Data distributes, places, repeats what a lost worker had, and slows the reader down;
it is given an actor that holds a server, and a reader of the questions. The questions
come in a window, so that neither Ray nor this process holds all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from llamatelemetry.batch import _ray_actor as actor
from llamatelemetry.batch._answer import Asking
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._ray_flow import ROUNDING, Flow, held, wait_for_room
from llamatelemetry.exceptions import BatchError, ConfigurationError, SetupError
from llamatelemetry.server._linux import usable_cpus
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import EngineLike
from llamatelemetry.setup._needs import ModelLike

__all__ = ["RayCluster"]

_PARALLEL = 4
_CONTEXT = 4096
_CHUNKS_AT_ONCE = 3  # of one server: one runs dry, one fills its slots, one waits
_CHUNKS_AHEAD = 2  # for each of those: on its way, or answered and not yet taken
_LOOPBACK = ("127.0.0.1", "::1")
_STORE_BYTES = 256 * 1024**2  # questions and answers are small, and leave at once
_OWN = ("model_path", "host", "port", "visible_devices", "notes")


@dataclass(frozen=True, init=False)
class RayCluster:
    """Servers on the machines of a Ray cluster, as the ``to`` of ``map_prompts``.

    Each server runs in an actor of Ray Data, on a group of cards or of CPUs, reachable
    from its own machine only. Engine and model are fetched once per machine, by names
    that mean the same everywhere. A worker that dies is replaced, and what it had is
    asked again. On one machine, as on Kaggle with its two T4s, a :class:`ServerPool`
    does the same with less: take this for several machines.

    Without ``address`` the cluster that this program uses is taken, or the one that
    ``RAY_ADDRESS`` names, as in a job of Ray. If there is neither, one is started on
    this machine, reachable from it only, and ended with the batch.

    Attributes:
        model: See :func:`prepare`; a path must be there on each machine.
        servers: How many. None: one for each group of cards that the cluster has, or of
            CPUs where it has no cards.
        gpus_per_server: Cards of each server; 0 for the CPU.
        cpus_per_server: CPUs of each server, as Ray counts them.
        address: A cluster's address, as ``ray.init`` takes it.
        engine: See :func:`prepare`.
        parallel: Slots of each server. None: 4.
        context_size: Tokens of context for each request.
        config: Other fields of :class:`ServerConfig`.

    Args:
        model: As above, like all others.
        config: Other fields of :class:`ServerConfig`, under their names.

    Raises:
        ConfigurationError: A value cannot work.

    Examples:
        >>> from llamatelemetry.batch import RayCluster
        >>> cluster = RayCluster("qwen3-4b", gpus_per_server=2, parallel=8)
        >>> cluster.context_size, cluster.servers is None
        (4096, True)
    """

    model: ModelLike
    servers: int | None
    gpus_per_server: int
    cpus_per_server: float
    address: str | None
    engine: EngineLike | None
    parallel: int
    context_size: int
    config: Mapping[str, Any] = field(repr=False)  # may hold a key

    def __init__(
        self,
        model: ModelLike,
        *,
        servers: int | None = None,
        gpus_per_server: int = 1,
        cpus_per_server: float = 1,
        address: str | None = None,
        engine: EngineLike | None = None,
        parallel: int | None = None,
        context_size: int = _CONTEXT,
        **config: Any,
    ) -> None:
        if isinstance(model, (str, os.PathLike)) and os.path.exists(model):  # noqa: PTH110 - may be no path at all
            model = os.path.abspath(model)  # noqa: PTH100 - as above
        values = {
            "model": model,
            "servers": servers,
            "gpus_per_server": gpus_per_server,
            "cpus_per_server": cpus_per_server,
            "address": address,
            "engine": engine,
            "parallel": _PARALLEL if parallel is None else parallel,
            "context_size": context_size,
            "config": config,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        for name, least in (
            ("servers", 1),
            ("gpus_per_server", 0),
            ("parallel", 1),
            ("context_size", 1),
        ):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= least) and (name, value) != ("servers", None):
                raise ConfigurationError(
                    f"{name} is a whole number, {least} or more; not {value!r}"
                )
        address: Any = self.address
        if address is not None and not (isinstance(address, str) and address):
            raise ConfigurationError(
                f'address is text like "ray-head:6379", or None; not {address!r}'
            )
        cpus: Any = self.cpus_per_server
        if not isinstance(cpus, (int, float)) or not 0 < cpus < math.inf:
            raise ConfigurationError(
                f"cpus_per_server is a number above 0; not {cpus!r}"
            )
        for name in self.config:
            if name in _OWN:
                raise ConfigurationError(
                    f"RayCluster decides {name} itself; leave it out"
                )
        ServerConfig(None, **self.options(self.gpus_per_server))

    def options(self, gpus: int) -> dict[str, Any]:
        """Return the fields of each server's configuration that are not the usual.

        Args:
            gpus: The cards it has; Ray shows it no others.
        """
        cpu: dict[str, Any] = {}
        if gpus == 0:
            threads = 1 if self.model == "demo" else max(int(self.cpus_per_server), 1)
            cpu = {"n_gpu_layers": 0, "visible_devices": "", "threads": threads}
        return {
            **cpu,
            **self.config,
            "parallel": self.parallel,
            "context_size": self.context_size * self.parallel,
        }

    def places(self, machines: Iterable[tuple[float, float]]) -> tuple[int, int]:
        """Return how many servers there are, and how many cards each has.

        Args:
            machines: The cards and the CPUs of each machine of the cluster. A server
                lies on one: a card here and one there are no room for two cards.

        Raises:
            ConfigurationError: The cluster has not that many.
        """
        machines = list(machines)
        cards, cpus = (sum(numbers) for numbers in zip((0, 0), *machines, strict=True))
        gpus = self.gpus_per_server if cards else 0
        room = sum(self._room(*machine, gpus) for machine in machines)
        servers = room if self.servers is None else self.servers
        if not 0 < servers <= room:
            raise ConfigurationError(
                f"the Ray cluster has {cpus:g} CPUs and {cards:g} cards on "
                f"{len(machines)} machines, which is room for {room} servers of "
                f"{self.cpus_per_server:g} CPUs and {gpus} cards, each on one machine, "
                f"not for {max(servers, 1)}; give fewer servers, or less to each"
            )
        return servers, gpus

    def check(
        self, machines: Iterable[tuple[float, float]], servers: int, gpus: int
    ) -> None:
        """Refuse to wait for servers whose machines are gone.

        Ray waits for others in their place, for ever.

        Args:
            machines: As for :meth:`places`.
            servers: How many there were.
            gpus: The cards of each.

        Raises:
            BatchError: There is less room than they need.
        """
        room = sum(self._room(*machine, gpus) for machine in machines)
        if room < servers:
            raise BatchError(
                f"machines of the Ray cluster are gone: there is room for {room} of "
                f"{servers} servers, and what the others had does not come back; the "
                "same call goes on with the rest, unless servers= wants more"
            )

    def _room(self, cards: float, cpus: float, gpus: int) -> int:
        """Return how many servers a machine has room for."""
        room = int(cpus / self.cpus_per_server + ROUNDING)
        return min(room, int(cards / gpus)) if gpus else room

    def run_rows(
        self,
        asks: Iterator[Ask],
        asking: Asking,
        *,
        retries: int,
        concurrency: int | Literal["auto"],
        called_off: threading.Event,
    ) -> Iterator[dict[str, Any]]:
        """Yield a record for each question, in any order, each once.

        Args:
            asks: The questions, taken as there is room for them.
            asking: How to ask.
            retries: How often what may pass is asked again.
            concurrency: Questions at once, over all servers.
            called_off: Set to end it at once.

        Raises:
            SetupError: Ray is missing, does not start, or is open to others.
            ConfigurationError: The cluster has no room for the servers, or this program
                uses another one.
            AuthenticationError: A server wants another key.
            BatchError: Servers do not start, others have all the room, or Ray fails.
        """
        first = next(asks, None)
        if first is None:  # all was answered before: no cluster is needed
            return
        ray = _ray()
        with _shared.use(ray, self.address):
            servers, gpus = self.places(_machines(ray))
            needs = {"CPU": self.cpus_per_server, "GPU": gpus}
            wait_for_room(ray.available_resources, needs, called_off)
            at_once = 2 * self.parallel
            if concurrency != "auto":
                at_once = max(math.ceil(concurrency / servers), 1)
            plan = actor.ServerPlan(
                self.model, self.engine, self.options(gpus), at_once, retries
            )
            questions = _Questions(ray)
            with Flow(
                itertools.chain([first], asks),
                questions,
                size=at_once,
                ahead=servers * _CHUNKS_AT_ONCE * _CHUNKS_AHEAD,
                called_off=called_off,
                check=lambda: self.check(_machines(ray), servers, gpus),
            ) as flow:
                resources = {"num_cpus": self.cpus_per_server, "num_gpus": gpus}
                source = _source(ray, questions.handle)
                work = partial(
                    _work, ray, source, plan, asking, servers=servers, **resources
                )
                yield from flow.records(work)


# ── Ray ──────────────────────────────────────────────────────────────────────────


def _ray() -> Any:
    """Return the library.

    Raises:
        SetupError: It is missing, or does not load.
    """
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise SetupError(
            f"a RayCluster needs Ray, which does not load ({error}): pip install "
            '"ray[data]"'
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's accounts off the screen: what goes wrong is raised."""
    logs = [logging.getLogger(name) for name in ("ray", "ray.data")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


class _Shared:
    """What batches that run beside each other share; the last one ends it.

    It holds the cluster, if one was begun here, and keeps Ray quiet.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a cluster that ends is waited for
        self._batches = 0
        self._open = contextlib.ExitStack()

    @contextlib.contextmanager
    def use(self, ray: Any, address: str | None) -> Iterator[None]:
        """Use the cluster there is, or begin one.

        Raises:
            SetupError: Ray does not start, or cannot keep to this machine.
            ConfigurationError: This program uses another cluster.
        """
        with self._lock:
            if ray.is_initialized():
                _check_address(ray, address)
            with contextlib.ExitStack() as opened:
                if self._batches == 0:
                    opened.enter_context(_quiet())
                if not ray.is_initialized():
                    opened.enter_context(held(_cluster(ray, address)))
                self._open.push(opened.pop_all())
            self._batches += 1
        try:
            yield
        finally:
            with self._lock:
                self._batches -= 1
                if self._batches == 0:
                    self._open.close()


_shared = _Shared()


def _check_address(ray: Any, address: str | None) -> None:
    """Refuse an address while this program uses another cluster."""
    used = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", used):
        raise ConfigurationError(
            f"this program uses the Ray cluster at {used} already, not {address}; "
            "leave address out, or call ray.shutdown() before"
        )


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one that ends here.

    Raises:
        SetupError: That failed.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    # What Ray Data leaves behind would begin another one, which others can reach.
    with _set("ray._private.auto_init_hook", "enable_auto_connect", value=False):
        try:
            _begin(ray, address)
            yield
        finally:
            ray.shutdown()


def _begin(ray: Any, address: str | None) -> None:
    quiet = {"configure_logging": False, "log_to_driver": False}
    try:
        if address is None:
            _start_on_loopback(ray, quiet)
        else:
            ray.init(address=address, **quiet)
    except SetupError:
        raise
    except Exception as error:
        what = "start" if address is None else f"reach a cluster at {address}"
        raise SetupError(f"Ray {ray.__version__} does not {what}: {error}") from error


@contextlib.contextmanager
def _set(module: str, name: str, *, value: object) -> Iterator[None]:
    """Set a switch of Ray's own for a while, where this version has it."""
    try:
        holder = importlib.import_module(module)
        before = getattr(holder, name)
    except (ImportError, AttributeError):
        yield
        return
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def _start_on_loopback(ray: Any, quiet: Mapping[str, Any]) -> None:
    """Start a cluster that nobody else can reach.

    Ray takes the machine's address where it is told the loopback one, except where it
    holds that this machine can have no cluster (services.resolve_ip_for_localhost).

    Raises:
        SetupError: It did not keep to that.
    """
    with _set("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", value=False):
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _node_ip_address=_LOOPBACK[0],
            **quiet,
        )
    bound = ray.util.get_node_ip_address()
    if bound not in _LOOPBACK:
        raise SetupError(
            f"Ray {ray.__version__} binds a local cluster to {bound}, where others can "
            "reach it: call ray.init() before if you accept that"
        )


def _machines(ray: Any) -> list[tuple[float, float]]:
    """Return the cards and the CPUs of each machine of the cluster."""
    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(one.get("GPU", 0), one.get("CPU", 0)) for one in have]


class _Questions:
    """The questions in a worker of Ray, as a flow sees them.

    Args:
        ray: The library.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        # On this machine: the end of another one must not be the end of the batch.
        here = strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        # It holds texts and nothing else; many may wait at it at once.
        kind = ray.remote(actor.Questions).options(
            num_cpus=0, max_concurrency=16, scheduling_strategy=here
        )
        self.handle = kind.remote()

    def put(self, place: int, text: str) -> None:
        """Add a chunk."""
        self.handle.put.remote(place, text)

    def forget(self, place: int) -> None:
        """Let go of a chunk."""
        self.handle.forget.remote(place)

    def finish(self) -> None:
        """Say that there are no more."""
        self.handle.finish.remote()

    def end(self) -> None:
        """End it: with its source gone Ray Data ends too, and with it the servers."""
        self._ray.kill(self.handle)


def _work(
    ray: Any,
    source: Any,
    plan: actor.ServerPlan,
    asking: Asking,
    *,
    servers: int,
    **resources: float,
) -> Iterator[str]:
    """Have Ray Data work, and yield the chunks that come back."""
    data = ray.data
    context = data.DataContext.get_current().copy()
    # A block is a chunk, at once: by default a reader fills blocks of 128 MiB before
    # any of it is worked on.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    with data.DataContext.current(context):
        read = data.read_datasource(source, override_num_blocks=1, num_cpus=0)
        answered = read.map_batches(
            actor.RayServer,
            fn_constructor_args=(plan, asking),
            batch_size=None,
            batch_format="pyarrow",
            **_actors(data.ActorPoolStrategy, servers),
            **resources,
        )
    batches = answered.iter_batches(
        batch_size=None, prefetch_batches=0, batch_format="pyarrow"
    )
    for batch in batches:
        yield from batch.column(actor.RECORDS).to_pylist()


def _actors(strategy: Any, servers: int) -> dict[str, Any]:
    """Return how many there are, and how many chunks each works on at once."""
    values: dict[str, Any] = {
        "size": servers,
        "max_tasks_in_flight_per_actor": _CHUNKS_AT_ONCE + 1,
        "enable_true_multi_threading": True,
    }
    name = "max_concurrent_calls_per_actor"  # since Ray 2.60; the other ends with 2.64
    if name in inspect.signature(strategy).parameters:
        return {"compute": strategy(**values, **{name: _CHUNKS_AT_ONCE})}
    return {"compute": strategy(**values), "max_concurrency": _CHUNKS_AT_ONCE}


def _source(ray: Any, questions: Any) -> Any:
    """Return what Ray Data reads: the chunks, one by one, as they are put in."""
    block = importlib.import_module("ray.data.block")
    source = importlib.import_module("ray.data.datasource")

    def read() -> Iterator[Any]:
        for place in itertools.count():
            text = ray.get(questions.get.remote(place))
            if text is None:
                return
            yield block.BlockAccessor.batch_to_block({actor.ASKS: [text]})

    kind: Any = source.Datasource

    class Source(kind):  # type: ignore[misc] # Ray is not looked into
        """The questions, read by one task."""

        def estimate_inmemory_data_size(self) -> None:
            """Say that it cannot be told."""

        def get_read_tasks(self, *_: object, **__: object) -> list[Any]:
            """Return the one task."""
            unknown = block.BlockMetadata(
                num_rows=None, size_bytes=None, input_files=None, exec_stats=None
            )
            return [source.ReadTask(read, unknown)]

    return Source()
