"""The one door to ipywidgets and IPython, and which way of showing panels works here.

Four ways, the first that works is taken unless one is named:

- **threads**: widgets whose values are assigned from threads. JupyterLab, Kaggle,
  VS Code.
- **ticks**: a hidden Play widget ticks in the page; what threads want to show is
  assigned when its tick is handled. Colab, where what a thread assigns is not shown
  (https://github.com/googlecolab/colabtools/issues/3373). Not tried there yet.
- **loop**: the panel lives while ``panel.run()`` does, in the cell.
- **text**: no widgets; a text, and a picture. Kaggle's saved runs, a plain terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args

from llamatelemetry._environment import detect_platform
from llamatelemetry.exceptions import ConfigurationError, SetupError

__all__ = [
    "Mode",
    "choose_mode",
    "display",
    "kernel",
    "view_of",
    "widgets",
    "with_tooltip",
]

Mode = Literal["threads", "ticks", "loop", "text"]

MODES: tuple[Mode, ...] = get_args(Mode)
_VIEW = "application/vnd.jupyter.widget-view+json"


def widgets() -> Any:
    """Return the module ipywidgets, 7.7 or 8.

    Raises:
        SetupError: It is missing, or the kernel is one that panels cannot work on.
    """
    try:
        import ipywidgets  # noqa: PLC0415 -- slow, and only for panels
    except ImportError as error:
        raise SetupError(
            'panels are made of ipywidgets, which is missing: pip install "ipywidgets"'
        ) from error
    if kernel() is not None:
        _refuse_broken_kernel()
    return ipywidgets


def _refuse_broken_kernel() -> None:
    """Refuse ipykernel 7.0, where no thread can change a widget.

    https://github.com/ipython/ipykernel/issues/1450: LookupError, mended in 7.1.
    """
    version = str(getattr(sys.modules.get("ipykernel"), "__version__", ""))
    if version.startswith("7.0."):
        raise SetupError(
            f"this notebook's kernel is ipykernel {version}, in which no thread can "
            'change a widget, so panels stand still; pip install "ipykernel>=7.1" (or '
            '"ipykernel<7"), restart the kernel, and run this again'
        )


def kernel() -> Any:
    """Return the notebook kernel that runs this program; None if none does."""
    # Where IPython was not imported, it is not what runs this.
    interactive = sys.modules.get("IPython")
    shell = None if interactive is None else interactive.get_ipython()
    return getattr(shell, "kernel", None)


def choose_mode(mode: Mode | None = None) -> Mode:
    """Return how panels are shown: as the caller says, else as it works here.

    Raises:
        ConfigurationError: There is no such way.
    """
    if mode is not None:
        if mode not in MODES:
            raise ConfigurationError(
                f"mode={mode!r} is none of {', '.join(map(repr, MODES))}"
            )
        return mode
    platform = detect_platform()
    if kernel() is None or platform.mode in ("batch", "rerun"):
        return "text"
    try:
        import ipywidgets  # noqa: F401, PLC0415 -- only whether it is there
    except ImportError:
        return "text"
    return "ticks" if platform.name == "colab" else "threads"


def with_tooltip(widget: Any, text: str) -> Any:
    """Give a control that has a description a tooltip, and return it.

    Before ipywidgets 8 only buttons had one of this name, and the pages of 8 fail at
    one of a widget without a description, such as an image.
    """
    name = "tooltip" if widget.has_trait("tooltip") else "description_tooltip"
    setattr(widget, name, text)
    return widget


def view_of(widget: Any) -> dict[str, object]:
    """Return what makes a notebook show a widget, as a part of a MIME bundle."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {_VIEW: view}


def display(
    data: Mapping[str, object], *, name: str | None = None, update: bool = False
) -> None:
    """Show a MIME bundle as output of the running cell.

    Args:
        data: The bundle.
        name: A name under which it can be shown anew.
        update: Show it where that name was shown before.
    """
    from IPython.display import display as show  # noqa: PLC0415 -- only in a kernel

    options = {} if name is None else {"display_id": name, "update": update}
    show(dict(data), raw=True, **options)  # type: ignore[no-untyped-call]
