"""Where to run a model: on one card, split over several, or a server on each.

Everything here is decided from the model's header and the cards' free memory; nothing
is started. A placement holds configurations that can be started as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Unpack

from llamatelemetry import _placement_view as view
from llamatelemetry._placement_ways import (
    MOST_CONTEXT,
    Goal,
    Kind,
    Model,
    PlacementOptions,
    Question,
    Server,
    Way,
    ask,
    closest,
    fitted,
    holds,
    in_order,
    largest_context,
    ways,
)
from llamatelemetry._units import format_memory
from llamatelemetry.exceptions import ConfigurationError, OutOfMemoryError
from llamatelemetry.gguf._cards import GPU
from llamatelemetry.gguf._fitting import divided_layers, what_would_fit
from llamatelemetry.gguf.memory import MemoryPlan
from llamatelemetry.gpu.inventory import visible_devices_text
from llamatelemetry.server._linux import available_memory
from llamatelemetry.server.config import ServerConfig

__all__ = [
    "Goal",
    "Kind",
    "Model",
    "Placement",
    "PlacementOptions",
    "decide_placement",
    "feasible_placements",
]


@dataclass(frozen=True, repr=False)
class Placement:
    """Where a model runs, and with which configurations.

    Attributes:
        kind: "single": one server on one card, or on the CPU. "layer": one server,
            its layers split over several cards. "replicas": several servers with a
            copy of the model each. "none": it fits nowhere.
        goal: What was asked for: "latency" or "throughput".
        configs: One configuration for each server. Each names its own cards in
            ``visible_devices``, and counts them from 0 in all its other fields.
        gpus: The cards of each configuration; an empty group for the CPU.
        expected_bytes: Bytes predicted on each card, by its index.
        reason: Why it is so, in a line.
        nearest: For "none", what would fit instead; otherwise None.
        largest_context: For "none", the largest ``context_size`` that would be
            accepted, in tokens for each request; 0 if none.
        plans: The memory plan of each configuration, its cards counted from 0. For
            "none" the one plan that came nearest, cards by their own indices.
        measured: What a probe has measured, in sentences; empty without one.

    Examples:
        >>> from llamatelemetry.placement import decide_placement
        >>> placement = decide_placement("qwen3-32b", "2x15")
        >>> placement.kind, placement.slots, sorted(placement.expected_bytes)
        ('layer', 1, [0, 1])
        >>> decide_placement("qwen3-14b", "15").reason
        'GPU 0 holds it, one request at a time'
    """

    kind: Kind
    goal: Goal
    configs: tuple[ServerConfig, ...]
    gpus: tuple[tuple[GPU, ...], ...]
    expected_bytes: dict[int, int] = field(hash=False)
    reason: str
    nearest: str | None = None
    largest_context: int | None = None
    plans: tuple[MemoryPlan, ...] = field(default=(), compare=False)
    measured: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Requests served at once, over all servers."""
        return sum(config.parallel for config in self.configs)

    def raise_if_none(self) -> None:
        """Raise if the model fits nowhere.

        Raises:
            OutOfMemoryError: The kind is "none"; with the device that lacks most, the
                bytes it would need with its margin, and what would fit.

        Examples:
            >>> from llamatelemetry.placement import decide_placement
            >>> decide_placement("qwen3-14b", "2x15").raise_if_none()
            >>> decide_placement("qwen3-32b", "15").nearest
            'quantized as IQ3_XXS it fits (estimated)'
        """
        if self.kind != "none":
            return
        tight = self.plans[0].tightest
        raise OutOfMemoryError(
            f"{self.reason}; {self.nearest}",
            device=tight.name,
            needed=tight.needed + tight.margin,
            free=tight.free,
            suggestion=self.nearest,
            largest_context=self.largest_context,
        )

    def __repr__(self) -> str:
        return view.text(self)

    def _repr_html_(self) -> str:
        return view.html(self)


def decide_placement(
    model: Model,
    gpus: str | Iterable[GPU] | None = None,
    context_size: int | None = None,
    goal: Goal = "latency",
    **options: Unpack[PlacementOptions],
) -> Placement:
    """Decide where to run a model, so that no card gets more than it has free.

    The reasons are those of :func:`llamatelemetry.api.multigpu.plan_placement`, which
    can measure too.

    Args:
        model: What `plan_memory` takes, or its plan.
        gpus: The cards: text like "2x15" (GiB), or objects with ``index`` and
            ``free_bytes``. None: those of this machine; none of them: the CPU.
        context_size: Tokens of context for each request; 0 for the model's own. None:
            what the configuration or the plan has, else 4096.
        goal: "latency" for the fastest answer to one, "throughput" for the most tokens
            to many.
        options: See :class:`PlacementOptions`.

    Returns:
        The placement; its kind is "none" if nothing fits.

    Raises:
        ConfigurationError: A value that cannot be meant.
        GGUFError: The file is not GGUF, or holds no model that a server loads.
        ModelError: There is no such file.
        SetupError: Cards were to be detected, and NVIDIA's nvidia-ml-py is missing.

    Examples:
        >>> from llamatelemetry.placement import decide_placement
        >>> decide_placement("qwen3-14b", "2x15").kind
        'single'
        >>> decide_placement("qwen3-14b", "2x15", goal="throughput").slots
        16
    """
    question = ask(model, gpus, context_size, goal, **options)
    way = next(ways(question), None)
    return _none(question) if way is None else _placement(question, way)


