"""Will it fit? What a server with one model and one configuration will need, and where.

The plan comes from the model's header alone, before a byte of its weights is
downloaded. Weights and caches are exact. The compute buffer is found as llama.cpp
finds it: by laying out the model's graph with ggml's own allocation rule. Both were
compared with llama.cpp's allocations on a CPU (``docs/memory.md``); nothing was
measured on CUDA yet, so cards are planned with a margin.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, BinaryIO

from llamatelemetry._units import MIB, format_memory
from llamatelemetry.gguf import _plan_view
from llamatelemetry.gguf._placement import (
    GPU,
    Place,
    Request,
    chosen_gpus,
    places,
)
from llamatelemetry.gguf._settings import FEW_OUTPUTS_BUILD, has_flag
from llamatelemetry.gguf._shape import ModelShape, known_architectures
from llamatelemetry.gguf.estimates import (
    CUDA_CONTEXT_BYTES,
    GPU_MARGIN_BYTES,
    GPU_MARGIN_SHARE,
)
from llamatelemetry.gguf.reader import GGUFHeader, read_header
from llamatelemetry.server.config import ServerConfig

__all__ = [
    "CUDA_CONTEXT_BYTES",
    "GPU_MARGIN_BYTES",
    "GPU_MARGIN_SHARE",
    "T4_FREE_BYTES",
    "GPUMemory",
    "MemoryPlan",
    "Place",
    "known_architectures",
    "plan_memory",
]

T4_FREE_BYTES = 15_096 * MIB
"""Free on an idle Tesla T4 of Kaggle, of 15,360 MiB in all, as nvidia-smi says."""

# Arguments that move weights in ways a plan does not follow.
_UNFOLLOWED = ("--override-tensor", "-ot", "--model-draft", "-md", "--spec-type",
               "--control-vector", "--override-kv")  # fmt: skip


@dataclass(frozen=True, slots=True)
class GPUMemory:
    """A card as a plan sees it.

    Attributes:
        index: Its place in CUDA's order.
        free_bytes: Bytes that are free on it; None for no limit.
    """

    index: int
    free_bytes: int | None = None

    @classmethod
    def t4(cls, count: int = 2) -> list[GPUMemory]:
        """Return idle T4s, as Kaggle has two of."""
        return [cls(index, T4_FREE_BYTES) for index in range(count)]


@dataclass(frozen=True)
class MemoryPlan:
    """What a server will need, device by device.

    Attributes:
        model: The model's name.
        architecture: As its header says.
        known: Whether plans of this architecture were compared with llama.cpp.
        context: Tokens of context over all slots, rounded as llama.cpp does.
        devices: The cards, in CUDA's order.
        host: This machine's memory.
        notes: What the plan assumes, and what it could not follow.
    """

    model: str
    architecture: str
    known: bool
    context: int
    devices: tuple[Place, ...]
    host: Place
    notes: tuple[str, ...]
    _request: Request = field(repr=False, compare=False)

    @property
    def config(self) -> ServerConfig:
        """The configuration that was planned."""
        return self._request.config

    @property
    def needed(self) -> int:
        """Bytes in sum over the cards and the host."""
        return sum(place.needed for place in (*self.devices, self.host))

    @property
    def fits(self) -> bool:
        """Whether every device has room, cards with a margin."""
        return all(shortfall(place) <= 0 for place in (*self.devices, self.host))

    @property
    def tightest(self) -> Place:
        """The device with the least room left, after its margin."""
        return max((*self.devices, self.host), key=shortfall)

    @cached_property
    def _largest(self) -> int:
        return _largest_context(self._request)

    def max_context(self) -> int:
        """Return the largest context that fits, over all slots; 0 if none does.

        At most what the model was made for, for each slot. None of the devices having
        a limit, that is what comes out.
        """
        return self._largest

    def with_config(self, **changes: Any) -> MemoryPlan:
        """Return the plan of the same model with these fields of the config changed.

        Raises:
            ConfigurationError: A value cannot work.
        """
        return _plan(replace(self._request, config=self.config.replace(**changes)))

    def for_size(self, file_bytes: int) -> MemoryPlan:
        """Return the plan of the same model in another quantization, estimated.

        Args:
            file_bytes: Bytes of the other file, or of all its shards.
        """
        header = self._request.header
        share = file_bytes / max(sum(each.n_bytes for each in header.tensors), 1)
        tensors = tuple(
            replace(
                each,
                n_bytes=int(each.n_bytes * share),
                offset=int(each.offset * share),
            )
            for each in header.tensors
        )
        scaled = replace(header, tensors=tensors)
        return _plan(replace(self._request, header=scaled))

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per device, in bytes.

        ``pandas.DataFrame(plan.rows())`` makes a table of them.
        """
        return _plan_view.rows(self)

    def table(self) -> str:
        """Return the plan as text for a terminal."""
        return _plan_view.text(self)

    @property
    def verdict(self) -> str:
        """Whether it fits, in a sentence."""
        return _plan_view.verdict(self)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        cards = ", ".join(
            f"{place.name}={format_memory(place.needed)}" for place in self.devices
        )
        return (
            f"MemoryPlan({self.model!r}, context={self.context}, "
            f"{cards + ', ' if cards else ''}host={format_memory(self.host.needed)}, "
            f"fits={self.fits})"
        )

    def _repr_html_(self) -> str:
        return _plan_view.html(self)


