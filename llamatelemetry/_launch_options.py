"""What a session is launched with, checked before anything is fetched or stopped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, get_args

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf._cards import GPU, checked_gpus
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus
from llamatelemetry.placement import Goal, Placement
from llamatelemetry.server._preflight import with_absolute_paths
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import Engine, EngineLike
from llamatelemetry.setup._capsule_files import LOCK_NAME
from llamatelemetry.setup._fetch import LocalModel
from llamatelemetry.setup.catalog import CatalogModel

__all__ = ["Cards", "LaunchModel", "LaunchOptions"]

LaunchModel: TypeAlias = str | os.PathLike[str] | CatalogModel | Placement | None
Cards: TypeAlias = str | Iterable[GPU | int] | None

BATCH = 2048
"""Tokens of a batch where nobody says: four micro-batches, as plan_placement has."""

_OWN = {
    "model_path": "model",
    "visible_devices": "gpus",
    "context_size": "context_size",
    "parallel": "parallel",
    "port": "port",
    "tensor_split": "gpus",
    "main_gpu": "gpus",
    "split_mode": "gpus",
    "n_gpu_layers": "gpus",
    "device": "gpus",
    "notes": "nothing",
}
"""Fields of a configuration that a launch decides, and what is said instead."""


@dataclass(frozen=True)
class LaunchOptions:
    """What a session is launched with; see :func:`llamatelemetry.launch`.

    Attributes:
        model: The model, as it was named; None for a recommended one. A file or folder
            by its whole path, which a change of the working folder cannot break.
        context_size: Tokens of context for each request; None for the usual.
        gpus: The cards as text, or as a tuple of indices and cards; None for those of
            this machine, () for the CPU.
        goal: "latency" or "throughput".
        parallel: Requests at once; None for what fits the goal.
        engine: The engine, as it was named; None for the one that fits.
        port: The port; 0 for any free one.
        telemetry: Whether its requests are recorded; two sessions that differ in
            nothing else are the same.
        config: Other fields of :class:`ServerConfig`; their paths are whole too.

    Raises:
        ConfigurationError: A value cannot work.

    Examples:
        >>> from llamatelemetry.session import LaunchOptions
        >>> options = LaunchOptions("qwen3-14b", context_size=8192, gpus="2x15")
        >>> options.goal, options.port, options.cards()
        ('latency', 0, '2x15')
        >>> options == LaunchOptions("qwen3-14b", context_size=8192, gpus="2x15")
        True
    """

    model: LaunchModel = None
    context_size: int | None = None
    gpus: str | tuple[GPU | int, ...] | None = None
    goal: Goal = "latency"
    parallel: int | None = None
    engine: EngineLike | None = None
    port: int = 0
    telemetry: bool = False
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.gpus is not None and not isinstance(self.gpus, str):
            object.__setattr__(self, "gpus", _tuple_of(self.gpus))
        _check_names(self.model, self.engine)
        object.__setattr__(self, "model", _whole_path(self.model))
        _check_config(self.config)
        _check_values(self.context_size, self.parallel, self.goal)
        if not isinstance(self.telemetry, bool):
            raise ConfigurationError(
                f"telemetry is {self.telemetry!r}; it must be True or False"
            )
        if isinstance(self.model, Placement):
            self._check_placement()
        whole = with_absolute_paths(self.base_config())
        config = {name: getattr(whole, name) for name in self.config}
        object.__setattr__(self, "config", MappingProxyType(config))
        self.cards()

    def _check_placement(self) -> None:
        """Refuse what a placement has decided already.

        Raises:
            ConfigurationError: Something is said twice.
            OutOfMemoryError: It is none.
        """
        defaults = {item.name: item.default for item in fields(LaunchOptions)}
        said = [
            name
            for name in ("context_size", "gpus", "goal", "parallel")
            if getattr(self, name) != defaults[name]
        ]
        said += self.config
        if said:
            raise ConfigurationError(
                f"a Placement was given, which has decided {', '.join(said)} already; "
                "give that to plan_placement, or the model's name instead"
            )
        assert isinstance(self.model, Placement)  # noqa: S101 - for the type checker
        self.model.raise_if_none()

    def changed(
        self, model: LaunchModel, options: Mapping[str, Any], running: LocalModel
    ) -> LaunchOptions:
        """Return the same with what is named changed.

        Args:
            model: The model; None for the same.
            options: Names of fields, or of fields of a configuration, and values.
            running: The model that runs.

        Raises:
            ConfigurationError: A value cannot work.
        """
        old = self
        if isinstance(model, Placement):  # has decided the rest
            old = LaunchOptions(
                engine=self.engine, port=self.port, telemetry=self.telemetry
            )
        own = {item.name for item in fields(LaunchOptions)} - {"model", "config"}
        named = {name: value for name, value in options.items() if name in own}
        config = {name: value for name, value in options.items() if name not in own}
        if model is None:
            decided = isinstance(old.model, Placement) and bool(options)
            model = running if old.model is None or decided else old.model
        return replace(old, model=model, config={**old.config, **config}, **named)

    @property
    def key(self) -> tuple[object, ...]:
        """What two launches of the same thing have in common."""
        engine: object = self.engine
        gpus: object = self.gpus
        if isinstance(self.gpus, tuple):
            gpus = tuple(map(_identity_of, self.gpus))
        if isinstance(engine, os.PathLike):
            engine = os.fspath(engine)
        config = sorted(self.config.items(), key=lambda pair: pair[0])
        told = (self.context_size, gpus, self.goal, self.parallel, engine, self.port)
        return (_same_name(self.model), *told, config)

    def cards(self) -> str | list[GPU] | None:
        """Return the cards for a placement, as they are now; None for all there are.

        Raises:
            ConfigurationError: There is no such card.
        """
        if self.gpus is None or isinstance(self.gpus, str):
            if isinstance(self.gpus, str):
                checked_gpus(self.gpus)
            return self.gpus
        here = {gpu.index: gpu for gpu in (detect_gpus() if self.gpus else ())}
        cards = [_card(gpu, here) for gpu in self.gpus]
        checked_gpus(cards)
        return cards

    def base_config(self, **defaults: Any) -> ServerConfig:
        """Return the configuration without model, cards, context and slots.

        Args:
            defaults: What counts where nothing was said.

        Raises:
            ConfigurationError: A value cannot work.
        """
        usual = {"flash_attn": True, "n_batch": BATCH, **defaults}
        return ServerConfig(None, **{**usual, **self.config, "port": self.port})


def _tuple_of(gpus: Any) -> tuple[Any, ...]:
    try:
        return tuple(gpus)
    except TypeError:
        raise ConfigurationError(
            f"gpus is {gpus!r}; it must be text like '2x15', a list of indices, or "
            "cards as detect_gpus() returns them; [] for the CPU"
        ) from None


def _check_names(model: object, engine: object) -> None:
    """Refuse what names no model or engine.

    Raises:
        ConfigurationError: One is of a type that cannot be meant.
    """
    texts = (str, os.PathLike)
    if not isinstance(model, (*texts, CatalogModel, Placement, type(None))):
        raise ConfigurationError(
            f"model is {model!r}; it must be a name, a path, a CatalogModel or a "
            "Placement"
        )
    command = isinstance(engine, (list, tuple)) and all(
        isinstance(word, texts) for word in engine
    )
    if not command and not isinstance(engine, (*texts, Engine, type(None))):
        raise ConfigurationError(
            f"engine is {engine!r}; it must be an Engine, the path of a program, or a "
            "command as a list of texts"
        )


def _whole_path(model: LaunchModel) -> LaunchModel:
    """Return a model's file or folder by its whole path; anything else as it is."""
    known = (CatalogModel, Placement, LocalModel, type(None))
    if isinstance(model, known) or model == "demo":
        return model
    path = os.path.expanduser(os.fspath(model))  # noqa: PTH111 - may be no path at all
    # A folder may only happen to have the name of a repository.
    if os.path.isfile(path) or (os.path.isdir(path) and _has_models(path)):  # noqa: PTH112, PTH113 - as above
        path = os.path.abspath(path)  # noqa: PTH100 - as above
        return path if isinstance(model, str) else Path(path)
    return model


