"""Will it fit? What a server with one model and one configuration will need, and where.

The plan comes from the model's header alone, before a byte of its weights is
downloaded. Weights and caches are exact. The compute buffer is found as llama.cpp
finds it: by laying out the model's graph with ggml's own allocation rule. Both were
compared with llama.cpp's allocations on a CPU and on one H200 (``docs/memory.md``); a
T4, two cards and what CUDA itself takes there were not measured, so cards are planned
with a margin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, BinaryIO

from llamatelemetry._units import format_memory
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf import _plan_view
from llamatelemetry.gguf._cards import (
    GPU,
    T4_FREE_BYTES,
    GPUMemory,
    check_bytes,
    checked_gpus,
    parse_gpus,
)
from llamatelemetry.gguf._html import printable
from llamatelemetry.gguf._places import Place, Request, places
from llamatelemetry.gguf._plan_notes import notes
from llamatelemetry.gguf._settings import CELL_STEP
from llamatelemetry.gguf._shape import ModelShape, known_architectures
from llamatelemetry.gguf.estimates import (
    CUDA_CONTEXT_BYTES,
    GPU_MARGIN_BYTES,
    GPU_MARGIN_SHARE,
)
from llamatelemetry.gguf.parser import GGUFParser
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
    "parse_gpus",
    "plan_memory",
]


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

    Examples:
        >>> from llamatelemetry.gguf import plan_memory
        >>> plan = plan_memory("qwen3-14b", gpus="2x15")
        >>> plan.fits, plan.context
        (True, 2048)
        >>> plan.verdict
        'It fits; up to 40,960 tokens of context would.'
        >>> plan.tightest.name, plan.devices[0].kv_cache
        ('CUDA1', 176160768)
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
    def slot_context(self) -> int:
        """Tokens of context of one slot; all of them where the slots share them."""
        return self._request.settings.cells

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's tensors."""
        return sum(tensor.n_bytes for tensor in self._request.header.tensors)

    @property
    def generates(self) -> bool:
        """Whether the model writes text, and does not only embed it."""
        return self._request.shape.causal

    @property
    def needed(self) -> int:
        """Bytes in sum over the cards and the host."""
        return sum(place.needed for place in self.places)

    @property
    def fits(self) -> bool:
        """Whether every device that has a limit has room, cards with a margin."""
        return all(place.left is None or place.left >= 0 for place in self.places)

    @property
    def limited(self) -> bool:
        """Whether any device has a limit; otherwise everything fits."""
        return any(place.free is not None for place in self.places)

    @property
    def places(self) -> tuple[Place, ...]:
        """The cards, and last the host."""
        return (*self.devices, self.host)

    @property
    def tightest(self) -> Place:
        """The device with the least room left, after its margin."""
        limited = [place for place in self.places if place.left is not None]
        return min(limited or [self.host], key=lambda place: place.left or 0)

    @cached_property
    def _largest(self) -> int:
        return _largest_context(self._request)

    def max_context(self) -> int:
        """Return the most tokens of context that fit, over all slots; 0 if none do.

        At most what the model was made for, for each slot. None of the devices having
        a limit, that is what comes out.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> plan_memory("qwen3-32b", gpus="2x15").max_context()
            32512
        """
        return self._largest

    def max_gpu_layers(self) -> int:
        """Return the most layers that fit on the cards, the output counted as one.

        The rest stays on the host. 0 if none does, or if there are no cards.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> plan_memory("qwen3-32b", gpus="15").max_gpu_layers()
            46
        """
        request = self._request
        if not self.limited or not request.gpus:
            return 0

        def room(layers: int) -> int:
            return _room(request, n_gpu_layers=layers)

        return _last_with_room(room, request.shape.layer_count + 1)

    def with_gpus(self, gpus: Sequence[GPU] | str | None) -> MemoryPlan:
        """Return the plan of the same model and configuration on other cards.

        Args:
            gpus: The cards, as for :func:`plan_memory`.

        Raises:
            ConfigurationError: They are no cards, or not those of the configuration.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> plan = plan_memory("qwen3-32b", gpus="2x15")
            >>> plan.fits, plan.with_gpus("15").fits
            (True, False)
        """
        chosen = None if gpus is None else checked_gpus(gpus)
        return _plan(replace(self._request, gpus=chosen))

    def replanned(
        self,
        gpus: Sequence[GPU],
        *,
        host_free: int | None = None,
        **changes: Any,
    ) -> MemoryPlan:
        """Return the plan of the same model on other cards with another config.

        `with_gpus` and `with_config` in one step, so that what is between the two
        need not make sense.

        Args:
            gpus: The cards; none for the host alone.
            host_free: Bytes of host memory to stay within; None for what was planned.
            changes: Fields of the configuration.

        Raises:
            ConfigurationError: As for the two others.

        Examples:
            >>> from llamatelemetry.gguf import GPUMemory, plan_memory
            >>> plan = plan_memory("qwen3-14b", gpus="2x15")
            >>> one = plan.replanned(GPUMemory.t4(1), context_size=8192)
            >>> one.context, len(one.devices), one.fits
            (8192, 1, True)
        """
        request = replace(
            self._request,
            gpus=checked_gpus(gpus),
            config=self.config.replace(**changes),
            host_free=self._request.host_free if host_free is None else host_free,
        )
        return _plan(request)

    def with_config(self, **changes: Any) -> MemoryPlan:
        """Return the plan of the same model with these fields of the config changed.

        Args:
            changes: Fields of :class:`ServerConfig`.

        Raises:
            ConfigurationError: A value cannot work.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> plan = plan_memory("qwen3-32b", gpus="2x15")
            >>> plan.with_config(cache_type_k="q8_0", cache_type_v="q8_0").max_context()
            40960
        """
        return _plan(replace(self._request, config=self.config.replace(**changes)))

    def for_size(self, file_bytes: int) -> MemoryPlan:
        """Return the plan of the same model in another quantization, estimated.

        Args:
            file_bytes: Bytes of the other file, or of all its shards.

        Raises:
            ConfigurationError: No model is as small as that.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> plan = plan_memory("qwen3-32b", gpus="15")
            >>> plan.fits, plan.for_size(11_000_000_000).fits
            (False, True)
        """
        check_bytes("file_bytes", file_bytes)
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
        return _plan(replace(self._request, header=scaled, scaled_to=file_bytes))

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per device, in bytes.

        ``pandas.DataFrame(plan.rows())`` makes a table of them.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> rows = plan_memory("qwen3-14b", gpus="2x15").rows()
            >>> [(row["device"], row["weights"]) for row in rows]
            [('CUDA0', 4145869824), ('CUDA1', 4412348416), ('host', 437575680)]
        """
        return _plan_view.rows(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, in bytes, ready for JSON.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> told = plan_memory("qwen3-14b", gpus="2x15").to_dict()
            >>> told["fits"], told["max_context"], len(told["devices"])
            (True, 40960, 3)
        """
        return _plan_view.as_dict(self)

    def table(self) -> str:
        """Return the plan as text for a terminal.

        Examples:
            >>> from llamatelemetry.gguf import plan_memory
            >>> table = plan_memory("qwen3-14b", gpus="2x15").table()
            >>> print(table.splitlines()[0].split(":")[0])
            qwen3-14b (qwen3, 9.0 GB)
        """
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
            f"{f'fits={self.fits}' if self.limited else 'no limit given'})"
        )

    def _repr_html_(self) -> str:
        return _plan_view.html(self)


