"""The further steps of a launch: where the model runs, and the server or servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from llamatelemetry._deadline import Deadline
from llamatelemetry._demo import DEMO_CONTEXT_SIZE, DEMO_THREADS
from llamatelemetry._environment import detect_platform
from llamatelemetry._launch_options import LaunchOptions
from llamatelemetry._launch_setup import Equipment, is_demo_file
from llamatelemetry._placement_ways import DEFAULT_CONTEXT
from llamatelemetry.exceptions import (
    ConfigurationError,
    OutOfMemoryError,
    PortInUseError,
    ServerNotRunningError,
    ServerTimeoutError,
)
from llamatelemetry.gguf._cards import GPU
from llamatelemetry.gguf._fitting import most_steps
from llamatelemetry.gguf._settings import CELL_STEP
from llamatelemetry.gguf.memory import MemoryPlan, plan_memory
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus
from llamatelemetry.placement import Placement, decide_placement
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.server._installed import installed_engines
from llamatelemetry.server._launch import write_command
from llamatelemetry.server._linux import usable_cpus
from llamatelemetry.server._preflight import check_files, decide, with_absolute_paths
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import Engine, embedded_build, engine_of_record
from llamatelemetry.server.events import LoadProgress
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.server.probing import probe_engine
from llamatelemetry.server.state import ALIVE
from llamatelemetry.setup.engines import EMBEDDED_NOTE

__all__ = ["Plans", "Server", "Tick", "make_server", "start_server"]

Server: TypeAlias = ServerManager | ServerPool
Tick: TypeAlias = Callable[[LoadProgress | None], object]

READY_SECONDS = 600.0
"""How long servers are waited for; a large model on a slow disk takes minutes."""

_LOOK_SECONDS = 0.1
_LOG_TAIL = 2000  # characters of a log in an error
_USUAL_PORT = ServerConfig(None).port


class Plans:
    """Where a model would run: checked before, and decided when memory is free.

    Args:
        options: What is launched.
        found: The engine and the model.

    Raises:
        ConfigurationError: An option cannot work with this model, engine or machine.
        ModelError: The model cannot be read.
    """

    def __init__(self, options: LaunchOptions, found: Equipment) -> None:
        self._options = options
        self._found = found
        self._cards = None if isinstance(options.model, Placement) else self._places()
        self._base: MemoryPlan | None = None
        if not isinstance(options.model, Placement):
            self._base = self._base_plan()

    def check(self) -> None:
        """Look for what cannot work whatever memory becomes free.

        A server that runs is not stopped before this has passed.

        Raises:
            ConfigurationError: As for the class.
            OutOfMemoryError: It does not fit into all the memory that the cards have.
        """
        engine = self._found.engine
        if isinstance(self._options.model, Placement):
            configs = self._options.model.configs
            _check_cards(self._options.model)
        else:
            assert self._base is not None  # noqa: S101 - see __init__
            configs = (self._base.config.replace(model_path=str(self._found.model)),)
            self._check_size()
        for config in configs:
            whole = with_absolute_paths(config)
            check_files(whole)
            write_command(engine, whole, decide(whole))

    def decide(self) -> Placement:
        """Return where it runs, with what is free now.

        Raises:
            ConfigurationError: A placement names a card that is not here.
            OutOfMemoryError: It fits nowhere; names the nearest that does.
        """
        options = self._options
        if isinstance(options.model, Placement):
            _check_cards(options.model)
            return _with_port(options.model, options.port)
        placement = self._placed(self._places())
        try:
            placement.raise_if_none()
        except OutOfMemoryError as error:
            if not _is_on_cards(self._cards) and not detect_gpus():
                advice = detect_platform().accelerator_advice
                error.args = (f"{error}. There is no card: {advice}",)
            raise
        return placement

    def _placed(self, cards: str | list[GPU]) -> Placement:
        assert self._base is not None  # noqa: S101 - see __init__
        options, model = self._options, self._found.model
        context = options.context_size
        if context is None:
            made_for = most_steps(self._base) * CELL_STEP
            usual = DEFAULT_CONTEXT
            alone = model.stands_for is None or not _is_on_cards(self._cards)
            if is_demo_file(model) and alone:
                usual = DEMO_CONTEXT_SIZE
            context = min(usual, made_for)
        return decide_placement(
            self._base, cards, context, options.goal, parallel=options.parallel
        )

    def _places(self) -> str | list[GPU]:
        """Return the cards as they are now; none for an engine that sees none."""
        named = self._options.cards()
        if named is not None:
            return named
        here: list[GPU] = list(detect_gpus())
        if self._found.model.stands_for is not None:  # the plan is the other's
            return here
        return here if here and _sees_cards(self._found.engine) else []

    def _check_size(self) -> None:
        """Refuse what all the memory of the cards could not hold."""
        cards = self._cards or []
        if not isinstance(cards, str):
            cards = [_emptied(gpu) for gpu in cards]
        placed = self._placed(cards)
        if cards:  # what a server on the CPU gives back is not known
            placed.raise_if_none()

    def _base_plan(self) -> MemoryPlan:
        """Return the plan on no card that says what else the servers have."""
        options, model = self._options, self._found.model
        defaults: dict[str, Any] = {}
        if is_demo_file(model):
            defaults["threads"] = DEMO_THREADS
        elif not _is_on_cards(self._cards):
            defaults["threads"] = usable_cpus()
        config = options.base_config(**defaults)
        # On the CPU it is the demo model that must fit, whatever it stands for.
        named = model if _is_on_cards(self._cards) else str(model)
        plan = plan_memory(named, config, (), build=_build_of(self._found.engine))
        asked = {"embeddings", "rerank"} & set(options.config)
        if not plan.generates and not asked:
            # An encoder does nothing else, and takes no input longer than this.
            micro = options.config.get("n_ubatch", config.n_batch)
            plan = plan.with_config(embeddings=True, n_ubatch=micro)
        return plan


def _is_on_cards(cards: str | list[GPU] | None) -> bool:
    return bool(cards)


def _emptied(gpu: GPU) -> GPU:
    """Return a card as if nothing were on it."""
    if not isinstance(gpu, GPUInfo) or gpu.total_memory_gb is None:
        return gpu
    return replace(gpu, free_memory_gb=gpu.total_memory_gb)


def _sees_cards(engine: Engine) -> bool:
    """Whether an engine can use cards; the embedded one seldom can, and says so."""
    if engine.note.startswith(EMBEDDED_NOTE):
        return False
    return engine.source != "embedded" or bool(probe_engine(engine).devices)


def _build_of(engine: Engine) -> int | None:
    """Return an engine's build of llama.cpp, if that is known without starting it."""
    if engine.source == "embedded":
        return embedded_build()
    records = installed_engines() if engine.source == "setup" else []
    same = (one.build for one in records if engine_of_record(one) == engine)
    return next(same, None)


