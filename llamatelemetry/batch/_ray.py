"""RayCluster: a batch over several machines. The only import of Ray.

Ray Data distributes, places, repeats what a lost worker had, and slows the reader down;
it is given an actor that holds a server, and a reader of the questions. The questions
come in a window, so that neither Ray nor this process holds all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from llamatelemetry.batch import _ray_actor as actor
from llamatelemetry.batch._answer import Asking
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._ray_flow import Flow
from llamatelemetry.exceptions import ConfigurationError, SetupError
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

    Without ``address`` the cluster that this program uses is taken, and if it uses none
    one is started on this machine, reachable from it only, and ended with the batch.

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

    def places(self, cards: float, cpus: float) -> tuple[int, int]:
        """Return how many servers there are, and how many cards each has.

        Args:
            cards: Those of the cluster.
            cpus: Those of the cluster.

        Raises:
            ConfigurationError: The cluster has not that many.
        """
        gpus = self.gpus_per_server if cards else 0
        room = int(cpus / self.cpus_per_server)
        if gpus:
            room = min(room, int(cards / gpus))
        servers = room if self.servers is None else self.servers
        if not 0 < servers <= room:
            raise ConfigurationError(
                f"the Ray cluster has {cpus:g} CPUs and {cards:g} cards, which is room "
                f"for {room} servers of {self.cpus_per_server:g} CPUs and {gpus} "
                f"cards, not for {max(servers, 1)}; give fewer servers, or less to each"
            )
        return servers, gpus

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
            SetupError: Ray is missing, or cannot keep to this machine.
            ConfigurationError: The cluster has no room for the servers.
            AuthenticationError: A server wants another key.
            BatchError: Servers do not start, or Ray fails.
        """
        first = next(asks, None)
        if first is None:  # all was answered before: no cluster is needed
            return
        ray = _ray()
        with _quiet(), _cluster(ray, self.address):
            have = ray.cluster_resources()
            servers, gpus = self.places(have.get("GPU", 0), have.get("CPU", 0))
            at_once = self.parallel + 1
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
    """Keep Ray's accounts of its plans off the screen, for as long as it runs."""
    logs = [logging.getLogger(name) for name in ("ray", "ray.data")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Use the cluster there is, or one that begins and ends here."""
    if ray.is_initialized():
        yield
        return
    quiet = {"configure_logging": False, "log_to_driver": False}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            _start_on_loopback(ray, quiet)
        yield
    finally:
        ray.shutdown()


def _start_on_loopback(ray: Any, quiet: Mapping[str, Any]) -> None:
    """Start a cluster that nobody else can reach.

    Ray takes the machine's address where it is told the loopback one, except where it
    holds that this machine can have no cluster (services.resolve_ip_for_localhost).

    Raises:
        SetupError: It did not keep to that.
    """
    constants = importlib.import_module("ray._private.ray_constants")
    name = "ENABLE_RAY_CLUSTER"
    before = getattr(constants, name, None)
    setattr(constants, name, False)
    try:
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _node_ip_address=_LOOPBACK[0],
            **quiet,
        )
    finally:
        setattr(constants, name, before)
    bound = ray.util.get_node_ip_address()
    if bound not in _LOOPBACK:
        raise SetupError(
            f"Ray {ray.__version__} binds a local cluster to {bound}, where others can "
            "reach it: call ray.init() before if you accept that"
        )


class _Questions:
    """The questions in a worker of Ray, as a flow sees them.

    Args:
        ray: The library.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        # It holds texts and nothing else; many may wait at it at once.
        kind = ray.remote(actor.Questions).options(num_cpus=0, max_concurrency=16)
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
            compute=data.ActorPoolStrategy(
                size=servers,
                max_tasks_in_flight_per_actor=_CHUNKS_AT_ONCE + 1,
                enable_true_multi_threading=True,
            ),
            max_concurrency=_CHUNKS_AT_ONCE,
            **resources,
        )
    batches = answered.iter_batches(
        batch_size=None, prefetch_batches=0, batch_format="pyarrow"
    )
    for batch in batches:
        yield from batch.column(actor.RECORDS).to_pylist()


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
