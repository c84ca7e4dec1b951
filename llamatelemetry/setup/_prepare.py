"""prepare(): engine and model, fetched side by side, in one call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from llamatelemetry._demo import DEMO_MODEL, DEMO_THREADS
from llamatelemetry._environment import Platform, Token, detect_platform
from llamatelemetry._progress import Relay, Shown
from llamatelemetry._units import format_file_size
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus
from llamatelemetry.server.engine import Engine, EngineLike
from llamatelemetry.setup._fetch import LocalModel, ModelFetch
from llamatelemetry.setup._hub import token_finder
from llamatelemetry.setup._needs import ModelLike, least_build
from llamatelemetry.setup._together import run_both
from llamatelemetry.setup._wanted import WantedModel, read_wanted
from llamatelemetry.setup.catalog import CatalogModel
from llamatelemetry.setup.engines import EMBEDDED_NOTE, EngineRequest, warn
from llamatelemetry.setup.models import (
    local_model,
    model_notice,
)

if TYPE_CHECKING:
    from llamatelemetry.gguf.memory import MemoryPlan
    from llamatelemetry.server.config import ServerConfig
    from llamatelemetry.setup._setup_plan import SetupPlan

__all__ = ["USUAL_MOST_BYTES", "Prepared", "prepare", "prepare_with_notices"]

# What is imported inside a function here is not needed where engine and model are on
# the machine already: then the whole call takes a few milliseconds.

USUAL_MOST_BYTES = 10 * 10**9
"""A model that nobody named is no larger: minutes to fetch, half of Kaggle's quota."""


@dataclass(frozen=True, repr=False)
class Prepared:
    """An engine and a model that are on this machine, verified.

    Attributes:
        engine: The engine; its ``note`` says why it is this one.
        model: The model; stands for its path.
        gpus: The cards of this machine.
        platform: Where this is.

    Examples:
        >>> from llamatelemetry import ServerManager, prepare
        >>> prepared = prepare("qwen3-4b", progress=False)
        >>> config = prepared.config(context_size=8192)
        >>> with ServerManager(config, engine=prepared.engine) as server:
        ...     server.is_running()
        True
    """

    engine: Engine
    model: LocalModel
    gpus: tuple[GPUInfo, ...]
    platform: Platform

    def config(self, **options: Any) -> ServerConfig:
        """Return a configuration for a server with this model and engine.

        All layers on the cards, with flash attention, where there are cards; any free
        port. :class:`ServerConfig` alone uses no card.

        Args:
            options: Other fields of :class:`ServerConfig`.

        Raises:
            ConfigurationError: A value cannot work.

        Examples:
            >>> from llamatelemetry import prepare
            >>> config = prepare("qwen3-4b", progress=False).config(context_size=8192)
            >>> config.n_gpu_layers, config.flash_attn, config.port
            (99, True, 0)
        """
        from llamatelemetry.server.config import ServerConfig  # noqa: PLC0415

        usual: dict[str, Any] = {"port": 0}
        if self.gpus:
            usual |= {"n_gpu_layers": 99, "flash_attn": True}
        if self.model.path == DEMO_MODEL:
            usual["threads"] = DEMO_THREADS
        return ServerConfig(self.model, **{**usual, **options})

    @cached_property
    def plan(self) -> MemoryPlan:
        """What a server needs with 8k of context and all layers on the cards.

        Raises:
            GGUFError: The model's file is not one that a server loads.
            ModelError: The file is gone.
        """
        from llamatelemetry.setup._setup_plan import plan_with_all_layers  # noqa: PLC0415

        return plan_with_all_layers(str(self.model), self.gpus)

    def __repr__(self) -> str:
        note = f"\n        {self.engine.note}" if self.engine.note else ""
        size = format_file_size(self.model.size)
        return (
            f"engine  {self.engine}{note}\n"
            f"model   {self.model.name}, {size}\n        {self.model}"
        )


@overload
def prepare(
    model: ModelLike | None = None,
    engine: EngineLike | None = None,
    *,
    capsule: str | os.PathLike[str] | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Shown = True,
    dry_run: Literal[False] = False,
) -> Prepared: ...


@overload
def prepare(
    model: ModelLike | None = None,
    engine: EngineLike | None = None,
    *,
    capsule: str | os.PathLike[str] | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Shown = True,
    dry_run: Literal[True],
) -> SetupPlan: ...