def plan_memory(
    model: str | os.PathLike[str] | bytes | BinaryIO | GGUFHeader | GGUFParser,
    config: ServerConfig | None = None,
    gpus: Sequence[GPU] | str | None = None,
    *,
    host_free: int | None = None,
    build: int | None = None,
    cuda_context: int = CUDA_CONTEXT_BYTES,
) -> MemoryPlan:
    """Plan the memory of a server, from the model's header.

    Args:
        model: A GGUF file (a path, a URL, ``"owner/repo:Q4_K_M"``, a name of the
            catalog, bytes, an open file), its header, or a :class:`GGUFParser`; any
            shard of several will do.
        config: What the server would be started with. None: everything on the cards,
            with flash attention, the rest as in :class:`ServerConfig`, whose own
            defaults use no card.
        gpus: The cards: text like ``"2x15"`` (GiB), or objects with ``index`` and
            ``free_bytes``, see :class:`GPUMemory`. None: as many as the configuration
            uses, without a limit. Empty: none.
        host_free: Bytes of host memory to stay within; None for no limit.
        build: The llama.cpp build that will run it; None for today's. Those before
            11434 keep logits for every token of a batch.
        cuda_context: Bytes CUDA itself takes on a card.

    Raises:
        GGUFError: The file is not GGUF, or holds no model that a server loads.
        ModelError: There is no such file.
        DownloadError: A remote file could not be read.
        ConfigurationError: The cards are none, or not those of the configuration, or a
            size is none.

    Examples:
        >>> from llamatelemetry import ServerConfig, plan_memory
        >>> plan = plan_memory("qwen3-14b", gpus="2x15")
        >>> plan.fits, plan.max_context()
        (True, 40960)
        >>> config = ServerConfig("model.gguf", context_size=512)
        >>> plan_memory("model.gguf", config, gpus="none").fits
        True
    """
    if isinstance(model, GGUFParser):
        header = model.header
    else:
        header = model if isinstance(model, GGUFHeader) else read_header(model)
    if config is None:
        config = ServerConfig(None, n_gpu_layers=999, flash_attn=True)
    if not isinstance(config, ServerConfig):
        raise ConfigurationError(
            f"config is a {type(config).__name__}, not a ServerConfig"
        )
    if host_free is not None:
        check_bytes("host_free", host_free)
    request = Request(
        header=header,
        shape=ModelShape.of(header),
        config=config,
        gpus=None if gpus is None else checked_gpus(gpus),
        build=build,
        cuda_context=cuda_context,
        host_free=host_free,
    )
    return _plan(request)


