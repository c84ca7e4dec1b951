"""The controls of a chat: system prompt and sampling, folded away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.widgets._chat_history import History
from llamatelemetry.widgets._outbox import Outbox

__all__ = ["DEFAULTS", "Controls"]

DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 40,
    "repeat_penalty": 1.1,
    "max_tokens": None,
    "seed": None,
    "thinking": None,
}
"""What is sampled with; the first four are the API reference's. None: max_tokens is
the room left, the seed a random one, thinking as the model does by itself."""

_WIDTH, _LABEL = "240px", "105px"
_THINKING = {"auto": None, "on": True, "off": False}
_MOST_SEED = 2**32 - 2  # llama-server's sign for a random one is the number after it
_Watch = Callable[[Any, Callable[[Any], object]], None]


class Controls:
    """Fills a history's system prompt and sampling from what the reader sets.

    Its ``box`` is hidden until ``shown``, a button to be put before it, is pressed.

    Args:
        toolkit: The module ipywidgets.
        history: What is asked with them.
        outbox: Where changes go.
    """

    def __init__(self, toolkit: Any, history: History, outbox: Outbox) -> None:
        self._w, self._history, self._outbox = toolkit, history, outbox
        sampling = history.sampling
        self._system = toolkit.Textarea(
            value=history.system,
            description="System prompt",
            placeholder="What the model is told before the conversation",
            continuous_update=False,
            rows=3,
            **self._looks("auto"),
        )
        self._numbers = {
            "temperature": self._number("Temperature", sampling["temperature"], 5, 0.1),
            "top_p": self._number("Top p", sampling["top_p"], 1, 0.05),
            "top_k": self._count("Top k", sampling["top_k"], 100_000),
            "repeat_penalty": self._number(
                "Repeat penalty", sampling["repeat_penalty"], 5, 0.05
            ),
        }
        self._limit = self._count(
            "Most tokens (0: the room left)",
            sampling["max_tokens"] or 0,
            10_000_000,
            "300px",
            "initial",
        )
        self._seed, self._thinking = self._other_two(sampling)
        flow = toolkit.Layout(flex_flow="row wrap", width="100%")
        controls = [*self._numbers.values(), self._seed, self._thinking, self._limit]
        self.box = toolkit.VBox(
            [self._system, toolkit.Box(controls, layout=flow)],
            layout=toolkit.Layout(display="none"),
        )
        # No Accordion: its title cannot be reached with the keyboard.
        self.shown = toolkit.ToggleButton(
            description="System prompt and sampling",
            tooltip="Show or hide what the model is asked with",
            layout=toolkit.Layout(width="auto"),
        )

    def watch(self, on_change: _Watch) -> None:
        """Take what is set from now on.

        Args:
            on_change: Calls a function with a widget's new value.
        """
        on_change(self.shown, self._reveal)
        on_change(self._system, lambda text: setattr(self._history, "system", text))
        for name, widget in self._numbers.items():
            on_change(widget, partial(self._history.sampling.__setitem__, name))
        on_change(self._limit, lambda tokens: self._set("max_tokens", tokens or None))
        on_change(self._seed, lambda text: self._set("seed", _seed(text)))
        on_change(self._thinking, lambda word: self._set("thinking", _THINKING[word]))

    def _reveal(self, shown: bool) -> None:
        self._outbox.set(self.box.layout, display=None if shown else "none")

    def _set(self, name: str, value: object) -> None:
        self._history.sampling[name] = value

    def _other_two(self, sampling: Mapping[str, Any]) -> tuple[Any, Any]:
        seed = self._w.Text(
            value="" if sampling["seed"] is None else str(sampling["seed"]),
            description="Seed",
            placeholder="random",
            continuous_update=False,
            **self._looks(_WIDTH),
        )
        words = {value: word for word, value in _THINKING.items()}
        thinking = self._w.Dropdown(
            options=list(_THINKING),
            value=words[sampling["thinking"]],
            description="Thinking",
            **self._looks(_WIDTH),
        )
        return seed, thinking

    def _number(self, label: str, value: float, most: float, step: float) -> Any:
        return self._w.BoundedFloatText(
            value=value,
            min=0,
            max=most,
            step=step,
            description=label,
            **self._looks(_WIDTH),
        )

    def _count(
        self,
        label: str,
        value: int,
        most: int,
        width: str = _WIDTH,
        label_width: str = _LABEL,
    ) -> Any:
        looks = self._looks(width, label_width)
        return self._w.BoundedIntText(
            value=value, min=0, max=most, description=label, **looks
        )

    def _looks(self, width: str, label_width: str = _LABEL) -> dict[str, Any]:
        return {
            "style": {"description_width": label_width},
            "layout": self._w.Layout(width=width),
        }


def _seed(text: str) -> int | None:
    """Return the seed that was written; None for a random one.

    Raises:
        ConfigurationError: It is no whole number that can be one.
    """
    written = text.strip()
    if not written:
        return None
    if not (written.isascii() and written.isdigit() and int(written) <= _MOST_SEED):
        raise ConfigurationError(
            "a seed is a whole number from 0 on, or empty for a random one; the one "
            "before is kept"
        )
    return int(written)