def _has_models(folder: str) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any(name == LOCK_NAME or name.lower().endswith(".gguf") for name in names)


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse fields that a launch decides; ServerConfig refuses unknown ones.

    Raises:
        ConfigurationError: There is one.
    """
    for name in config:
        if name in _OWN:
            instead = _OWN[name]
            advice = "" if instead == "nothing" else f"; say it with {instead}="
            raise ConfigurationError(
                f"launch() decides {name} itself{advice}, or start a ServerManager "
                "with a configuration of your own"
            )


def _check_values(context_size: object, parallel: object, goal: object) -> None:
    """Refuse what a placement would refuse later.

    Raises:
        ConfigurationError: A value cannot be meant.
    """
    if goal not in get_args(Goal):
        raise ConfigurationError(f"goal is 'latency' or 'throughput', not {goal!r}")
    for name, value, least in (
        ("context_size", context_size, 0),
        ("parallel", parallel, 1),
    ):
        number = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (number and value >= least):  # type: ignore[operator] # a number
            raise ConfigurationError(
                f"{name} is a whole number, {least} or more; not {value!r}"
            )


def _card(gpu: GPU | int, here: Mapping[int, GPUInfo]) -> GPU:
    if isinstance(gpu, bool) or (isinstance(gpu, int) and gpu not in here):
        known = ", ".join(map(str, here)) or "none"
        raise ConfigurationError(
            f"gpus names the card {gpu!r}, which is not here; the cards are: {known}"
        )
    if isinstance(gpu, int):
        return here[gpu]
    # The same card with what is free of it now.
    uuid = getattr(gpu, "uuid", None)
    return next((one for one in here.values() if uuid and one.uuid == uuid), gpu)


def _identity_of(gpu: GPU | int) -> object:
    """Return what tells a card from others, which its free memory does not."""
    if isinstance(gpu, int):
        return gpu
    uuid = getattr(gpu, "uuid", None)
    return gpu.index if uuid is not None else (gpu.index, gpu.free_bytes)


def _same_name(model: LaunchModel) -> object:
    """Return a model's name; of a file or folder, its path."""
    if isinstance(model, CatalogModel):
        return model.id
    if model is None or isinstance(model, Placement):
        return model
    path = os.fspath(model)
    return os.path.realpath(path) if os.path.exists(path) else path  # noqa: PTH110 - may be no path at all