def shortfall(place: Place) -> int:
    """Return the bytes a device lacks, its margin included; negative if it has room."""
    if place.free is None:
        return -(1 << 62)
    margin = 0
    if place.is_gpu:
        margin = int(place.needed * GPU_MARGIN_SHARE) + GPU_MARGIN_BYTES
    return place.needed + margin - place.free


def plan_memory(
    model: str | os.PathLike[str] | bytes | BinaryIO | GGUFHeader,
    config: ServerConfig | None = None,
    gpus: Sequence[GPU] | None = None,
    *,
    host_free: int | None = None,
    build: int | None = None,
    cuda_context: int = CUDA_CONTEXT_BYTES,
) -> MemoryPlan:
    """Plan the memory of a server, from the model's header.

    Args:
        model: A GGUF file (a path, a URL, ``"owner/repo:file.gguf"``, bytes, an open
            file), or its header; any shard of several will do.
        config: What the server would be started with. None: everything on the cards,
            with flash attention, the rest as in :class:`ServerConfig`.
        gpus: The cards, with ``index`` and ``free_bytes``; see :class:`GPUMemory`.
            None: as many as the configuration uses, without a limit. Empty: none.
        host_free: Bytes of host memory to stay within; None for no limit.
        build: The llama.cpp build that will run it; None for today's. Those before
            11434 keep logits for every token of a batch.
        cuda_context: Bytes CUDA itself takes on a card.

    Raises:
        GGUFError: The file is not GGUF, or holds no model that a server loads.
        ModelError: There is no such file.
        ConfigurationError: The configuration names cards that are not there.

    Examples:
        >>> plan = plan_memory("model.gguf", gpus=GPUMemory.t4(2))  # doctest: +SKIP
        >>> plan.fits, plan.max_context()  # doctest: +SKIP
        (True, 65536)
    """
    header = model if isinstance(model, GGUFHeader) else read_header(model)
    if config is None:
        config = ServerConfig(None, n_gpu_layers=999, flash_attn=True)
    if gpus is None:
        gpus = _as_asked(config)
    request = Request(
        header=header,
        shape=ModelShape.of(header),
        config=config,
        gpus=chosen_gpus(config, gpus),
        build=build,
        cuda_context=cuda_context,
        host_free=host_free,
    )
    return _plan(request)


def _as_asked(config: ServerConfig) -> list[GPU]:
    """Return as many cards without a limit as a configuration speaks of."""
    if config.n_gpu_layers == 0:
        return []
    count = len(config.tensor_split.split(",")) if config.tensor_split else 1
    if config.device not in (None, "none"):
        numbers = [
            int(name.removeprefix("CUDA"))
            for name in str(config.device).split(",")
            if name.removeprefix("CUDA").isdecimal()
        ]
        count = max([count, *(number + 1 for number in numbers)])
    return [GPUMemory(index) for index in range(max(count, config.main_gpu + 1))]


def _plan(request: Request) -> MemoryPlan:
    *cards, host = places(request)
    shape = request.shape
    return MemoryPlan(
        model=_name(request.header),
        architecture=shape.architecture,
        known=shape.traits.known,
        context=request.settings.context,
        devices=tuple(cards),
        host=host,
        notes=tuple(_notes(request)),
        _request=request,
    )


def _name(header: GGUFHeader) -> str:
    name = header.metadata.get("general.name")
    source = PurePath(header.source.split("?")[0]).name
    return name if isinstance(name, str) and name else source


def _notes(request: Request) -> list[str]:
    """Return what a plan assumes, and what it could not follow."""
    shape, config, settings = request.shape, request.config, request.settings
    unfollowed = [flag for flag in _UNFOLLOWED if has_flag(config.extra_args, flag)]
    trained = shape.training_context
    told = {
        f"{shape.architecture} was not compared with llama.cpp: its cache and compute "
        "buffer are estimated as full attention": not shape.traits.known,
        "nothing was measured on CUDA yet: cards are estimated, with "
        f"{format_memory(request.cuda_context)} for CUDA itself and a margin of "
        f"{GPU_MARGIN_SHARE:.0%} and {format_memory(GPU_MARGIN_BYTES)}": request.gpus,
        f"before build {FEW_OUTPUTS_BUILD}, llama.cpp may keep logits of every token "
        "of a batch; planned so": settings.all_outputs,
        f"{settings.cells:,} tokens per slot are more than the {trained:,} the model "
        "was made for": 0 < trained < settings.cells,
        f"split_mode={config.split_mode!r} is planned like 'layer'":
            config.split_mode in ("row", "tensor") and len(request.gpus) > 1,
        "llama.cpp refuses a quantized value cache without flash_attn":
            settings.value_type.block_size > 1 and not settings.flash,
        "llama.cpp refuses two cache types for this model":
            shape.latent and settings.key_type != settings.value_type,
        f"not followed by the plan: {', '.join(unfollowed)}": unfollowed,
        "projector and adapters: their weights only, not what they compute":
            config.mmproj_path is not None or config.lora_paths,
        "cached prompts may take up to 8 GiB more of the host (cache_ram)":
            config.cache_ram is None,
    }  # fmt: skip
    return [note for note, holds in told.items() if holds]


def _largest_context(request: Request) -> int:
    """Return the largest context that fits, found by halving."""
    shape, slots = request.shape, request.config.parallel
    step = 256 * slots
    most = max(shape.training_context, 256) * slots // step

    def fits(steps: int) -> bool:
        config = request.config.replace(context_size=steps * step)
        return _plan(replace(request, config=config)).fits

    if fits(most):
        return most * step
    fitting, too_large = 0, most
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        if fits(middle):
            fitting = middle
        else:
            too_large = middle
    return fitting * step
