"""Which ways there are to run a model on some cards: pure deciding, by memory plans."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, TypedDict

from llamatelemetry import _placement_view as view
from llamatelemetry._units import MIB, printable
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf._cards import GPU, GPUMemory, checked_gpus
from llamatelemetry.gguf._fitting import (
    best_fit,
    best_split,
    context_room,
    divided_layers,
    last_with_room,
    micro_batches,
    model_file,
    most_steps,
    room,
)
from llamatelemetry.gguf._settings import CELL_STEP
from llamatelemetry.gguf.memory import MemoryPlan, plan_memory
from llamatelemetry.gguf.parser import GGUFParser
from llamatelemetry.gguf.reader import GGUFHeader
from llamatelemetry.gpu.inventory import detect_gpus
from llamatelemetry.server._linux import available_memory
from llamatelemetry.server.config import ServerConfig

__all__ = [
    "DEFAULT_CONTEXT", "MOST_CONTEXT", "Goal", "Kind", "Model", "PlacementOptions",
    "Question", "Server", "Way", "ask", "closest", "fitted", "holds", "in_order",
    "largest_context", "ways",
]  # fmt: skip

Kind = Literal["single", "layer", "replicas", "none"]
Goal = Literal["latency", "throughput"]
Model: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | GGUFHeader | GGUFParser | MemoryPlan
)

_GOALS = ("latency", "throughput")
_SPLIT_MODES = ("layer", "tensor")
_SLOTS = (8, 4, 2, 1)
"""Slots of one server that are tried for throughput where none were asked for."""

DEFAULT_CONTEXT = 4096
"""Tokens for each request where neither caller nor configuration says so."""

_ALL_LAYERS = 99  # the API reference's number for all
_MOST_SLOTS = 256  # of one server: LLAMA_MAX_SEQ
MOST_CONTEXT = 2**31 - 1  # of one server, over all slots
_BATCH = 2048  # llama-server's own --batch-size: four micro-batches


# ── the question ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Question:
    """What is asked, checked.

    Attributes:
        base: The model with the other fields of its configurations, on no card.
        cards: The cards that can be used, those with the most free first.
        left_out: Why others cannot.
        context: Tokens for each request.
        goal: "latency" or "throughput".
        parallel: Requests at once; None for what fits.
        split_mode: "layer" or "tensor".
        file: The model's file on this machine; None if it is elsewhere.
        described: Whether the cards were described, and not detected here.
        seen: What was planned already, by cards' free bytes and slots.
    """

    base: MemoryPlan
    cards: tuple[GPU, ...]
    left_out: tuple[str, ...]
    context: int
    goal: Goal
    parallel: int | None
    split_mode: str
    file: str | None
    described: bool
    seen: dict[tuple[tuple[int, ...], int], MemoryPlan | None] = field(
        default_factory=dict
    )

    @property
    def fewest(self) -> int:
        """The slots that there must be at least."""
        return self.parallel or 1


@dataclass(frozen=True, slots=True)
class Server:
    """One server: its cards in CUDA's order, and its plan on them."""

    cards: tuple[GPU, ...]
    plan: MemoryPlan


@dataclass(frozen=True, slots=True)
class Way:
    """A kind of placement, and its servers."""

    kind: Kind
    servers: tuple[Server, ...]

    @property
    def slots(self) -> int:
        """Requests served at once, over all servers."""
        return sum(server.plan.config.parallel for server in self.servers)


class PlacementOptions(TypedDict, total=False):
    """What may be said besides model, cards, context and goal.

    Attributes:
        parallel: Requests at once over all servers; None for what fits the goal.
        split_mode: "layer", or "tensor", where each layer is split.
        config: Whose other fields are kept: cache types, host, key, threads; None for
            flash attention and batches of four micro-batches.
        build: The llama.cpp build that will run it; None for today's.

    Examples:
        >>> from llamatelemetry.placement import PlacementOptions, decide_placement
        >>> options: PlacementOptions = {"parallel": 4}
        >>> decide_placement("qwen3-14b", "2x15", **options).slots
        4
    """

    parallel: int | None
    split_mode: str
    config: ServerConfig | None
    build: int | None


