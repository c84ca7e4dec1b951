"""The first steps of a launch: an engine and a model, side by side, and why these."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llamatelemetry._demo import DEMO_MODEL
from llamatelemetry._environment import detect_platform
from llamatelemetry._launch_options import LaunchOptions
from llamatelemetry._launch_steps import StepRecord
from llamatelemetry._progress import FileProgress
from llamatelemetry.exceptions import EngineNotFoundError, OfflineError, SetupError
from llamatelemetry.placement import Placement
from llamatelemetry.server.engine import EMBEDDED, Engine, EngineLike, embedded_engine
from llamatelemetry.setup._capsule_files import LOCK_NAME, find_capsule
from llamatelemetry.setup._fetch import LocalModel
from llamatelemetry.setup._machine import measure_machine
from llamatelemetry.setup._needs import ModelLike
from llamatelemetry.setup._prepare import (
    USUAL_MOST_BYTES,
    Prepared,
    prepare_with_notices,
)
from llamatelemetry.setup.catalog import CatalogModel
from llamatelemetry.setup.engines import EMBEDDED_NOTE

__all__ = ["Equipment", "is_demo_file", "set_up"]

_DEMO = (
    "the demo model: memorised answers that prove the machinery works, not an assistant"
)


@dataclass(frozen=True, slots=True)
class Equipment:
    """An engine and a model that are here, and why these.

    Attributes:
        engine: The engine.
        model: The model.
        why: Why it is this model; "" where it was named.
        notices: What one should know of both.
    """

    engine: Engine
    model: LocalModel
    why: str
    notices: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be warned of where no step is shown."""
        if self.model.stands_for is not None:  # its notice says all of it
            return self.notices
        demo = self.why if self.why != _DEMO and is_demo_file(self.model) else ""
        note = self.engine.note if self.engine.note.startswith(EMBEDDED_NOTE) else ""
        return tuple(filter(None, [demo, note, *self.notices]))


def set_up(options: LaunchOptions, record: StepRecord) -> Equipment:
    """Return what a session needs, fetched and verified if it is not here yet.

    Args:
        options: What is launched.
        record: Where it is told how far this is.

    Raises:
        LLCudaError: See :func:`llamatelemetry.prepare`.
    """
    watch = _Watch(record)
    with record.failing("engine", "model", failed=watch.failed):
        found = _found(options, watch)
        engine, model = found.engine, found.model
        why = engine.note or f"it is {_told_source(engine)}"
        record.end("engine", f"{engine}: {why}", watch.sizes.get("engine"))
        record.end("model", _about(found, watch), model.size)
    return found


class _Watch:
    """Turns progress of files into that of the two steps."""

    def __init__(self, record: StepRecord) -> None:
        self._record = record
        self.failed: list[str] = []
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was fetched in vain."""
        self._files: dict[str, dict[str, FileProgress]] = {"engine": {}, "model": {}}
        self.sizes: dict[str, int] = {}
        self.fetched = False
        self.failed.clear()

    def __call__(self, file: FileProgress) -> None:
        # Models are fetched by the names of their files, engines by the manifest's.
        step = "model" if file.name.lower().endswith(".gguf") else "engine"
        files = self._files[step]
        files[file.name] = file
        done = sum(one.done for one in files.values())
        totals = [one.total for one in files.values()]
        total = sum(one or 0 for one in totals) if None not in totals else None
        self.sizes[step] = done
        self.fetched = self.fetched or (
            step == "model" and bool(done and not file.words)
        )
        doing = file.words or ("fetching" if not file.ended else "fetched")
        self._record.note(step, f"{doing} {file.name}", done, total)


def _told_source(engine: Engine) -> str:
    return {
        "argument": "the one that was named",
        "LLAMATELEMETRY_SERVER": "the one that LLAMATELEMETRY_SERVER names",
        "PATH": "on PATH",
        "setup": "the one that setup has installed",
        "embedded": "the one that was named",
    }[engine.source]


def _about(found: Equipment, watch: _Watch) -> str:
    model = found.model
    told = (
        model.name
        if model.name == model.path.name
        else f"{model.name}, {model.path.name}"
    )
    if len(model.files) > 1:
        told += f", {len(model.files)} files"
    if watch.fetched:
        told += ", fetched and verified" if model.verified else ", fetched"
    return "; ".join(filter(None, [told, found.why, *found.notices]))


def _found(options: LaunchOptions, watch: _Watch) -> Equipment:
    model, engine = options.model, options.engine
    if model is None:
        return _usual(options, watch)
    if isinstance(model, Placement):
        named = model.configs[0].model_path
        if named is None:
            raise SetupError(
                "the placement names no model file on this machine; plan it with the "
                "path of one"
            )
        model = Path(named)
    capsule = _capsule(model)
    if capsule is not None:
        prepared = partial(prepare_with_notices, None, engine, capsule=capsule)
    else:
        prepared = partial(prepare_with_notices, model, engine)
    return _equipment(prepared, watch, _DEMO if _is_demo(model) else "")


def _is_demo(model: ModelLike) -> bool:
    return not isinstance(model, CatalogModel) and os.fspath(model) == "demo"


def _capsule(model: ModelLike) -> Path | None:
    """Return the folder that was named as a model, if it is a capsule."""
    if isinstance(model, CatalogModel):
        return None
    folder = Path(model)
    try:
        return folder if (folder / LOCK_NAME).is_file() else None
    except (OSError, ValueError):  # a name that is no path
        return None


def _equipment(
    prepare: Callable[..., tuple[Prepared, list[str]]],
    watch: _Watch,
    why: str,
) -> Equipment:
    watch.begin_anew()
    prepared, notices = prepare(progress=watch, failed=watch.failed)
    # What is said of the embedded engine is its note already.
    told = tuple(one for one in notices if one != prepared.engine.note)
    return Equipment(prepared.engine, prepared.model, why, told)


# ── a model that nobody named ────────────────────────────────────────────────────


def _usual(options: LaunchOptions, watch: _Watch) -> Equipment:
    """Return the recommended model; the demo model without a card or a connection."""
    cards = options.cards()
    if cards is None:
        machine = measure_machine()
        if not machine.gpus:
            return _demo(options.engine, watch, machine.problem)
        name, why = None, "the largest chat model of the catalog that fits the cards"
    elif not cards:
        return _demo(options.engine, watch, "no card is to be used")
    else:
        from llamatelemetry.setup.recommend import recommend_model  # noqa: PLC0415 -- seldom needed

        name, why = None, "the largest chat model of the catalog that fits these cards"
        if detect_platform().input is None or find_capsule(None) is None:
            name = recommend_model(cards, most_bytes=USUAL_MOST_BYTES).id
    try:
        return _equipment(
            partial(prepare_with_notices, name, options.engine), watch, why
        )
    except OfflineError as error:
        reason = str(error).partition("\n")[0]
        return _demo(options.engine, watch, f"no model could be fetched: {reason}")


def _demo(engine: EngineLike | None, watch: _Watch, reason: str) -> Equipment:
    why = f"{_DEMO}; {reason}"
    try:
        return _equipment(partial(prepare_with_notices, "demo", engine), watch, why)
    except OfflineError:
        if engine is not None or embedded_engine() is None:
            raise
    except EngineNotFoundError as error:
        if reason not in str(error):
            error.add_note(reason)
        raise
    # Nothing can be fetched; the demo model needs no card.
    return _equipment(partial(prepare_with_notices, "demo", EMBEDDED), watch, why)


def is_demo_file(model: LocalModel) -> bool:
    """Whether a model is the one that comes with the package."""
    return model.path == DEMO_MODEL
