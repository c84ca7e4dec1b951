"""Several cards, by the names of the API reference.

The parts are in `llamatelemetry.placement` and `llamatelemetry.gpu`. A GB in the
reference's names and arguments is a GiB (2**30 bytes).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatelemetry._placement_view import card_bytes
from llamatelemetry._units import GIB, format_memory, printable
from llamatelemetry.exceptions import ConfigurationError, ModelError, OutOfMemoryError
from llamatelemetry.gguf._cards import GPU, T4_FREE_BYTES, GPUMemory
from llamatelemetry.gguf._fitting import (
    MEANINGFUL_BYTES,
    best_fit,
    best_split,
    context_room,
    divided_layers,
    largest_context,
    micro_batches,
    model_file,
    what_would_fit,
)
from llamatelemetry.gguf.estimates import (
    CUDA_CONTEXT_BYTES,
    GPU_MARGIN_BYTES,
    GPU_MARGIN_SHARE,
)
from llamatelemetry.gguf.memory import MemoryPlan, plan_memory
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus
from llamatelemetry.placement import (
    Goal,
    Model,
    Placement,
    PlacementOptions,
    decide_placement,
    feasible_placements,
)
from llamatelemetry.server.config import MAX_DEVICES, ServerConfig

if TYPE_CHECKING:
    from llamatelemetry.server.engine import EngineLike

__all__ = [
    "GPUInfo",
    "Placement",
    "create_tensor_split_config",
    "detect_gpus",
    "kaggle_t4_dual_config",
    "plan_placement",
]

_MOST_GIB = 1024  # of one card; more was meant in MiB or bytes
_DIGITS = (3, 6)  # of a share: the second where the first would fill a card too full

# The pipeline of llama.cpp works on several micro-batches of one batch at once, on each
# card one: https://github.com/ggml-org/llama.cpp/pull/6017.
_BATCH, _MICRO_BATCH = 2048, 512
_EVEN = "0.5,0.5"
_ALL_LAYERS = 99


def __dir__() -> list[str]:
    return sorted(__all__)


# ── where a model runs ───────────────────────────────────────────────────────────


def plan_placement(
    model: Model,
    gpus: str | Iterable[GPU] | None = None,
    context_size: int | None = None,
    goal: Goal = "latency",
    *,
    parallel: int | None = None,
    split_mode: str = "layer",
    config: ServerConfig | None = None,
    build: int | None = None,
    probe: bool = False,
    engine: EngineLike | None = None,
) -> Placement:
    """Decide where to run a model, so that no card gets more than it has free.

    **Latency**: one card if the model with its context fits on one, the one with the
    most room: without NVLink a second card only adds transfers. Otherwise its layers
    are split over the fewest cards that hold it.

    **Throughput**: a server on each card, or on each smallest group of cards that
    holds the model, unless one server has more slots in all. This is reasoning, and
    was not measured on T4s: as long as reading the weights takes the time, tokens per
    second grow with the slots in all; a split model reads its weights one card after
    the other, which takes as long as a replica takes to read its own copy.
    ``probe=True`` starts and measures the candidates, and knows better.

    Args:
        model: What `plan_memory` takes, or its plan.
        gpus: The cards: text like "2x15", or objects with ``index`` and
            ``free_bytes``. None: those of this machine; none of them: the CPU. A
            card whose free memory is not known is left out.
        context_size: Tokens of context for each request. A configuration's own is
            this times its slots, since llama.cpp divides it. 0: the model's own.
            None: what ``config`` or the plan has for each slot, else 4096.
        goal: "latency" for the fastest answer to one, "throughput" for the most
            tokens to many.
        parallel: Requests at once over all servers; never lowered, and raised to the
            next number that the servers share evenly. None: what ``config`` or the
            plan has, if that is more than 1; else 1 for latency, and for throughput
            the most of 8, 4, 2 and 1 slots per server that fit.
        split_mode: "layer", or "tensor", where each layer is split: not by itself,
            because it is reported to have crashed on T4s (https://github.com/ggml-org/llama.cpp/issues/
            21876) and drifts from the ratio asked for
            (https://github.com/ggml-org/llama.cpp/issues/28506). It exists to answer
            sooner, so for latency it is then preferred to one card. Its memory is
            estimated as that of layers.
        config: Whose other fields are kept: cache types, host, key, threads. What is
            decided here is layers, split, cards, context, slots, and a micro-batch
            no larger than its own. The port is the first server's; further servers
            take any free one. None: flash attention, and batches of four
            micro-batches.
        probe: Start each placement that fits for a moment, on free ports, measure one
            answer alone and all slots at once, and return the best for the goal; what
            was measured is in its ``measured``. The model must be a file here. Each
            start takes as long as loading the model does.
        engine: The engine of the probe; None for the one that is found.
        build: The llama.cpp build that will run it, as for `plan_memory`.

    Returns:
        The placement; its kind is "none" if nothing fits.

    Raises:
        ConfigurationError: A value that cannot be meant.
        GGUFError: The file is not GGUF, or holds no model that a server loads.
        ModelError: There is no such file.
        LLCudaError: With ``probe``, no placement could be started; the first's error.
        SetupError: Cards were to be detected, and NVIDIA's nvidia-ml-py is missing.

    Examples:
        >>> from llamatelemetry import plan_placement
        >>> plan_placement("model.gguf", "2x15").kind
        'single'
    """
    given: PlacementOptions = {
        "parallel": parallel,
        "split_mode": split_mode,
        "config": config,
        "build": build,
    }
    candidates: tuple[Placement, ...] = ()
    if probe:
        candidates = feasible_placements(model, gpus, context_size, goal, **given)
    if not candidates:
        return decide_placement(model, gpus, context_size, goal, **given)
    from llamatelemetry.pool._probe import choose_by_probe  # noqa: PLC0415 - starts servers

    return choose_by_probe(candidates, goal, engine)


# ── a split by memory alone ──────────────────────────────────────────────────────


def create_tensor_split_config(
    gpu_memory: Sequence[float], model_size_gb: float
) -> str:
    """Return the share of each card for ``tensor_split``, in proportion to its memory.

    What counts is what a card has left after CUDA itself (300 MiB) and the margin of
    memory plans (5 % of what is used, and 300 MiB), which are assumptions:
    `llamatelemetry.gguf.estimates`. Only the weights are counted, neither KV cache nor
    compute buffer: whether a model with a context fits is what `plan_memory` and
    `plan_placement` say.

    Args:
        gpu_memory: GiB that are free on each card, at most 16 cards.
        model_size_gb: GiB of the model's weights.

    Returns:
        Shares that sum to 1, "0" for a card that is too small for anything; "1" for
        one card.

    Raises:
        ConfigurationError: A value that cannot be meant, or a model that cannot fit;
            says how many GiB are missing.

    Examples:
        >>> from llamatelemetry.api import create_tensor_split_config
        >>> create_tensor_split_config([15, 15], 10)
        '0.5,0.5'
    """
    memory = _checked_memory(gpu_memory)
    if not _is_number(model_size_gb) or not 0 < model_size_gb < math.inf:
        raise ConfigurationError(
            f"model_size_gb is a number of GiB above zero, not {model_size_gb!r}"
        )
    model = float(model_size_gb)
    usable = [_usable(size) for size in memory]
    total = sum(usable)
    if model > total:
        raise ConfigurationError(
            f"a model of {model:.1f} GiB does not fit: {model - total:.2f} GiB are "
            f"missing. The cards have {sum(memory):.1f} GiB, of which {total:.1f} can "
            "be used beside CUDA itself and the margin; take a smaller quantization, "
            "or leave layers on the host (n_gpu_layers)"
        )
    for digits in _DIGITS:
        counts = _whole_shares(usable, model, 10**digits)
        held = [count * model / 10**digits for count in counts]
        if all(size <= most for size, most in zip(held, usable, strict=True)):
            break
    return ",".join(_decimal(count, digits) for count in counts)


def _checked_memory(gpu_memory: object) -> list[float]:
    """Return the memory of each card.

    Raises:
        ConfigurationError: It is no list of sizes in GiB.
    """
    numbers: list[Any] = []
    if not isinstance(gpu_memory, (str, bytes)) and hasattr(gpu_memory, "__iter__"):
        numbers = list(gpu_memory)
    if not 0 < len(numbers) <= MAX_DEVICES:
        raise ConfigurationError(
            f"gpu_memory is a list with the GiB of 1 to {MAX_DEVICES} cards, such as "
            f"[15, 15]; not {gpu_memory!r}"
        )
    for number in numbers:
        if not _is_number(number) or not 0 <= number <= _MOST_GIB:
            hint = ""
            if hasattr(number, "free_memory_gb"):
                hint = "; give its free_memory_gb"
            raise ConfigurationError(
                f"gpu_memory holds {number!r}, which is no card's memory in GiB, 0 to "
                f"{_MOST_GIB:,}{hint}"
            )
    return [float(number) for number in numbers]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _usable(size_gib: float) -> float:
    """Return the GiB of weights that a card holds beside CUDA and the margin."""
    most = (size_gib - GPU_MARGIN_BYTES / GIB) / (1 + GPU_MARGIN_SHARE)
    return max(most - CUDA_CONTEXT_BYTES / GIB, 0.0)


def _whole_shares(usable: Sequence[float], model: float, whole: int) -> list[int]:
    """Return shares as whole parts of ``whole``, none above what its card holds.

    Rounded down, and what is missing then goes where most is left.
    """
    total = sum(usable)
    counts = [int(size / total * whole) for size in usable]

    def left(card: int) -> float:
        return usable[card] - (counts[card] + 1) * model / whole

    used = [card for card, size in enumerate(usable) if size]
    for _ in range(whole - sum(counts)):
        counts[max(used, key=left)] += 1
    return counts


def _decimal(count: int, digits: int) -> str:
    text = f"{count / 10**digits:.{digits}f}"
    return text.rstrip("0").rstrip(".")


# ── two T4s ──────────────────────────────────────────────────────────────────────


def kaggle_t4_dual_config(
    model_path: str | os.PathLike[str] | None = None, context_size: int = 4096
) -> ServerConfig:
    """Return a configuration for Kaggle's two T4s, whatever cards are here.

    Planned for two cards with 15,096 MiB free each: what nvidia-smi says of Kaggle's.
    A batch is four micro-batches, so that both cards work on a prompt at once
    (https://github.com/ggml-org/llama.cpp/pull/6017). If the model's header can be
    read, the largest micro-batch that fits is taken, and the split that leaves most
    room; what was chosen, and why, is in the configuration's ``notes``. The file
    itself is checked when the server starts.

    Args:
        model_path: The GGUF file. None, or no file that can be read: even halves.
        context_size: Tokens of context, kept as it is. 0: the model's own.

    Raises:
        ConfigurationError: A value that cannot be meant.
        OutOfMemoryError: The model does not fit with this context; says which would.

    Examples:
        >>> from llamatelemetry.api import kaggle_t4_dual_config
        >>> kaggle_t4_dual_config().tensor_split
        '0.5,0.5'
    """
    config = ServerConfig(
        model_path,
        n_gpu_layers=_ALL_LAYERS,
        tensor_split=_EVEN,
        split_mode="layer",
        context_size=context_size,
        n_batch=_BATCH,
        n_ubatch=_MICRO_BATCH,
        flash_attn=True,
    )
    assumed = (
        f"for two Tesla T4s with {format_memory(T4_FREE_BYTES)} free each, as Kaggle "
        "lends them",
        f"batches of {_BATCH} tokens, so that both cards work on a prompt at once",
    )
    if model_path is None:
        unseen = "no model was named: even halves, and nothing was planned"
        return config.replace(notes=[*assumed, unseen])
    path = Path(model_path)
    try:
        if not path.is_file():
            raise ModelError("there is no such file yet")  # noqa: TRY301 - said below
        plan = plan_memory(model_path, config, GPUMemory.t4(2))
    except (ModelError, OSError) as error:
        unseen = (
            f"{printable(str(path))} was not looked at ({printable(str(error))}): even "
            "halves, nothing was planned"
        )
        return config.replace(notes=[*assumed, unseen])
    return _fitted(plan, assumed)


def _fitted(plan: MemoryPlan, assumed: Sequence[str]) -> ServerConfig:
    """Return the configuration that fits best, with notes on what was chosen.

    Raises:
        OutOfMemoryError: None does.
    """
    layers = divided_layers(plan)
    changes: dict[str, Any] = {"n_gpu_layers": max(_ALL_LAYERS, layers)}
    told: list[str] = []
    if not plan.generates:
        changes |= {"embeddings": True, "n_ubatch": _BATCH}
        told.append(
            "the model embeds and does not write: embeddings are on, and a micro-batch "
            "is as long as a batch, since an input must fit into one"
        )
    first = model_file(plan)
    given = Path(plan.config.model_path or "")
    if first is not None and Path(first).name != given.name:
        changes["model_path"] = first
        told.append("model_path names the first shard: llama.cpp loads no other")
    if any(getattr(plan.config, name) != value for name, value in changes.items()):
        plan = plan.with_config(**changes)
    fitted = best_fit(plan)
    if fitted is None:
        raise _too_large(plan)
    config = fitted.config
    why = "it leaves the most on the tighter card"
    if config.tensor_split == _EVEN:
        much = format_memory(MEANINGFUL_BYTES)
        why = f"no other leaves {much} more on the tighter card"
    micro = f"micro-batches of {config.n_ubatch} tokens"
    if config.n_ubatch < plan.config.n_ubatch:
        micro += f": larger ones do not fit with {plan.context:,} tokens of context"
    told = [
        card_bytes(fitted, [0, 1]),
        f"tensor_split={config.tensor_split!r} of {layers} layers, the output one of "
        f"them: {why}",
        micro,
        *told,
        *fitted.notes,
    ]
    return config.replace(notes=[*assumed, *told])


def _too_large(plan: MemoryPlan) -> OutOfMemoryError:
    """Return what a model that fits in no way lacks, and what would fit."""
    least = plan.with_config(n_ubatch=micro_batches(plan)[-1])
    tight = best_split(least).tightest
    largest = largest_context(plan)

    def fits(other: MemoryPlan) -> bool:
        return context_room(other, plan.slot_context) >= 0

    near = (
        "; ".join(what_would_fit(plan, fits, largest))
        or "only a smaller model fits on them"
    )
    wanted = tight.needed + tight.margin
    return OutOfMemoryError(
        f"{plan.model} does not fit on two T4s with {plan.context:,} tokens of "
        f"context: with its margin it wants {format_memory(wanted)} on {tight.name}, "
        f"{format_memory(tight.free or 0)} are free; {near}",
        device=tight.name,
        needed=wanted,
        free=tight.free,
        suggestion=near,
        largest_context=largest,
    )