def ask(
    model: Model,
    gpus: str | Iterable[GPU] | None,
    context_size: int | None,
    goal: Goal,
    *,
    parallel: int | None = None,
    split_mode: str = "layer",
    config: ServerConfig | None = None,
    build: int | None = None,
) -> Question:
    """Check what is asked, and read the model and the cards.

    Arguments and errors are those of `llamatelemetry.placement.decide_placement`.
    """
    _check(context_size, goal, parallel, split_mode)
    given = checked_gpus(detect_gpus() if gpus is None else gpus)
    cards = [card for card in given if card.free_bytes is not None]
    cards.sort(key=lambda card: (-_free(card), card.index))
    base = _base(model, config, build, on_cards=bool(cards))
    if config is not None or isinstance(model, MemoryPlan):
        own = base.config
        if context_size is None:
            context_size = own.context_size // own.parallel
        if parallel is None and own.parallel > 1:
            parallel = own.parallel
    if context_size is None:
        context_size = DEFAULT_CONTEXT
    if parallel is not None and parallel > _MOST_SLOTS * max(len(cards), 1):
        raise ConfigurationError(
            f"parallel={parallel}: a server has at most {_MOST_SLOTS} slots, and there "
            f"is room for {max(len(cards), 1)} servers at most"
        )
    return Question(
        base=base,
        cards=tuple(cards),
        left_out=tuple(view.left_out(card) for card in given if card not in cards),
        context=context_size or most_steps(base) * CELL_STEP,
        goal=goal,
        parallel=parallel,
        split_mode=split_mode,
        file=_the_file(base),
        described=not all(hasattr(card, "uuid") for card in cards),
    )


def _the_file(base: MemoryPlan) -> str | None:
    """Return the model's file on this machine; None if it is elsewhere.

    Raises:
        ConfigurationError: The configuration names another model.
    """
    file, named = model_file(base), base.config.model_path
    if file is None or named is None or _first_shard(file) == _first_shard(named):
        return file
    raise ConfigurationError(
        f"the model is {printable(file)}, and config names another one, "
        f"{printable(str(named))}; leave its model_path out, or name the same file"
    )


def _first_shard(path: str | os.PathLike[str]) -> Path:
    """Return a name that all shards of a model have in common."""
    whole = Path(path).resolve()
    return whole.with_name(re.sub(r"-\d{5}-of-(\d{5})", r"-of-\1", whole.name))


def _free(card: GPU) -> int:
    """Return a card's free bytes; a full one has the least that a plan takes."""
    return max(card.free_bytes or 0, MIB)


