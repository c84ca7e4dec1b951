"""prepare(): engine and model, fetched side by side, in one call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from llamatelemetry._environment import Platform, Token, detect_platform
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus
from llamatelemetry.server.engine import Engine, EngineLike
from llamatelemetry.setup._capsule_files import find_capsule
from llamatelemetry.setup._fetch import LocalModel, ModelFetch
from llamatelemetry.setup._hub import token_finder
from llamatelemetry.setup._needs import least_build
from llamatelemetry.setup._together import run_both
from llamatelemetry.setup._wanted import WantedModel, read_wanted
from llamatelemetry.setup.engines import EngineRequest, warn
from llamatelemetry.setup.models import local_model

if TYPE_CHECKING:
    from llamatelemetry.gguf.memory import MemoryPlan
    from llamatelemetry.setup._setup_plan import SetupPlan

__all__ = ["Prepared", "prepare"]

# What is imported inside a function here is not needed where engine and model are on
# the machine already: then the whole call takes a few milliseconds.

USUAL_MOST_BYTES = 10 * 10**9
"""A model that nobody named is no larger: minutes to fetch, half of Kaggle's quota."""


@dataclass(frozen=True)
class Prepared:
    """An engine and a model that are on this machine, verified.

    Attributes:
        engine: The engine; its ``note`` says why it is this one.
        model: The model; stands for its path.
        gpus: The cards of this machine.
        platform: Where this is.
    """

    engine: Engine
    model: LocalModel
    gpus: tuple[GPUInfo, ...] = field(repr=False)
    platform: Platform = field(repr=False)

    @cached_property
    def plan(self) -> MemoryPlan:
        """What a server needs with 8k of context and all layers on the cards."""
        from llamatelemetry.setup._setup_plan import plan_with_all_layers  # noqa: PLC0415

        return plan_with_all_layers(str(self.model), self.gpus)

    def __str__(self) -> str:
        note = f" ({self.engine.note})" if self.engine.note else ""
        return f"engine  {self.engine}{note}\nmodel   {self.model}"


@overload
def prepare(
    model: str | os.PathLike[str] | None = None,
    engine: EngineLike | None = None,
    *,
    capsule: str | os.PathLike[str] | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    dry_run: Literal[False] = False,
) -> Prepared: ...


@overload
def prepare(
    model: str | os.PathLike[str] | None = None,
    engine: EngineLike | None = None,
    *,
    capsule: str | os.PathLike[str] | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    dry_run: Literal[True],
) -> SetupPlan: ...


def prepare(
    model: str | os.PathLike[str] | None = None,
    engine: EngineLike | None = None,
    *,
    capsule: str | os.PathLike[str] | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
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
        progress: Whether bars are shown.
        dry_run: Return what would be fetched, and whether it fits; fetch nothing. Only
            the Hub's list of files and the model's header are read.

    Raises:
        LLCudaError: See :func:`ensure_model`, :func:`ensure_engine` and
            :func:`open_capsule`.
    """
    gpus = tuple(detect_gpus())
    folder = Path(capsule) if capsule is not None else None
    if folder is None and engine is None:
        folder = find_capsule(None if model is None else os.fspath(model))
    if folder is not None:
        name = None if model is None else os.fspath(model)
        return _of_capsule(folder, name, gpus, progress=progress, dry_run=dry_run)
    work = _Preparation(
        gpus,
        _settled(model, gpus),
        engine,
        Path(cache_dir).expanduser().absolute() if cache_dir else None,
        token_finder(token),
        progress,
    )
    del token  # no traceback shows it
    if dry_run:
        return work.tell()
    notices: list[str] = []
    prepared = work.run(notices)
    warn(notices)
    return prepared


def _of_capsule(
    folder: Path,
    model: str | None,
    gpus: tuple[GPUInfo, ...],
    *,
    progress: bool,
    dry_run: bool,
) -> Prepared | SetupPlan:
    """Return what a capsule holds, or tell it."""
    if dry_run:
        from llamatelemetry.setup._setup_plan import plan_capsule, plan_for  # noqa: PLC0415

        return plan_for(plan_capsule(folder.expanduser().absolute()), gpus)
    from llamatelemetry.setup.capsule import open_capsule  # noqa: PLC0415

    engine, local = open_capsule(folder, model=model, progress=progress)
    if engine.note.startswith("the embedded engine"):
        warn([engine.note], stacklevel=4)
    return Prepared(engine, local, gpus, detect_platform())


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
    model: LocalModel | WantedModel
    engine: EngineLike | None
    cache: Path | None
    find_token: Callable[[], Token | None] = field(repr=False)
    shown: bool

    def run(self, notices: list[str]) -> Prepared:
        """Fetch both at the same time; add to the notices what one should know."""
        model, engine = run_both(
            self._get_model, partial(self._get_engine, notices=notices)
        )
        return Prepared(engine, model, self.gpus, detect_platform())

    def tell(self) -> SetupPlan:
        """Return what would be fetched."""
        from llamatelemetry.setup._setup_plan import (  # noqa: PLC0415
            PlannedItem,
            plan_engine,
            plan_for,
            plan_model,
        )

        items, problem = plan_model(self.model, self.cache, self.find_token)
        if self.engine is None:
            engine = plan_engine(self._request(threading.Event()).choose())
        else:
            note = "as named; not looked at"
            engine = PlannedItem("engine", str(self.engine), "", 0, Path(), note)
        return plan_for([engine, *items], self.gpus, [problem])

    def _get_model(self, called_off: threading.Event) -> LocalModel:
        if isinstance(self.model, LocalModel):
            return self.model
        fetch = ModelFetch(self.cache, self.find_token, self.shown, called_off)
        return fetch.get(self.model)

    def _get_engine(self, called_off: threading.Event, notices: list[str]) -> Engine:
        request = self._request(called_off)
        named = self.engine
        found = request.get() if named is None else request.get_named(named)
        notices += request.notices
        return found

    def _request(self, called_off: threading.Event) -> EngineRequest:
        model = self.model
        need = least_build(model if isinstance(model, LocalModel) else model.name)
        return EngineRequest(need, None, self.find_token, self.shown, called_off)