def prepare(
    model: ModelLike | None = None,
    engine: EngineLike | None = None,
    *,
    capsule: str | os.PathLike[str] | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Shown = True,
    dry_run: bool = False,
) -> Prepared | SetupPlan:
    """Return an engine and a model, fetched and verified if they are not here yet.

    The model is settled first, because it decides how new the engine must be; then both
    are fetched at the same time. What is here already needs no connection. An attached
    capsule that holds the model, or any if none is named, is used without one.

    Args:
        model: See :func:`ensure_model`. None: the largest chat model of the catalog
            that fits the cards and has 10 GB at most.
        engine: See :func:`ensure_engine`. None: the one that fits.
        capsule: A folder that :func:`pack` made. None: an attached one, if there is.
        token: The Hub's token; see :func:`ensure_model`.
        cache_dir: The folder of the Hub's cache; see :func:`ensure_model`.
        progress: Whether bars are shown; or a function that is called instead, in this
            thread and about ten times a second, with each
            :class:`~llamatelemetry._progress.FileProgress`. What it raises calls the
            work off.
        dry_run: Return what would be fetched, and whether it fits; fetch nothing. Only
            the Hub's list of files and the model's header are read.

    Returns:
        Engine and model; with ``dry_run`` what would be fetched, a :class:`SetupPlan`.

    Raises:
        ConfigurationError: A name is none, or several capsules are attached.
        LLCudaError: See :func:`ensure_model`, :func:`ensure_engine` and
            :func:`open_capsule`.

    Examples:
        >>> from llamatelemetry import prepare
        >>> prepared = prepare("qwen3-4b", progress=False)
        >>> prepared.model.path.suffix, len(prepared.gpus)
        ('.gguf', 2)
        >>> prepare("qwen3-4b", dry_run=True).ok
        True
    """
    find_token = token_finder(token)
    del token  # no traceback shows it
    cache = Path(cache_dir).expanduser().absolute() if cache_dir else None
    work, folder, name = _preparation(
        model,
        engine,
        capsule=capsule,
        cache=cache,
        find_token=find_token,
        progress=progress,
    )
    if dry_run:
        return work.tell() if folder is None else work.tell_capsule(folder)
    notices: list[str] = []
    prepared = work.run(folder, name, notices)
    warn(notices)
    notice = model_notice(prepared.model)
    if notice is not None:
        warn([notice])
    return prepared


def prepare_with_notices(
    model: ModelLike | None = None,
    engine: EngineLike | None = None,
    *,
    capsule: str | os.PathLike[str] | None = None,
    progress: Shown = True,
    failed: list[str] | None = None,
) -> tuple[Prepared, list[str]]:
    """Do what :func:`prepare` does, and return what it would warn of.

    Args:
        model: The model.
        engine: The engine.
        capsule: A folder that :func:`pack` made.
        progress: Whether bars are shown, or what is called instead.
        failed: Where "engine" is noted if it is the engine that cannot be had.
    """
    work, folder, name = _preparation(
        model,
        engine,
        capsule=capsule,
        cache=None,
        find_token=token_finder(None),
        progress=progress,
    )
    if failed is not None:
        work = replace(work, failed=failed)
    notices: list[str] = []
    prepared = work.run(folder, name, notices)
    notice = model_notice(prepared.model)
    if notice is not None:
        notices.append(notice)
    return prepared, notices


def _preparation(
    model: ModelLike | None,
    engine: EngineLike | None,
    *,
    capsule: str | os.PathLike[str] | None,
    cache: Path | None,
    find_token: Callable[[], Token | None],
    progress: Shown,
) -> tuple[_Preparation, Path | None, str | None]:
    """Return the work to do, the capsule that is used, and what the model is called."""
    name = model.id if isinstance(model, CatalogModel) else model
    text = None if name is None else os.fspath(name)
    gpus = tuple(detect_gpus())
    folder = Path(capsule) if capsule is not None else None
    attached = None if folder is not None else _attached_capsule(name)
    folder = folder or attached
    settled = None if folder is not None else _settled(name, gpus)
    work = _Preparation(
        gpus, settled, engine, cache, find_token, progress, attached is not None
    )
    return work, folder, text


def _attached_capsule(name: str | os.PathLike[str] | None) -> Path | None:
    if detect_platform().input is None:
        return None
    from llamatelemetry.setup._capsule_files import find_capsule  # noqa: PLC0415

    return find_capsule(None if name is None else os.fspath(name))


