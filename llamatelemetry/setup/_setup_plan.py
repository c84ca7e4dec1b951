"""What prepare() would do: what it would fetch, from where to where; does it fit?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamatelemetry._environment import Token
from llamatelemetry._units import format_file_size
from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.gguf.memory import MemoryPlan, plan_memory
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.server._installed import engines_folder
from llamatelemetry.server._linux import available_memory
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.setup._capsule_files import check_inside, read_lock
from llamatelemetry.setup._choose import EngineChoice
from llamatelemetry.setup._disk import free_bytes
from llamatelemetry.setup._fetch import LocalModel, ask_hub
from llamatelemetry.setup._names import HubReference
from llamatelemetry.setup._search import ModelSearch, cache_for, look_for
from llamatelemetry.setup._wanted import WantedModel

__all__ = [
    "PlannedItem",
    "SetupPlan",
    "plan_capsule",
    "plan_engine",
    "plan_for",
    "plan_model",
    "plan_with_all_layers",
]


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """One thing that is needed.

    Attributes:
        kind: "engine" or "model".
        name: Its name, or its file's.
        origin: Where it would be fetched from; "" if it is here.
        size: Bytes to fetch; 0 if it is here, None if not known.
        folder: Where it is, or would be put.
        note: What else one should know.
    """

    kind: str
    name: str
    origin: str
    size: int | None
    folder: Path
    note: str = ""

    @property
    def here(self) -> bool:
        """Whether nothing has to be fetched for it."""
        return not self.origin


@dataclass(frozen=True, repr=False)
class SetupPlan:
    """What :func:`~llamatelemetry.setup.prepare` would do; nothing was fetched.

    Attributes:
        items: What is needed.
        free: Bytes that are free in each folder that something would be put into.
        memory: The plan, in bytes, of a server with this model; None if the model's
            header could not be read.
        problems: What stands in the way, each in a sentence.
        cards: Whether there are any.

    Examples:
        >>> from llamatelemetry import prepare
        >>> plan = prepare("model.gguf", dry_run=True)
        >>> [item.kind for item in plan.items]
        ['engine', 'model']
        >>> plan.ok, plan.download_bytes, plan.fits_cards
        (True, 0, True)
    """

    items: tuple[PlannedItem, ...]
    free: dict[Path, int]
    memory: MemoryPlan | None
    problems: tuple[str, ...] = ()
    cards: bool = True

    @property
    def ok(self) -> bool:
        """Whether prepare() would succeed, as far as can be told."""
        return self.fits_disk and not self.problems

    @property
    def download_bytes(self) -> int:
        """Bytes to fetch, as far as they are known."""
        return sum(item.size or 0 for item in self.items)

    @property
    def fits_disk(self) -> bool:
        """Whether there is room for what would be fetched, as far as that is known."""
        return not any(
            self._needed_in(folder) > room for folder, room in self.free.items()
        )

    @property
    def fits_cards(self) -> bool | None:
        """Whether the model fits the cards with all its layers; None if not known."""
        return None if self.memory is None else self.memory.fits

    def _needed_in(self, folder: Path) -> int:
        return sum(item.size or 0 for item in self.items if item.folder == folder)

    def __repr__(self) -> str:
        lines = [f"{'':8}{'':40} {'fetch':>9}  folder"]
        for item in self.items:
            size = "here" if item.here else _size(item.size)
            lines.append(f"{item.kind:8}{item.name[-40:]:40} {size:>9}  {item.folder}")
            if item.origin:
                lines.append(f"{'':8}from {item.origin}")
            if item.note:
                lines.append(f"{'':8}{item.note}")
        for folder, room in self.free.items():
            verdict = "fits" if self._needed_in(folder) <= room else "does NOT fit"
            lines.append(
                f"disk    {format_file_size(room)} free in {folder}: {verdict}"
            )
        verdicts = {None: "not known", True: "fits", False: "does NOT fit"}
        where = "with all layers on the cards" if self.cards else "on this machine"
        lines.append(f"memory  {verdicts[self.fits_cards]} {where}")
        lines += [f"note    {problem}" for problem in self.problems]
        return "\n".join(lines)


def _size(size: int | None) -> str:
    return "not known" if size is None else format_file_size(size)


def plan_engine(choice: EngineChoice) -> PlannedItem:
    """Return what an engine's choice comes to."""
    folder = engines_folder()
    if choice.engine is not None:
        name = str(choice.engine)
        return PlannedItem("engine", name, "", 0, folder, choice.engine.note)
    if choice.candidates:
        entry = choice.candidates[0]
        note = "" if entry.confirmed_live else "its pinned digest was never seen live"
        return PlannedItem("engine", entry.id, entry.origin, entry.bytes, folder, note)
    note = f"on the CPU: {choice.reasons}"
    return PlannedItem("engine", "the embedded engine", "", 0, folder, note)


