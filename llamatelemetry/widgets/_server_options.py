"""What a server is started with, as a value and as controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatelemetry._launch_options import LaunchOptions
from llamatelemetry._placement_ways import DEFAULT_CONTEXT
from llamatelemetry._units import printable
from llamatelemetry.gguf._cards import GPU
from llamatelemetry.gguf._fitting import most_steps
from llamatelemetry.gguf._settings import CELL_STEP
from llamatelemetry.gguf.memory import plan_memory
from llamatelemetry.gguf.reader import GGUFHeader
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.placement import Goal, Placement, decide_placement
from llamatelemetry.server.flags import FLAG_OF_SPELLING
from llamatelemetry.setup._names import parse_reference
from llamatelemetry.setup.catalog import catalog
from llamatelemetry.widgets._model_choices import DEMO
from llamatelemetry.widgets._outbox import Outbox

if TYPE_CHECKING:
    from llamatelemetry.session import Session

__all__ = ["OptionsForm", "ServerOptions"]

_CONTEXT_STEP = 1024
_MOST_CONTEXT = 2**31 - 1
_MOST_SLOTS = 256
_CACHE_TYPES = tuple(FLAG_OF_SPELLING["--cache-type-k"].choices)
_GOALS = (
    ("latency: one answer fast", "latency"),
    ("throughput: many at once", "throughput"),
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server is started with.

    Attributes:
        model: A name of the catalog, a reference to the Hub, a path, or "demo".
        context_size: Tokens of context for each request; 0 for the model's own. The
            usual number is as good as none: a model may have been made for less.
        gpus: The cards, by their indices; None for all, () for none.
        goal: "latency" or "throughput".
        parallel: Requests served at once; None for what suits the goal.
        cache_type_k: The type of the KV cache's keys.
        cache_type_v: The type of its values.
        flash_attn: Whether flash attention is used.
        more: Other fields of the configuration, which no control changes.
    """

    model: str = DEMO
    context_size: int = DEFAULT_CONTEXT
    gpus: tuple[int, ...] | None = None
    goal: Goal = "latency"
    parallel: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: bool = True
    more: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, session: Session) -> ServerOptions:
        """Return what a session runs with, as far as the controls can say it."""
        options, config = session.options, session.plan.configs[0]
        gpus = options.gpus
        if gpus is not None:
            cards = () if isinstance(gpus, str) else gpus
            gpus = tuple(one if isinstance(one, int) else one.index for one in cards)
        more = {
            name: value
            for name, value in options.config.items()
            if name not in ("cache_type_k", "cache_type_v", "flash_attn")
        }
        return cls(
            model=_name_of(session),
            context_size=config.context_size // config.parallel,
            gpus=None if isinstance(options.gpus, str) else gpus,
            goal=session.plan.goal,
            parallel=options.parallel,
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
            flash_attn=config.flash_attn,
            more=more,
        )

    def arguments(self) -> dict[str, Any]:
        """Return what `launch` takes beside the model."""
        return {
            "context_size": self._context,
            "gpus": self.gpus,
            "goal": self.goal,
            "parallel": self.parallel,
            **self._config(),
        }

    @property
    def _context(self) -> int | None:
        usual = self.context_size == DEFAULT_CONTEXT
        return None if usual else self.context_size

    def _config(self) -> dict[str, Any]:
        return {
            **self.more,
            "cache_type_k": self.cache_type_k,
            "cache_type_v": self.cache_type_v,
            "flash_attn": self.flash_attn,
        }

    def chosen(self, cards: Sequence[GPUInfo]) -> list[GPUInfo]:
        """Return those of the cards that are to be used."""
        return [card for card in cards if self.gpus is None or card.index in self.gpus]

    def place(self, header: GGUFHeader, cards: Sequence[GPU]) -> Placement:
        """Return where a model with this header would run, as `launch` decides it.

        Args:
            header: The model's.
            cards: The cards to use.

        Raises:
            ConfigurationError: The options do not go together.
        """
        config = LaunchOptions(config=self._config()).base_config()
        plan = plan_memory(header, config, ())
        if not plan.generates and not {"embeddings", "rerank"} & set(self.more):
            micro = self.more.get("n_ubatch", config.n_batch)
            plan = plan.with_config(embeddings=True, n_ubatch=micro)
        context = self._context
        if context is None:
            context = min(DEFAULT_CONTEXT, most_steps(plan) * CELL_STEP)
        return decide_placement(plan, cards, context, self.goal, parallel=self.parallel)

    def __str__(self) -> str:
        cards = "all cards" if self.gpus is None else "no card"
        if self.gpus:
            cards = "GPU " + "+".join(map(str, self.gpus))
        context = f"{self.context_size:,} tokens" if self.context_size else "all"
        slots = f"{self.parallel} slots, " if self.parallel else ""
        cache = f"{self.cache_type_k}/{self.cache_type_v} cache"
        flash = "flash attention" if self.flash_attn else "no flash attention"
        return (
            f"{printable(self.model)}, {context} of context, {cards}, "
            f"for {self.goal}, {slots}{cache}, {flash}"
        )


