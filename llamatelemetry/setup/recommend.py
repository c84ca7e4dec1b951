"""Which model of the catalog to take for the cards at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from llamatelemetry._units import GIB, format_file_size, format_memory
from llamatelemetry.exceptions import ConfigurationError, ModelError
from llamatelemetry.gguf._cards import GPU, checked_gpus, margin_bytes
from llamatelemetry.gguf.estimates import estimate_vram
from llamatelemetry.gpu.inventory import detect_gpus
from llamatelemetry.server._linux import available_memory
from llamatelemetry.setup.catalog import CatalogModel, catalog

__all__ = ["TASKS", "Task", "may_fit", "recommend_model"]

Task = Literal["chat", "reasoning", "coder", "vision", "embedding"]

TASKS = ("chat", "reasoning", "coder", "vision", "embedding")
# A card holds whole layers, so one has up to a layer more than its share.
_WHOLE_LAYERS = 1.04
_MOST_ON_A_CPU = 3 * 10**9
"""Bytes of a model without a card: it reads all of them for each token, at some 10 GB/s
on the two cores of a free notebook."""


def recommend_model(
    gpus: str | Iterable[GPU] | None = None,
    task: Task = "chat",
    *,
    context_size: int = 8192,
    most_bytes: int | None = None,
) -> CatalogModel:
    """Return the model of the catalog with the most weights that fits the cards.

    An estimate by size and family, since no file is here to be planned exactly; those
    whose licence must be accepted first are left out.

    Args:
        gpus: The cards: "2x15", or objects with ``index`` and ``free_bytes``. None:
            those of this machine; without any, a model for its memory and CPU.
        task: "chat", "reasoning", "coder", "vision" or "embedding".
        context_size: Tokens of context it must have room for.
        most_bytes: The most bytes that may have to be downloaded; None for any number.

    Raises:
        ConfigurationError: There is no such task, or the cards are none.
        ModelError: None fits.

    Examples:
        >>> from llamatelemetry.setup import recommend_model
        >>> recommend_model("2x15")
        <qwen3-32b: Q4_K_M, 19.8 GB, chat/reasoning, two T4s>
        >>> recommend_model("15", "coder", most_bytes=10_000_000_000).id
        'qwen2.5-coder-14b'
    """
    if task not in TASKS:
        raise ConfigurationError(
            f"task={task!r} is none of the catalog's: {', '.join(TASKS)}"
        )
    cards = checked_gpus(detect_gpus() if gpus is None else gpus)
    rooms = [card.free_bytes or 0 for card in cards] or [available_memory() or 0]
    most = (10**12 if cards else _MOST_ON_A_CPU) if most_bytes is None else most_bytes
    fitting = [
        entry
        for entry in catalog()
        if task in entry.tasks
        and not entry.gated
        and entry.total_bytes <= most
        and may_fit(entry, rooms, min(context_size, entry.native_context))
    ]
    if not fitting:
        free = " and ".join(map(format_memory, rooms))
        where = f"into {free} of the cards" if cards else f"a CPU with {free}"
        raise ModelError(
            f"no {task} model of the catalog that has {format_file_size(most)} or less "
            f"fits {where} with {context_size} tokens of context; name one yourself"
        )
    return max(fitting, key=lambda entry: (entry.parameters, entry.total_bytes))


def may_fit(
    entry: CatalogModel,
    free: Sequence[int],
    context: int,
    *,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    flash_attn: bool = True,
) -> bool:
    """Whether an estimate leaves each device its margin, split as the room is.

    Args:
        entry: The model.
        free: Bytes that are free on each device.
        context: Tokens of context.
        cache_type_k: The type of the cache's keys.
        cache_type_v: The type of its values.
        flash_attn: Whether flash attention is used.

    Examples:
        >>> from llamatelemetry.setup.catalog import find_model
        >>> from llamatelemetry.setup.recommend import may_fit
        >>> one_t4 = [15_829_303_296]
        >>> may_fit(find_model("qwen3-14b"), one_t4, 8192)
        True
        >>> may_fit(find_model("qwen3-32b"), one_t4, 8192)
        False
    """
    try:
        estimate = estimate_vram(
            entry.parameters,
            entry.quantization or "Q4_K_M",
            context,
            architecture=entry.architecture,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            flash_attn=flash_attn,
            gpus=len(free),
        )
    except ConfigurationError:  # a recipe or a family that has no estimate
        return False
    shares = [estimate * GIB * room / sum(free) * _WHOLE_LAYERS for room in free]
    return all(
        share + margin_bytes(int(share)) <= room
        for share, room in zip(shares, free, strict=True)
    )