def plan_model(
    model: LocalModel | WantedModel,
    cache: Path | None,
    find_token: Callable[[], Token | None],
) -> tuple[list[PlannedItem], str]:
    """Return what a model comes to, and what stands in the way ("" for nothing).

    Args:
        model: The model.
        cache: The cache folder that the user names.
        find_token: Finds the token; called only if the Hub has to be asked.
    """
    if isinstance(model, LocalModel):
        paths = model.files
        return [
            PlannedItem("model", path.name, "", 0, path.parent) for path in paths
        ], ""
    search, problem = look_for(model, cache), ""
    if not search.complete:
        try:
            search = look_for(ask_hub(model, find_token()), cache)
        except LLCudaError as error:
            problem = str(error)
    return _items_of(search, cache), problem


def _items_of(search: ModelSearch, cache: Path | None) -> list[PlannedItem]:
    wanted = search.wanted
    missing = sum(file.size or 0 for file in search.missing)
    target = cache_for(missing, cache)
    items = []
    for file in wanted.files:
        here = search.here.get(file.path)
        if here is not None:
            items.append(PlannedItem("model", here.name, "", 0, here.parent))
            continue
        origin = str(HubReference(wanted.repo, file.path, wanted.revision))
        name = Path(file.path).name
        items.append(PlannedItem("model", name, origin, file.size, target))
    if not items:  # the Hub could not be asked which files these are
        origin = str(wanted.reference)
        items.append(PlannedItem("model", wanted.name, origin, None, target))
    return items


def plan_capsule(folder: Path) -> list[PlannedItem]:
    """Return what a capsule holds.

    Raises:
        ConfigurationError: The folder is none.
    """
    lock = read_lock(folder)
    engine = str(lock["engine"]["id"])
    note = f"from the capsule; would be copied to {engines_folder()}"
    items = [PlannedItem("engine", engine, "", 0, folder, note)]
    for file in lock["model"]["files"]:
        path = check_inside(folder, file["path"])
        items.append(PlannedItem("model", path.name, "", 0, path.parent))
    return items


def plan_for(
    items: Sequence[PlannedItem], gpus: Sequence[GPUInfo], problems: Sequence[str] = ()
) -> SetupPlan:
    """Return the whole plan, with the room on the disks and on the cards.

    Args:
        items: What is needed.
        gpus: The cards.
        problems: What stands in the way, as far as it is known.
    """
    folders = {item.folder for item in items if not item.here}
    free = {folder: free_bytes(folder) for folder in sorted(folders)}
    found = list(filter(None, problems))
    memory = None
    if not found:
        try:
            memory = plan_with_all_layers(_first_file(items), gpus)
        except LLCudaError as error:
            found.append(str(error))
    return SetupPlan(tuple(items), free, memory, tuple(found), bool(gpus))


def _first_file(items: Sequence[PlannedItem]) -> str:
    """Return the model's first file: its path, or what names it on the Hub."""
    first = next(item for item in items if item.kind == "model")
    return str(first.folder / first.name) if first.here else first.origin


def plan_with_all_layers(model: str, gpus: Sequence[GPUInfo]) -> MemoryPlan:
    """Return the plan of a server with 8k of context and all layers on the cards."""
    config = ServerConfig(
        None, n_gpu_layers=999 if gpus else 0, context_size=8192, flash_attn=True
    )
    free = None if gpus else available_memory()
    return plan_memory(model, config, tuple(gpus), host_free=free)