def _name_of(session: Session) -> str:
    """Return the name that a session's model has in the list of models."""
    named, model = session.options.model, session.model
    if model.name == DEMO or any(entry.id == model.name for entry in catalog()):
        return model.name
    if isinstance(named, str) and parse_reference(named) is not None:
        return named if not Path(named).exists() else str(model.path)
    return str(model.path)


class OptionsForm:
    """The controls of the options, but for the model's.

    Args:
        w: The module ipywidgets.
        outbox: What changes them.
        cards: The cards of this machine.
    """

    def __init__(self, w: Any, outbox: Outbox, cards: Sequence[GPUInfo]) -> None:
        self._outbox = outbox

        def control(kind: Any, name: str, told: str = "", **more: Any) -> Any:
            style = {"description_width": "105px"}
            layout = w.Layout(width="auto", flex="1 1 270px", max_width="330px")
            made = kind(description=name, style=style, layout=layout, **more)
            if told:  # ipywidgets 7 has another name for it
                own = made.has_trait("tooltip")
                setattr(made, "tooltip" if own else "description_tooltip", told)
            return made

        self.context = control(
            w.BoundedIntText,
            "Context",
            "Tokens for each request; 0 for as many as the model was made for",
            min=0,
            max=_MOST_CONTEXT,
            step=_CONTEXT_STEP,
        )
        self.slots = control(
            w.BoundedIntText,
            "Slots",
            "Requests served at once; 0 for what suits the goal",
            min=0,
            max=_MOST_SLOTS * max(len(cards), 1),
        )
        self.goal = control(w.Dropdown, "Goal", options=_GOALS)
        self.keys = control(w.Dropdown, "Cache of keys", options=_CACHE_TYPES)
        self.values = control(w.Dropdown, "Cache of values", options=_CACHE_TYPES)
        self.flash = w.Checkbox(
            description="Flash attention", indent=False, layout=w.Layout(width="auto")
        )
        self.cards = {card.index: _card_box(w, card) for card in cards}
        self.box = self._arranged(w)

    def _arranged(self, w: Any) -> Any:
        rows = w.Layout(flex_flow="row wrap")
        pairs = w.Layout(flex_flow="row wrap", max_width="670px")  # two columns
        numbers = [self.context, self.slots, self.keys, self.values, self.goal]
        boxes = list(self.cards.values()) or [
            w.Label("no card here: the server runs on the CPU")
        ]
        return w.VBox(
            [
                w.HBox(numbers, layout=pairs),
                w.HBox([w.Label("Cards:"), *boxes, self.flash], layout=rows),
            ]
        )

    @property
    def fields(self) -> list[tuple[Any, str | int]]:
        """Each control with what of the options it is: a field, or a card's index."""
        return [
            (self.context, "context_size"),
            (self.slots, "parallel"),
            (self.goal, "goal"),
            (self.keys, "cache_type_k"),
            (self.values, "cache_type_v"),
            *((box, index) for index, box in self.cards.items()),
            (self.flash, "flash_attn"),
        ]

    def changed(
        self, options: ServerOptions, field: str | int, value: Any
    ) -> ServerOptions:
        """Return the options with one of them as a control now says.

        Not all are read from the controls: what :meth:`fill` was given may not have
        come there yet.
        """
        if isinstance(field, str):
            given = value or None if field == "parallel" else value
            changes: dict[str, Any] = {field: given}
            return replace(options, **changes)
        ticked = set(self.cards if options.gpus is None else options.gpus) - {field}
        if value:
            ticked.add(field)
        chosen = tuple(index for index in self.cards if index in ticked)
        return replace(options, gpus=None if len(chosen) == len(self.cards) else chosen)

    def fill(self, options: ServerOptions) -> None:
        """Have the controls say this."""
        change = self._outbox.set
        change(self.context, value=options.context_size)
        change(self.slots, value=options.parallel or 0)
        change(self.goal, value=options.goal)
        change(self.keys, value=options.cache_type_k)
        change(self.values, value=options.cache_type_v)
        change(self.flash, value=options.flash_attn)
        for index, box in self.cards.items():
            change(box, value=options.gpus is None or index in options.gpus)


def _card_box(w: Any, card: GPUInfo) -> Any:
    # ipywidgets 7 takes a description for HTML.
    name = printable(card.name).translate(dict.fromkeys(map(ord, "<>&"), "\ufffd"))
    return w.Checkbox(
        value=True,
        description=f"GPU {card.index}: {name}",
        indent=False,
        layout=w.Layout(width="auto", margin="2px 12px 2px 4px"),
    )