def _plan(request: Request) -> MemoryPlan:
    *cards, host = places(request)
    shape = request.shape
    return MemoryPlan(
        model=_name(request.header),
        architecture=printable(shape.architecture),
        known=request.known,
        context=request.settings.context,
        devices=tuple(cards),
        host=host,
        notes=tuple(notes(request)),
        _request=request,
    )


def _name(header: GGUFHeader) -> str:
    name = header.metadata.get("general.name")
    source = PurePath(header.source.split("?")[0]).name
    return printable(name if isinstance(name, str) and name else source)


def _largest_context(request: Request) -> int:
    """Return the largest context that fits, over all slots; 0 if none does."""
    step = CELL_STEP * request.config.parallel
    most = max(request.shape.training_context // CELL_STEP, 1)

    def room(steps: int) -> int:
        return _room(request, context_size=steps * step)

    return step * _last_with_room(room, most)


def _room(request: Request, **changes: Any) -> int:
    """Return what is left on the tightest device after these changes."""
    planned = places(replace(request, config=request.config.replace(**changes)))
    return min((place.left for place in planned if place.left is not None), default=0)


def _last_with_room(room: Callable[[int], int], most: int) -> int:
    """Return the last number from 1 to ``most`` that leaves room; 0 if none does.

    Room shrinks nearly in proportion, so where it ends is guessed from a straight line
    between two numbers; every other time the range is halved, in case it does not. A
    context is found with five or six plans instead of a dozen or more.
    """
    low, high = 1, most
    if (room_high := room(high)) >= 0:
        return most
    if (room_low := room(low)) < 0:
        return 0
    halve = False
    while high - low > 1:
        share = 0.5 if halve else room_low / (room_low - room_high)
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        room_middle = room(middle)
        if room_middle < 0:
            high, room_high = middle, room_middle
        else:
            low, room_low = middle, room_middle
        halve = not halve
    return low