def feasible_placements(
    model: Model,
    gpus: str | Iterable[GPU] | None = None,
    context_size: int | None = None,
    goal: Goal = "latency",
    **options: Unpack[PlacementOptions],
) -> tuple[Placement, ...]:
    """Return every placement that fits, the one that is decided for first.

    At most one of each kind: what a probe would start and measure. Empty if nothing
    fits.

    Args:
        model: What `plan_memory` takes, or its plan.
        gpus: The cards: text like "2x15" (GiB), or objects with ``index`` and
            ``free_bytes``. None: those of this machine; none of them: the CPU.
        context_size: Tokens of context for each request; 0 for the model's own. None:
            what the configuration or the plan has, else 4096.
        goal: "latency" for the fastest answer to one, "throughput" for the most tokens
            to many.
        options: See :class:`PlacementOptions`.

    Raises:
        ConfigurationError: A value that cannot be meant.
        GGUFError: The file is not GGUF, or holds no model that a server loads.
        ModelError: There is no such file.
        SetupError: Cards were to be detected, and NVIDIA's nvidia-ml-py is missing.

    Examples:
        >>> from llamatelemetry.placement import feasible_placements
        >>> ways = feasible_placements("qwen3-4b", "2x15", goal="throughput")
        >>> [way.kind for way in ways]
        ['replicas', 'single', 'layer']
    """
    question = ask(model, gpus, context_size, goal, **options)
    return tuple(_placement(question, way) for way in ways(question))


# ── the answer ───────────────────────────────────────────────────────────────────


def _placement(question: Question, way: Way) -> Placement:
    used = {card.index for server in way.servers for card in server.cards}
    spare = [card for card in question.cards if card.index not in used]
    plans = tuple(server.plan for server in way.servers)
    gpus = tuple(server.cards for server in way.servers)
    left_out = question.left_out
    if way.kind == "replicas":
        slots = plans[0].config.parallel
        left_out += tuple(
            view.spare_card(card, fits=fitted(question, (card,), slots) is not None)
            for card in in_order(spare)
        )
    reason = view.reason(
        way.kind,
        question.goal,
        plans,
        gpus,
        spare=len(spare),
        why_split=_why_split(question),
        left_out=left_out,
    )
    configs = [
        _config(question, server, number, reason)
        for number, server in enumerate(way.servers)
    ]
    return Placement(
        kind=way.kind,
        goal=question.goal,
        configs=tuple(configs),
        gpus=gpus,
        expected_bytes={
            card.index: place.needed
            for server in way.servers
            for card, place in zip(server.cards, server.plan.devices, strict=True)
        },
        reason=reason,
        plans=plans,
    )


def _why_split(question: Question) -> str:
    """Return why one server is split over several cards, if it is."""
    if fitted(question, question.cards[:1], question.fewest) is None:
        requests = question.fewest
        many = f" for {requests} requests at once" if requests > 1 else ""
        return f"no single card holds it{many}: "
    return "more slots than any other way: " if question.goal == "throughput" else ""


def _config(
    question: Question, server: Server, number: int, reason: str
) -> ServerConfig:
    """Return a server's configuration, with its own cards and what is to be known."""
    config = server.plan.config
    notes = [reason, *view.notes(server.plan, server.cards)]
    try:
        visible = visible_devices_text(server.cards)
    except ConfigurationError:
        visible = ",".join(str(card.index) for card in server.cards)
        notes.append(
            f"this process does not see these cards: visible_devices={visible!r} is "
            "for a machine that has them"
        )
    if question.described and server.cards:
        notes.append(
            "the cards were described, not detected: what is free on those here was "
            "not looked at"
        )
    port = config.port if number == 0 else 0  # two servers cannot share one
    return config.replace(
        model_path=config.model_path or question.file,
        visible_devices=visible,
        port=port,
        notes=notes,
    )


# ── what would fit ───────────────────────────────────────────────────────────────


def _none(question: Question) -> Placement:
    """Return that nothing fits, and what would."""
    plan = closest(question)
    largest = largest_context(question)
    return Placement(
        kind="none",
        goal=question.goal,
        configs=(),
        gpus=(),
        expected_bytes={},
        reason=view.reason_for_none(plan, question.context, question.left_out),
        nearest=_nearest(question, plan, largest),
        largest_context=largest,
        plans=(plan,),
    )


def _nearest(question: Question, plan: MemoryPlan, largest: int) -> str:
    """Return in words what would fit."""

    def fits(base: MemoryPlan) -> bool:
        return holds(replace(question, base=base, seen={}))

    near = what_would_fit(question.base, fits, largest)
    if near:
        return "; ".join(near)
    layers = plan.max_gpu_layers()
    if not layers:
        return _on_the_host(question) or "only a smaller model fits"
    held = plan.with_config(n_gpu_layers=layers).host.needed
    return (
        f"with n_gpu_layers={layers} of {divided_layers(plan)} it fits, slower: the "
        f"host then holds {format_memory(held)}"
    )


def _on_the_host(question: Question) -> str:
    """Return in words that the CPU alone would do; "" if it would not."""
    if not question.cards:
        return ""
    slots = question.fewest
    plan = question.base.with_config(
        context_size=min(question.context * slots, MOST_CONTEXT), parallel=slots
    )
    if plan.host.needed > (available_memory() or 0):
        return ""
    held = format_memory(plan.host.needed)
    return f"without cards it fits (gpus=[]), slower: the host then holds {held}"
