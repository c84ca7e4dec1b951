"""A placement for people: its reason, its notes, its table as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llamatelemetry._units import format_memory, printable
from llamatelemetry.gguf import _html
from llamatelemetry.gguf._cards import GPU
from llamatelemetry.gguf._fitting import layer_counts
from llamatelemetry.gguf.memory import MemoryPlan

if TYPE_CHECKING:
    from llamatelemetry.placement import Placement

__all__ = [
    "card_bytes", "html", "left_out", "notes", "reason", "reason_for_none",
    "spare_card", "text",
]  # fmt: skip

_HEAD = ("server", "device", "layers", "slots", "context", "expected", "free")
_WORDS = 2  # columns of words, from the first
_TENSOR = (
    "split_mode='tensor' was asked for: it is reported to have crashed on T4s "
    "(llama.cpp issue 21876) and to drift from the ratio asked for (28506); its memory "
    "is estimated as that of layers"
)


# ── words ────────────────────────────────────────────────────────────────────────


def left_out(card: GPU) -> str:
    """Say why a card without known memory is not used."""
    return f"GPU {card.index} is left out: how much of it is free is not known"


def spare_card(card: GPU, *, fits: bool) -> str:
    """Say why a card got no server of its own."""
    if fits:
        return f"GPU {card.index} is not needed"
    free = format_memory(card.free_bytes or 0)
    return f"GPU {card.index} is left out: {free} are too little for a server"


def reason(
    kind: str,
    goal: str,
    plans: Sequence[MemoryPlan],
    gpus: Sequence[Sequence[GPU]],
    *,
    spare: int,
    why_split: str,
    left_out: Iterable[str] = (),
) -> str:
    """Return why a placement is as it is, in a line.

    Args:
        kind: Its kind, which is not "none".
        goal: What was asked for.
        plans: The plan of each server.
        gpus: The cards of each server.
        spare: Cards that could be used and are not.
        why_split: Why one server is on several cards; ends like the start of a line.
        left_out: Sentences on those that could not.
    """
    plan, cards = plans[0], gpus[0]
    slots = plan.config.parallel
    if kind == "replicas":
        groups = " and ".join(_named(group) for group in gpus)
        said = (
            f"{len(plans)} servers with a copy of the model each, on {groups}: "
            f"{len(plans) * slots} requests at once"
        )
    elif kind == "layer":
        counts = " and ".join(str(count) for count, _ in _layers(plan))
        said = f"{why_split}split over {_named(cards)}, {counts} layers"
        said += f", {_requests(slots)}"
    elif cards:
        said = f"{_named(cards)} holds it, {_requests(slots)}"
        if spare and goal == "latency":
            said += "; without NVLink a second card only adds transfers"
    else:
        held = format_memory(plan.host.needed)
        said = f"no card that can be used: on the CPU, with {held} of memory"
    more = [_TENSOR] if plan.config.split_mode == "tensor" else []
    return "; ".join([said, *more, *left_out])


def reason_for_none(plan: MemoryPlan, context: int, left_out: Iterable[str]) -> str:
    """Return why nothing fits: what the plan that came nearest lacks.

    Args:
        plan: That plan, with the names its cards have here.
        context: Tokens asked for, for each request.
        left_out: Sentences on cards that could not be used.
    """
    tight = plan.tightest
    margin = f" and a margin of {format_memory(tight.margin)}" if tight.is_gpu else ""
    said = (
        f"it does not fit with {context:,} tokens of context for each request: "
        f"{tight.name} would need {format_memory(tight.needed)}{margin}, "
        f"{format_memory(tight.free or 0)} are free"
    )
    return "; ".join([said, *left_out])


def notes(plan: MemoryPlan, cards: Sequence[GPU]) -> list[str]:
    """Return what was chosen for one server, with bytes, and what its plan assumes."""
    config = plan.config
    chosen = [card_bytes(plan, [card.index for card in cards])]
    if cards:
        chosen.append(
            f"micro-batches of {config.n_ubatch} tokens, {plan.slot_context:,} tokens "
            f"of context for {_slots(config.parallel)}"
        )
    return [*chosen, *plan.notes]


def card_bytes(plan: MemoryPlan, indices: Sequence[int]) -> str:
    """Return what each device of a plan will hold, and what stays free, in words."""
    if not plan.devices:
        return f"expected on the host: {format_memory(plan.host.needed)}"
    told = [
        f"GPU {index}: {count} layers{output}, {format_memory(place.needed)} and a "
        f"margin of {format_memory(place.margin)} of {format_memory(place.free or 0)} "
        "free"
        for index, (count, output), place in zip(
            indices, _layers(plan), plan.devices, strict=True
        )
    ]
    return "expected on " + "; ".join(told)


def _layers(plan: MemoryPlan) -> list[tuple[int, str]]:
    """Return each card's layers, and " + output" where the output lies."""
    counts = layer_counts(plan)
    last = max((card for card, count in enumerate(counts) if count), default=-1)
    return [
        (count - 1, " + output") if card == last else (count, "")
        for card, count in enumerate(counts)
    ]


def _named(cards: Sequence[GPU]) -> str:
    return "GPU " + "+".join(str(card.index) for card in cards)


def _slots(slots: int) -> str:
    return "one slot" if slots == 1 else f"each of {slots} slots"


def _requests(slots: int) -> str:
    return "one request at a time" if slots == 1 else f"{slots} requests at once"


# ── tables ───────────────────────────────────────────────────────────────────────


def text(placement: Placement) -> str:
    """Return a placement as an aligned table, its reason below."""
    lines = [f"Placement for {placement.goal}: {placement.kind}"]
    rows = [_HEAD, *_rows(placement)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows if placement.configs else ():
        cells = [
            cell.ljust(width) if column < _WORDS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *_sentences(placement)])


def html(placement: Placement) -> str:
    """Return a placement as HTML, everything in it escaped."""
    model = placement.plans[0].model if placement.plans else ""
    verdict = _html.verdict(placement.reason, good=placement.kind != "none")
    parts = [verdict]
    if placement.configs:
        parts.append(_html.table(_rows(placement), header=_HEAD, left=_WORDS))
    parts.append(_html.table([[said] for said in _sentences(placement)[1:]]))
    title = f"{placement.kind} for {placement.goal}"
    return _html.panel(title, model, *parts)


def _sentences(placement: Placement) -> list[str]:
    said = [placement.reason]
    if placement.nearest is not None:
        said.append(f"Nearest: {placement.nearest}.")
    return [*said, *placement.measured]


def _rows(placement: Placement) -> list[tuple[str, ...]]:
    """Return a row for each card of each server; for the CPU one for the host."""
    rows: list[tuple[str, ...]] = []
    for server, (plan, cards) in enumerate(
        zip(placement.plans, placement.gpus, strict=False)
    ):
        counts = [f"{count}{output}" for count, output in _layers(plan)] or ["0"]
        names = [_name(card) for card in cards] or ["CPU"]
        places = plan.devices or (plan.host,)
        for number, (name, count, place) in enumerate(
            zip(names, counts, places, strict=True)
        ):
            first = number == 0
            free = "-" if place.free is None else format_memory(place.free)
            rows.append((
                str(server) if first else "", name, count,
                str(plan.config.parallel) if first else "",
                f"{plan.slot_context:,}" if first else "",
                format_memory(place.needed), free,
            ))  # fmt: skip
    return rows


def _name(card: GPU) -> str:
    name = getattr(card, "name", "")
    return f"GPU {card.index} {printable(str(name))}".strip()
