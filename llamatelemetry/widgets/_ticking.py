"""A Play widget that ticks in the page, for where only handlers' changes are shown.

What its front ends do was read in their sources and seen in Chromium, with ipywidgets
8.1.9 and 7.7.1; Colab's own was not tried. In 8 the view begins when ``playing``
becomes true, which it must do after the view is there. In 7 nothing begins but by a
click on its button, so the row is shown, a script clicks, and the first tick hides it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

__all__ = ["make_ticking"]

_MILLISECONDS = 250
_MOST_TICKS = 10**6  # some three days

_CLICK = (
    "var tries=0,timer=setInterval(function(){"
    "var button=document.querySelector('.%s button');"
    "if(button){button.click();clearInterval(timer)}"
    "else if(++tries>50)clearInterval(timer)},100)"
)


def make_ticking(toolkit: Any, tick: Callable[[], object]) -> list[Any]:
    """Return what a panel needs to tick four times a second while it is on a page.

    Args:
        toolkit: The module ipywidgets.
        tick: Called at each tick, in the thread of the kernel's handlers.
    """
    play = toolkit.Play(min=0, max=_MOST_TICKS, step=1, value=0, interval=_MILLISECONDS)
    play.observe(lambda _: tick(), names="value")
    if play.has_trait("playing"):
        _begin_when_shown(play)
        return [play]
    return [_row_to_click(toolkit, play)]


def _begin_when_shown(play: Any) -> None:
    """Have it play from when a page shows it; ipywidgets 8."""
    play.layout.display = "none"
    play._view_count = 0  # noqa: SLF001 -- a trait: pages count their views from now on

    def shown(change: Any) -> None:
        if change["new"] > change["old"] and not play.playing:
            play.playing = True

    play.observe(shown, names="_view_count")


def _row_to_click(toolkit: Any, play: Any) -> Any:
    """Return the button with what clicks it, to be hidden by the first tick."""
    mark = f"llamatelemetry-tick-{uuid4().hex}"
    play.add_class(mark)
    # Constant but for the mark, which is hexadecimal: nothing foreign gets in here.
    script = f'<img src="data:," alt="" style="display:none" onerror="{_CLICK % mark}">'
    said = toolkit.HTML(f"Press ▶ once, if nothing moves by itself.{script}")
    row = toolkit.HBox([play, said])

    def hide(_: Any) -> None:
        row.layout.display = "none"
        play.unobserve(hide, names="value")

    play.observe(hide, names="value")
    return row