def _settled(
    model: str | os.PathLike[str] | None, gpus: tuple[GPUInfo, ...]
) -> LocalModel | WantedModel:
    """Return the model that is meant, here or to be fetched."""
    if model is None:
        from llamatelemetry.setup.recommend import recommend_model  # noqa: PLC0415

        model = recommend_model(gpus, most_bytes=_most_bytes(gpus)).id
    local = local_model(model)
    return read_wanted(os.fspath(model)) if local is None else local


def _most_bytes(gpus: tuple[GPUInfo, ...]) -> int | None:
    return USUAL_MOST_BYTES if gpus else None


@dataclass(frozen=True, slots=True)
class _Preparation:
    """All that is needed to fetch, or to tell what would be fetched."""

    gpus: tuple[GPUInfo, ...]
    model: LocalModel | WantedModel | None
    engine: EngineLike | None
    cache: Path | None
    find_token: Callable[[], Token | None] = field(repr=False)
    shown: Shown
    attached: bool = False
    failed: list[str] = field(default_factory=list)

    def run(
        self, capsule: Path | None, name: str | None, notices: list[str]
    ) -> Prepared:
        """Fetch both at the same time; add to the notices what one should know."""
        if capsule is not None:
            return self._open_capsule(capsule, name, notices)
        if not callable(self.shown):
            return self.run_both(notices)
        relay = Relay(self.shown)  # from the threads that fetch to this one
        return replace(self, shown=relay.note).run_both(notices, relay.tick)

    def run_both(
        self, notices: list[str], tick: Callable[[], object] | None = None
    ) -> Prepared:
        """Fetch both; the tick is called in this thread while it waits."""
        model, engine = run_both(
            self._get_model, partial(self._get_engine, notices=notices), tick=tick
        )
        return Prepared(engine, model, self.gpus, detect_platform())

    def tell(self) -> SetupPlan:
        """Return what would be fetched."""
        from llamatelemetry.setup._setup_plan import (  # noqa: PLC0415
            plan_engine,
            plan_for,
            plan_model,
        )

        items, problem = plan_model(self._settled, self.cache, self.find_token)
        request = self._request(threading.Event())
        named = self.engine
        choice = request.choose() if named is None else request.choose_named(named)
        return plan_for([plan_engine(choice), *items], self.gpus, [problem])

    def tell_capsule(self, folder: Path) -> SetupPlan:
        """Return what of a capsule would be used."""
        from llamatelemetry.setup._setup_plan import (  # noqa: PLC0415
            plan_capsule,
            plan_for,
        )

        return plan_for(plan_capsule(folder.expanduser().absolute()), self.gpus)

    def _open_capsule(
        self, folder: Path, model: str | None, notices: list[str]
    ) -> Prepared:
        """Return what a capsule holds; another engine if one is named."""
        from llamatelemetry.setup.capsule import open_capsule, open_model  # noqa: PLC0415

        if self.attached:
            notices.append(
                f"the attached capsule {folder} is used: its model and its engine"
            )
        if self.engine is not None:
            local = open_model(folder, model=model, progress=self.shown)
            engine = EngineRequest(least_build(local)).get_named(self.engine)
        else:
            engine, local = open_capsule(folder, model=model, progress=self.shown)
            if engine.note.startswith(EMBEDDED_NOTE):
                notices.append(engine.note)
        return Prepared(engine, local, self.gpus, detect_platform())

    @property
    def _settled(self) -> LocalModel | WantedModel:
        if self.model is None:
            raise AssertionError("a capsule has its own model")
        return self.model

    def _get_model(self, called_off: threading.Event) -> LocalModel:
        model = self._settled
        if isinstance(model, LocalModel):
            return model
        fetch = ModelFetch(self.cache, self.find_token, self.shown, called_off)
        return fetch.get(model)

    def _get_engine(self, called_off: threading.Event, notices: list[str]) -> Engine:
        request = self._request(called_off)
        named = self.engine
        try:
            found = request.get() if named is None else request.get_named(named)
        except Exception:  # whatever it is: noted which of the two failed, and raised
            self.failed.append("engine")
            raise
        notices += request.notices
        return found

    def _request(self, called_off: threading.Event) -> EngineRequest:
        model = self._settled
        need = least_build(model if isinstance(model, LocalModel) else model.name)
        return EngineRequest(need, None, self.find_token, self.shown, called_off)