def _check(
    context_size: object, goal: object, parallel: object, split_mode: object
) -> None:
    if goal not in _GOALS:
        raise ConfigurationError(f"goal is 'latency' or 'throughput', not {goal!r}")
    if split_mode not in _SPLIT_MODES:
        raise ConfigurationError(
            f"split_mode is 'layer', or 'tensor' at one's own risk, not {split_mode!r}"
        )
    for name, value, least in (
        ("context_size", 0 if context_size is None else context_size, 0),
        ("parallel", 1 if parallel is None else parallel, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(
                f"{name} is a whole number, {least} or more; not {value!r}"
            )
    if isinstance(context_size, int) and context_size > MOST_CONTEXT:
        raise ConfigurationError(
            f"context_size={context_size}: at most {MOST_CONTEXT:,} tokens"
        )


def _base(
    model: Model, config: ServerConfig | None, build: int | None, *, on_cards: bool
) -> MemoryPlan:
    """Return the plan on no card that all others are made from."""
    chosen = config
    if isinstance(model, MemoryPlan):
        if build is not None:
            raise ConfigurationError("build is the plan's own; give it to plan_memory")
        chosen = model.config if chosen is None else chosen
    if chosen is None:
        chosen = ServerConfig(None, flash_attn=True, n_batch=_BATCH)
    elif not isinstance(chosen, ServerConfig):
        raise ConfigurationError(
            f"config is a {type(chosen).__name__}, not a ServerConfig"
        )
    plain = chosen.replace(
        n_gpu_layers=0, main_gpu=0, tensor_split=None, split_mode="layer", device=None
    )
    host_free = None if on_cards else available_memory()
    if isinstance(model, MemoryPlan):
        changes = {item.name: getattr(plain, item.name) for item in fields(plain)}
        base = model.replanned((), host_free=host_free, **changes)
    else:
        base = plan_memory(model, plain, (), host_free=host_free, build=build)
    if config is None and not base.generates and not isinstance(model, MemoryPlan):
        # An encoder does nothing else, and takes no input longer than a micro-batch.
        base = base.with_config(embeddings=True, n_ubatch=_BATCH)
    return base


# ── what fits ────────────────────────────────────────────────────────────────────


def _planned(question: Question, cards: Sequence[GPU], slots: int) -> MemoryPlan:
    """Return the plan of one server on these cards, counted from 0."""
    base = question.base
    local = [GPUMemory(place, _free(card)) for place, card in enumerate(cards)]
    config = base.config
    micro = config.n_ubatch
    if config.embeddings or config.rerank:
        # llama.cpp ends where slots share a batch unevenly and embeddings are means.
        whole = min(micro, config.n_batch) // slots * slots
        micro = whole or micro
    return base.replanned(
        local,
        n_gpu_layers=max(_ALL_LAYERS, divided_layers(base)) if cards else 0,
        split_mode=question.split_mode if len(cards) > 1 else "layer",
        tensor_split=None,
        context_size=question.context * slots,
        parallel=slots,
        n_ubatch=micro,
    )


def fitted(question: Question, cards: Sequence[GPU], slots: int) -> MemoryPlan | None:
    """Return the best plan of one server on these cards, or None."""
    frees, seen = tuple(_free(card) for card in cards), question.seen
    if (frees, slots) not in seen:
        fewer = any(
            plan is None and of == frees and less < slots
            for (of, less), plan in seen.items()
        )
        possible = slots <= _MOST_SLOTS and question.context * slots <= MOST_CONTEXT
        plan = None
        if possible and not fewer:
            plan = best_fit(_planned(question, cards, slots))
        seen[frees, slots] = plan
    return seen[frees, slots]


def in_order(cards: Iterable[GPU]) -> tuple[GPU, ...]:
    """Return cards in CUDA's order."""
    return tuple(sorted(cards, key=lambda card: card.index))


def ways(question: Question) -> Iterator[Way]:
    """Yield the ways that fit, the best first."""
    if question.goal == "throughput":
        if _single(question, 1) is None and _split(question, 1) is None:
            return  # nor anything with more slots, or more copies
        found = [way for way in (_replicas(question), *_alone(question)) if way]
        yield from sorted(found, key=lambda way: -way.slots)  # replicas first in a tie
        return
    ways = [partial(_single, question), partial(_split, question)]
    if question.split_mode == "tensor":  # which is asked for to be faster than one
        ways.reverse()
    for find in ways:
        if (way := find(question.fewest)) is not None:
            yield way
    if (way := _replicas(question)) is not None:
        yield way


def _alone(question: Question) -> Iterator[Way]:
    """Yield what one server can do for throughput, with the most slots that fit."""
    wanted = _SLOTS if question.parallel is None else (question.parallel,)
    for find in (_single, _split):
        found = (find(question, slots) for slots in wanted)
        way = next((way for way in found if way is not None), None)
        if way is not None:
            yield way


def _single(question: Question, slots: int) -> Way | None:
    """Return one server on the card with the most room; on the CPU without cards."""
    cards = question.cards[:1]
    plan = fitted(question, cards, slots)
    return None if plan is None else Way("single", (Server(cards, plan),))


def _split(question: Question, slots: int) -> Way | None:
    """Return one server over the fewest cards, from two on, that hold it."""
    for count in range(2, len(question.cards) + 1):
        cards = in_order(question.cards[:count])
        plan = fitted(question, cards, slots)
        if plan is not None:
            return Way("layer", (Server(cards, plan),))
    return None


def _replicas(question: Question) -> Way | None:
    """Return at least two servers, each on the smallest group of cards that holds it.

    With so many slots asked for, as many servers as can share them; otherwise the most
    slots in all, and of those that have as many the one with the most servers.
    """
    most = len(question.cards)
    if question.parallel is not None or question.goal == "latency":
        wanted = question.fewest
        for count in range(min(most, wanted), 1, -1):
            servers = _groups(question, -(-wanted // count), count)
            if len(servers) == count:
                return Way("replicas", servers)
        return None
    found = [Way("replicas", _groups(question, slots, most)) for slots in _SLOTS]
    several = [way for way in found if len(way.servers) > 1]
    return max(several, key=lambda way: (way.slots, len(way.servers)), default=None)


def _groups(question: Question, slots: int, most: int) -> tuple[Server, ...]:
    """Return servers on groups of cards, the cards with the most room first."""
    servers: list[Server] = []
    rest = list(question.cards)
    while rest and len(servers) < most:
        for count in range(1, len(rest) + 1):
            cards = in_order(rest[:count])
            plan = fitted(question, cards, slots)
            if plan is not None:
                servers.append(Server(cards, plan))
                rest = rest[count:]
                break
        else:
            break
    return tuple(sorted(servers, key=lambda server: server.cards[0].index))


def _prefixes(question: Question) -> list[tuple[GPU, ...]]:
    """Return the groups that one server could have: all cards first, one card last."""
    counts = range(len(question.cards), 0, -1)
    return [in_order(question.cards[:count]) for count in counts] or [()]


def closest(question: Question) -> MemoryPlan:
    """Return the plan of one server that lacks the least."""
    slots = min(question.fewest, _MOST_SLOTS)
    asked = replace(question, context=min(question.context, MOST_CONTEXT // slots))
    found = []
    for cards in _prefixes(question):
        plan = _planned(asked, cards, slots)
        plan = plan.with_config(n_ubatch=micro_batches(plan)[-1])
        found.append((best_split(plan), cards))
    plan, cards = max(found, key=lambda each: room(each[0]))
    named = [GPUMemory(card.index, _free(card)) for card in cards]
    return plan.replanned(named)


def largest_context(question: Question) -> int:
    """Return the largest context for each request that would be accepted; 0 if none.

    At most what the model was made for, or what was asked for if that is more.
    """
    # Beyond what the model was made for only if that was asked for.
    wanted = max(most_steps(question.base), question.context // CELL_STEP)
    most = min(wanted, MOST_CONTEXT // CELL_STEP // question.fewest)
    best = 0
    for left in _rooms(question):
        if best < most and left(best + 1) >= 0:
            best = max(best, last_with_room(left, most))
    return best * CELL_STEP


def holds(question: Question) -> bool:
    """Whether anything fits, found with the smallest micro-batches only."""
    steps = -(-question.context // CELL_STEP)
    return any(left(steps) >= 0 for left in _rooms(question))


def _rooms(question: Question) -> Iterator[Callable[[int], int]]:
    """Yield for each way to run it what is left, by a context in steps of 256 tokens.

    Bytes on the tightest device, negative where it does not fit; for replicas 0 or -1.
    """
    slots = question.fewest
    small = replace(question, context=CELL_STEP, seen={})

    def of_one(plan: MemoryPlan, steps: int) -> int:
        if steps * CELL_STEP * slots > MOST_CONTEXT:
            return -1
        return context_room(plan, steps * CELL_STEP)

    def of_several(steps: int) -> int:
        asked = replace(question, context=steps * CELL_STEP, seen={})
        return -1 if _replicas(asked) is None else 0

    if slots <= _MOST_SLOTS:
        for cards in _prefixes(question):
            yield partial(of_one, _planned(small, cards, slots))
    if slots > 1:
        yield of_several