def _check_cards(placement: Placement) -> None:
    """Refuse a placement that was made for other cards.

    A CUDA engine would see none of them, and run on the CPU without a word.

    Raises:
        ConfigurationError: It names a card that is not here.
    """
    named = ",".join(config.visible_devices or "" for config in placement.configs)
    wanted = [name.strip() for name in named.split(",") if name.startswith("GPU-")]
    here = [gpu.uuid or "" for gpu in detect_gpus()] if wanted else []
    for name in wanted:
        if not any(uuid.startswith(name) for uuid in here):
            raise ConfigurationError(
                f"the placement was made for the card {name}, which is not here; "
                "make it again with plan_placement, or give the model's name"
            )


def _with_port(placement: Placement, port: int) -> Placement:
    """Return a placement whose first server has this port.

    A placement made without a configuration names the usual port only because each
    configuration has one.
    """
    first, *others = placement.configs
    if port == 0 and first.port not in (0, _USUAL_PORT):
        return placement
    first = first.replace(port=port, notes=first.notes)
    return replace(placement, configs=(first, *others))


# ── servers ──────────────────────────────────────────────────────────────────────


def make_server(placement: Placement, engine: Engine) -> Server:
    """Return what runs a placement; nothing is started.

    Args:
        placement: What is run.
        engine: What runs it.
    """
    if placement.kind == "replicas":
        return ServerPool(placement, engine=engine, timeout=READY_SECONDS)
    config = placement.configs[0]
    return ServerManager(config, engine=engine, timeout=READY_SECONDS)


def start_server(server: Server, placement: Placement, tick: Tick) -> None:
    """Start a server, or a pool of them, and wait until it is ready.

    Args:
        server: The server; one that ran before gets the port it had, if that is free.
        placement: What it runs.
        tick: Called ten times a second, with how far loading is if that is known. What
            it raises ends the wait; whoever calls this then stops the server.

    Raises:
        ServerTimeoutError: It was not ready in ten minutes.
        ServerNotRunningError: It was stopped meanwhile.
        LLCudaError: See :class:`ServerManager`.
    """
    if isinstance(server, ServerPool):
        server.start(tick=tick)
        return
    config, before = placement.configs[0], server.config
    if config.port == 0 and before is not None and before.port != 0:
        try:
            same = config.replace(port=before.port, notes=config.notes)
            server.start_with_config(same)
            _wait(server, tick)
        except PortInUseError:  # somebody else has it now
            pass
        else:
            return
    server.start_with_config(config)
    _wait(server, tick)


def _wait(server: ServerManager, tick: Tick) -> None:
    deadline, latest = Deadline.after(READY_SECONDS), _Latest()
    while True:
        seconds = min(_LOOK_SECONDS, deadline.remaining)
        if server.wait_until_ready(seconds, progress=latest.note):
            return
        if server.state not in ALIVE:
            # A lost race for a free port is run again by who waits.
            if server.wait_until_ready(deadline.remaining):
                return
            server.raise_if_failed()
            raise ServerNotRunningError("the server was stopped while it was awaited")
        if deadline.expired:
            raise ServerTimeoutError(
                f"the server was not ready in {READY_SECONDS:g} s",
                log_tail=server.get_logs()[-_LOG_TAIL:],
            )
        tick(latest.step)


@dataclass(slots=True)
class _Latest:
    """The last step of loading that was told."""

    step: LoadProgress | None = None

    def note(self, step: LoadProgress) -> None:
        """Remember a step."""
        self.step = step
